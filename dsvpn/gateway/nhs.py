"""Which of a tunnel's NHSs traffic goes by: probes, fail-over and fail-back.

A tunnel with several NHSs registers with all of them. Traffic without a direct path goes by the one with the lowest
priority number that can be relied on; NHSs of one priority share the next hops among themselves. An NHS that says
nothing for a while is probed by ICMP echo through the tunnel, which any NHS's kernel answers without its control
plane; one that leaves the probes unanswered is passed over long before its IKE SA is found dead. One that has failed
is relied on again only after it has been well for `fallback` seconds, or traffic would follow every hiccup of it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum

from dsvpn.addresses import Address


class Standing(IntEnum):
    """How far an NHS can be relied on; lower is better."""

    #: Registered, and answers where it is probed.
    RELIABLE = 0
    #: Well again after a failure, but not for long enough.
    RECOVERING = 1
    #: Not registered with (yet).
    UNREGISTERED = 2
    #: Leaves probes unanswered.
    LOST = 3


@dataclass(slots=True)
class _Nhs:
    protocol: Address
    priority: int
    registered: bool = False
    lost: bool = False
    #: It was well once, and then it was not.
    failed: bool = False
    was_up: bool = False
    #: When one that has failed is relied on again.
    reliable_at: float | None = None
    #: Packets in at the last look; None before the first.
    packets_in: int | None = None
    #: Whether it has ever answered: the silence of one that answers no probes proves nothing.
    answers: bool = False
    probes: int = 0

    @property
    def standing(self) -> Standing:
        if self.lost:
            return Standing.LOST
        if not self.registered:
            return Standing.UNREGISTERED
        return Standing.RELIABLE if self.reliable_at is None else Standing.RECOVERING


class NhsHealth:
    """The NHSs of one tunnel. `tries`: probes in a row that may stay unanswered; `fallback`: seconds."""

    def __init__(self, servers: Iterable[tuple[Address, int]], *, tries: int, fallback: float) -> None:
        self._servers = {protocol: _Nhs(protocol, priority) for protocol, priority in servers}
        self._tries = tries
        self._fallback = fallback

    def __contains__(self, protocol: object) -> bool:
        return protocol in self._servers

    def order(self, toward: Address | None = None) -> list[Address]:
        """The NHSs, the one to use first. Those of one standing and priority begin with another for each `toward`."""
        servers = sorted(self._servers.values(), key=lambda nhs: (nhs.standing, nhs.priority))
        if toward is not None and len(servers) > 1:
            best = (servers[0].standing, servers[0].priority)
            equals = sum((nhs.standing, nhs.priority) == best for nhs in servers)
            first = int(toward) % equals
            servers[:equals] = servers[first:equals] + servers[:first]
        return [nhs.protocol for nhs in servers]

    def standing(self, protocol: Address) -> Standing:
        """How far an NHS can be relied on."""
        return self._servers[protocol].standing

    def any_reliable(self) -> bool:
        """Whether there is an NHS to rely on at all."""
        return any(nhs.standing is Standing.RELIABLE for nhs in self._servers.values())

    # -- what happens ----------------------------------------------------------------------------------------

    def registered(self, protocol: Address, now: float) -> None:
        """The NHS has accepted a registration: it is well."""
        nhs = self._servers[protocol]
        nhs.registered = nhs.was_up = True
        nhs.lost, nhs.probes, nhs.packets_in = False, 0, None
        if nhs.failed and nhs.reliable_at is None:
            nhs.reliable_at = now + self._fallback
            if not self.any_reliable():
                # Nothing to fall back from: who waited for one NHS takes what comes.
                self._rely(nhs)

    def failed(self, protocol: Address) -> None:
        """The registration with the NHS is gone, or the path to it."""
        nhs = self._servers[protocol]
        nhs.registered = False
        nhs.failed |= nhs.was_up
        nhs.reliable_at = None
        if not self.any_reliable():
            for other in self._servers.values():
                if other.standing is Standing.RECOVERING:
                    self._rely(other)

    def look(self, protocol: Address, packets_in: int) -> tuple[bool, bool]:
        """Once in a probe interval: the packets that have come from the NHS, in total. Gives (probe it, it is lost)."""
        nhs = self._servers[protocol]
        if not nhs.registered or nhs.lost:
            return False, False
        heard = nhs.packets_in is not None and packets_in != nhs.packets_in
        nhs.packets_in = packets_in
        if heard:
            nhs.answers, nhs.probes = True, 0
            return False, False
        if nhs.probes >= self._tries:
            if nhs.answers:
                nhs.lost = True
                self.failed(protocol)
                return False, True
            # It may not answer pings: whether it lives is for IKE to find out. Asked rarely, in case that changes.
            nhs.probes = nhs.probes % (10 * self._tries) + 1
            return nhs.probes == self._tries + 1, False
        nhs.probes += 1
        return True, False

    def heard(self, protocol: Address) -> None:
        """Something other than data came from the NHS."""
        self._servers[protocol].probes = 0

    # -- time ------------------------------------------------------------------------------------------------

    def get_timer(self) -> float | None:
        """When `handle_timer` has something to do."""
        waiting = (nhs.reliable_at for nhs in self._servers.values() if nhs.reliable_at is not None)
        return min(waiting, default=None)

    def handle_timer(self, now: float) -> list[Address]:
        """The NHSs that are relied on again from here on."""
        back = [nhs for nhs in self._servers.values() if nhs.reliable_at is not None and nhs.reliable_at <= now]
        for nhs in back:
            self._rely(nhs)
        return [nhs.protocol for nhs in back]

    @staticmethod
    def _rely(nhs: _Nhs) -> None:
        nhs.reliable_at, nhs.failed = None, False
