"""Two network namespaces with a veth pair between them and a data plane in each."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

_NODE = Path(__file__).with_name("node.py")
_numbers = itertools.count()

#: Key material by suite: the key and the salt.
KEYMAT = {
    "aes128gcm16": bytes(range(20)),
    "aes256gcm16": bytes(range(36)),
    "chacha20poly1305": bytes(range(100, 136)),
}


def run(*command: str, timeout: float = 30) -> str:
    """Run a command to its end and give its output; an error carries what it said."""
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=timeout)
    if done.returncode:
        raise AssertionError(f"{' '.join(command)}: {done.returncode}: {done.stdout}{done.stderr}")
    return done.stdout


def wait_for(what: str, true: Callable[[], bool], seconds: float = 10) -> None:
    """Ask again and again until it is true, at most for some seconds."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"after {seconds} s: {what}"
        time.sleep(0.02)


class Node:
    """A data plane process in a namespace."""

    def __init__(self, namespace: str, config: dict[str, Any], environment: Mapping[str, str] | None = None) -> None:
        command = ["ip", "netns", "exec", namespace, sys.executable, str(_NODE), json.dumps(config)]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **(environment or {})},
        )
        self.spis: list[int] = self._read()["spis"]

    def _read(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, f"the data plane process ended with {self._process.wait(10)}"
        return json.loads(line)

    def __call__(self, name: str, *arguments: Any) -> Any:
        """Call a method of the data plane."""
        assert self._process.stdin is not None
        encoded = [f"hex:{value.hex()}" if isinstance(value, bytes) else value for value in arguments]
        self._process.stdin.write(json.dumps([name, *encoded]) + "\n")
        self._process.stdin.flush()
        return self._read()

    @property
    def pid(self) -> int:
        """The process itself: `ip netns exec` becomes it."""
        return self._process.pid

    def pause(self) -> None:
        """Stop all its threads, as the scheduler of a busy machine may."""
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def kill(self, number: int) -> None:
        """End it as a crash would."""
        self._process.send_signal(number)
        self._process.wait(10)
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()

    def close(self) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(10)
        finally:
            self._process.kill()
            self._process.wait()
            assert self._process.stdout is not None
            self._process.stdout.close()
        assert self._process.returncode == 0


class Pair:
    """The namespaces `a` and `b`: underlay 192.0.2.1 and .2 (2001:db8::1 and ::2), tunnel 10.9.0.1 and .2."""

    def __init__(self) -> None:
        number = f"{os.getpid() % 100000}-{next(_numbers)}"
        self.names = [f"nativeio-{number}{side}" for side in "ab"]
        self.nodes: list[Node] = []

    def open(self) -> None:
        for name in self.names:
            run("ip", "netns", "add", name)
            run("ip", "-n", name, "link", "set", "lo", "up")
        a, b = self.names
        run("ip", "-n", a, "link", "add", "under", "type", "veth", "peer", "name", "under", "netns", b)
        for side, name in enumerate(self.names, 1):
            run("ip", "-n", name, "address", "add", f"192.0.2.{side}/24", "dev", "under")
            run("ip", "-n", name, "address", "add", f"2001:db8::{side}/64", "dev", "under", "nodad")
            run("ip", "-n", name, "link", "set", "under", "up")

    def close(self) -> None:
        errors = []
        for node in self.nodes:
            try:
                node.close()
            except Exception as error:
                errors.append(error)
        for name in self.names:
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)
        assert not errors, errors

    def ip(self, side: int, *arguments: str) -> None:
        run("ip", "-n", self.names[side], *arguments)

    def execute(self, side: int, *command: str, timeout: float = 30) -> str:
        return run("ip", "netns", "exec", self.names[side], *command, timeout=timeout)

    def spawn(self, side: int, *command: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["ip", "netns", "exec", self.names[side], *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def forward(
        self,
        encapsulation: str = "udp",
        *,
        workers: int = 1,
        suite: str = "aes128gcm16",
        mtu: int = 1418,
        ipv6: bool = False,
        underlay: dict[str, Any] | None = None,
        environments: tuple[Mapping[str, str] | None, Mapping[str, str] | None] = (None, None),
        aead_backend: str = "auto",
        queues: int | None = None,
    ) -> None:
        """Start both data planes with static SAs and addresses on their tunnels. `environments`: of each process.
        `workers`: threads, 0 for the drain loop. `queues`: half of them unless it is given."""
        protected = encapsulation != "gre"
        options = {"esp": True, "gre": True} | (underlay or {})
        for name, environment in zip(self.names, environments, strict=True):
            tunnel = {"name": "tunnel0", "key": 42, "protected": protected}
            config = {"workers": workers, "underlay": options, "tunnels": [tunnel], "spis": 1, "aead": aead_backend}
            config["queues"] = max(1, workers // 2) if queues is None else queues
            self.nodes.append(Node(name, config, environment))
        underlays = [f"2001:db8::{side}" if ipv6 else f"192.0.2.{side}" for side in (1, 2)]
        port = 4500 if encapsulation == "udp" else 0
        for side, node in enumerate(self.nodes):
            local, remote = underlays[side], underlays[1 - side]
            node("set_adjacency", 7, 0, encapsulation, local, remote, port, mtu)
            node("set_next_hop", 3, 7, False)
            node("set_route", 0, "10.9.0.0/24", 3)
            node("set_route", 0, "fd09::/64", 3)
            if protected:
                node("add_inbound_sa", node.spis[0], suite, KEYMAT[suite], [7], True, 1024)
                node("set_outbound_sa", self.nodes[1 - side].spis[0], suite, KEYMAT[suite], [7], True)
            node("commit")
            self.ip(side, "link", "set", "tunnel0", "mtu", str(mtu), "up", "txqueuelen", "2000")
            self.ip(side, "address", "add", f"10.9.0.{side + 1}/24", "dev", "tunnel0")
            self.ip(side, "address", "add", f"fd09::{side + 1}/64", "dev", "tunnel0", "nodad")

    def counters(self, side: int) -> dict[str, int]:
        counters: dict[str, int] = self.nodes[side]("counters")
        return counters

    def drops(self) -> list[dict[str, int]]:
        """Per side, what was dropped. Packets that the kernel sends by itself as a device comes up have no route."""
        return [
            {
                name: count
                for name, count in self.counters(side).items()
                if name.startswith("drop_") and count and name not in {"drop_no_route", "drop_no_multicast"}
            }
            for side in (0, 1)
        ]

    def iperf(self, target: str, *options: str, seconds: float = 1) -> dict[str, Any]:
        """One iperf3 run from side 0 to side 1, as iperf3's own report."""
        server = self.spawn(1, "iperf3", "-s", "-1", "--forceflush")
        try:
            assert server.stdout is not None
            while "listening" not in (line := server.stdout.readline()):
                assert line or server.poll() is None, "iperf3 -s ended"
            output = self.execute(0, "iperf3", "-J", "-c", target, "-t", str(seconds), *options, timeout=60)
            report: dict[str, Any] = json.loads(output)
            server.wait(10)
        finally:
            server.kill()
            server.wait()
            assert server.stdout is not None
            server.stdout.close()
        return report


@contextlib.contextmanager
def pair() -> Iterator[Pair]:
    made = Pair()
    try:
        made.open()
        yield made
    finally:
        made.close()
