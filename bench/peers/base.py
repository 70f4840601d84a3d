"""What every contestant can do."""

from __future__ import annotations

import json
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Sequence
from ipaddress import IPv4Address
from pathlib import Path

from bench.netns.bed import LEFT_LAN, RIGHT_LAN, TUNNEL_LEFT, TUNNEL_RIGHT, Bed
from dsvpn.errors import HostError
from dsvpn.lab.run import wait_until
from dsvpn.lab.topology import Namespace


class Peer(ABC):
    """One contestant: a program with its settings. Its name is also that of its bed."""

    #: Ends of the tunnel, where iperf3 and ping run.
    left_address: IPv4Address = TUNNEL_LEFT
    right_address: IPv4Address = TUNNEL_RIGHT
    #: Name of the device that packets enter the tunnel by; None without a tunnel.
    device: str | None = None

    def __init__(self, name: str, title: str, *, cipher: str, notes: Sequence[str] = ()) -> None:
        self.name = name
        self.title = title
        self.cipher = cipher
        #: What a reader of the figures must know.
        self.notes = list(notes)
        self.processes: list[subprocess.Popen[bytes]] = []
        self._bed: Bed | None = None

    @abstractmethod
    def install(self) -> None:
        """Make the program available. HostError says why it is not and how to get it."""

    @abstractmethod
    def version(self) -> str:
        """Version of the program that runs."""

    @abstractmethod
    def start(self, bed: Bed) -> None:
        """Bring the tunnel up in a bed that was built, with routes to the LANs of the other end."""

    @property
    def bed(self) -> Bed:
        """The bed it was started in."""
        if self._bed is None:
            raise HostError(f"{self.name} was not started")
        return self._bed

    def stop(self) -> None:
        """End its processes. Devices go with them or with the bed."""
        for process in reversed(self.processes):
            self.bed.run.end(process)
        self.processes.clear()

    def stop_if_started(self) -> None:
        """The same for one that may have failed on the way up."""
        if self._bed is not None:
            self.stop()

    def mtu(self) -> int | None:
        """MTU of the tunnel device at the left end."""
        if self.device is None:
            return None
        (link,) = json.loads(self.bed.left.ip("-j", "link", "show", "dev", self.device))
        return int(link["mtu"])

    # -- for the subclasses -------------------------------------------------------------------------------------

    def _spawn(self, bed: Bed, namespace: Namespace, argv: Sequence[str], side: str) -> subprocess.Popen[bytes]:
        self._bed = bed
        process = bed.run.spawn(argv, self._log(bed, side), namespace=namespace.name)
        self.processes.append(process)
        return process

    def _log(self, bed: Bed, side: str) -> Path:
        return bed.directory / f"{side}.log"

    def _wait_for_device(self, bed: Bed, namespace: Namespace, process: subprocess.Popen[bytes], side: str) -> None:
        def exists() -> bool:
            if process.poll() is not None:
                said = self._log(bed, side).read_text(errors="replace").strip()[-300:]
                raise HostError(f"{self.name} ended with status {process.returncode}: {said or 'it said nothing'}")
            return any(link["ifname"] == self.device for link in json.loads(namespace.ip("-j", "link", "show")))

        wait_until(exists, 20, f"the device {self.device} of {self.name}")

    def _route_lans(self, bed: Bed) -> None:
        """Routes to the far LAN by the tunnel device, for programs that make none themselves."""
        if self.device is None:
            raise HostError(f"{self.name} has no tunnel device")
        bed.left.ip("route", "add", str(RIGHT_LAN), "dev", self.device)
        bed.right.ip("route", "add", str(LEFT_LAN), "dev", self.device)
