"""Two engines and what lies between them.

`End` is an engine with an owner that does what the events say, as a data plane would. `Wire` holds datagrams in flight
in both directions: a test delivers, loses, doubles or alters each, and lets time pass by hand.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from random import Random
from typing import Any, TypeVar

from dsvpn.addresses import Endpoint, Path
from dsvpn.ike import events
from dsvpn.ike.engine import IkeEngine
from dsvpn.ike.identity import Identity, parse_remote_identity
from dsvpn.ike.profile import IkeProfile, RetransmissionSchedule
from dsvpn.ike.sealing import SealingKey, open_payloads
from dsvpn.ike.status import IkeSaStatus
from dsvpn.ike.suites import parse_esp_suite, parse_ike_suite
from dsvpn.io.kem import native_kems
from dsvpn.wire import ikev2 as wire

A = ip_address("192.0.2.1")
B = ip_address("192.0.2.2")
NAT_ADDRESS = ip_address("203.0.113.1")
START = 1000.25
#: The time of day of every end, seconds since 1970: 2026-06-15 12:00 UTC.
WALL = 1781524800.0

_E = TypeVar("_E")
Payloads = Sequence[wire.Payload]
Change = Callable[[Payloads], list[wire.Payload]]

DEFAULT_IKE = ("aes128gcm16-prfsha256-x25519",)
DEFAULT_ESP = ("aes128gcm16",)


def make_profile(
    local: str = "a",
    remote: str | None = None,
    *,
    name: str = "default",
    ike: tuple[str, ...] = DEFAULT_IKE,
    esp: tuple[str, ...] = DEFAULT_ESP,
    psk: bytes = b"a secret that both know",
    **options: Any,
) -> IkeProfile:
    defaults: dict[str, Any] = {"dpd_interval": 0.0, "retransmission": RetransmissionSchedule(0.5, 2.0, 4.0, 5)}
    return IkeProfile(
        name,
        tuple(parse_ike_suite(text) for text in ike),
        tuple(parse_esp_suite(text) for text in esp),
        psk,
        Identity.parse(local),
        None if remote is None else parse_remote_identity(remote),
        **(defaults | options),
    )


@dataclass
class Owned:
    """A CHILD_SA in the owner's tables."""

    event: events.ChildSaEstablished


class End:
    """An engine and its owner. `sealing` is the inbound SPI of the CHILD_SA that each IKE SA seals with, `workers` of
    those that seal for one worker, by IKE SA and resource."""

    def __init__(
        self, name: str, address: Any, profiles: list[IkeProfile], seed: int, token_secret: bytes = b""
    ) -> None:
        self.name = name
        self.address = address
        self._random = Random(f"{name} {seed}")
        self.allocated: set[int] = set()
        self.released: set[int] = set()
        self.key_log: list[str] = []
        #: What the time of day has moved by; a test may let it move with the simulation's.
        self.elapsed: Callable[[], float] = lambda: 0.0
        self.engine = IkeEngine(
            profiles,
            token_secret=token_secret,
            random=self._random.randbytes,
            allocate_spi=self._allocate,
            release_spi=self._release,
            key_log=self.key_log.append,
            wall_clock=lambda: WALL + self.elapsed(),
            kems=native_kems(),
        )
        self.events: list[events.Event] = []
        self.established: dict[int, events.IkeSaEstablished] = {}
        self.children: dict[int, Owned] = {}
        self.sealing: dict[int, int] = {}
        self.workers: dict[tuple[int, int], int] = {}

    def _allocate(self, replaces: int) -> int:
        assert not replaces or replaces in self.allocated - self.released, "nothing rekeys what is not there"
        while True:
            spi = self._random.randrange(256, 2**32)
            if spi not in self.allocated:
                self.allocated.add(spi)
                return spi

    def _release(self, spi: int) -> None:
        assert spi in self.allocated, f"{spi:#x} was never allocated"
        assert spi not in self.released, f"{spi:#x} released twice"
        assert spi not in self.children, f"{spi:#x} belongs to the owner"
        self.released.add(spi)

    def path_to(self, other: End, port: int = 500) -> Path:
        return Path(Endpoint(self.address, port), Endpoint(other.address, port))

    def drain(self) -> None:
        """Do what the events say."""
        while (event := self.engine.next_event()) is not None:
            self.events.append(event)
            match event:
                case events.IkeSaEstablished():
                    assert event.ike_sa not in self.established
                    self.established[event.ike_sa] = event
                case events.IkeSaDeleted():
                    del self.established[event.ike_sa]
                    assert not [c for c in self.children.values() if c.event.ike_sa == event.ike_sa]
                case events.ChildSaEstablished():
                    assert event.ike_sa in self.established
                    assert event.inbound_spi in self.allocated - self.released
                    assert event.inbound_spi not in self.children
                    self.children[event.inbound_spi] = Owned(event)
                    if event.outbound_ready:
                        self._seal_with(event)
                case events.ChildSaOutboundReady():
                    self._seal_with(self.children[event.inbound_spi].event)
                case events.ChildSaOutboundStopped():
                    resource = self.children[event.inbound_spi].event.resource
                    if resource:
                        assert self.workers.pop((event.ike_sa, resource)) == event.inbound_spi
                    else:
                        assert self.sealing.pop(event.ike_sa) == event.inbound_spi
                case events.ChildSaDeleted():
                    owned = self.children.pop(event.inbound_spi)
                    assert owned.event.outbound_spi == event.outbound_spi
                    self.released.add(event.inbound_spi)
                    if self.sealing.get(event.ike_sa) == event.inbound_spi:
                        del self.sealing[event.ike_sa]
                    worker = event.ike_sa, owned.event.resource
                    if self.workers.get(worker) == event.inbound_spi:
                        del self.workers[worker]
                case events.IkePathChanged() | events.IkeSaRekeyed():
                    assert event.ike_sa in self.established

    def _seal_with(self, child: events.ChildSaEstablished) -> None:
        if child.resource:
            self.workers[child.ike_sa, child.resource] = child.inbound_spi
        else:
            self.sealing[child.ike_sa] = child.inbound_spi

    def of(self, kind: type[_E]) -> list[_E]:
        """The events of one kind, oldest first."""
        return [event for event in self.events if isinstance(event, kind)]

    def snapshot(self, now: float) -> list[IkeSaStatus]:
        return self.engine.snapshot(now)

    @property
    def handle(self) -> int:
        """The only established IKE SA."""
        (handle,) = self.established
        return handle

    @property
    def child(self) -> events.ChildSaEstablished:
        """The CHILD_SA that seals, of the only IKE SA."""
        return self.children[self.sealing[self.handle]].event

    def check_spis(self) -> None:
        """Every SPI is in use or given back."""
        assert self.allocated - self.released == set(self.children), f"{self.name} leaks SPIs"


@dataclass
class InFlight:
    """A datagram between two ends, with the path as the receiver will see it."""

    sender: End
    receiver: End
    data: bytes
    path: Path


@dataclass(frozen=True)
class Nat:
    """A NAT box in front of an end. Outbound ports move by `shift`; inbound reaches those ports only."""

    public: Any
    shift: int = 0


@dataclass
class Wire:
    """Both ends and everything in flight."""

    a: End
    b: End
    nats: dict[str, Nat] = field(default_factory=dict)
    now: float = START
    flying: dict[str, deque[InFlight]] = field(default_factory=lambda: {"a": deque(), "b": deque()})
    record: list[InFlight] = field(default_factory=list)

    @property
    def ends(self) -> tuple[End, End]:
        return self.a, self.b

    def other(self, end: End) -> End:
        return self.b if end is self.a else self.a

    def collect(self) -> None:
        """Owners take their events first, then datagrams leave."""
        for end in self.ends:
            end.drain()
            for data, path in end.engine.datagrams_to_send(self.now):
                flight = self._translate(end, data, path)
                if flight is not None:
                    self.record.append(flight)
                    self.flying[end.name].append(flight)

    def _translate(self, sender: End, data: bytes, path: Path) -> InFlight | None:
        receiver = self.other(sender)
        source = Endpoint(sender.address if path.local.address.is_unspecified else path.local.address, path.local.port)
        nat = self.nats.get(sender.name)
        if nat is not None:
            source = Endpoint(nat.public, source.port + nat.shift)
        target = path.remote
        nat = self.nats.get(receiver.name)
        if nat is not None:
            if target.address != nat.public:
                return None
            target = Endpoint(receiver.address, target.port - nat.shift)
        return InFlight(sender, receiver, data, Path(target, source)) if target.address == receiver.address else None

    def deliver(self, sender: str, alter: Callable[[bytes], bytes] | None = None) -> InFlight:
        """The oldest datagram of one end arrives."""
        flight = self.flying[sender].popleft()
        self.hand(flight if alter is None else replace(flight, data=alter(flight.data)))
        return flight

    def inside(self, flight: InFlight) -> tuple[wire.Payload, ...]:
        """What a datagram says inside its SK payload."""
        payloads = open_payloads(self._key(flight), _encrypted(flight))
        assert isinstance(payloads, tuple)
        return payloads

    def deliver_inside(self, sender: str, change: Change) -> None:
        """The oldest datagram of one end arrives, with other payloads inside: its sender behaves differently."""
        flight = self.flying[sender].popleft()
        header = wire.Message.decode(flight.data).header
        self.hand(replace(flight, data=self._key(flight).seal(header, list(change(self.inside(flight))))))

    def _key(self, flight: InFlight) -> SealingKey:
        header = wire.Message.decode(flight.data).header
        ike_sas = flight.sender.engine._context.ike_sas
        key = ike_sas[header.initiator_spi if header.from_initiator else header.responder_spi]._sealing
        assert key is not None
        return key

    def hand(self, flight: InFlight) -> None:
        """A datagram arrives, be it in flight or an old one."""
        flight.receiver.engine.receive_datagram(flight.data, flight.path, self.now)
        self.collect()

    def lose(self, sender: str) -> InFlight:
        return self.flying[sender].popleft()

    def settle(self) -> None:
        """Deliver everything until nobody says anything more."""
        self.collect()
        for _ in range(1000):
            for name in ("a", "b"):
                if self.flying[name]:
                    self.deliver(name)
                    break
            else:
                return
        raise AssertionError("the two never stop talking")

    def next_timer(self) -> float | None:
        times = [time for end in self.ends if (time := end.engine.get_timer()) is not None]
        return min(times, default=None)

    def sleep(self, seconds: float, deliver: bool = True) -> None:
        """Let time pass; datagrams take none, or are all lost without `deliver`."""
        end = self.now + seconds
        for _ in range(10_000):
            timer = self.next_timer()
            if timer is None or timer > end:
                self.now = end
                return
            self.now = max(self.now, timer)
            for one in self.ends:
                one.engine.handle_timer(self.now)
            if deliver:
                self.settle()
            else:
                self.collect()
                for queue in self.flying.values():
                    queue.clear()
        raise AssertionError("time stands still")

    def connect(self, port: int = 500) -> None:
        """`a` initiates and both establish."""
        nat = self.nats.get("b")
        path = Path(Endpoint(self.a.address, port), Endpoint(nat.public if nat else self.b.address, port))
        self.a.engine.initiate("default", path, self.now)
        self.settle()
        assert self.a.established, self.a.events
        assert self.b.established, self.b.events

    def check_traffic(self) -> None:
        """What either end seals, the other opens, with the same keys."""
        for end in self.ends:
            other = self.other(end)
            for spi in (*end.sealing.values(), *end.workers.values()):
                child = end.children[spi].event
                peer = other.children.get(child.outbound_spi)
                assert peer is not None, f"{end.name} seals with {child.outbound_spi:#x}, which {other.name} has not"
                assert peer.event.inbound_keymat == child.outbound_keymat
                assert peer.event.outbound_keymat == child.inbound_keymat
                assert peer.event.outbound_spi == child.inbound_spi
                assert (peer.event.suite, peer.event.esn) == (child.suite, child.esn)

    def check_agreement(self) -> None:
        """Both ends have the same SAs, and nobody leaks."""
        self.check_traffic()
        sas = []
        for end in self.ends:
            end.check_spis()
            snapshot = end.snapshot(self.now)
            assert {status.state for status in snapshot} <= {"established"}, snapshot
            sas.append({(status.initiator_spi, status.responder_spi) for status in snapshot})
        assert sas[0] == sas[1]
        mine = {(o.event.inbound_spi, o.event.outbound_spi, o.event.inbound_keymat) for o in self.a.children.values()}
        theirs = {
            (o.event.outbound_spi, o.event.inbound_spi, o.event.outbound_keymat) for o in self.b.children.values()
        }
        assert mine == theirs


def make_wire(
    a: IkeProfile | list[IkeProfile] | None = None,
    b: IkeProfile | list[IkeProfile] | None = None,
    *,
    seed: int = 0,
    nats: dict[str, Nat] | None = None,
) -> Wire:
    """Ends "a" at 192.0.2.1 and "b" at 192.0.2.2; one behind a NAT has a private address instead."""
    nats = nats or {}
    profiles = [
        given if isinstance(given, list) else [given or make_profile(name)] for name, given in (("a", a), ("b", b))
    ]
    addresses = {"a": A, "b": B}
    for name in nats:
        addresses[name] = ip_address({"a": "10.1.0.7", "b": "10.2.0.7"}[name])
    return Wire(
        End("a", addresses["a"], profiles[0], seed),
        End("b", addresses["b"], profiles[1], seed),
        nats,
    )


def _encrypted(flight: InFlight) -> wire.Encrypted:
    payload = wire.Message.decode(flight.data).payloads[-1]
    assert isinstance(payload, wire.Encrypted)
    return payload


def both_options(**options: Any) -> Iterator[IkeProfile]:
    """The same options for both ends."""
    yield make_profile("a", **options)
    yield make_profile("b", **options)
