"""NAT keepalives: when to refresh the bindings of the NAT before us (RFC 3948 section 4)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from dsvpn.addresses import Path
from dsvpn.gateway.peers import Peer


class Keepalives:
    """`intervals` are seconds by profile; 0 never sends any."""

    def __init__(self, intervals: Mapping[str, float]) -> None:
        self._intervals = intervals
        self._due: dict[str, float] = {}

    def start(self, profile: str, now: float) -> None:
        """A peer of this profile is reached through a NAT before us."""
        if self._intervals[profile]:
            self._due.setdefault(profile, now + self._intervals[profile])

    def timers(self) -> Iterable[float]:
        """When `paths` has something to give."""
        return self._due.values()

    def paths(self, peers: Iterable[Peer], now: float) -> list[Path]:
        """Paths that are to be refreshed. A profile without any is let be until the next `start`."""
        due = {profile for profile, at in self._due.items() if at <= now}
        if not due:
            return []
        paths: list[Path] = []
        for profile in due:
            del self._due[profile]
        for peer in peers:
            if peer.profile in due and peer.up and peer.local_nat and peer.path is not None:
                paths.append(peer.path)
                self.start(peer.profile, now)
        return paths
