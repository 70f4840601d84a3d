"""NHSs that are known by a DNS name: when to look the name up, and which of its addresses to use."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from dsvpn.addresses import Address

#: Seconds between look-ups while the NHS is registered with; the answers' own lifetimes are not told by the resolver.
REFRESH_INTERVAL = 60.0
#: While it is not, and after an answer that was none: 1, 2, 4, … seconds, and not slower than this.
FIRST_RETRY = 1.0
MAX_RETRY = 30.0
#: An NHS with several addresses is given so long at each before the next one is tried, seconds: a whole round of IKE.
PATIENCE = 30.0


@dataclass(slots=True)
class NamedServer:
    """One NHS with a name, and what is known of it."""

    tunnel: str
    protocol: Address
    name: str
    address: Address | None = None
    addresses: tuple[Address, ...] = ()
    error: str = "not looked up yet"
    up: bool = False
    #: When to look the name up, None while that is under way.
    due: float | None = None
    retry: float = FIRST_RETRY
    #: Since when `address` is in use.
    since: float = 0.0


class NamedServers:
    """All of a gateway. The owner looks up what `take_due` gives and brings each answer back, once."""

    def __init__(self, servers: Iterable[NamedServer]) -> None:
        self._servers = {(server.tunnel, server.protocol): server for server in servers}

    def start(self, now: float) -> None:
        """Everything is due."""
        for server in self._servers.values():
            server.due = now

    def get(self, tunnel: str, protocol: Address) -> NamedServer | None:
        """The named server of a tunnel address, None if that has an address in the configuration."""
        return self._servers.get((tunnel, protocol))

    def get_timer(self) -> float | None:
        """When something is due."""
        return min((server.due for server in self._servers.values() if server.due is not None), default=None)

    def take_due(self, now: float) -> list[NamedServer]:
        """Whose names are to be looked up now."""
        due = [server for server in self._servers.values() if server.due is not None and server.due <= now]
        for server in due:
            server.due = None
        return due

    def answered(
        self, server: NamedServer, addresses: tuple[Address, ...], error: str, version: int | None, now: float
    ) -> bool:
        """The answer to a look-up: addresses, or an error. `version`: of this gateway's own address, where known.

        True if the server has another address from here on.
        """
        usable = tuple(address for address in addresses if version is None or address.version == version)
        if not usable:
            server.error = error or f"{server.name} has no IPv{version} address"
            self._try_again(server, now)
            return False
        server.error, server.addresses = "", usable
        before = server.address
        if before not in usable:
            server.address = usable[0]
        elif not server.up and len(usable) > 1 and now - server.since >= PATIENCE:
            server.address = usable[(usable.index(before) + 1) % len(usable)]
        if server.address != before:
            server.since = now
        if server.up and server.address == before:
            server.due, server.retry = now + REFRESH_INTERVAL, FIRST_RETRY
        else:
            self._try_again(server, now)
        return server.address != before

    def registered(self, tunnel: str, protocol: Address, now: float) -> None:
        """The NHS is registered with: its address is good."""
        server = self.get(tunnel, protocol)
        if server is not None:
            server.up, server.retry = True, FIRST_RETRY
            if server.due is not None:
                server.due = now + REFRESH_INTERVAL

    def failed(self, tunnel: str, protocol: Address, now: float) -> None:
        """The NHS is not registered with any more: perhaps it has moved."""
        server = self.get(tunnel, protocol)
        if server is None:
            return
        if server.up and server.due is not None:
            server.due = now
        server.up = False

    @staticmethod
    def _try_again(server: NamedServer, now: float) -> None:
        server.due = now + server.retry
        server.retry = min(server.retry * 2, MAX_RETRY)
