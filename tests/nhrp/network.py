"""Gateways reduced to NHRP: engines on a simulated underlay, with a handshake in the place of IKE.

A `Node` is the owner that `NhrpEngine` expects. It makes a peer when a mapping wants one (a hello that must be
answered, through NAT like UDP 4500), moves traffic to a shortcut once its peer is up, and forwards data packets so
that a test can see which way they go.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, ip_address, ip_interface, ip_network
from typing import Any

from dsvpn.addresses import Address, Endpoint, Prefix
from dsvpn.nhrp import NhrpConfig, NhrpEngine, NhsConfig, Route
from dsvpn.nhrp.events import (
    Event,
    MappingAdded,
    MappingRemoved,
    NhsDown,
    ShortcutAdded,
    ShortcutRemoved,
)
from tests.simulation import Conditions, Datagram, Host, NatBox, Simulation, Timer, Underlay

PORT = 4500
HELLO_RETRY = 1.0


def ip_head(source: Address, destination: Address, octets: int = 84) -> bytes:
    """The start of an IPv4 or IPv6 packet, as the data plane hands it over with a redirect."""
    if source.version == 4:
        header = bytes.fromhex("45000054000040003f010000") + source.packed + destination.packed
    else:
        header = bytes.fromhex("60000000002c3a3f") + source.packed + destination.packed
    return (header + bytes(octets))[:octets]


@dataclass(slots=True)
class Peer:
    adjacency: int
    endpoint: Endpoint
    up: bool = False
    timer: Timer | None = None


@dataclass(slots=True)
class Delivery:
    time: float
    source: Address
    destination: Address
    hops: tuple[str, ...]


@dataclass(slots=True)
class Node:
    """One gateway. `lan` is its own prefix; `routes` are what its kernel has besides the tunnel's prefix."""

    simulation: Simulation
    name: str
    config: NhrpConfig
    routes: list[Route]
    host: Host = field(init=False)
    engine: NhrpEngine = field(init=False)
    peers: dict[Endpoint, Peer] = field(default_factory=dict)
    adjacencies: dict[int, Peer] = field(default_factory=dict)
    mappings: dict[Address, MappingAdded] = field(default_factory=dict)
    shortcuts: dict[Prefix, Address] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    deliveries: list[Delivery] = field(default_factory=list)
    sent: list[tuple[float, bytes, str]] = field(default_factory=list)
    on_nhrp: Callable[[bytes], None] | None = None
    _timer: Timer | None = None
    _next_adjacency: int = 0

    def start(self) -> None:
        """Come to life with nothing remembered."""
        self.engine = NhrpEngine(self.config, self.simulation.octets, self.route_lookup)
        self.host.up = True
        self.settle()

    def kill(self) -> None:
        """Die without a word."""
        self.host.up = False
        for peer in self.peers.values():
            if peer.timer:
                peer.timer.cancel()
        self.peers, self.adjacencies, self.mappings, self.shortcuts = {}, {}, {}, {}
        if self._timer:
            self._timer.cancel()

    # -- what the kernel and the data plane do -------------------------------------------------------------
    def route_lookup(self, destination: Address) -> Route | None:
        best: Route | None = None
        for own in self.config.protocol_addresses:
            if destination == own.ip:
                return Route(ip_network(own.ip), False, None, True)
            if destination in own.network:
                best = Route(own.network, True)
        for route in self.routes:
            if destination in route.prefix and (best is None or route.prefix.prefixlen > best.prefix.prefixlen):
                best = route
        return best

    def send_data(self, source: str, destination: str) -> None:
        """A host of this gateway's LAN sends a packet."""
        self._forward(ip_address(source), ip_address(destination), (), None)
        self.settle()

    def _forward(self, source: Address, destination: Address, hops: tuple[str, ...], came_from: Peer | None) -> None:
        hops = (*hops, self.name)
        shortcut = self._active_shortcut(destination)
        route = self.route_lookup(destination)
        if shortcut is None and (route is None or not route.tunnel):
            if route is not None:
                self.deliveries.append(Delivery(self.simulation.now, source, destination, hops))
            return
        if shortcut is not None:
            next_hop: Address = self.shortcuts[shortcut]
            self.engine.note_traffic(shortcut, self.simulation.now)
        else:
            assert route is not None
            next_hop = route.next_hop or destination
        mapping = self.mappings.get(next_hop)
        peer = self.peer_of(mapping) if mapping else None
        if peer is None or not peer.up:
            # Unresolved: by the hub, and NHRP hears of it.
            self.engine.handle_miss(destination, self.simulation.now)
            hub = self.mappings.get(self.config.nhs[0].protocol) if self.config.nhs else None
            peer = self.peer_of(hub) if hub else None
        if peer is None or not peer.up or peer is came_from:
            return
        if came_from is not None and self.config.redirect:
            self.engine.handle_redirect(ip_head(source, destination), came_from.adjacency, self.simulation.now)
        self._transmit(peer.endpoint, ("data", source, destination, hops))

    def _active_shortcut(self, destination: Address) -> Prefix | None:
        best: Prefix | None = None
        for prefix, next_hop in self.shortcuts.items():
            mapping = self.mappings.get(next_hop)
            peer = self.peer_of(mapping) if mapping else None
            longer = best is None or prefix.prefixlen > best.prefixlen
            if destination in prefix and longer and peer is not None and peer.up:
                best = prefix
        return best

    def peer_of(self, mapping: MappingAdded) -> Peer | None:
        if mapping.peer is not None:
            return self.adjacencies.get(mapping.peer)
        return next((peer for at, peer in self.peers.items() if at.address == mapping.nbma), None)

    # -- what IKE does ---------------------------------------------------------------------------------------
    def connect(self, nbma: Address) -> None:
        endpoint = Endpoint(nbma, PORT)
        if any(at.address == nbma for at in self.peers):
            return
        self._hello(self._peer(endpoint))

    def _peer(self, endpoint: Endpoint) -> Peer:
        peer = self.peers.get(endpoint)
        if peer is None:
            peer = Peer(self._next_adjacency, endpoint)
            self._next_adjacency += 1
            self.peers[endpoint] = peer
            self.adjacencies[peer.adjacency] = peer
        return peer

    def _hello(self, peer: Peer) -> None:
        if self.peers.get(peer.endpoint) is not peer or peer.up:
            return
        self._transmit(peer.endpoint, ("hello",))
        peer.timer = self.simulation.schedule(HELLO_RETRY, lambda: self._hello(peer))

    def _up(self, peer: Peer) -> None:
        if not peer.up:
            peer.up = True
            self.engine.peer_up(peer.endpoint.address, peer.adjacency, self.simulation.now)

    def disconnect(self, endpoint: Endpoint, tell: bool = True) -> None:
        peer = self.peers.pop(endpoint, None)
        if peer is None:
            return
        del self.adjacencies[peer.adjacency]
        if peer.timer:
            peer.timer.cancel()
        if tell:
            self._transmit(endpoint, ("bye",))
        if peer.up:
            self.engine.peer_down(peer.adjacency, self.simulation.now)
        if any(nhs.nbma == endpoint.address for nhs in self.config.nhs):
            self.connect(endpoint.address)

    # -- the wire --------------------------------------------------------------------------------------------
    def _transmit(self, to: Endpoint, payload: object) -> None:
        self.host.send(Datagram(Endpoint(self.host.address, PORT), to, "udp", payload))

    def receive(self, datagram: Datagram) -> None:
        payload: Any = datagram.payload
        kind = payload[0]
        known = self.peers.get(datagram.source)
        if kind == "hello":
            self._transmit(datagram.source, ("welcome",))
            self._up(self._peer(datagram.source))
        elif kind == "welcome":
            if known is not None:
                self._up(known)
        elif kind in ("bye", "reset"):
            self.disconnect(datagram.source, tell=False)
        elif known is None or not known.up:
            self._transmit(datagram.source, ("reset",))
        elif kind == "nhrp":
            if self.on_nhrp:
                self.on_nhrp(payload[1])
            self.engine.receive_packet(payload[1], known.adjacency, datagram.source.address, self.simulation.now)
        elif kind == "data":
            self._forward(payload[1], payload[2], payload[3], known)
        self.settle()

    # -- the owner's loop ------------------------------------------------------------------------------------
    def settle(self) -> None:
        """Carry out what the engine wants."""
        if not self.host.up:
            return
        while True:
            event = self.engine.next_event()
            if event is None:
                break
            self.events.append(event)
            self._carry_out(event)
        for data, adjacency in self.engine.packets_to_send(self.simulation.now):
            peer = self.adjacencies.get(adjacency)
            assert peer is not None, "the engine sends to a peer that is gone"
            self.sent.append((self.simulation.now, data, str(peer.endpoint.address)))
            self._transmit(peer.endpoint, ("nhrp", data))
        deadline = self.engine.get_timer()
        if self._timer:
            self._timer.cancel()
        self._timer = self.simulation.schedule_at(deadline, self._tick) if deadline is not None else None

    def _tick(self) -> None:
        self.engine.handle_timer(self.simulation.now)
        self.settle()

    def _carry_out(self, event: Event) -> None:
        if isinstance(event, MappingAdded):
            self.mappings[event.protocol] = event
            if event.peer is None:
                self.connect(event.nbma)
        elif isinstance(event, MappingRemoved):
            gone = self.mappings.pop(event.protocol)
            if all(other.nbma != gone.nbma for other in self.mappings.values()):
                peer = self.peer_of(gone)
                if peer is not None:
                    self.disconnect(peer.endpoint)
        elif isinstance(event, ShortcutAdded):
            assert event.next_hop in self.mappings, "a shortcut to a next hop without a mapping"
            self.shortcuts[event.prefix] = event.next_hop
        elif isinstance(event, ShortcutRemoved):
            del self.shortcuts[event.prefix]
        elif isinstance(event, NhsDown) and event.restart_peer:
            for nhs in self.config.nhs:
                if nhs.protocol == event.protocol and nhs.nbma is not None:
                    self.disconnect(Endpoint(nhs.nbma, PORT))

    def registered(self) -> bool:
        """Whether every NHS has accepted this gateway."""
        return all(nhs.state == "up" for nhs in self.engine.snapshot(self.simulation.now).nhs)

    def last(self, kind: type[Event]) -> Any:
        """The latest event of a kind."""
        return next((event for event in reversed(self.events) if isinstance(event, kind)), None)


HUB_NBMA = ip_address("192.0.2.1")
HUB_PROTOCOL = ip_address("10.0.0.1")


@dataclass(slots=True)
class Network:
    """A hub at 192.0.2.1 and spokes at 192.0.2.11 and up, spoke n with the LAN 10.n.0.0/24."""

    simulation: Simulation
    underlay: Underlay
    nodes: dict[str, Node] = field(default_factory=dict)
    boxes: dict[str, NatBox] = field(default_factory=dict)

    @classmethod
    def build(
        cls,
        seed: int,
        spokes: int = 3,
        natted: tuple[int, ...] = (),
        conditions: Conditions | None = None,
        **settings: Any,
    ) -> Network:
        """`natted` spokes are at 192.168.1.2 behind a NAT box each; `settings` go to every NhrpConfig."""
        simulation = Simulation(seed)
        network = cls(simulation, Underlay(simulation, conditions or Conditions()))
        network.add_hub(spokes, **settings)
        for number in range(1, spokes + 1):
            network.add_spoke(number, number in natted, **settings)
        return network

    def add_hub(self, spokes: int, **settings: Any) -> Node:
        config = NhrpConfig((IPv4Interface("10.0.0.1/24"),), HUB_NBMA, redirect=True, **settings)
        routes = [Route(ip_network("10.100.0.0/24"), False)]
        routes += [
            Route(ip_network(f"10.{number}.0.0/24"), True, IPv4Address(f"10.0.0.{10 + number}"))
            for number in range(1, spokes + 1)
        ]
        hub = Node(self.simulation, "hub", config, routes)
        hub.host = self.underlay.add_host("hub", HUB_NBMA, hub.receive)
        self.nodes["hub"] = hub
        return hub

    def add_spoke(self, number: int, natted: bool = False, box: NatBox | None = None, **settings: Any) -> Node:
        name = f"spoke{number}"
        public = IPv4Address(f"192.0.2.{10 + number}")
        if natted and box is None:
            box = NatBox(self.underlay, public)
            self.boxes[name] = box
        nbma = IPv4Address("192.168.1.2") if natted else public
        config = NhrpConfig(
            (ip_interface(f"10.0.0.{10 + number}/24"),),
            nbma,
            shortcut=True,
            nhs=(NhsConfig(HUB_PROTOCOL, HUB_NBMA),),
            **settings,
        )
        routes = [
            Route(IPv4Network(f"10.{number}.0.0/24"), False),
            Route(IPv4Network("10.0.0.0/8"), True, IPv4Address("10.0.0.1")),
        ]
        node = Node(self.simulation, name, config, routes)
        node.host = (box or self.underlay).add_host(name, nbma, node.receive)
        self.nodes[name] = node
        return node

    def __getitem__(self, name: str) -> Node:
        return self.nodes[name]

    def start(self) -> None:
        for node in self.nodes.values():
            node.start()

    def spokes(self) -> list[Node]:
        return [node for node in self.nodes.values() if node.config.nhs]

    def run_until_registered(self, timeout: float = 120.0) -> float:
        return self.simulation.run_until(
            lambda: all(node.registered() for node in self.spokes()), timeout, "all spokes registered"
        )

    def ping(self, source: int, destination: int, interval: float = 0.2) -> Callable[[], None]:
        """Two LAN hosts exchange packets until the given function is called."""
        running = True
        one, other = f"10.{source}.0.5", f"10.{destination}.0.5"

        def tick() -> None:
            if running:
                self[f"spoke{source}"].send_data(one, other)
                self[f"spoke{destination}"].send_data(other, one)
                self.simulation.schedule(interval, tick)

        def stop() -> None:
            nonlocal running
            running = False

        self.simulation.schedule(0, tick)
        return stop

    def direct(self, source: int, destination: int) -> bool:
        """Whether the latest packet from one LAN to the other went straight."""
        lan = IPv4Network(f"10.{source}.0.0/24")
        arrived = [d for d in self[f"spoke{destination}"].deliveries if d.source in lan]
        return bool(arrived) and arrived[-1].hops == (f"spoke{source}", f"spoke{destination}")
