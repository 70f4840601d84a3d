"""Whole NHRP networks of any size, several hubs, and what must always hold of them.

Spoke n has a tunnel address in 10.0.0.0/16, a public address in 100.64.0.0/10 and a /28 of 172.16.0.0/12 behind it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from typing import Any

from dsvpn.addresses import Address
from dsvpn.nhrp import NhrpConfig, NhsConfig, Route
from tests.nhrp.network import Node, Peer
from tests.simulation import Conditions, NatBox, Simulation, Underlay

TUNNEL = IPv4Network("10.0.0.0/16")
SUMMARY = IPv4Network("172.16.0.0/12")
HOLDING_TIME = 60


def tunnel_address(number: int) -> IPv4Address:
    """Of a spoke; hubs have 10.0.255.1 and up."""
    return IPv4Address(int(TUNNEL.network_address) + 16 + number)


def hub_address(number: int) -> IPv4Address:
    return IPv4Address(f"10.0.255.{1 + number}")


def lan(number: int) -> IPv4Network:
    return IPv4Network((int(SUMMARY.network_address) + 16 * number, 28))


@dataclass(slots=True)
class Member(Node):
    """A gateway whose kernel routes are arithmetic, so that ten thousand cost nothing."""

    number: int = -1
    #: The hub that the summary leads to; None on a hub, which knows each spoke's prefix.
    gateway: IPv4Address | None = None
    #: The gateways that each packet had passed which came here a second time.
    looped: list[tuple[str, ...]] = field(default_factory=list)

    def route_lookup(self, destination: Address) -> Route | None:
        own = self.config.protocol_addresses[0]
        if destination == own.ip:
            return Route(IPv4Network(f"{own.ip}/32"), False, None, True)
        if destination in TUNNEL:
            return Route(TUNNEL, True)
        if destination not in SUMMARY:
            return None
        owner = (int(destination) - int(SUMMARY.network_address)) // 16
        if owner == self.number:
            return Route(lan(owner), False)
        if self.gateway is not None:
            return Route(SUMMARY, True, self.gateway)
        return Route(lan(owner), True, tunnel_address(owner))

    def _forward(self, source: Address, destination: Address, hops: tuple[str, ...], came_from: Peer | None) -> None:
        if self.name in hops:
            self.looped.append(hops)
            return
        # Not super(): a dataclass with slots is another class than the one that the compiler saw.
        Node._forward(self, source, destination, hops, came_from)


class Internet:
    """Hubs "hub0", … and spokes "s0", …; every spoke registers with every hub and routes by the first."""

    def __init__(
        self, seed: int, spokes: int, hubs: int = 1, natted: int = 0, conditions: Conditions | None = None
    ) -> None:
        self.simulation = Simulation(seed)
        self.underlay = Underlay(self.simulation, conditions or Conditions())
        self.hubs = [self._hub(number) for number in range(hubs)]
        self.boxes: dict[int, NatBox] = {}
        self.spokes = [self._spoke(number, number < natted) for number in range(spokes)]

    def _hub(self, number: int) -> Member:
        config = NhrpConfig(
            (IPv4Interface(f"{hub_address(number)}/16"),),
            IPv4Address(f"192.0.2.{1 + number}"),
            redirect=True,
            holding_time=HOLDING_TIME,
        )
        hub = Member(self.simulation, f"hub{number}", config, [])
        assert config.nbma is not None
        hub.host = self.underlay.add_host(hub.name, config.nbma, hub.receive)
        return hub

    def _spoke(self, number: int, natted: bool) -> Member:
        public = IPv4Address(int(IPv4Address("100.64.0.0")) + number)
        nbma = IPv4Address("192.168.1.2") if natted else public
        config = NhrpConfig(
            (IPv4Interface(f"{tunnel_address(number)}/16"),),
            nbma,
            shortcut=True,
            holding_time=HOLDING_TIME,
            nhs=tuple(NhsConfig(hub_address(n), IPv4Address(f"192.0.2.{1 + n}"), n) for n in range(len(self.hubs))),
        )
        spoke = Member(self.simulation, f"s{number}", config, [], number=number, gateway=hub_address(0))
        carrier: Any = self.underlay
        if natted:
            carrier = self.boxes[number] = NatBox(self.underlay, public)
        spoke.host = carrier.add_host(spoke.name, nbma, spoke.receive)
        return spoke

    @property
    def members(self) -> list[Member]:
        return [*self.hubs, *self.spokes]

    def living(self) -> list[Member]:
        return [member for member in self.members if member.host.up]

    def ping(self, one: int, other: int) -> None:
        """A packet from behind one spoke to behind another."""
        if self.spokes[one].host.up:
            self.spokes[one].send_data(str(lan(one)[5]), str(lan(other)[5]))

    def reached(self, one: int, other: int, since: float) -> bool:
        """Whether a packet of one spoke's LAN has arrived in another's."""
        return any(d.time >= since and d.source in lan(one) for d in self.spokes[other].deliveries)

    def check(self) -> None:
        """What holds at any time."""
        now, seed = self.simulation.now, self.simulation.seed
        for member in self.living():
            snapshot = member.engine.snapshot(now)
            for mapping in snapshot.mappings:
                if mapping.expires_in is None:
                    continue
                known = member.engine._context.cache.get(mapping.protocol)
                assert known is not None
                assert known.expires is not None
                assert now - 0.001 <= known.expires <= now + HOLDING_TIME, (
                    f"seed {seed}: {member.name} keeps {mapping} beyond its holding time"
                )
            for shortcut in snapshot.shortcuts:
                assert shortcut.next_hop in member.mappings, f"seed {seed}: {member.name}: {shortcut} leads nowhere"
            assert not member.looped, f"seed {seed}: a packet went round: {member.looped[0]}"
        for hub in self.hubs:
            if hub.host.up:
                context = hub.engine._context
                assert len(context.cache) <= len(self.spokes) + len(self.hubs)
                # A mapping each, and what is asked or purged at the moment.
                assert len(context.timers) <= 4 * len(self.spokes) + 64, f"seed {seed}: {hub.name}'s timers grow"
                assert len(hub.engine._transit._relays) <= len(self.spokes) ** 2

    def knows(self, stopped: int) -> list[str]:
        """The living gateways that would still send to a spoke that has said goodbye."""
        gone = tunnel_address(stopped)
        return [member.name for member in self.living() if gone in member.mappings or gone in member.shortcuts.values()]

    def rebind(self, number: int) -> None:
        """The NAT box of a spoke forgets its flows: the next packet comes from another port."""
        self.boxes[number].forget()

    def clock_jumps(self, member: Member, seconds: float) -> None:
        """The machine of a gateway slept: its clock goes on from later, all that was due is due at once."""
        later, engine = self.simulation.now + seconds, member.engine
        member.host.up = False
        if member._timer:
            member._timer.cancel()

        def wake() -> None:
            if member.engine is not engine:
                return  # somebody has restarted it meanwhile
            member.host.up = True
            member.engine.handle_timer(self.simulation.now)
            member.settle()

        self.simulation.schedule_at(later, wake)
