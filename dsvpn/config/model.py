"""Every key of the configuration, with its meaning, its unit and its default."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from dsvpn.addresses import Address
from dsvpn.commands import MAX_GROUP, MAX_RESOURCE
from dsvpn.config.authorize import Authorize
from dsvpn.config.fields import (
    AddressField,
    Duration,
    GreKey,
    HostField,
    InterfaceField,
    PerResource,
    PrefixField,
    listed,
    parse_address,
)
from dsvpn.errors import MisuseError
from dsvpn.ike.identity import parse_remote_identity
from dsvpn.ike.suites import parse_esp_suite, parse_ike_suite

#: Linux keeps interface names in 16 octets, the terminating zero included.
_MAX_INTERFACE_NAME = 15
_INTERFACE_NAME = re.compile(r"[^\s/:]+")
#: Cisco's authentication string, which every DSVPN and DMVPN gateway shares.
_MAX_AUTHENTICATION = 8
#: Counters are read every few seconds: a limit that full speed reaches in between is one that only deletes.
_MIN_LIFETIME_BYTES = 1_000_000
_MIN_LIFETIME_PACKETS = 1000
#: The new IKE SA is made, and the old one kept beside it for a while, in a tenth of this.
_MIN_REAUTHENTICATION = 60.0


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)


class HalfOpenSection(_Section):
    """`half_open` of the gateway: what strangers who call by IKE can make it remember (RFC 7296 section 2.6)."""

    total: int = Field(default=2000, ge=1, le=100_000)
    """Half-open IKE SAs at a time; the oldest makes room."""
    per_address: int = Field(default=100, ge=1, le=100_000)
    """Of one remote address; further calls get no answer."""
    cookie_threshold: int = Field(default=100, ge=0, le=100_000)
    """From so many on, a caller gets a cookie and nothing else until he brings it back; 0: always."""
    cookie_threshold_per_address: int = Field(default=10, ge=0, le=100_000)
    """The same, for those of one remote address."""

    @model_validator(mode="after")
    def _thresholds_are_within(self) -> Self:
        if self.per_address > self.total:
            raise ValueError(f"per_address {self.per_address} is beyond total {self.total}; write at most {self.total}")
        if self.cookie_threshold > self.total:
            raise ValueError(
                f"cookie_threshold {self.cookie_threshold} is beyond total {self.total}; write at most {self.total}"
            )
        if self.cookie_threshold_per_address > self.per_address:
            raise ValueError(
                f"cookie_threshold_per_address {self.cookie_threshold_per_address} is beyond per_address "
                f"{self.per_address}; write at most {self.per_address}"
            )
        return self


class GatewayConfig(_Section):
    """[gateway]: the process as a whole."""

    name: str = Field(min_length=1, max_length=63)
    """What peers and operators call this gateway; the default IKE identity."""
    control_socket: Path | None = None
    """Unix socket that `dsvpn show` talks to. Default: /run/dsvpn/NAME.sock."""
    state_directory: Path | None = None
    """What has to survive a restart. Default: /var/lib/dsvpn/NAME."""
    driver: Literal["auto", "uvloop", "workers"] = "auto"
    """Who drains the descriptors: the event loop, or native threads."""
    worker_threads: Literal["auto", 1, 2, 4, 6, 8, 10, 12, 14, 16] = "auto"
    """One native thread for both directions, one for each, or several for each."""
    key_log: Path | None = None
    """Directory for Wireshark's key tables. Whoever reads it can decrypt everything: for debugging only."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["console", "json"] = "console"
    half_open: HalfOpenSection = HalfOpenSection()
    underlay_vrf: str | None = Field(default=None, min_length=1, max_length=_MAX_INTERFACE_NAME)
    """The VRF that the gateway speaks to its peers in. Default: none, the main table."""

    @field_validator("name")
    @classmethod
    def _name_is_a_word(cls, value: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9._-]+", value) or value.startswith("."):
            raise ValueError(f'{value!r} is no gateway name; write letters, digits, "-", "_" and "." as in "spoke1"')
        return value

    @property
    def state_directory_path(self) -> Path:
        """Where state is kept over restarts."""
        return self.state_directory or Path("/var/lib/dsvpn") / self.name

    @property
    def control_socket_path(self) -> Path:
        """Where the control socket is."""
        return self.control_socket or Path("/run/dsvpn") / f"{self.name}.sock"


class _Station(_Section):
    protocol: AddressField
    """The other gateway's tunnel address."""
    identity: str | None = None
    """Who it has to be in IKE, with "*" for several. Default: whoever is there when this gateway calls."""

    @field_validator("identity")
    @classmethod
    def _identity_is_one(cls, value: str | None) -> str | None:
        try:
            if value is not None:
                parse_remote_identity(value)
        except MisuseError as error:
            raise ValueError(str(error)) from None
        return value


class MapSection(_Station):
    """One entry of `map`: a static mapping."""

    nbma: AddressField
    """Its public address."""


class NhsSection(_Station):
    """One entry of `nhs`: a Next Hop Server to register with."""

    nbma: HostField
    """Its public address, or a DNS name, which is looked up again and again."""
    priority: int = Field(default=0, ge=0, le=255)
    """0 is preferred."""


def _multicast(value: object) -> object:
    if isinstance(value, list):
        return tuple(parse_address(item) for item in value)
    return value


class NhrpSection(_Section):
    """[tunnel.NAME.nhrp]"""

    authentication: str | None = None
    """Cisco plaintext authentication, the same on every gateway of the network; at most 8 octets."""
    holding_time: Duration = Field(default=7200.0, ge=3, le=65535)
    """How long others may keep this gateway's mapping, seconds. Registrations are renewed three times in it."""
    shortcut: bool = False
    """Follow redirects: resolve the destination and go to it directly."""
    redirect: bool = False
    """Tell a peer whose packets leave by the tunnel they came from that there is a direct path (hubs)."""
    multicast: Annotated[Literal["none", "dynamic", "nhs"] | tuple[Address, ...], BeforeValidator(_multicast)] = "none"
    """Who gets a copy of multicast packets: every registered peer, the NHSs, or the NBMA addresses in a list."""
    unique: bool = False
    """Ask the NHS to bind the tunnel address to this NBMA address alone (RFC 2332 section 5.2.3, U bit)."""
    nhs_probe: Duration = Field(default=0.5, ge=0, le=60)
    """With several NHSs: one that is silent for so long is probed, and again after each such time, seconds; 0 never."""
    nhs_probe_tries: int = Field(default=3, ge=1, le=20)
    """Unanswered probes in a row after which traffic goes by another NHS."""
    nhs_fallback: Duration = Field(default=10.0, ge=0, le=3600)
    """An NHS that has failed gets its traffic back after it has been well for so long, seconds."""
    nhs: tuple[NhsSection, ...] = ()
    map: tuple[MapSection, ...] = ()

    @field_validator("authentication")
    @classmethod
    def _authentication_fits(cls, value: str | None) -> str | None:
        if value is not None and not 1 <= len(value.encode()) <= _MAX_AUTHENTICATION:
            raise ValueError("Cisco's form takes 1 to 8 octets; write a shorter word")
        return value


def _via(value: object) -> object:
    if not isinstance(value, list):
        return parse_address(value)
    if not 1 <= len(value) <= MAX_GROUP:
        raise ValueError(f"{len(value)} gateways; write 1 to {MAX_GROUP}")
    gateways = tuple(dict.fromkeys(parse_address(item) for item in value))
    return gateways[0] if len(gateways) == 1 else gateways


class RouteSection(_Section):
    """One entry of `routes`: a static route into the tunnel, made when it comes up."""

    prefix: PrefixField
    via: Annotated[Address | tuple[Address, ...], BeforeValidator(_via)]
    """Tunnel address of the gateway that has the prefix (a hub's for a summary), or of several, over which flows are
    distributed."""

    @property
    def gateways(self) -> tuple[Address, ...]:
        """`via` as a list."""
        return self.via if isinstance(self.via, tuple) else (self.via,)

    @model_validator(mode="after")
    def _one_family(self) -> Self:
        for gateway in self.gateways:
            if self.prefix.version != gateway.version:
                raise ValueError(f"{self.prefix} and {gateway} are of different families; write both in one")
        return self


class TunnelConfig(_Section):
    """[tunnel.NAME]: one DSVPN network that this gateway is in. NAME becomes the TUN device's name."""

    address: Annotated[tuple[InterfaceField, ...], BeforeValidator(listed), Field(min_length=1)]
    """This gateway's tunnel addresses."""
    source: str
    """Underlay interface or address. The address of an interface may change."""
    key: GreKey | None = None
    """GRE key, the same on every gateway of the network."""
    ipsec: str = "default"
    """Name of the [ipsec.NAME] profile that protects the tunnel, or "none"."""
    mtu: int | None = Field(default=None, ge=576, le=65000)
    """Largest inner packet, octets. Default: what fits the source interface's MTU."""
    mss_clamp: bool = True
    """Lower the MSS of TCP connections to what fits."""
    copy_dscp: bool = True
    """Copy the inner DSCP to the outer header."""
    df: Literal["set", "clear"] = "set"
    """The DF bit of outer packets."""
    routes: tuple[RouteSection, ...] = ()
    authorize: Authorize = {}
    """By identity ("*.example.net" for several): the tunnel addresses and prefixes that a peer may claim by NHRP."""
    source_check: Literal["strict", "off"] = "strict"
    """"strict": drop packets of a peer from addresses that are not its own. Without IPsec nothing is checked."""
    vrf: str | None = Field(default=None, min_length=1, max_length=_MAX_INTERFACE_NAME)
    """The VRF that the tunnel's device and routes are in. Default: none, the main table."""
    guard: bool = True
    """Keep unreachable routes below the tunnel's, so that packets do not leave in clear after a crash."""
    nhrp: NhrpSection = NhrpSection()

    @property
    def addresses(self) -> tuple[InterfaceField, ...]:
        """The tunnel addresses with their prefix lengths."""
        return self.address

    @property
    def protected(self) -> bool:
        """Whether IPsec protects the tunnel."""
        return self.ipsec != "none"

    @property
    def checks_sources(self) -> bool:
        """Whether inner sources are checked: only what comes out of an SA is known to be of somebody."""
        return self.protected and self.source_check == "strict"

    @property
    def source_address(self) -> Address | None:
        """`source` if it is an address, None if it names an interface."""
        try:
            return parse_address(self.source)
        except ValueError:
            return None

    @field_validator("source")
    @classmethod
    def _source_is_one(cls, value: str) -> str:
        try:
            parse_address(value)
        except ValueError:
            if len(value) > _MAX_INTERFACE_NAME or not _INTERFACE_NAME.fullmatch(value):
                raise ValueError(
                    f'{value!r} is neither an address nor an interface name; write one like "eth0" or "192.0.2.11"'
                ) from None
        return value

    @model_validator(mode="after")
    def _identities_are_proved(self) -> Self:
        if self.authorize and not self.protected:
            raise ValueError('authorize goes by identity, and ipsec = "none" proves none; write the name of a profile')
        if not self.protected and any(entry.identity for entry in (*self.nhrp.nhs, *self.nhrp.map)):
            raise ValueError('ipsec = "none" proves no identity; leave identity out, or write the name of a profile')
        return self

    @model_validator(mode="after")
    def _families_fit(self) -> Self:
        families = {interface.version for interface in self.address}
        entries: tuple[_Station, ...] = (*self.nhrp.nhs, *self.nhrp.map)
        for entry in entries:
            if entry.protocol.version not in families:
                raise ValueError(f"the tunnel has no address of {entry.protocol}'s family; add one to address")
            if any(entry.protocol == interface.ip for interface in self.address):
                raise ValueError(f"{entry.protocol} is this gateway's own tunnel address; write the other gateway's")
        return self


class RetransmissionSection(_Section):
    """`retransmission` of a profile: when an unanswered IKE request is sent again."""

    timeout: Duration = Field(default=0.5, ge=0.05, le=60)
    """Wait before the first retransmission, seconds."""
    factor: float = Field(default=1.7, ge=1, le=4)
    """Each wait is this much longer than the one before."""
    limit: Duration = Field(default=8.0, ge=0.05, le=600)
    """No wait is longer, seconds."""
    tries: int = Field(default=7, ge=1, le=20)
    """Times a request is sent in all before the peer counts as dead."""


class PskFile(_Section):
    """`psk = { file = "..." }`"""

    file: Path
    """Path of the key, relative to the configuration file. One trailing newline is not part of the key."""


class AuthConfig(_Section):
    """[ipsec.NAME.auth]: who we are and whom we believe."""

    psk: PskFile | str | None = None
    """The pre-shared key, in a file of its own or (readable to all who read the configuration) here."""
    psks: dict[str, PskFile | str] = {}
    """Keys of single peers by identity ("*.example.net" for several), before `psk`."""
    certificate: Path | None = None
    """Our certificate, PEM or DER; in PEM, intermediate CAs may follow it."""
    private_key: Path | None = None
    ca: Annotated[tuple[Path, ...], BeforeValidator(listed)] = ()
    """Certificates of the CAs whose peers we believe."""
    crl: Annotated[tuple[str, ...], BeforeValidator(listed)] = ()
    """Revocation lists: files, or http:// and https:// URLs that are fetched."""
    crl_policy: Literal["if-present", "require"] = "if-present"
    """What to do with a peer whose CA has no current list here: take it, or refuse it."""
    rsa_signature: Literal["pss", "pkcs1"] = "pss"
    """How an RSA key signs towards a peer that knows RFC 7427."""
    local_identity: str | None = None
    """What we call ourselves in IKE. Default: the gateway's name, or with a certificate that does not carry it, what
    the certificate carries."""
    remote_identity: str | None = None
    """Whom we talk to, with "*" for several; default: anyone who proves itself."""

    @model_validator(mode="after")
    def _proves_something(self) -> Self:
        together = {"certificate": self.certificate, "private_key": self.private_key, "ca": self.ca}
        missing = [name for name, value in together.items() if not value]
        if missing and len(missing) < len(together):
            given = next(name for name, value in together.items() if value)
            raise ValueError(f"{given} is of no use without {missing[0]}; write {' and '.join(missing)} too")
        if self.psk is None and not self.psks and self.certificate is None:
            raise ValueError(
                'there is nothing to prove who we are; write psk = { file = "psk" }, or certificate, private_key and ca'
            )
        if self.crl and not self.ca:
            raise ValueError("crl is of no use without certificates; write certificate, private_key and ca too")
        return self


class PpkSection(_Section):
    """`ppk` of a profile: a post-quantum preshared key (RFC 8784)."""

    id: str = Field(min_length=1, max_length=64)
    """What both ends call it."""
    file: Path
    """Path of the key, relative to the configuration file. One trailing newline is not part of the key."""
    required: bool = False
    """Rather no connection than one without it."""


class IpsecConfig(_Section):
    """[ipsec.NAME]: a profile, bound to tunnels by their `ipsec` key."""

    mode: Literal["transport", "tunnel"] = "transport"
    """"transport": works with NAT. "tunnel": GRE has an IP header of its own inside ESP; for paths without NAT."""
    encapsulation: Literal["auto", "udp"] = "auto"
    """"auto": ESP in UDP where there is a NAT, else protocol 50. "udp": always in UDP (faster: it has offloads)."""
    ike: Annotated[tuple[str, ...], BeforeValidator(listed), Field(min_length=1)] = (
        "aes256gcm16-prfsha384-x25519-ke1_mlkem768",
        "aes128gcm16-prfsha256-x25519",
        "aes256gcm16-prfsha384-ecp384",
        "chacha20poly1305-prfsha256-x25519",
        "aes128gcm16-prfsha256-ecp256",
        "aes128gcm16-prfsha256-modp2048",
    )
    esp: Annotated[tuple[str, ...], BeforeValidator(listed), Field(min_length=1)] = (
        "aes128gcm16",
        "aes256gcm16",
        "chacha20poly1305",
    )
    ike_lifetime: Duration = Field(default=14400.0, ge=10)
    """Age at which an IKE SA is rekeyed at the latest, seconds."""
    child_lifetime: Duration = Field(default=3600.0, ge=10)
    """Age at which a CHILD_SA is rekeyed at the latest, seconds."""
    child_lifetime_bytes: int = Field(default=0, ge=0)
    """Octets in either direction at which a CHILD_SA is deleted, after a rekey some time before; 0 is no limit."""
    child_lifetime_packets: int = Field(default=0, ge=0)
    """The same in packets."""
    reauthentication: Duration = Field(default=0.0, ge=0)
    """Age at which the peer has to prove itself anew at the latest, seconds; 0: as long as its certificate is valid."""
    childless: Literal["never", "allow", "prefer"] = "allow"
    """IKE_AUTH without CHILD_SA, which follows on its own (RFC 6023): not at all, if the peer calls so, or whenever the
    peer takes it."""
    dpd: Duration = Field(default=20.0, ge=0)
    """Silence after which the peer is asked whether it lives, seconds; 0 never asks. Traffic from the peer is life;
    where packets go there and none comes back, it is asked after half of this."""
    fragment_size: int = Field(default=1280, ge=576, le=65535)
    """Octets of the largest IP datagram that a long IKE message goes in; a longer one is sent in fragments."""
    replay_window: int = Field(default=1024, ge=0, le=8192)
    """Packets, in steps of 64; 0 turns the check off."""
    esn: bool | None = None
    """Extended (64-bit) sequence numbers (RFC 4303 section 2.2.1): true takes them where the peer has them,
    false never. Default: true, unless `replay_window` is 0."""
    per_resource_sas: PerResource = "auto"
    """CHILD_SAs that this end wants with a peer beside the first, each for one more worker to seal with (RFC 9611).
    "auto": as many as there are further workers that encapsulate."""
    per_resource_limit: int = Field(default=MAX_RESOURCE + 1, ge=1, le=MAX_RESOURCE + 1)
    """CHILD_SAs side by side that this end takes in all; 1 is no more than the first."""
    keepalive: Duration = Field(default=20.0, ge=0, le=3600)
    """How often the binding of a NAT before us is refreshed (RFC 3948 section 4), seconds; 0 never does. 20 s is under
    the shortest UDP timers of common NATs."""
    retransmission: RetransmissionSection = RetransmissionSection()
    ppk: Annotated[tuple[PpkSection, ...], BeforeValidator(listed)] = ()
    """Post-quantum preshared keys: a caller uses the first, the called one that which the caller names."""
    mobike: bool = True
    """Keep the SAs when either end's address changes (RFC 4555). IKE goes to port 4500 then, NAT or not."""
    additional_addresses: Annotated[tuple[AddressField, ...], BeforeValidator(listed)] = ()
    """Addresses of this gateway that peers may try when the one they use does not answer."""
    nat: Literal["allow", "refuse"] = "allow"
    """"refuse": no SA whose messages a NAT has changed, with peers that have MOBIKE."""
    redirect_to: AddressField | None = None
    """The gateway that callers are handed on to (RFC 5685). Those that do not follow redirects are served here."""
    redirect_in: Literal["ike_auth", "ike_sa_init"] = "ike_auth"
    """When: once both have proved who they are, or at once, which costs less and which anybody can see and forge."""
    follow_redirects: Annotated[tuple[PrefixField, ...], BeforeValidator(listed)] = ()
    """Addresses and prefixes that this gateway lets itself be handed on to; none by default."""
    auth: AuthConfig

    @property
    def extended_sequence_numbers(self) -> bool:
        """`esn` with its default."""
        return self.replay_window > 0 if self.esn is None else self.esn

    @field_validator("keepalive")
    @classmethod
    def _keepalive_is_bearable(cls, value: float) -> float:
        if 0 < value < 1:
            raise ValueError(f'a keepalive every {value:g} s is a flood; write "1s" or more, or 0 for none')
        return value

    @field_validator("child_lifetime_bytes", "child_lifetime_packets")
    @classmethod
    def _limit_is_workable(cls, value: int, info: ValidationInfo) -> int:
        least = _MIN_LIFETIME_BYTES if info.field_name == "child_lifetime_bytes" else _MIN_LIFETIME_PACKETS
        if 0 < value < least:
            raise ValueError(f"{value} would be over before a rekey is; write at least {least}, or 0 for no limit")
        return value

    @field_validator("reauthentication")
    @classmethod
    def _time_to_reauthenticate(cls, value: float) -> float:
        if 0 < value < _MIN_REAUTHENTICATION:
            raise ValueError(f"{value:g} s is too short; write at least {_MIN_REAUTHENTICATION:g} s, or 0 for never")
        return value

    @model_validator(mode="after")
    def _esn_has_a_window(self) -> Self:
        if self.esn and not self.replay_window:
            # RFC 4303 section 3.3.3: the receiver needs the window to know the high half of a sequence number.
            raise ValueError("esn needs a replay window; write replay_window = 1024, or leave esn out")
        return self

    @model_validator(mode="after")
    def _takes_what_it_wants(self) -> Self:
        if self.per_resource_sas != "auto" and self.per_resource_sas >= self.per_resource_limit:
            raise ValueError(
                f"per_resource_sas {self.per_resource_sas} and the first are more than per_resource_limit "
                f"{self.per_resource_limit}; write per_resource_limit = {self.per_resource_sas + 1}, or "
                f"per_resource_sas = {self.per_resource_limit - 1}"
            )
        return self

    @model_validator(mode="after")
    def _tunnel_mode_goes_without_udp(self) -> Self:
        if self.mode == "tunnel" and self.encapsulation == "udp":
            raise ValueError(
                "tunnel mode cannot pass NAT, because NHRP does not learn post-NAT addresses in it, and "
                'encapsulation = "udp" pretends that there is one; write mode = "transport", or encapsulation = "auto"'
            )
        return self

    @field_validator("ppk")
    @classmethod
    def _ppk_ids_differ(cls, value: tuple[PpkSection, ...]) -> tuple[PpkSection, ...]:
        ids = [ppk.id for ppk in value]
        if len(set(ids)) != len(ids):
            raise ValueError("two of the keys have one id; write each id once")
        return value

    @field_validator("ike")
    @classmethod
    def _ike_suites(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        try:
            for text in value:
                parse_ike_suite(text)
        except MisuseError as error:
            raise ValueError(str(error)) from None
        return value

    @field_validator("esp")
    @classmethod
    def _esp_suites(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        try:
            for text in value:
                parse_esp_suite(text)
        except MisuseError as error:
            raise ValueError(str(error)) from None
        return value


class Config(_Section):
    """A whole configuration file."""

    gateway: GatewayConfig
    tunnel: dict[str, TunnelConfig] = Field(min_length=1)
    ipsec: dict[str, IpsecConfig] = {}
    materials: dict[str, Any] = Field(default={}, exclude=True)
    """What authenticates, by profile (`dsvpn.config.credentials.Material`); not a key of the file."""
    file: Path = Field(default=Path(), exclude=True)
    """Where this was read; not a key of the file."""
    psks: dict[str, bytes] = Field(default={}, exclude=True)
    """The pre-shared keys by profile, filled in when the file is loaded; not a key of the file."""
    ppks: dict[str, tuple[bytes, ...]] = Field(default={}, exclude=True)
    """The post-quantum preshared keys by profile, in the order of `ppk`; likewise."""

    @property
    def tunnels(self) -> dict[str, TunnelConfig]:
        """The tunnels by name."""
        return self.tunnel

    @field_validator("tunnel")
    @classmethod
    def _device_names(cls, value: dict[str, TunnelConfig]) -> dict[str, TunnelConfig]:
        for name in value:
            if len(name) > _MAX_INTERFACE_NAME or not _INTERFACE_NAME.fullmatch(name):
                raise ValueError(
                    f'{name!r} cannot name a device; write at most 15 letters and digits, as in "[tunnel.dsvpn0]"'
                )
        return value

    @model_validator(mode="after")
    def _profiles_exist(self) -> Self:
        for name, tunnel in self.tunnel.items():
            if tunnel.protected and tunnel.ipsec not in self.ipsec:
                known = ", ".join(f'"{profile}"' for profile in self.ipsec) or "there is none"
                raise ValueError(
                    f'tunnel.{name}.ipsec names the profile "{tunnel.ipsec}", which is not in the file ({known}); '
                    f'add [ipsec.{tunnel.ipsec}] or write ipsec = "none"'
                )
        return self

    @model_validator(mode="after")
    def _nobody_forces_udp_on_tunnel_mode(self) -> Self:
        forcing = [name for name, profile in self.ipsec.items() if profile.encapsulation == "udp"]
        tunnel_mode = [name for name, profile in self.ipsec.items() if profile.mode == "tunnel"]
        if forcing and tunnel_mode:
            # Which profile a caller means is known after NAT detection: what one forces, every caller gets.
            raise ValueError(
                f"ipsec.{forcing[0]} forces UDP encapsulation on every caller, and ipsec.{tunnel_mode[0]} is tunnel "
                f'mode, which cannot pass NAT; write encapsulation = "auto" in [ipsec.{forcing[0]}], or '
                f'mode = "transport" in [ipsec.{tunnel_mode[0]}]'
            )
        return self

    @model_validator(mode="after")
    def _tunnels_differ(self) -> Self:
        seen: dict[tuple[bool, int | None], str] = {}
        for name, tunnel in self.tunnel.items():
            mark = (tunnel.protected, tunnel.key)
            if mark in seen:
                raise ValueError(
                    f"tunnel.{seen[mark]} and tunnel.{name} have the same key, so their packets cannot be told apart; "
                    "give each tunnel a key of its own"
                )
            seen[mark] = name
        return self
