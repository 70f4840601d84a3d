"""One data plane in a process of its own, inside a network namespace: what the descriptor tests drive.

Started as `python node.py CONFIG` with CONFIG a JSON object; prints one JSON line when it forwards, then answers the
JSON lines of its standard input until that ends.
"""

from __future__ import annotations

import json
import os
import select
import sys
from typing import Any

from dsvpn_native import Dataplane, Punt

BUDGET = 8


def describe(punt: Punt) -> dict[str, Any]:
    fields = ("kind", "tunnel", "adjacency", "next_hop", "local", "local_port", "remote", "remote_port")
    return {name: getattr(punt, name) for name in fields} | {"data": punt.data.hex()}


class Node:
    """The data plane, its driver and its answers."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.dataplane = Dataplane(aead_backend=config["aead"], queues=config.get("queues", 1))
        #: Threads, 0 for the drain loop.
        self.workers: int = config["workers"]
        self.dataplane.open_underlay(**config["underlay"])
        if self.workers:
            # Before the tunnel comes: workers must take up what is added while they run.
            self.dataplane.start_workers(self.workers)
        for tunnel in config["tunnels"]:
            self.dataplane.add_tunnel(tunnel.pop("name"), **tunnel)
        self.spis = [self.dataplane.allocate_spi() for _ in range(config["spis"])]

    def run(self) -> None:
        self.poll = select.epoll()
        self.poll.register(0, select.EPOLLIN)
        self.poll.register(self.dataplane.punt_descriptor, select.EPOLLIN)
        self.watched: set[int] = set()
        self.watch()
        self.punts: list[dict[str, Any]] = []
        self.failures: list[str] = []
        pending = b""
        print(json.dumps({"spis": self.spis}), flush=True)
        while True:
            for descriptor, _ in self.poll.poll():
                if descriptor == self.dataplane.punt_descriptor:
                    self.take_punts()
                elif descriptor != 0:
                    self.drain(descriptor)
                else:
                    octets = os.read(0, 65536)
                    if not octets:
                        # A worker that failed has been reported by `failures` already.
                        self.dataplane.stop_workers()
                        return
                    *lines, pending = (pending + octets).split(b"\n")
                    for line in lines:
                        print(json.dumps(self.answer(json.loads(line))), flush=True)

    def watch(self) -> None:
        """Watch what there is to drain: nothing while workers run."""
        wanted = {descriptor for descriptor, _ in self.dataplane.descriptors()}
        for descriptor in self.watched - wanted:
            self.poll.unregister(descriptor)
        for descriptor in wanted - self.watched:
            self.poll.register(descriptor, select.EPOLLIN)
        self.watched = wanted

    def take_punts(self) -> None:
        try:
            self.punts += map(describe, self.dataplane.take_punts(64))
        except RuntimeError as error:
            self.failures.append(str(error))

    def drain(self, descriptor: int) -> None:
        if descriptor not in self.watched:
            return  # it was ready in the same poll as the request that gave it to the workers
        try:
            self.dataplane.drain(descriptor, BUDGET)
        except OSError as error:
            self.failures.append(str(error))
            self.poll.unregister(descriptor)
            self.watched.remove(descriptor)

    def answer(self, request: list[Any]) -> Any:
        name, *arguments = request
        if name == "punts":
            punts, self.punts = self.punts, []
            return punts
        if name == "failures":
            return self.failures
        if name in {"aead_backend", "worker_packets", "worker_threads"}:
            return getattr(self.dataplane, name)
        decoded = [bytes.fromhex(value[4:]) if str(value).startswith("hex:") else value for value in arguments]
        answer = getattr(self.dataplane, name)(*decoded)
        if name in {"start_workers", "stop_workers"}:
            self.watch()
        return answer


if __name__ == "__main__":
    Node(json.loads(sys.argv[1])).run()
