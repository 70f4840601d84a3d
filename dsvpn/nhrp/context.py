"""What the parts of one NHRP engine share: configuration, tables, and the ways out."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from ipaddress import IPv4Interface, IPv6Interface

from dsvpn.addresses import Address
from dsvpn.errors import DecodeError, MisuseError
from dsvpn.nhrp.authentication import sign
from dsvpn.nhrp.authorization import Authorization
from dsvpn.nhrp.cache import Mapping, MappingCache
from dsvpn.nhrp.config import NhrpConfig, Route
from dsvpn.nhrp.denials import Denials
from dsvpn.nhrp.events import DeniedAction, Event
from dsvpn.nhrp.limits import ERROR_BURST, ERROR_RATE, MAX_PARKED, PARKED_TIME, RateLimiter
from dsvpn.nhrp.peers import PeerTable
from dsvpn.nhrp.shortcut import ShortcutTable
from dsvpn.nhrp.timers import TimerTable
from dsvpn.wire.nhrp import (
    ErrorIndication,
    NhrpMessage,
    NhrpPacket,
    PacketType,
    TrafficIndication,
    encode,
    read_offending_header,
)
from dsvpn.wire.nhrp_cie import AddressFamily, Cie, nbma_family, protocol_type
from dsvpn.wire.nhrp_extensions import CieExtension, Extension, ExtensionType

#: What FRR and Cisco routers start with. Registrations and Traffic Indications go one hop (Cisco refuses 0).
HOP_COUNT = 64
ONE_HOP = 1
#: Octets of an offending packet that an Error Indication quotes: all of a usual one, and no amplification.
ERROR_QUOTE = 512
#: Buckets of the Error Indication limit; peers are numbered by the owner, so this is a bound for its mistakes.
_ERROR_PEERS = 65536


class NhrpContext:
    """State of a tunnel that belongs to no single exchange."""

    def __init__(
        self,
        config: NhrpConfig,
        random: Callable[[int], bytes],
        route_lookup: Callable[[Address], Route | None],
        mapping_removed: Callable[[Mapping, str, float], None],
        port_seen: Callable[[int], int | None] = lambda peer: None,
    ) -> None:
        #: The UDP port at which a peer behind NAT is seen here, None without NAT or ports.
        self.port_seen = port_seen
        self.config = config
        self.random = random
        self.route_lookup = route_lookup
        self.nbma: Address | None = config.nbma
        #: The NHSs with the addresses that they have at the moment.
        self.nhs = list(config.nhs)
        #: This end's public NBMA address as an NHS reported it, None without NAT.
        self.nat_address: Address | None = None
        #: Protocol addresses of the NHSs that have accepted the registration.
        self.nhs_up: set[Address] = set()
        self.timers = TimerTable()
        self.events: deque[Event] = deque()
        self.counters: Counter[str] = Counter()
        self.peers = PeerTable()
        self.cache = MappingCache(self.timers, self.events.append, mapping_removed)
        self.shortcuts = ShortcutTable(self.timers, self.events.append)
        self.authorization = Authorization(self)
        self.denials = Denials(self.counters, self.events.append)
        self.outbox: list[tuple[bytes, int]] = []
        self._own = frozenset(interface.ip for interface in config.protocol_addresses)
        self._parked: dict[Address, bytes] = {}
        self._errors = RateLimiter(ERROR_RATE, ERROR_BURST, _ERROR_PEERS)

    # -- addresses -----------------------------------------------------------------------------------------
    def is_own(self, protocol: Address) -> bool:
        """Whether a protocol address is this gateway's."""
        return protocol in self._own

    def own_interface(self, toward: Address) -> IPv4Interface | IPv6Interface | None:
        """This gateway's protocol address to speak from to `toward`: of its prefix if there is one, else its family."""
        family = [own for own in self.config.protocol_addresses if own.version == toward.version]
        for own in family:
            if toward in own.network:
                return own
        return family[0] if family else None

    def own_address(self, toward: Address) -> Address | None:
        """The address of `own_interface`."""
        own = self.own_interface(toward)
        return own.ip if own is not None else None

    def own_nbma(self, family: AddressFamily) -> Address | None:
        """This gateway's own NBMA address if it is of `family`."""
        return self.nbma if self.nbma is not None and nbma_family(self.nbma) == family else None

    def family(self, toward: Address | None = None) -> AddressFamily:
        """The address family of the packets this gateway starts."""
        address = self.nbma or toward
        return nbma_family(address) if address is not None else AddressFamily.IPV4

    def own_cie(self, message: NhrpMessage, toward: Address) -> Cie:
        """A CIE about this gateway, for transit records and the responder address."""
        own = self.own_address(toward)
        if own is not None and protocol_type(own) != message.protocol_type:
            own = None
        return Cie(holding_time=self.config.holding_time, nbma=self.own_nbma(message.family), protocol=own)

    # -- ways out ------------------------------------------------------------------------------------------
    def emit(self, event: Event) -> None:
        """Tell the owner."""
        self.events.append(event)

    def count(self, name: str) -> None:
        """Count something under a name."""
        self.counters[name] += 1

    def deny(self, peer: int | None, action: DeniedAction, protocol: Address, reason: str, now: float) -> None:
        """A peer claims what it has no right to."""
        self.denials.deny(self.authorization.identity(peer), action, protocol, reason, now)

    def request_id(self) -> int:
        """A request id that nobody off the path can guess, so that a reply proves that the request was seen."""
        return int.from_bytes(self.random(4), "big")

    def send(self, packet: NhrpPacket, peer: int) -> None:
        """Send a packet through an adjacency, with this hop's authentication."""
        data = self._encode(packet)
        if data is not None:
            self.outbox.append((data, peer))

    def send_or_park(self, packet: NhrpPacket, peer: int | None, nbma: Address, now: float) -> None:
        """Send to `peer`, or keep the packet a few seconds until the owner has a peer for `nbma`."""
        if peer is None:
            peer = self.peers.at(nbma)
        if peer is not None:
            self.send(packet, peer)
            return
        data = self._encode(packet)
        if data is None:
            return
        if nbma not in self._parked and len(self._parked) >= MAX_PARKED:
            self.count("drop.parked_full")
            return
        self._parked[nbma] = data
        self.timers.set(("parked", nbma), now + PARKED_TIME, lambda later: self._drop_parked(nbma))

    def release_parked(self, nbma: Address, peer: int) -> None:
        """Send what waited for a peer at `nbma`."""
        data = self._parked.pop(nbma, None)
        if data is not None:
            self.timers.cancel(("parked", nbma))
            self.outbox.append((data, peer))

    def send_error(self, code: int, offset: int, packet: NhrpPacket, data: bytes, peer: int | None, now: float) -> None:
        """Answer an offending packet with an Error Indication, at a limited rate.

        Never about an Error Indication, or two gateways that disagree would go on for ever (RFC 2332 section 5.2.7).
        """
        if isinstance(packet, ErrorIndication) or peer is None or packet.source_protocol is None:
            return
        if not self._errors.allow(peer, now):
            self.count("drop.error_limit")
            return
        own = self.own_address(packet.source_protocol)
        error = ErrorIndication(
            packet.family,
            packet.protocol_type,
            HOP_COUNT,
            code,
            offset,
            self.own_nbma(packet.family),
            own,
            packet.source_protocol,
            data[:ERROR_QUOTE],
        )
        self.send(error, peer)

    def forget_peer(self, peer: int) -> None:
        """A peer is gone: its number may come back for another one."""
        self.peers.remove(peer)
        self.authorization.set_claim(peer, None)
        self._errors.forget(peer)
        self.outbox = [(data, to) for data, to in self.outbox if to != peer]

    # -- paths ---------------------------------------------------------------------------------------------
    def peer_of(self, mapping: Mapping) -> int | None:
        """The adjacency to a mapping's NBMA address, None while there is none."""
        if mapping.peer is not None:
            return mapping.peer
        if mapping.kind in ("nhs", "static"):
            return self.peers.server_at(mapping.nbma)
        return self.peers.at(mapping.nbma)

    def is_nhs_peer(self, peer: int | None) -> bool:
        """Whether a peer is a configured NHS or the gateway of a static mapping: it is at that NBMA address and has not
        proved to be somebody else there."""
        nbma = self.peers.nbma(peer) if peer is not None else None
        if peer is None or nbma is None or not self.peers.is_server(peer):
            return False
        return any(nhs.nbma == nbma for nhs in self.nhs) or any(at == nbma for _, at in self.config.static_maps)

    def _drop_parked(self, nbma: Address) -> None:
        self._parked.pop(nbma, None)
        self.count("drop.parked_timeout")

    def _encode(self, packet: NhrpPacket) -> bytes | None:
        if isinstance(packet, NhrpMessage | TrafficIndication):
            packet.extensions = sign(packet.extensions, self.config.authentication)
        try:
            data = encode(packet)
        except MisuseError:
            # Only a packet in transit can outgrow its fields, by the records that each hop adds.
            self.count("drop.oversize")
            return None
        self.count(f"tx.{packet_name(packet)}")
        return data


def packet_name(packet: NhrpPacket) -> str:
    """The name of a packet's type in counters."""
    if isinstance(packet, NhrpMessage):
        return packet.type.name.lower()
    kind = PacketType.ERROR_INDICATION if isinstance(packet, ErrorIndication) else PacketType.TRAFFIC_INDICATION
    return kind.name.lower()


def find_extension(extensions: list[Extension], number: ExtensionType) -> CieExtension | None:
    """The first extension of a type whose value is CIEs."""
    for extension in extensions:
        if extension.type == number and isinstance(extension, CieExtension):
            return extension
    return None


def nat_nbma(extensions: list[Extension], protocol: Address) -> Address | None:
    """The public NBMA address of a station in the NAT Address extension, None when it says nothing."""
    extension = find_extension(extensions, ExtensionType.NAT_ADDRESS)
    if extension is None:
        return None
    for cie in extension.cies:
        if cie.protocol == protocol and is_unicast(cie.nbma):
            return cie.nbma
    return None


def is_unicast(address: Address | None) -> bool:
    """Whether an address can be that of a station."""
    return address is not None and not (address.is_unspecified or address.is_multicast or address.is_loopback)


def unknown_compulsory(message: NhrpMessage) -> Extension | None:
    """The first compulsory extension that this implementation does not know (RFC 2332 section 5.3)."""
    known = (
        ExtensionType.RESPONDER_ADDRESS,
        ExtensionType.FORWARD_TRANSIT,
        ExtensionType.REVERSE_TRANSIT,
        ExtensionType.AUTHENTICATION,
        ExtensionType.NAT_ADDRESS,
    )
    for extension in message.extensions:
        if extension.compulsory and extension.type not in known:
            return extension
    return None


def fill_responder(message: NhrpMessage, cie: Cie) -> None:
    """Name the responder where the request asked for it (RFC 2332 section 5.3.1)."""
    extension = find_extension(message.extensions, ExtensionType.RESPONDER_ADDRESS)
    if extension is not None:
        extension.cies = [cie]


def request_extensions(nat: list[Cie]) -> list[Extension]:
    """The extensions of a request, in the order that FRR and Cisco use."""
    return [
        CieExtension(ExtensionType.FORWARD_TRANSIT),
        CieExtension(ExtensionType.REVERSE_TRANSIT),
        CieExtension(ExtensionType.RESPONDER_ADDRESS),
        CieExtension(ExtensionType.NAT_ADDRESS, False, nat),
    ]


def offending(error: ErrorIndication) -> tuple[int, int | None, Address | None, Address | None]:
    """Type, request id, source and destination of the packet that an Error Indication is about; zeros if unreadable."""
    try:
        header = read_offending_header(error.packet)
    except DecodeError:
        return 0, None, None, None
    return header.type, header.request_id, header.source_protocol, header.destination_protocol
