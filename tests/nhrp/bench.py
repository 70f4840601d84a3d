"""One NHRP engine on a bench: what goes in is spelled in the test, what comes out is decoded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv4Interface, ip_address, ip_interface, ip_network
from typing import Any, TypeVar

from dsvpn.addresses import Address
from dsvpn.nhrp import NhrpConfig, NhrpEngine, NhsConfig, Route
from dsvpn.nhrp.events import Event
from dsvpn.wire.nhrp import ErrorIndication, NhrpMessage, NhrpPacket, PacketType, TrafficIndication, decode, encode
from dsvpn.wire.nhrp_cie import AddressFamily, Cie, ProtocolType
from dsvpn.wire.nhrp_extensions import CieExtension, Extension

START = 5000.5

_Packet = TypeVar("_Packet", NhrpMessage, ErrorIndication, TrafficIndication)


def a(text: str) -> Any:
    """An address."""
    return ip_address(text)


class Bench:
    """An engine with a clock that the test moves."""

    def __init__(self, config: NhrpConfig, routes: list[Route] | None = None) -> None:
        self.now = START
        self.routes = list(routes or [])
        self._random = 0
        self.engine = NhrpEngine(config, self._octets, self.lookup)

    def _octets(self, length: int) -> bytes:
        self._random += 1
        return self._random.to_bytes(length, "big")

    def lookup(self, destination: Address) -> Route | None:
        matches = [route for route in self.routes if destination in route.prefix]
        return max(matches, key=lambda route: route.prefix.prefixlen, default=None)

    def pass_time(self, seconds: float) -> None:
        """Let time pass, with the engine's timers at their deadlines."""
        until = self.now + seconds
        while (deadline := self.engine.get_timer()) is not None and deadline <= until:
            assert deadline >= self.now, "a deadline in the past"
            self.now = deadline
            self.engine.handle_timer(self.now)
        self.now = until

    def events(self) -> list[Event]:
        found = []
        while (event := self.engine.next_event()) is not None:
            found.append(event)
        return found

    def sent(self) -> list[tuple[NhrpPacket, int]]:
        return [(decode(data), peer) for data, peer in self.engine.packets_to_send(self.now)]

    def one(self, kind: type[_Packet]) -> _Packet:
        """The one packet that was sent."""
        packets = self.sent()
        assert len(packets) == 1, packets
        packet = packets[0][0]
        assert isinstance(packet, kind)
        return packet

    def message(self, kind: PacketType) -> NhrpMessage:
        """The one packet that was sent, of this type."""
        packet = self.one(NhrpMessage)
        assert packet.type == kind
        return packet

    def receive(self, packet: NhrpPacket | bytes, peer: int | None, nbma: str) -> None:
        data = packet if isinstance(packet, bytes) else encode(packet)
        self.engine.receive_packet(data, peer, a(nbma), self.now)

    def counters(self) -> dict[str, int]:
        return self.engine.snapshot(self.now).counters


HUB_PEER = 7


def hub(change: Callable[[NhrpConfig], NhrpConfig] = lambda config: config) -> Bench:
    """10.0.0.1 at 192.0.2.1, LAN 10.100.0.0/24, with the LANs of three spokes behind their tunnel addresses."""
    config = NhrpConfig((IPv4Interface("10.0.0.1/24"),), a("192.0.2.1"), holding_time=600, redirect=True)
    routes = [Route(ip_network("10.0.0.1/32"), False, None, True), Route(ip_network("10.0.0.0/24"), True)]
    routes += [Route(ip_network("10.100.0.0/24"), False), Route(ip_network("0.0.0.0/0"), False, a("192.0.2.254"))]
    routes += [Route(ip_network(f"10.{n}.0.0/24"), True, a(f"10.0.0.1{n}")) for n in (1, 2, 3)]
    return Bench(change(config), routes)


def spoke(change: Callable[[NhrpConfig], NhrpConfig] = lambda config: config, up: bool = True) -> Bench:
    """10.0.0.11 at 192.0.2.11, LAN 10.1.0.0/24, all else of 10.0.0.0/8 by the hub; registered unless `up` is False."""
    config = NhrpConfig(
        (ip_interface("10.0.0.11/24"),),
        a("192.0.2.11"),
        holding_time=600,
        shortcut=True,
        nhs=(NhsConfig(a("10.0.0.1"), a("192.0.2.1")),),
    )
    routes = [
        Route(ip_network("10.0.0.11/32"), False, None, True),
        Route(ip_network("10.0.0.0/24"), True),
        Route(ip_network("10.1.0.0/24"), False),
        Route(ip_network("10.0.0.0/8"), True, a("10.0.0.1")),
    ]
    bench = Bench(change(config), routes)
    if up:
        bench.engine.peer_up(a("192.0.2.1"), HUB_PEER, bench.now)
        bench.receive(registration_reply(bench.message(PacketType.REGISTRATION_REQUEST)), HUB_PEER, "192.0.2.1")
        bench.events()
    return bench


def registration_reply(request: NhrpMessage, code: int = 0, nat: str | None = None) -> NhrpMessage:
    """The hub's answer to a registration."""
    extensions: list[Extension] = []
    for extension in request.extensions:
        if isinstance(extension, CieExtension) and extension.type == 9 and nat is not None:
            entry = Cie(prefix_length=32, nbma=a(nat), protocol=request.source_protocol)
            extensions.append(CieExtension(9, False, [*extension.cies, entry]))
        else:
            extensions.append(extension)
    cies = [replace(cie, code=code) for cie in request.cies]
    return replace(
        request,
        type=PacketType.REGISTRATION_REPLY,
        hop_count=64,
        cies=cies,
        extensions=extensions,
        destination_protocol=a("10.0.0.1"),
    )


def registration(number: int, nbma: str | None = None, **changes: Any) -> NhrpMessage:
    """A Registration Request of spoke `number` (tunnel address 10.0.0.1n)."""
    fields: dict[str, Any] = {
        "flags": 0x0002,
        "request_id": 1000 + number,
        "source_nbma": a(nbma or f"192.0.2.1{number}"),
        "source_protocol": a(f"10.0.0.1{number}"),
        "destination_protocol": a("10.0.0.1"),
        "cies": [Cie(prefix_length=32, holding_time=600)],
        "extensions": request_extensions(Cie(prefix_length=32, nbma=a("192.0.2.1"), protocol=a("10.0.0.1"))),
    }
    fields.update(changes)
    return NhrpMessage(PacketType.REGISTRATION_REQUEST, AddressFamily.IPV4, ProtocolType.IPV4, 1, **fields)


def resolution(source: int, destination: str, **changes: Any) -> NhrpMessage:
    """A Resolution Request of spoke `source` for an address."""
    fields: dict[str, Any] = {
        "flags": 0xC802,
        "request_id": 2000 + source,
        "source_nbma": a(f"192.0.2.1{source}"),
        "source_protocol": a(f"10.0.0.1{source}"),
        "destination_protocol": a(destination),
        "cies": [Cie(prefix_length=32, holding_time=600)],
        "extensions": request_extensions(),
    }
    hop_count = changes.pop("hop_count", 64)
    fields.update(changes)
    return NhrpMessage(PacketType.RESOLUTION_REQUEST, AddressFamily.IPV4, ProtocolType.IPV4, hop_count, **fields)


def resolution_reply(request: NhrpMessage, number: int, prefix_length: int = 24, **changes: Any) -> NhrpMessage:
    """The answer of spoke `number` to a Resolution Request."""
    nat = changes.pop("nat", None)
    entry: dict[str, Any] = {
        "prefix_length": prefix_length,
        "holding_time": 600,
        "nbma": a(f"192.0.2.1{number}"),
        "protocol": a(f"10.0.0.1{number}"),
    }
    entry.update(changes)
    extensions = request_extensions()
    if nat is not None:
        extensions[3] = CieExtension(9, False, [Cie(prefix_length=32, nbma=a(nat), protocol=entry["protocol"])])
    return replace(
        request,
        type=PacketType.RESOLUTION_REPLY,
        hop_count=63,
        flags=0xE800,
        cies=[Cie(**entry)],
        extensions=extensions,
    )


def request_extensions(*nat: Cie) -> list[Extension]:
    return [CieExtension(4), CieExtension(5), CieExtension(3), CieExtension(9, False, list(nat))]


def cie_extension(packet: NhrpMessage, number: int) -> list[Cie]:
    """The CIEs of an extension that must be there."""
    for extension in packet.extensions:
        if extension.type == number:
            assert isinstance(extension, CieExtension)
            return extension.cies
    raise AssertionError(f"no extension {number} in {packet}")


def register(bench: Bench, number: int, peer: int, outer: str | None = None, **changes: Any) -> NhrpMessage:
    """Register spoke `number` at a hub and give the reply."""
    nbma = outer or f"192.0.2.1{number}"
    bench.engine.peer_up(a(nbma), peer, bench.now)
    bench.receive(registration(number, **changes), peer, nbma)
    reply = bench.message(PacketType.REGISTRATION_REPLY)
    return reply
