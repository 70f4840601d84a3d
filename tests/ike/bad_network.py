"""A network that loses, doubles and reorders what two engines say, and what must be true when it has become quiet."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from math import inf
from random import Random

from dsvpn.ike.child_sa import ChildState
from dsvpn.ike.state import IkeState
from tests.ike.harness import InFlight, Wire


@dataclass
class BadNetwork:
    """Carries what a `Wire` collects, with losses, doubles and delays, in simulated time."""

    net: Wire
    chance: Random
    loss: float
    duplicate: float = 0.1
    delay: float = 0.2
    heap: list[tuple[float, int, InFlight]] = field(default_factory=list)
    order: int = 0

    def carry(self) -> None:
        """Take over what the ends have sent."""
        self.net.collect()
        for queue in self.net.flying.values():
            while queue:
                flight = queue.popleft()
                for _ in range(2 if self.chance.random() < self.duplicate else 1):
                    if self.chance.random() >= self.loss:
                        self.order += 1
                        # Delays vary by more than a message takes: datagrams overtake each other.
                        at = self.net.now + self.chance.random() * self.delay
                        heapq.heappush(self.heap, (at, self.order, flight))

    def run(self, seconds: float) -> None:
        end = self.net.now + seconds
        for _ in range(200_000):
            self.carry()
            timer = self.net.next_timer()
            times = [end] + ([timer] if timer is not None else []) + ([self.heap[0][0]] if self.heap else [])
            self.net.now = max(self.net.now, min(times))
            if self.heap and self.heap[0][0] <= self.net.now:
                flight = heapq.heappop(self.heap)[2]
                flight.receiver.engine.receive_datagram(flight.data, flight.path, self.net.now)
            elif timer is not None and timer <= self.net.now:
                for one in self.net.ends:
                    one.engine.handle_timer(self.net.now)
            elif self.net.now >= end:
                return
        raise AssertionError("time stands still")

    def finish(self, seconds: float) -> None:
        """Let the network recover and become quiet, and what was just said be answered."""
        self.loss = 0.0
        self.run(seconds)
        for _ in range(20):
            if not self.heap and all(
                sa.requests.outstanding is None for end in self.net.ends for sa in end.engine._context.ike_sas.values()
            ):
                return
            self.run(1.0)
        raise AssertionError("the two never stop talking")


def check_end(net: Wire) -> None:
    net.check_agreement()
    for end in net.ends:
        context = end.engine._context
        assert set(context.children) == set(end.children)
        assert set(context.associations) == set(end.established)
        assert len(context.ike_sas) == len(end.established)
        assert not len(context.half_open)
        for handle in end.established:
            spis = [spi for spi, owned in end.children.items() if owned.event.ike_sa == handle]
            sealing = {end.sealing.get(handle), *(spi for (sa, _), spi in end.workers.items() if sa == handle)}
            assert not spis or sealing & set(spis), "an IKE SA has children and seals with none"
        for sa in context.ike_sas.values():
            association = sa.association
            assert sa.state is IkeState.ESTABLISHED, sa.state
            assert not sa.tasks
            assert sa.requests.outstanding is None
            assert sa.followup is None
            assert sa.reassembly.deadline == inf
            assert association.reauthentication.successor is None
            assert association.reauthentication.delete_at == inf
            assert association.child_wanted_at == inf
            assert {child.state for child in association.children} <= {ChildState.INSTALLED}
        if not context.ike_sas:
            assert end.engine.get_timer() is None
