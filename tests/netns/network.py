"""The lab's network with real gateways, at a pace for tests."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping
from ipaddress import IPv4Address
from types import TracebackType
from typing import Self

from dsvpn.lab.capture import Capture
from dsvpn.lab.gateways import GatewayProcess, Settings
from dsvpn.lab.measure import Pings, ping
from dsvpn.lab.run import Run, wait_until
from dsvpn.lab.status import registered, registrations
from dsvpn.lab.topology import SITES, Topology

#: Everything that waits for a state gives up after this, seconds. Generous: it is only reached by a failure.
DEADLINE = 60.0

#: A dead peer is noticed within about 3 s, a missing answer within less, and mappings live for 30 s.
QUICK = Settings(
    holding_time="30s",
    profile={
        "dpd": '"1s"',
        "retransmission": '{ timeout = "250ms", factor = 1.5, limit = "1s", tries = 4 }',
    },
)

_numbers = itertools.count(1)


class Network:
    """Hub, spoke1 behind NAT, spoke2; each started when the test says so. Use it as a context manager.

    `settings` of single sites override `QUICK`.
    """

    def __init__(
        self, settings: Mapping[str, Settings] | None = None, *, every: Settings = QUICK, nat: str = "masquerade"
    ) -> None:
        # No two networks share names, so that one left by a killed run is in nobody's way.
        self.run = Run(f"dsvpn-t{os.getpid()}x{next(_numbers)}")
        self.topology = Topology(self.run, nat=nat)
        self._settings = dict(settings or {})
        self._every = every
        self.gateways: dict[str, GatewayProcess] = {}

    def __enter__(self) -> Self:
        self.run.open()
        try:
            self.topology.build()
        except BaseException:
            self.run.close()
            raise
        for site in SITES:
            settings = self._settings.get(site.name, self._every)
            self.gateways[site.name] = GatewayProcess(self.run, site, self.topology.gateways[site.name], settings)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None:
            for gateway in self.gateways.values():
                print(f"--- log of {gateway.site.name}", *gateway.last_lines(60), sep="\n")
        self.run.close()

    def start(self, *names: str) -> Self:
        """Start gateways (all of them without names), the hub first."""
        for name in names or tuple(self.gateways):
            self.gateways[name].start()
        return self

    def wait_registered(self, *spokes: str) -> Self:
        """Wait until these spokes (both without names) have a registration that both ends know of."""
        names = spokes or ("spoke1", "spoke2")
        wanted = {self.gateways[name].site.tunnel for name in names}
        wait_until(
            lambda: (
                wanted <= registrations(self.gateways["hub"]).keys()
                and all(registered(self.gateways[name]) for name in names)
            ),
            DEADLINE,
            f"{' and '.join(names)} to register",
            interval=0.1,
        )
        return self

    def ping(self, source: str, target: IPv4Address, count: int = 5, *, size: int = 56, wait: float = 1.0) -> Pings:
        """Ping from the LAN host of a site."""
        return ping(self.topology.hosts[source], target, count, size=size, wait=wait)

    def wait_ping(self, source: str, target: IPv4Address) -> None:
        """Wait until one ping is answered."""
        wait_until(lambda: self.ping(source, target, 1, wait=0.3).received, DEADLINE, f"{source}-lan to reach {target}")

    def capture(self, name: str = "underlay") -> Capture:
        """Capture the underlay from here on."""
        return Capture(self.run, self.topology.internet, self.run.directory / f"{name}.pcap")
