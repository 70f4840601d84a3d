"""IPv4 and IPv6 as tunnel and as public addresses, with real processes: a hub and two spokes on one wire."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import dsvpn
from dsvpn.io.control import answers, ask
from dsvpn.lab.run import Run, wait_until
from dsvpn.lab.topology import Namespace
from tests.netns.network import DEADLINE

pytestmark = [pytest.mark.root, pytest.mark.netns]

_numbers = itertools.count(1)


def public(version: int, number: int) -> str:
    return f"192.0.2.{number}" if version == 4 else f"2001:db8::{number}"


def tunnel(version: int, number: int) -> str:
    return f"10.0.0.{number}" if version == 4 else f"fd00::{number}"


def lan(version: int, number: int) -> tuple[str, str]:
    """The prefix behind a gateway, and the gateway's address in it."""
    return (f"172.16.{number}.0/24", f"172.16.{number}.1") if version == 4 else (
        f"fd16:0:0:{number}::/64", f"fd16:0:0:{number}::1",
    )  # fmt: skip


class Small:
    """Hub 1, spokes 2 and 3, each with its LAN's address on a device of its own."""

    def __init__(self, run: Run, inner: int, outer: int) -> None:
        self.run, self.inner, self.outer = run, inner, outer
        self.wire = Namespace(run, "wire")
        self.gateways = {number: Namespace(run, f"gateway{number}") for number in (1, 2, 3)}

    def build(self) -> None:
        self.wire.create()
        self.wire.ip("link", "add", "bridge", "type", "bridge")
        self.wire.ip("link", "set", "bridge", "up")
        for number, namespace in self.gateways.items():
            namespace.create()
            peer = f"port{number}"
            namespace.ip("link", "add", "eth0", "type", "veth", "peer", "name", peer, "netns", self.wire.name)
            self.wire.ip("link", "set", peer, "master", "bridge", "up")
            length = 24 if self.outer == 4 else 64
            self._address(namespace, "eth0", self.outer, f"{public(self.outer, number)}/{length}")
            namespace.ip("link", "set", "eth0", "up")
            # A cable without anybody at its other end: not every kernel has dummy devices.
            namespace.ip("link", "add", "lan", "type", "veth", "peer", "name", "nobody")
            namespace.ip("link", "set", "nobody", "up")
            prefix, own = lan(self.inner, number)
            self._address(namespace, "lan", self.inner, f"{own}/{prefix.rpartition('/')[2]}")
            namespace.ip("link", "set", "lan", "up")
            namespace.set(ipv4__ip_forward=1, ipv6__conf__all__forwarding=1)
            self._start(number, namespace)

    @staticmethod
    def _address(namespace: Namespace, device: str, version: int, address: str) -> None:
        namespace.ip("address", "add", address, "dev", device, *(["nodad"] if version == 6 else []))

    def _start(self, number: int, namespace: Namespace) -> None:
        directory = self.run.directory
        server = (
            f'nhs = [{{ protocol = "{tunnel(self.inner, 1)}", nbma = "{public(self.outer, 1)}" }}]\nshortcut = true'
        )
        if number == 1:
            routes = [f'{{ prefix = "{lan(self.inner, n)[0]}", via = "{tunnel(self.inner, n)}" }}' for n in (2, 3)]
        else:
            summary = "172.16.0.0/12" if self.inner == 4 else "fd16::/16"
            routes = [f'{{ prefix = "{summary}", via = "{tunnel(self.inner, 1)}" }}']
        (directory / f"{number}.toml").write_text(
            f"""
[gateway]
name = "g{number}"
control_socket = "{self.socket(number)}"
[tunnel.dsvpn0]
address = "{tunnel(self.inner, number)}/{24 if self.inner == 4 else 64}"
source = "eth0"
routes = [{", ".join(routes)}]
[tunnel.dsvpn0.nhrp]
{"redirect = true" if number == 1 else server}
[ipsec.default.auth]
psk = "a word"
"""
        )
        package = Path(dsvpn.__file__).parent.parent
        # The native module may lie elsewhere on the path.
        paths = ":".join([str(package), *os.environ.get("PYTHONPATH", "").split(":")])
        argv = [
            "env",
            f"PYTHONPATH={paths}",
            sys.executable,
            "-P",
            "-m",
            "dsvpn",
            "up",
            str(directory / f"{number}.toml"),
        ]
        self.run.spawn(argv, directory / f"{number}.log", namespace=namespace.name)

    def socket(self, number: int) -> Path:
        return self.run.directory / f"{number}.sock"

    def show(self, number: int, section: str) -> Any:
        return ask(self.socket(number), {"show": section})

    def registered(self, number: int) -> bool:
        if not answers(self.socket(number)):
            return False
        return [nhs["state"] for nhs in self.show(number, "nhrp")["dsvpn0"]["nhs"]] == ["up"]

    def ping(self, source: int, target: int) -> bool:
        argv = ["ping", "-c", "1", "-W", "0.5", "-I", lan(self.inner, source)[1], lan(self.inner, target)[1]]
        entered = ["ip", "netns", "exec", self.gateways[source].name, *argv]
        return subprocess.run(entered, capture_output=True, check=False, timeout=30).returncode == 0

    def direct(self, source: int, target: int) -> bool:
        # A gateway answers for an address of its own with that address alone.
        prefix = f"{lan(self.inner, target)[1]}/{32 if self.inner == 4 else 128}"
        return any(r["prefix"] == prefix and r["path"] == "direct" for r in self.show(source, "routes"))


@contextmanager
def small(inner: int, outer: int) -> Iterator[Small]:
    run = Run(f"dsvpn-f{os.getpid()}x{next(_numbers)}")
    run.open()
    network = Small(run, inner, outer)
    try:
        network.build()
        yield network
    except BaseException:
        for log in sorted(run.directory.glob("*.log")):
            print(f"--- {log.name}", log.read_text()[-4000:], sep="\n")
        raise
    finally:
        run.close()


@pytest.mark.parametrize(("inner", "outer"), [(4, 6), (6, 4), (6, 6)])
def test_hub_path_then_direct_path(inner: int, outer: int) -> None:
    with small(inner, outer) as network:
        wait_until(
            lambda: all(network.registered(n) for n in (2, 3)), DEADLINE, "both spokes to register", interval=0.1
        )
        wait_until(lambda: network.ping(2, 1), DEADLINE, "a ping of the hub")
        wait_until(
            lambda: network.ping(2, 3) and network.direct(2, 3) and network.direct(3, 2),
            DEADLINE,
            "a direct path in both directions",
        )
        assert network.ping(3, 2)
        registered = network.show(1, "nhrp")["dsvpn0"]["mappings"]
        assert {(m["protocol"], m["nbma"]) for m in registered} == {
            (tunnel(inner, n), public(outer, n)) for n in (2, 3)
        }
