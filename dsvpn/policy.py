"""Policy: what the configuration means for IPsec, MTU and for who calls whom."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from dsvpn.addresses import Address, Prefix
from dsvpn.commands import Encapsulation
from dsvpn.config.credentials import Material
from dsvpn.config.model import Config, GatewayConfig, IpsecConfig, TunnelConfig
from dsvpn.ike.half_open import HalfOpenLimits
from dsvpn.ike.ppk import Ppk
from dsvpn.ike.profile import IkeProfile, RetransmissionSchedule
from dsvpn.ike.suites import EspSuite, parse_esp_suite, parse_ike_suite

#: Underlay MTU that is assumed where the source interface does not tell one.
DEFAULT_UNDERLAY_MTU = 1500

_IP_HEADER = {4: 20, 6: 40}
_UDP_HEADER = 8
_GRE_HEADER = 4
_GRE_KEY = 4
#: SPI and sequence number.
_ESP_HEADER = 8
#: Pad length and next header.
_ESP_TRAILER = 2
#: Ciphers work on blocks of 16 octets: a full packet whose plaintext is a multiple seals and opens fastest.
_CIPHER_BLOCK = 16

#: Spokes that resolve each other at once would both initiate: the one with the higher protocol address waits so long.
SECOND_CALLER_DELAY = 0.3
#: A peer behind NAT usually cannot be reached before it has called: it is given so long to do it.
NATED_CALLEE_DELAY = 2.0


def half_open_limits(config: GatewayConfig) -> HalfOpenLimits:
    """The `half_open` of a [gateway] section."""
    section = config.half_open
    return HalfOpenLimits(
        total=section.total,
        per_address=section.per_address,
        cookie_threshold=section.cookie_threshold,
        cookie_threshold_per_address=section.cookie_threshold_per_address,
    )


def ike_profile(
    name: str, ipsec: IpsecConfig, material: Material, ppks: Sequence[bytes] = (), encap_workers: int = 1
) -> IkeProfile:
    """The IKE profile of an [ipsec.NAME] section; `ppks` are the keys of its `ppk`, in that order. `encap_workers`: how
    many workers of this gateway seal."""
    schedule = ipsec.retransmission
    return IkeProfile(
        name=name,
        ike=tuple(parse_ike_suite(text) for text in ipsec.ike),
        esp=tuple(parse_esp_suite(text) for text in ipsec.esp),
        psk=material.psk,
        psks=material.psks,
        credentials=material.credentials,
        trust=material.trust,
        local_identity=material.local_identity,
        remote_identity=material.remote_identity,
        fragment_size=ipsec.fragment_size,
        force_udp_encapsulation=ipsec.encapsulation == "udp",
        ike_lifetime=ipsec.ike_lifetime,
        child_lifetime=ipsec.child_lifetime,
        child_bytes=ipsec.child_lifetime_bytes,
        child_packets=ipsec.child_lifetime_packets,
        reauthentication=ipsec.reauthentication,
        childless=ipsec.childless,
        dpd_interval=ipsec.dpd,
        retransmission=RetransmissionSchedule(
            timeout=schedule.timeout,
            factor=schedule.factor,
            cap=max(schedule.limit, schedule.timeout),
            tries=schedule.tries,
        ),
        replay_window=ipsec.replay_window,
        # The inner addresses of tunnel mode are what its traffic selectors name: they cannot move.
        mobike=ipsec.mobike and ipsec.mode == "transport",
        additional_addresses=ipsec.additional_addresses,
        redirect_to=ipsec.redirect_to,
        redirect_early=ipsec.redirect_in == "ike_sa_init",
        follow_redirects=ipsec.follow_redirects,
        prohibit_nat=ipsec.nat == "refuse",
        tunnel_mode=ipsec.mode == "tunnel",
        esn=ipsec.extended_sequence_numbers,
        per_resource_sas=min(encap_workers - 1, ipsec.per_resource_limit - 1)
        if ipsec.per_resource_sas == "auto"
        else ipsec.per_resource_sas,
        per_resource_limit=ipsec.per_resource_limit,
        ppks=tuple(
            Ppk(section.id.encode(), key, section.required) for section, key in zip(ipsec.ppk, ppks, strict=True)
        ),
    )


def esp_encapsulation(ipsec: IpsecConfig, udp: bool) -> Encapsulation:
    """How the packets of a CHILD_SA of this profile go; `udp` is what IKE found out."""
    if udp:
        return "udp"
    return "esp-tunnel" if ipsec.mode == "tunnel" else "esp"


@lru_cache(maxsize=256)
def inner_mtu(
    underlay_mtu: int, version: int, encapsulation: Encapsulation, key: int | None, transform: str = "aes128gcm16"
) -> int:
    """The largest inner packet, octets, whose outer packet of IP `version` fits `underlay_mtu`. `transform` is what the
    data plane calls the ESP suite (`EspSuite.transform`); all AEADs take the same room."""
    gre = _GRE_HEADER + (0 if key is None else _GRE_KEY)
    if encapsulation == "gre":
        return underlay_mtu - _IP_HEADER[version] - gre
    suite = parse_esp_suite(transform)
    plaintext = _plaintext(underlay_mtu, version, encapsulation, suite)
    if encapsulation == "esp-tunnel":
        # GRE has an IP header of its own inside.
        gre += _IP_HEADER[version]
    return plaintext - plaintext % suite.block_length - _ESP_TRAILER - gre


def tunnel_mtu(tunnel: TunnelConfig, underlay_mtu: int, version: int = 4, ipsec: IpsecConfig | None = None) -> int:
    """The MTU of a tunnel's device: as configured, or what fits with every encapsulation and ESP suite the tunnel may
    use. `ipsec` is its profile; without it, it is one of AEADs."""
    if tunnel.mtu is not None:
        return tunnel.mtu
    if not tunnel.protected:
        return inner_mtu(underlay_mtu, version, "gre", tunnel.key)
    gre = _GRE_HEADER + (0 if tunnel.key is None else _GRE_KEY)
    if ipsec is not None and ipsec.mode == "tunnel":
        gre += _IP_HEADER[version]
    suites = [parse_esp_suite(text) for text in (("aes128gcm16",) if ipsec is None else ipsec.esp)]
    # Tunnel mode goes without UDP; in transport mode it depends on the path.
    encapsulation = esp_encapsulation(ipsec, udp=ipsec.mode == "transport") if ipsec is not None else "udp"
    plaintext = min(_plaintext(underlay_mtu, version, encapsulation, suite) for suite in suites)
    return plaintext - plaintext % _CIPHER_BLOCK - _ESP_TRAILER - gre


def _plaintext(underlay_mtu: int, version: int, encapsulation: Encapsulation, suite: EspSuite) -> int:
    udp = _UDP_HEADER if encapsulation == "udp" else 0
    return underlay_mtu - _IP_HEADER[version] - udp - _ESP_HEADER - suite.iv_length - suite.icv_length


def guarded_prefixes(config: Config, vrf: str | None = None) -> set[Prefix]:
    """The prefixes that must not be reached in clear when this gateway is gone: the own ones
    of the tunnels in a VRF (None: in none) and their `routes`.

    A default route is left out, and so is a prefix that covers the public address of a gateway: without the tunnel,
    that address has to be reachable for the tunnel to be made.
    """
    found: set[Prefix] = set()
    for tunnel in config.tunnels.values():
        if not tunnel.guard or tunnel.vrf != vrf:
            continue
        outside = [entry.nbma for entry in tunnel.nhrp.map] + [tunnel.source_address]
        outside += [entry.nbma for entry in tunnel.nhrp.nhs if not isinstance(entry.nbma, str)]
        prefixes: list[Prefix] = [interface.network for interface in tunnel.addresses]
        prefixes += [route.prefix for route in tunnel.routes]
        found.update(
            prefix
            for prefix in prefixes
            if prefix.prefixlen and not any(address is not None and address in prefix for address in outside)
        )
    return found


def call_delay(own: Address, peer: Address, local_nat: bool, peer_nat: bool) -> float:
    """How long to leave it to `peer` to initiate IKE first, seconds.

    Both ends of a new shortcut learn of each other at about the same time. One that is behind NAT calls at once, for
    nobody can call it; of two equals, the lower protocol address calls at once.
    """
    if peer_nat and not local_nat:
        return NATED_CALLEE_DELAY
    if local_nat and not peer_nat:
        return 0.0
    return SECOND_CALLER_DELAY if own.packed > peer.packed else 0.0
