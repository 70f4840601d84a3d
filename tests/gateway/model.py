"""A plain model of the data plane and the kernel around one gateway, for networks in simulated time.

It carries out the commands of a real `Gateway` the slow and obvious way: a list of routes, dictionaries of SAs, a
"sealed" packet that opens only with the very keys that sealed it. Packets remember where they have been.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from ipaddress import ip_address, ip_network
from pathlib import Path as FilePath
from typing import Any

from dsvpn.addresses import Address, Endpoint, Path, Prefix
from dsvpn.commands import (
    AddInboundSa,
    ClearOutboundSa,
    Command,
    InstallKernelRoute,
    LookUp,
    RemoveAdjacency,
    RemoveInboundSa,
    RemoveKernelRoute,
    RemoveNextHop,
    RemoveRoute,
    SendNhrp,
    SendProbe,
    SetAdjacency,
    SetMulticast,
    SetNextHop,
    SetNextHopGroup,
    SetOutboundSa,
    SetRoute,
    SetSources,
)
from dsvpn.config.load import parse_config
from dsvpn.gateway import Gateway
from dsvpn.gateway.usage import BusySa
from dsvpn.ike.volume import Carried
from dsvpn.nhrp.config import Route
from tests.simulation import Datagram, Host, NatBox, Simulation, Timer, Underlay

#: How often the model reports traffic counters to the gateway, seconds.
TRAFFIC_INTERVAL = 2.0
UNDERLAY_MTU = 1500
#: What every packet counts for.
PACKET_OCTETS = 1000
#: Numbers of the packets of ICMP echo, which the kernel answers and nobody delivers.
ECHO_REQUEST, ECHO_REPLY = -1, -2


@dataclass(frozen=True, slots=True)
class Packet:
    """An inner packet. `trace` names the gateways it has passed."""

    source: Address
    destination: Address
    number: int = 0
    ttl: int = 64
    trace: tuple[str, ...] = ()

    def head(self) -> bytes:
        """Its IP header and eight octets more, as a redirect carries them."""
        if self.source.version == 6:
            header = struct.pack("!IHBB", 6 << 28, 8, 59, self.ttl)
            return header + self.source.packed + self.destination.packed + bytes(8)
        header = struct.pack("!BBHHHBBH", 0x45, 0, 28, self.number & 0xFFFF, 0, self.ttl, 1, 0)
        return header + self.source.packed + self.destination.packed + bytes(8)


@dataclass(frozen=True, slots=True)
class Inner:
    """What is behind the GRE header: NHRP octets or a packet."""

    key: int | None
    content: bytes | Packet


@dataclass(frozen=True, slots=True)
class Sealed:
    """ESP: opens only with the keys that sealed it."""

    spi: int
    keymat: bytes
    inner: Inner


@dataclass(slots=True)
class Site:
    """A gateway with its configuration, its host on the underlay, its kernel routes and the LAN behind it."""

    simulation: Simulation
    name: str
    config: dict[str, Any]
    lan: Prefix
    host: Host = field(init=False)
    gateway: Gateway = field(init=False)
    #: Static kernel routes into the tunnel: prefix, next hop.
    static: list[tuple[str, Prefix, Address | None]] = field(default_factory=list)
    received: list[Packet] = field(default_factory=list)
    lost: dict[str, int] = field(default_factory=dict)
    forwarded: int = 0
    adjacencies: dict[int, SetAdjacency] = field(default_factory=dict)
    next_hops: dict[int, SetNextHop | SetNextHopGroup] = field(default_factory=dict)
    routes: dict[tuple[str, Prefix], int] = field(default_factory=dict)
    inbound: dict[int, AddInboundSa] = field(default_factory=dict)
    outbound: dict[int, SetOutboundSa] = field(default_factory=dict)
    #: Those of single workers, by adjacency and resource.
    workers: dict[tuple[int, int], SetOutboundSa] = field(default_factory=dict)
    sources: dict[int, SetSources] = field(default_factory=dict)
    kernel_shortcuts: dict[tuple[str, Prefix], Address | None] = field(default_factory=dict)
    multicast: dict[str, tuple[int, ...]] = field(default_factory=dict)
    counters: dict[int, tuple[int, int]] = field(default_factory=dict)
    #: Packets by SPI: what came in by ours, what went out by the peer's.
    carried_in: dict[int, int] = field(default_factory=dict)
    carried_out: dict[int, int] = field(default_factory=dict)
    #: What the resolver of the site knows, and when it was asked.
    names: dict[str, tuple[Address, ...]] = field(default_factory=dict)
    lookups: list[float] = field(default_factory=list)
    spis: set[int] = field(default_factory=set)
    encap_workers: int = 1
    #: What its state directory keeps over restarts.
    token_secret: bytes = b""
    running: bool = False
    _timer: Timer | None = None
    _misses: dict[object, float] = field(default_factory=dict)
    _life: int = 0
    _looking: bool = False

    # -- life ------------------------------------------------------------------------------------------------

    def attach(self, carrier: Underlay | NatBox, address: Address) -> None:
        """Put the site on the underlay or behind a NAT box."""
        self.host = carrier.add_host(self.name, address, self._on_datagram)

    def start(self) -> None:
        """What `dsvpn up` does: a new process with nothing but its configuration."""
        now = self.simulation.now
        for table in (self.adjacencies, self.next_hops, self.routes, self.inbound, self.outbound, self.counters):
            table.clear()
        self.workers.clear()
        self.kernel_shortcuts.clear()
        self.multicast.clear()
        self.sources.clear()
        self.carried_in.clear()
        self.carried_out.clear()
        self.spis.clear()
        self._misses.clear()
        self.running = True
        self._life += 1
        self.gateway = Gateway(
            parse_config(self.config, FilePath("simulation.toml")),
            random=self.simulation.octets,
            allocate_spi=self._allocate_spi,
            release_spi=self.spis.discard,
            route_lookup=self._route_lookup,
            token_secret=self.token_secret,
            encap_workers=self.encap_workers,
        )
        self.gateway.start(now)
        for name, tunnel in self.gateway.tunnels.items():
            self.gateway.source_changed(name, self.host.address, UNDERLAY_MTU, now)
            for interface in tunnel.config.addresses:
                self.gateway.route_added(name, interface.network, None, now)
        for name, prefix, via in self.static:
            self.gateway.route_added(name, prefix, via, now)
        self._flush()
        self._count_traffic(self._life)
        self._probe(self._life)

    def kill(self) -> None:
        """kill -9: nobody is told."""
        self.running = False
        if self._timer is not None:
            self._timer.cancel()

    def stop(self) -> None:
        """SIGTERM."""
        self.gateway.shutdown(self.simulation.now)
        self._flush()
        self.kill()

    def underlay_mtu_changed(self, mtu: int) -> None:
        """The interface towards the underlay has another MTU."""
        for name in self.gateway.tunnels:
            self.gateway.source_changed(name, self.host.address, mtu, self.simulation.now)
        self._flush()

    # -- the kernel -------------------------------------------------------------------------------------------

    def send(self, packet: Packet) -> None:
        """A packet from the LAN behind this site."""
        if self.running:
            self._route(replace(packet, trace=(*packet.trace, self.name)))

    def _tunnel_of(self, destination: Address) -> str | None:
        best: tuple[int, str] | None = None
        for name, prefix, _ in self._kernel_routes():
            if destination in prefix and (best is None or prefix.prefixlen > best[0]):
                best = (prefix.prefixlen, name)
        return None if best is None else best[1]

    def _kernel_routes(self) -> list[tuple[str, Prefix, Address | None]]:
        connected = [
            (name, interface.network, None)
            for name, tunnel in self.gateway.tunnels.items()
            for interface in tunnel.config.addresses
        ]
        return [*connected, *self.static]

    def _route_lookup(self, tunnel: str, destination: Address) -> Route | None:
        own = {interface.ip for entry in self.gateway.tunnels.values() for interface in entry.config.addresses}
        if destination in own:
            return Route(ip_network(destination), False, None, True)
        if destination in self.lan:
            return Route(self.lan, False, None, False)
        routes = [route for route in self._kernel_routes() if destination in route[1]]
        if not routes:
            return None
        name, prefix, via = max(routes, key=lambda route: route[1].prefixlen)
        return Route(prefix, name == tunnel, via, False)

    # -- the data plane ----------------------------------------------------------------------------------------

    def _route(self, packet: Packet) -> None:
        if self._is_own(packet.destination) and packet.number in (ECHO_REQUEST, ECHO_REPLY):
            if packet.number == ECHO_REQUEST:
                self._route(Packet(packet.destination, packet.source, ECHO_REPLY))
            return
        if packet.destination in self.lan or self._is_own(packet.destination):
            self.received.append(packet)
            return
        if packet.ttl <= 1:
            return self._lose("ttl")
        tunnel = self._tunnel_of(packet.destination)
        if tunnel is None:
            return self._lose("no_kernel_route")
        if len(packet.trace) > 1:
            self.forwarded += 1
        self._encap(tunnel, replace(packet, ttl=packet.ttl - 1))

    def _is_own(self, address: Address) -> bool:
        return any(
            address == interface.ip for tunnel in self.gateway.tunnels.values() for interface in tunnel.config.addresses
        )

    def _next_hop(self, tunnel: str, destination: Address) -> SetNextHop | None:
        matches = [prefix for name, prefix in self.routes if name == tunnel and destination in prefix]
        if not matches:
            return None
        found = self.next_hops[self.routes[tunnel, max(matches, key=lambda prefix: prefix.prefixlen)]]
        if isinstance(found, SetNextHopGroup):
            member = self.next_hops[found.members[int(destination) % len(found.members)]]
            assert isinstance(member, SetNextHop)
            return member
        return found

    def _encap(self, tunnel: str, packet: Packet) -> None:
        next_hop = self._next_hop(tunnel, packet.destination)
        if next_hop is None:
            return self._lose("no_route")
        if next_hop.resolve and self._limited((next_hop.next_hop, packet.destination)):
            number, life = next_hop.next_hop, self._life
            self._later(life, lambda now: self.gateway.handle_miss(tunnel, number, packet.destination, now))
        if next_hop.adjacency is None:
            return self._lose("no_adjacency")
        if self.gateway.config.tunnels[tunnel].nhrp.redirect:
            back = self._next_hop(tunnel, packet.source)
            source = None if back is None else back.adjacency
            if (
                source is not None
                and source != next_hop.adjacency
                and self._limited((packet.source, packet.destination))
            ):
                head, life = packet.head(), self._life
                self._later(life, lambda now: self.gateway.handle_redirect(tunnel, source, head, now))
        if self._transmit(next_hop.adjacency, packet):
            received, sent = self.counters.get(next_hop.adjacency, (0, 0))
            self.counters[next_hop.adjacency] = (received, sent + 1)

    def _transmit(self, number: int, content: bytes | Packet) -> bool:
        adjacency = self.adjacencies.get(number)
        if adjacency is None:
            self._lose("no_adjacency")
            return False
        inner = Inner(self.gateway.config.tunnels[adjacency.tunnel].key, content)
        payload: object = inner
        if adjacency.encapsulation != "gre":
            sa = self._outbound_sa(number, content)
            if sa is None:
                self._lose("no_sa")
                return False
            payload = Sealed(sa.spi, sa.keymat, inner)
            self.carried_out[sa.spi] = self.carried_out.get(sa.spi, 0) + 1
        path = adjacency.path
        source = Endpoint(self.host.address, path.local.port)
        self.host.send(Datagram(source, path.remote, adjacency.encapsulation, payload))
        return True

    def _outbound_sa(self, number: int, content: bytes | Packet) -> SetOutboundSa | None:
        """The SA of the worker that a flow has, by the number of its packets here."""
        fallback = self.outbound.get(number)
        worker = 0 if isinstance(content, bytes) else content.number // 2 % self.encap_workers
        return self.workers.get((number, worker), fallback)

    def _on_datagram(self, datagram: Datagram) -> None:
        if not self.running:
            return
        now = self.simulation.now
        payload = datagram.payload
        if isinstance(payload, bytes):
            self.gateway.receive_ike(payload, Path(datagram.destination, datagram.source), now)
            self._flush()
        elif isinstance(payload, Sealed):
            sa = self.inbound.get(payload.spi)
            if sa is None:
                if self._limited(("unknown_spi", datagram.source)):
                    path = Path(datagram.destination, datagram.source)
                    self._later(self._life, lambda now: self.gateway.handle_unknown_spi(payload.spi, path, now))
                return self._lose("unknown_spi")
            if sa.keymat != payload.keymat:
                return self._lose("unauthentic")
            self.carried_in[sa.spi] = self.carried_in.get(sa.spi, 0) + 1
            for number in sa.adjacencies:
                adjacency = self.adjacencies.get(number)
                if adjacency and self.gateway.config.tunnels[adjacency.tunnel].key == payload.inner.key:
                    return self._accept(adjacency, number, datagram, payload.inner)
            self._lose("wrong_key")
        elif isinstance(payload, Inner):
            for name, tunnel in self.gateway.config.tunnels.items():
                if not tunnel.protected and tunnel.key == payload.key:
                    remote = datagram.source.address
                    for number, adjacency in self.adjacencies.items():
                        if adjacency.tunnel == name and adjacency.path.remote.address == remote:
                            return self._accept(adjacency, number, datagram, payload)
                    if isinstance(payload.content, bytes):
                        self.gateway.receive_nhrp(name, None, remote, payload.content, now)
                        return self._flush()
            self._lose("unprotected")

    def _accept(self, adjacency: SetAdjacency, number: int, datagram: Datagram, inner: Inner) -> None:
        now = self.simulation.now
        if datagram.source != adjacency.path.remote and isinstance(datagram.payload, Sealed):
            self.gateway.handle_moved(number, Path(datagram.destination, datagram.source), now)
            self._flush()
        if isinstance(inner.content, bytes):
            self.gateway.receive_nhrp(adjacency.tunnel, number, datagram.source.address, inner.content, now)
            self._flush()
            return
        if not self._admits(adjacency.tunnel, number, inner.content.source):
            return self._lose("wrong_source")
        received, sent = self.counters.get(number, (0, 0))
        self.counters[number] = (received + 1, sent)
        self._route(replace(inner.content, trace=(*inner.content.trace, self.name)))

    def _admits(self, tunnel: str, number: int, source: Address) -> bool:
        sources = self.sources.get(number)
        if sources is None or sources.check == "any":
            return True
        back = self._next_hop(tunnel, source)
        if (back is not None and back.adjacency == number) or any(source in prefix for prefix in sources.prefixes):
            return True
        other = None if back is None or back.adjacency is None else self.sources.get(back.adjacency)
        passed = sources.check == "open" and back is not None and (other is None or other.check != "own")
        if self._limited(("source", number, source if passed else None)):
            life = self._life
            self._later(life, lambda now: self.gateway.handle_source(tunnel, number, source, passed, now))
        return passed

    def _limited(self, what: object) -> bool:
        now = self.simulation.now
        if now - self._misses.get(what, -1.0) < 1.0:
            return False
        self._misses[what] = now
        return True

    def _lose(self, reason: str) -> None:
        self.lost[reason] = self.lost.get(reason, 0) + 1

    # -- glue ---------------------------------------------------------------------------------------------------

    def _later(self, life: int, call: Callable[[float], None]) -> None:
        def punt() -> None:
            if self.running and life == self._life:
                call(self.simulation.now)
                self._flush()

        self.simulation.schedule(0.0001, punt)

    def _count_traffic(self, life: int) -> None:
        if self.running and life == self._life:
            self._take_traffic()
            self.simulation.schedule(TRAFFIC_INTERVAL, lambda: self._count_traffic(life))

    def _flush(self) -> None:
        now = self.simulation.now
        for command in self.gateway.commands():
            self._carry_out(command)
        for data, path in self.gateway.datagrams_to_send(now):
            source = Endpoint(self.host.address, path.local.port)
            self.host.send(Datagram(source, path.remote, "udp", data))
        self.gateway.keepalives_to_send(now)
        while self.gateway.next_event() is not None:
            pass
        if self.gateway.wants_traffic and not self._looking:
            self._looking = True
            self.simulation.schedule(0.02, lambda: self._look(self._life))
        if self._timer is not None:
            self._timer.cancel()
        due = self.gateway.get_timer()
        if due is not None and self.running:
            self._timer = self.simulation.schedule_at(due, self._on_timer)

    def _probe(self, life: int) -> None:
        interval = self.gateway.probe_interval
        if interval is not None and self.running and life == self._life:
            probed = {one: self.counters.get(one, (0, 0)) for one in self.gateway.probed()}
            self.gateway.probe(probed, self.simulation.now)
            self._flush()
            self.simulation.schedule(interval, lambda: self._probe(life))

    def _answer(self, command: LookUp, now: float) -> None:
        addresses = self.names.get(command.name, ())
        self.lookups.append(now)
        self.gateway.looked_up(command.tunnel, command.protocol, addresses, "" if addresses else "no such name", now)

    def _look(self, life: int) -> None:
        self._looking = False
        if self.running and life == self._life:
            self._take_traffic()

    def _take_traffic(self) -> None:
        now = self.simulation.now
        carried: dict[BusySa, Carried] = {}
        counters = {number: self.counters.get(number, (0, 0)) for number in self.adjacencies}
        for sa in self.gateway.traffic(counters, now):
            came = self.carried_in.get(sa.inbound_spi, 0)
            carried[sa] = Carried(came, came * PACKET_OCTETS)
            outbound = self.workers.get((sa.adjacency, sa.resource), self.outbound.get(sa.adjacency))
            if outbound is not None and outbound.spi == sa.outbound_spi:
                went = self.carried_out.get(sa.outbound_spi, 0)
                carried[sa] = Carried(came, came * PACKET_OCTETS, went, went * PACKET_OCTETS, went)
        self.gateway.sa_traffic(carried, now)
        self._flush()

    def _on_timer(self) -> None:
        if self.running:
            self.gateway.handle_timer(self.simulation.now)
            self._flush()

    def _allocate_spi(self, replaces: int) -> int:
        spi = 256 + self.simulation.random.randrange(2**31)
        self.spis.add(spi)
        return spi

    def _carry_out(self, command: Command) -> None:
        match command:
            case SetAdjacency():
                self.adjacencies[command.adjacency] = command
            case RemoveAdjacency(adjacency):
                del self.adjacencies[adjacency]
                self.workers = {key: sa for key, sa in self.workers.items() if key[0] != adjacency}
                self.outbound.pop(adjacency, None)
                self.counters.pop(adjacency, None)
                self.sources.pop(adjacency, None)
            case SetSources():
                assert command.adjacency in self.adjacencies
                self.sources[command.adjacency] = command
            case SetNextHop():
                assert command.adjacency is None or command.adjacency in self.adjacencies
                self.next_hops[command.next_hop] = command
            case SetNextHopGroup(next_hop, members):
                assert all(isinstance(self.next_hops[member], SetNextHop) for member in members)
                self.next_hops[next_hop] = command
            case RemoveNextHop(next_hop):
                assert next_hop not in self.routes.values()
                groups = (hop for hop in self.next_hops.values() if isinstance(hop, SetNextHopGroup))
                assert not any(next_hop in group.members for group in groups)
                del self.next_hops[next_hop]
            case SetRoute(tunnel, prefix, next_hop):
                assert next_hop in self.next_hops
                self.routes[tunnel, prefix] = next_hop
            case RemoveRoute(tunnel, prefix):
                del self.routes[tunnel, prefix]
            case SetMulticast(tunnel, adjacencies):
                self.multicast[tunnel] = adjacencies
            case AddInboundSa():
                assert command.spi in self.spis
                self.inbound[command.spi] = command
            case RemoveInboundSa(spi):
                del self.inbound[spi]
                self.spis.discard(spi)
            case SetOutboundSa():
                for adjacency in command.adjacencies:
                    assert adjacency in self.adjacencies
                    if command.resource:
                        assert adjacency in self.outbound, "the fallback comes first"
                        self.workers[adjacency, command.resource] = command
                    else:
                        self.outbound[adjacency] = command
            case ClearOutboundSa(adjacency, resource):
                if resource:
                    del self.workers[adjacency, resource]
                else:
                    assert not any(key[0] == adjacency for key in self.workers), "the fallback goes last"
                    self.outbound.pop(adjacency, None)
            case SendNhrp(adjacency, packet):
                self._transmit(adjacency, packet)
            case SendProbe(tunnel, destination):
                own = self.gateway.config.tunnels[tunnel].addresses[0].ip
                self._encap(tunnel, Packet(own, destination, ECHO_REQUEST))
            case LookUp():
                self._later(self._life, lambda now: self._answer(command, now))
            case InstallKernelRoute(tunnel, prefix, via):
                self.kernel_shortcuts[tunnel, prefix] = via
            case RemoveKernelRoute(tunnel, prefix):
                del self.kernel_shortcuts[tunnel, prefix]


def site_config(
    name: str,
    tunnel: str,
    *,
    hub: tuple[str, str] | None,
    key: int | None = 42,
    ipsec: bool = True,
    psk: str = "secret",
    nhrp: dict[str, Any] | None = None,
    profile: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """A configuration as a TOML file would give it. `hub` is (protocol, NBMA) for a spoke, None for a hub."""
    options: dict[str, Any] = {"holding_time": "300s", "authentication": "s3cret"}
    if hub is None:
        options |= {"redirect": True, "multicast": "dynamic"}
    else:
        options |= {"shortcut": True, "nhs": [{"protocol": hub[0], "nbma": hub[1]}]}
    length = 64 if ":" in tunnel else 24
    network: dict[str, Any] = {"address": [f"{tunnel}/{length}"], "source": "eth0", "nhrp": options | (nhrp or {})}
    if key is not None:
        network["key"] = key
    config: dict[str, Any] = {"gateway": {"name": name}, "tunnel": {"dsvpn0": network}}
    if ipsec:
        config["ipsec"] = {"default": {"auth": {"psk": psk}} | (profile or {})}
    else:
        network["ipsec"] = "none"
    return config


def address(text: str) -> Address:
    """Shorter to read in a test."""
    return ip_address(text)
