"""What a static gateway does on command while its workers forward: a control plane's work without a control plane.

A command is a line of JSON on a Unix socket, `{"do": NAME, ...}` with the arguments of the method of that name; the
answer is a line of JSON, `{"error": TEXT}` if it could not be done.
"""

from __future__ import annotations

import hashlib
import json
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dsvpn_native
from bench.peers.dataplane import MTU

#: The adjacency that the traffic goes by.
ADJACENCY = 0
_KEYMAT_LENGTH = {"aes128gcm16": 20, "aes256gcm16": 36, "chacha20poly1305": 36, "null": 4}
_REPLAY_WINDOW = 1024
#: Adjacencies beside the one in use, whose SAs a churn replaces; their addresses lead nowhere.
_FIRST_BYSTANDER = 1


class Agent:
    """Carries commands out on a data plane."""

    def __init__(
        self,
        dataplane: dsvpn_native.Dataplane,
        tunnel: int,
        *,
        side: str,
        other: str,
        suite: str,
        local: str,
        remote: str,
    ) -> None:
        self._dataplane = dataplane
        self._tunnel = tunnel
        self._side, self._other = side, other
        self._suite = suite
        self._local, self._remote = local, remote
        #: SPI of the inbound SA of each bystander.
        self._bystanders: dict[int, int] = {}
        self.commands: dict[str, Callable[..., dict[str, Any]]] = {
            "counters": self.counters,
            "accept": self.accept,
            "send": self.send,
            "retire": self.retire,
            "churn": self.churn,
        }

    def _keymat(self, side: str, generation: int) -> bytes:
        return hashlib.sha512(f"{side} {generation}".encode()).digest()[: _KEYMAT_LENGTH[self._suite]]

    def counters(self) -> dict[str, Any]:
        """All that are not 0."""
        return {name: count for name, count in self._dataplane.counters().items() if count}

    # -- one rekey: both ends accept, then both send, then both retire what came before (RFC 7296 section 2.8) ------

    def accept(self, generation: int) -> dict[str, Any]:
        """Make the inbound SA of a generation beside the old one; gives its SPI."""
        spi = self._dataplane.allocate_spi()
        keymat = self._keymat(self._other, generation)
        self._dataplane.add_inbound_sa(spi, self._suite, keymat, [ADJACENCY], False, _REPLAY_WINDOW)
        self._dataplane.commit()
        return {"spi": spi}

    def send(self, spi: int, generation: int) -> dict[str, Any]:
        """Seal with the SA of a generation from here on."""
        keymat = self._keymat(self._side, generation)
        self._dataplane.set_outbound_sa(spi, self._suite, keymat, [ADJACENCY], False)
        self._dataplane.commit()
        return {}

    def retire(self, spi: int) -> dict[str, Any]:
        """Accept an SPI no more."""
        self._dataplane.remove_inbound_sa(spi)
        self._dataplane.commit()
        return {}

    # -- churn ---------------------------------------------------------------------------------------------------

    def churn(self, rate: float, seconds: float, batch: int, peers: int) -> dict[str, Any]:
        """Updates at `rate` a second, `batch` of them to a commit, over `peers` bystanders in turn.

        An update sets an adjacency or installs one SA; removing what it replaces is not counted. Every tenth is one of
        the very adjacency that the traffic goes by. Who falls behind catches up.
        """
        plane = self._dataplane
        due, updates, commits = 0, 0, 0
        begun, processor = time.perf_counter(), time.thread_time()
        while (passed := time.perf_counter() - begun) < seconds:
            due = int(passed * rate)
            if due - updates < batch:
                time.sleep((updates + batch) / rate - passed if (updates + batch) / rate > passed else 0)
                continue
            for number in range(updates, updates + batch):
                self._update(number, peers)
            plane.commit()
            updates += batch
            commits += 1
        took = time.perf_counter() - begun
        processor = time.thread_time() - processor
        return {"updates": updates, "commits": commits, "seconds": took, "processor_seconds": processor}

    def _update(self, number: int, peers: int) -> None:
        plane = self._dataplane
        if number % 10 == 0:
            plane.set_adjacency(ADJACENCY, self._tunnel, "udp", self._local, self._remote, 4500, MTU)
            return
        turn, step = divmod(number, 3)
        peer = _FIRST_BYSTANDER + turn % peers
        if step == 0 or peer not in self._bystanders:
            address = f"198.18.{peer >> 8}.{peer & 255}"
            plane.set_adjacency(peer, self._tunnel, "udp", self._local, address, 4500, MTU)
            self._bystanders.setdefault(peer, 0)
        keymat = number.to_bytes(_KEYMAT_LENGTH[self._suite], "big")
        if step == 1:
            spi = plane.allocate_spi()
            plane.add_inbound_sa(spi, self._suite, keymat, [peer], False, _REPLAY_WINDOW)
            if old := self._bystanders[peer]:
                plane.remove_inbound_sa(old)
            self._bystanders[peer] = spi
        elif step == 2:
            plane.set_outbound_sa(0x1000 + number, self._suite, keymat, [peer], False)


def serve(agent: Agent, path: Path) -> None:
    """Take commands, one connection after the other, for ever."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        listening.bind(str(path))
        listening.listen()
        while True:
            connection, _ = listening.accept()
            with connection, connection.makefile("rw") as lines:
                for line in lines:
                    lines.write(json.dumps(_answer(agent, json.loads(line))) + "\n")
                    lines.flush()


def _answer(agent: Agent, command: dict[str, Any]) -> dict[str, Any]:
    try:
        return agent.commands[command.pop("do")](**command)
    except (ValueError, OSError, KeyError, TypeError) as error:
        return {"error": f"{type(error).__name__}: {error}"}
