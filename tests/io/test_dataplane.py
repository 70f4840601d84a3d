"""Commands carried out on the real data plane, and its punts handed on."""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from pathlib import Path as FilePath

import pytest

import dsvpn_native
from dsvpn.addresses import Address, Endpoint, Path, Prefix
from dsvpn.commands import (
    AddInboundSa,
    ClearOutboundSa,
    InstallKernelRoute,
    RemoveAdjacency,
    RemoveInboundSa,
    RemoveKernelRoute,
    RemoveNextHop,
    RemoveRoute,
    SendNhrp,
    SetAdjacency,
    SetMulticast,
    SetNextHop,
    SetNextHopGroup,
    SetOutboundSa,
    SetRoute,
    SetSources,
)
from dsvpn.gateway.usage import BusySa
from dsvpn.ike.volume import Carried
from dsvpn.io.dataplane import Commander
from dsvpn.io.keylog import KeyLog
from tests.io.namespace import ip, new_namespace

pytestmark = pytest.mark.netns

HERE = Endpoint(ip_address("192.0.2.11"), 0)
PEER = Endpoint(ip_address("192.0.2.1"), 0)
_ETH_P_ALL = 0x0003


@dataclass
class Routes:
    """The shortcut routes as the kernel would have them."""

    shortcuts: dict[Prefix, Address | None] = field(default_factory=dict)

    def install_shortcut(self, tunnel: str, prefix: Prefix, via: Address | None) -> None:
        self.shortcuts[prefix] = via

    def remove_shortcut(self, tunnel: str, prefix: Prefix) -> None:
        self.shortcuts.pop(prefix, None)


@dataclass
class Received:
    """A gateway's inputs, written down."""

    ike: list[tuple[bytes, Path]] = field(default_factory=list)
    nhrp: list[tuple[str, int | None, Address, bytes]] = field(default_factory=list)
    misses: list[tuple[str, int, Address]] = field(default_factory=list)

    def receive_ike(self, data: bytes, path: Path, now: float) -> None:
        self.ike.append((data, path))

    def receive_nhrp(self, tunnel: str, adjacency: int | None, remote: Address, data: bytes, now: float) -> None:
        self.nhrp.append((tunnel, adjacency, remote, data))

    def handle_miss(self, tunnel: str, next_hop: int, destination: Address, now: float) -> None:
        self.misses.append((tunnel, next_hop, destination))

    def handle_redirect(self, tunnel: str, adjacency: int, head: bytes, now: float) -> None:
        raise AssertionError("nothing is forwarded here")

    def handle_moved(self, adjacency: int, path: Path, now: float) -> None:
        raise AssertionError("nothing is sealed here")

    def handle_source(self, tunnel: str, adjacency: int, source: Address, passed: bool, now: float) -> None:
        raise AssertionError("nothing is sealed here")

    def handle_unknown_spi(self, spi: int, path: Path, now: float) -> None:
        raise AssertionError("nothing is sealed here")


@dataclass
class Rig:
    """A data plane with the plain tunnel `dsvpn0`, the protected `dsvpn1`, and a tap on its underlay."""

    plane: dsvpn_native.Dataplane
    commander: Commander
    routes: Routes
    tap: socket.socket

    def seen(self) -> bytes:
        """The next IPv4 packet on the underlay, without its Ethernet header."""
        while True:
            ready, _, _ = select.select([self.tap], [], [], 5)
            assert ready, "no packet on the underlay"
            frame = self.tap.recv(65536)
            if frame[12:14] == b"\x08\x00":
                return frame[14:]

    def punted(self, received: Received) -> None:
        """Hand on what the data plane punts next."""
        deadline = time.monotonic() + 5
        while True:
            ready, _, _ = select.select([self.plane.punt_descriptor], [], [], deadline - time.monotonic())
            assert ready, "nothing was punted"
            punts = self.plane.take_punts(16)
            for punt in punts:
                self.commander.deliver(punt, received, time.monotonic())
            if punts:
                return


@pytest.fixture
def rig(tmp_path: FilePath) -> Iterator[Rig]:
    with new_namespace():
        ip("link add eth0 type veth peer name far")
        ip("link set far up")
        ip("link set eth0 up")
        ip("addr add 192.0.2.11/24 dev eth0")
        ip("neigh add 192.0.2.1 lladdr 02:00:00:00:00:01 dev eth0")
        plane = dsvpn_native.Dataplane()
        plane.open_underlay(esp=True, gre=True)
        routes = Routes()
        commander = Commander(plane, routes, KeyLog(tmp_path / "keys"))
        for name, protected in (("dsvpn0", False), ("dsvpn1", True)):
            commander.add_tunnel(name, plane.add_tunnel(name, key=42, protected=protected))
            ip(f"link set {name} up")
        plane.start_workers()
        tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
        tap.bind(("far", 0))
        try:
            yield Rig(plane, commander, routes, tap)
        finally:
            plane.stop_workers()
            tap.close()


def plain_adjacency(adjacency: int) -> SetAdjacency:
    return SetAdjacency(adjacency, "dsvpn0", "gre", Path(HERE, PEER), 1400)


def test_a_packet_finds_the_tables_of_its_own_batch(rig: Rig) -> None:
    rig.commander.carry_out([plain_adjacency(3), SendNhrp(3, b"\x00\x01 an NHRP packet")])
    packet = rig.seen()
    assert packet[9] == socket.IPPROTO_GRE
    assert packet[12:20] == HERE.address.packed + PEER.address.packed
    assert packet[20:28] == b"\x20\x00\x20\x01" + (42).to_bytes(4, "big")
    assert packet[28:] == b"\x00\x01 an NHRP packet"
    assert rig.commander.counters == {"control_commands": 2, "control_commands_failed": 0, "control_nhrp_unsent": 0}


def test_a_command_that_fails_does_not_keep_the_next_from_its_work(rig: Rig) -> None:
    unknown = SetRoute("dsvpn9", ip_network("10.0.0.0/8"), 1)
    rig.commander.carry_out([unknown, plain_adjacency(3), SendNhrp(3, b"after the failure")])
    assert rig.seen().endswith(b"after the failure")
    assert rig.commander.counters["control_commands_failed"] == 1


def test_nhrp_to_a_peer_without_an_sa_is_counted(rig: Rig) -> None:
    protected = SetAdjacency(4, "dsvpn1", "esp", Path(HERE, PEER), 1400)
    rig.commander.carry_out([protected, SendNhrp(4, b"too early")])
    assert rig.commander.counters["control_nhrp_unsent"] == 1


def test_every_command_is_carried_out(rig: Rig, tmp_path: FilePath) -> None:
    prefix = ip_network("10.2.0.0/16")
    spi = rig.plane.allocate_spi()
    keymat = bytes(range(20))
    rig.commander.carry_out(
        [
            plain_adjacency(3),
            SetAdjacency(4, "dsvpn1", "udp", Path(Endpoint(HERE.address, 4500), Endpoint(PEER.address, 4500)), 1380),
            SetNextHop(7, 4, True),
            SetNextHop(8, None, False),
            SetNextHopGroup(9, (7, 8)),
            SetRoute("dsvpn1", ip_network("10.3.0.0/16"), 9),
            SetRoute("dsvpn1", prefix, 7),
            SetMulticast("dsvpn1", (4,)),
            SetSources(4, "open", (prefix, ip_network("fd00::/64"))),
            SetSources(4, "any", ()),
            AddInboundSa(spi, "aes128gcm16", keymat, (4,), False, 1024),
            SetOutboundSa(0x1234, "aes128gcm16", keymat, (4,), False),
            SetOutboundSa(0x1235, "aes128gcm16", bytes(20), (4,), False, 1),
            SetOutboundSa(0x1236, "aes128gcm16", bytes(20), (4,), False, 2),
            ClearOutboundSa(4, 2),
            InstallKernelRoute("dsvpn1", prefix, ip_address("10.0.0.12")),
            SendNhrp(4, b"sealed"),
        ]
    )
    assert rig.commander.counters["control_commands_failed"] == 0
    assert rig.routes.shortcuts == {prefix: ip_address("10.0.0.12")}
    packet = rig.seen()
    assert packet[9] == socket.IPPROTO_UDP
    assert packet[28:32] == (0x1234).to_bytes(4, "big")
    assert set(rig.commander.adjacencies) == {3, 4}
    assert rig.commander.traffic().keys() == {3, 4}
    assert rig.plane.outbound_sa_counters(4, 1)["spi"] == 0x1235
    with pytest.raises(ValueError, match="adjacency: 4 has no outbound SA"):
        rig.plane.outbound_sa_counters(4, 2)
    seals, sealed_before, gone = BusySa(spi, 0x1234, 4), BusySa(spi, 0x1233, 4), BusySa(spi + 1, 0x1234, 4)
    carried = rig.commander.sa_traffic([seals, sealed_before, gone])
    assert carried == {seals: Carried(0, 0, 1, len(b"sealed"), 1), sealed_before: Carried(0, 0)}
    logged = (tmp_path / "keys" / "esp_sa").read_text()
    assert f'"192.0.2.1","*","0x{spi:08x}","AES-GCM with 16 octet ICV [RFC4106]","0x{keymat.hex()}"' in logged
    assert '"*","192.0.2.1","0x00001234"' in logged

    rig.commander.carry_out(
        [
            RemoveKernelRoute("dsvpn1", prefix),
            SetMulticast("dsvpn1", ()),
            RemoveRoute("dsvpn1", prefix),
            RemoveRoute("dsvpn1", ip_network("10.3.0.0/16")),
            RemoveNextHop(9),
            RemoveNextHop(7),
            RemoveNextHop(8),
            RemoveInboundSa(spi),
            RemoveAdjacency(4),
            RemoveAdjacency(3),
        ]
    )
    assert rig.commander.counters["control_commands_failed"] == 0
    assert rig.routes.shortcuts == {}
    assert rig.commander.traffic() == {}


def test_ike_goes_out_and_comes_in(rig: Rig) -> None:
    message = bytes(range(40))
    for port, head in ((500, b""), (4500, bytes(4))):
        rig.commander.send([(message, Path(Endpoint(HERE.address, port), Endpoint(PEER.address, port)))])
        packet = rig.seen()
        assert packet[20:24] == port.to_bytes(2, "big") * 2
        assert packet[28:] == head + message
    rig.commander.send([], [Path(Endpoint(HERE.address, 4500), Endpoint(PEER.address, 4500))])
    assert rig.seen()[28:] == b"\xff"

    received = Received()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
        peer.bind(("127.0.0.1", 0))
        peer.sendto(message, ("127.0.0.1", 500))
        rig.punted(received)
        peer.sendto(bytes(4) + message, ("127.0.0.1", 4500))
        rig.punted(received)
        remote = Endpoint(ip_address("127.0.0.1"), peer.getsockname()[1])
    here = ip_address("127.0.0.1")
    assert received.ike == [(message, Path(Endpoint(here, port), remote)) for port in (500, 4500)]


def test_misses_come_with_tunnel_next_hop_and_destination(rig: Rig) -> None:
    ip("addr add 10.0.0.11/24 dev dsvpn0")
    rig.commander.carry_out(
        [plain_adjacency(3), SetNextHop(7, 3, True), SetRoute("dsvpn0", ip_network("10.0.0.0/24"), 7)]
    )
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as user:
        user.sendto(b"hello", ("10.0.0.12", 9))
    received = Received()
    rig.punted(received)
    assert received.misses == [("dsvpn0", 7, ip_address("10.0.0.12"))]
    assert rig.seen().endswith(b"hello")
