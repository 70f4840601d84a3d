"""Where handshakes are measured: a responder, and all initiators, in a namespace each.

    initiators 10.66.0.0/16 ── 192.0.2.1 ══ 192.0.2.2 ── responder

A veth pair between them, MTU 1500. The addresses of the initiators are local to their namespace, so that one process
can send from each. Responder and initiators are each held to one processor.
"""

from __future__ import annotations

import json
import os
import subprocess
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

from bench.environment import python
from dsvpn.errors import HostError
from dsvpn.lab.run import Run
from dsvpn.lab.topology import Namespace

INITIATORS, RESPONDER = IPv4Address("192.0.2.1"), IPv4Address("192.0.2.2")
#: Where the initiators are, one address each.
ADDRESSES = IPv4Network("10.66.0.0/16")
#: Initiators in the files of `gateways`: each is used again by every so many-th peer.
IDENTITIES = 64

SUITES = {
    "PSK, X25519": "aes128gcm16-prfsha256-x25519",
    "ECDSA, X25519": "aes128gcm16-prfsha256-x25519",
    "ECDSA, X25519, ML-KEM-768": "aes128gcm16-prfsha256-x25519-ke1_mlkem768",
}
ESP_SUITE = "aes128gcm16"


#: Whatever else runs on the machine shall disturb less: all contestants, initiators and the flood alike.
#: Each begins a session, which the kernel's autogroups weigh as one.
PRIORITY = ("sh", "-c", '[ ! -e /proc/self/autogroup ] || echo -15 > /proc/self/autogroup; exec nice -n -15 "$@"', "sh")


def processors() -> tuple[int, int]:
    """One for the responder and one for the initiators; the same on a machine that has no second."""
    allowed = sorted(os.sched_getaffinity(0))
    return allowed[0], allowed[-1]


class ControlBed:
    """The two namespaces. `run` owns them."""

    def __init__(self, run: Run, name: str) -> None:
        self.run = run
        self.name = name
        self.initiators = Namespace(run, f"{name}-initiators")
        self.responder = Namespace(run, f"{name}-responder")
        #: Configurations, keys, sockets and logs.
        self.directory = run.directory / name

    def build(self) -> None:
        """Make it. HostError says which step the machine refused."""
        self.directory.mkdir()
        for namespace in (self.initiators, self.responder):
            namespace.create()
        self.initiators.ip("link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", self.responder.name)
        for namespace, address in ((self.initiators, INITIATORS), (self.responder, RESPONDER)):
            namespace.set(ipv6__conf__eth0__disable_ipv6=1, ipv4__conf__all__rp_filter=0)
            namespace.ip("address", "add", f"{address}/24", "dev", "eth0")
            namespace.ip("link", "set", "eth0", "up")
        self.initiators.ip("route", "add", "local", str(ADDRESSES), "dev", "lo")
        self.responder.ip("route", "add", "default", "via", str(INITIATORS))


class Initiators:
    """The process of all initiators of a bed. Files of `gateways` say how each proves itself."""

    def __init__(self, bed: ControlBed, gateways: list[Path], first_address: IPv4Address, *first: Path) -> None:
        settings = {
            "remote": str(RESPONDER),
            "first_address": str(first_address),
            "gateways": [str(file) for file in gateways],
        }
        argv = [
            "ip",
            "netns",
            "exec",
            bed.initiators.name,
            *PRIORITY,
            "taskset",
            "-c",
            str(processors()[1]),
            *python(*first),
        ]
        self._log = (bed.directory / "initiators.log").open("w+")
        self._process = subprocess.Popen(
            [*argv, "-m", "bench.control.initiator", json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            start_new_session=True,
        )
        self._read()

    def __call__(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Do one step (see bench/control/initiator.py) and give what came of it."""
        assert self._process.stdin is not None
        print(json.dumps({"do": do, **arguments}), file=self._process.stdin, flush=True)
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._log.seek(0)
            raise HostError(f"the initiators ended: {self._log.read().strip()[-400:] or 'they said nothing'}")
        found: dict[str, Any] = json.loads(line)
        return found

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()
        self._log.close()
