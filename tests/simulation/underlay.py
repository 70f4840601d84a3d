"""The underlay: hosts with addresses, and a medium that delays, loses, doubles and reorders datagrams."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Protocol

from dsvpn.addresses import Address, Endpoint
from tests.simulation.clock import Simulation


@dataclass(frozen=True, slots=True)
class Datagram:
    """One packet of the underlay. `protocol` is "udp", "esp" or "gre"; ports are 0 without UDP.

    `payload` is whatever the two ends agree on: octets, or any value.
    """

    source: Endpoint
    destination: Endpoint
    protocol: str
    payload: object


@dataclass(slots=True)
class Conditions:
    """How a medium treats a datagram. Times in seconds, the rest are probabilities."""

    delay: float = 0.010
    jitter: float = 0.0
    loss: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    #: How long a reordered datagram is held back.
    reorder_delay: float = 0.050


class Node(Protocol):
    """Something that datagrams can be delivered to."""

    def receive(self, datagram: Datagram) -> None: ...


Tap = Callable[[float, Datagram, str], None]


@dataclass(slots=True)
class Host:
    """An endpoint: gets every datagram to its address. `via` carries what it sends (an underlay or a NAT box)."""

    name: str
    address: Address
    via: Carrier
    on_datagram: Callable[[Datagram], None]
    up: bool = True

    def send(self, datagram: Datagram) -> None:
        if self.up:
            self.via.send(datagram)

    def receive(self, datagram: Datagram) -> None:
        if self.up:
            self.on_datagram(datagram)


class Carrier(Protocol):
    """Something that a host can hang on."""

    def send(self, datagram: Datagram) -> None: ...

    def attach(self, address: Address, node: Node) -> None: ...

    def detach(self, address: Address) -> None: ...


@dataclass(slots=True)
class Underlay:
    """The public network. Links between two addresses may have conditions of their own."""

    simulation: Simulation
    conditions: Conditions = field(default_factory=Conditions)
    links: dict[frozenset[Address], Conditions] = field(default_factory=dict)
    #: Called with (time, datagram, fate) for each datagram; fate is "delivered", "lost" or "no_host".
    taps: list[Tap] = field(default_factory=list)
    nodes: dict[Address, Node] = field(default_factory=dict)

    def attach(self, address: Address, node: Node) -> None:
        if address in self.nodes:
            raise ValueError(f"{address} is taken")
        self.nodes[address] = node

    def detach(self, address: Address) -> None:
        del self.nodes[address]

    def add_host(self, name: str, address: Address, on_datagram: Callable[[Datagram], None]) -> Host:
        """A host with a public address."""
        host = Host(name, address, self, on_datagram)
        self.attach(address, host)
        return host

    def renumber(self, host: Host, address: Address) -> None:
        """Give a host another address, as a provider does."""
        host.via.detach(host.address)
        host.address = address
        host.via.attach(address, host)

    def cut(self, one: Address, other: Address) -> None:
        """Lose everything between two addresses until `mend`."""
        self.links[frozenset((one, other))] = replace(self.conditions, loss=1.0)

    def mend(self, one: Address, other: Address) -> None:
        self.links.pop(frozenset((one, other)), None)

    def send(self, datagram: Datagram) -> None:
        """Carry a datagram under the link's conditions."""
        chance = self.simulation.random
        link = frozenset((datagram.source.address, datagram.destination.address))
        conditions = self.links.get(link, self.conditions)
        copies = 2 if chance.random() < conditions.duplicate else 1
        for _ in range(copies):
            if chance.random() < conditions.loss:
                self._tap(datagram, "lost")
                continue
            delay = conditions.delay + chance.random() * conditions.jitter
            if chance.random() < conditions.reorder:
                delay += conditions.reorder_delay
            self.simulation.schedule(delay, lambda: self._deliver(datagram))

    def _deliver(self, datagram: Datagram) -> None:
        node = self.nodes.get(datagram.destination.address)
        self._tap(datagram, "delivered" if node else "no_host")
        if node:
            node.receive(datagram)

    def _tap(self, datagram: Datagram, fate: str) -> None:
        for tap in self.taps:
            tap(self.simulation.now, datagram, fate)
