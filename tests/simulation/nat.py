"""A NAT box as Linux masquerade behaves: source address and port translated, answers let in by state."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from dsvpn.addresses import Address, Endpoint
from tests.simulation.underlay import Datagram, Host, Node, Underlay

#: (protocol, inside endpoint, remote endpoint)
_Flow = tuple[str, Endpoint, Endpoint]


@dataclass(slots=True)
class _Binding:
    inside: Endpoint
    outside: Endpoint
    remote: Endpoint
    used_at: float


@dataclass(slots=True)
class NatBox:
    """Hosts behind one public address.

    A flow is (protocol, inside endpoint, remote endpoint). `preserve_port` keeps a free source port as Linux does;
    without it each flow gets a random one. `endpoint_independent`: all flows of an inside endpoint share an outside
    port and anyone may answer (full cone), or with `restricted` only whom the inside endpoint has sent to, from that
    very port (RFC 4787 section 5, address and port-dependent filtering). Protocols without ports ("esp", "gre") are
    translated by address: of two inside hosts that talk to one remote address, only the first gets through, as with
    Linux.
    """

    underlay: Underlay
    address: Address
    timeout: float = 120.0
    preserve_port: bool = True
    endpoint_independent: bool = False
    restricted: bool = False
    inside: dict[Address, Node] = field(default_factory=dict)
    #: Datagrams from outside that no flow let in.
    refused: int = 0
    _flows: dict[_Flow, _Binding] = field(default_factory=dict)
    _forwards: dict[tuple[str, int], Endpoint] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.underlay.attach(self.address, self)

    def attach(self, address: Address, node: Node) -> None:
        if address in self.inside:
            raise ValueError(f"{address} is taken")
        self.inside[address] = node

    def detach(self, address: Address) -> None:
        del self.inside[address]

    def add_host(self, name: str, address: Address, on_datagram: Callable[[Datagram], None]) -> Host:
        """A host with a private address behind this box."""
        host = Host(name, address, self, on_datagram)
        self.attach(address, host)
        return host

    def forward(self, protocol: str, port: int, to: Endpoint) -> None:
        """Let everyone reach an inside endpoint by a port of the public address (a port forwarding rule)."""
        self._forwards[protocol, port] = to

    def forget(self) -> None:
        """Lose all flows, as at a reboot: the next packet of each gets a new port."""
        self._flows.clear()
        self.preserve_port = False

    def renumber(self, address: Address) -> None:
        """Take another public address and lose all flows."""
        self.underlay.detach(self.address)
        self.address = address
        self._flows.clear()
        self.underlay.attach(address, self)

    def send(self, datagram: Datagram) -> None:
        """A datagram from an inside host."""
        if datagram.destination.address in self.inside:
            self.underlay.simulation.schedule(0.0005, lambda: self._deliver_inside(datagram))
            return
        binding = self._outbound(datagram)
        if binding is None:
            return
        self.underlay.send(replace(datagram, source=binding.outside))

    def receive(self, datagram: Datagram) -> None:
        """A datagram from the underlay to the public address."""
        now = self.underlay.simulation.now
        for key, binding in self._flows.items():
            if key[0] != datagram.protocol or binding.outside != datagram.destination:
                continue
            if binding.remote != datagram.source and (self.restricted or not self.endpoint_independent):
                continue
            if now - binding.used_at > self.timeout:
                continue
            binding.used_at = now
            self._deliver_inside(replace(datagram, destination=binding.inside))
            return
        inside = self._forwards.get((datagram.protocol, datagram.destination.port))
        if inside is None:
            self.refused += 1
            return
        self._flows[datagram.protocol, inside, datagram.source] = _Binding(
            inside, datagram.destination, datagram.source, now
        )
        self._deliver_inside(replace(datagram, destination=inside))

    def _deliver_inside(self, datagram: Datagram) -> None:
        node = self.inside.get(datagram.destination.address)
        if node:
            node.receive(datagram)

    def _outbound(self, datagram: Datagram) -> _Binding | None:
        now = self.underlay.simulation.now
        self._flows = {key: flow for key, flow in self._flows.items() if now - flow.used_at <= self.timeout}
        key = (datagram.protocol, datagram.source, datagram.destination)
        binding = self._flows.get(key)
        if binding is None:
            outside = self._outside(datagram)
            if outside is None:
                return None
            binding = _Binding(datagram.source, outside, datagram.destination, now)
            self._flows[key] = binding
        binding.used_at = now
        return binding

    def _outside(self, datagram: Datagram) -> Endpoint | None:
        """The outside endpoint for a new flow, None when there is none left."""
        taken: set[int] = set()
        for (protocol, inside, remote), flow in self._flows.items():
            if protocol != datagram.protocol:
                continue
            if self.endpoint_independent and inside == datagram.source:
                return flow.outside
            if self.endpoint_independent or remote == datagram.destination:
                taken.add(flow.outside.port)
        if datagram.protocol != "udp":
            return Endpoint(self.address, 0) if 0 not in taken else None
        if self.preserve_port and datagram.source.port not in taken:
            return Endpoint(self.address, datagram.source.port)
        port = self.underlay.simulation.random.randrange(1024, 65536)
        while port in taken:
            port = self.underlay.simulation.random.randrange(1024, 65536)
        return Endpoint(self.address, port)
