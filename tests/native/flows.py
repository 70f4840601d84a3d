"""UDP flows between two namespaces with numbered datagrams: sees every loss, damage and reordering within a flow."""

from __future__ import annotations

import ctypes
import random
import select
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

_CLONE_NEWNET = 0x40000000
_SOL_UDP = 17
_UDP_SEGMENT = 103
_SO_RCVBUFFORCE = 33
_HEAD = struct.Struct(">QHH")
_libc = ctypes.CDLL(None, use_errno=True)

#: Most octets of a datagram that fit the tunnel's MTU in IPv4 and in IPv6.
_ROOM = {4: 1418 - 28, 6: 1418 - 48}

T = TypeVar("T")


def inside(namespace: str, make: Callable[[], T]) -> T:
    """Run something in a network namespace: sockets that it makes stay there."""
    made: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            with Path(f"/run/netns/{namespace}").open("rb") as file:
                if _libc.setns(file.fileno(), _CLONE_NEWNET) != 0:
                    raise OSError(ctypes.get_errno(), f"setns {namespace}")
            made.append(make())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return made[0]


@dataclass
class Flow:
    """One flow: its sockets, and what was seen of it."""

    number: int
    version: int
    sender: socket.socket
    receiver: socket.socket
    sent: int = 0
    received: int = 0
    #: The highest number that came.
    last: int = -1
    #: Octets of each datagram that was sent, by its number.
    lengths: list[int] = field(default_factory=list)


class Flows:
    """Flows from one namespace to another through the tunnel."""

    def __init__(self, source: str, target: str, *, count: int = 6, seed: int = 7) -> None:
        self._random = random.Random(seed)
        self.flows: list[Flow] = []
        #: Datagrams that came behind a later one of their flow, or twice.
        self.disorder: list[str] = []
        self.damage: list[str] = []
        self._given_up = 0
        for number in range(count):
            version = 4 if number % 2 == 0 else 6
            self.flows.append(self._flow(source, target, number, version))
        self._poll = select.poll()
        self._by_descriptor = {flow.receiver.fileno(): flow for flow in self.flows}
        for descriptor in self._by_descriptor:
            self._poll.register(descriptor, select.POLLIN)

    def _flow(self, source: str, target: str, number: int, version: int) -> Flow:
        family = socket.AF_INET if version == 4 else socket.AF_INET6
        here, there = ("10.9.0.1", "10.9.0.2") if version == 4 else ("fd09::1", "fd09::2")

        def bound(address: str) -> socket.socket:
            made = socket.socket(family, socket.SOCK_DGRAM)
            made.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 16 << 20)
            made.bind((address, 7000 + number))
            made.setblocking(False)
            return made

        receiver = inside(target, lambda: bound(there))
        sender = inside(source, lambda: bound(here))
        sender.connect((there, 7000 + number))
        return Flow(number, version, sender, receiver)

    def close(self) -> None:
        for flow in self.flows:
            flow.sender.close()
            flow.receiver.close()

    @property
    def sent(self) -> int:
        return sum(flow.sent for flow in self.flows)

    @property
    def under_way(self) -> int:
        """Sent and neither received nor given up."""
        return self.sent - self.received - self._given_up

    @property
    def received(self) -> int:
        return sum(flow.received for flow in self.flows)

    def run(
        self,
        datagrams: int,
        *,
        window: int = 400,
        lossless: bool = True,
        meanwhile: Callable[[int], object] = lambda sent: None,
    ) -> None:
        """Send about so many datagrams, at most `window` under way, and receive them.

        Small ones, full ones and superpackets (UDP_SEGMENT) take turns at random. `meanwhile` is called with the
        number of datagrams sent before each of them. With `lossless` False, what does not come is not waited for long.
        """
        end = self.sent + datagrams
        while self.sent < end:
            meanwhile(self.sent)
            self._send(self._random.choice(self.flows))
            self._receive(0)
            if self.under_way > window:
                self._wait(window // 2, lossless)
        self._wait(0, lossless)

    def _wait(self, under_way: int, lossless: bool) -> None:
        deadline = time.monotonic() + (10.0 if lossless else 0.1)
        while self.under_way > under_way and time.monotonic() < deadline:
            self._receive(20)
        if not lossless:
            self._given_up += max(self.under_way, 0)

    def _send(self, flow: Flow) -> None:
        room = _ROOM[flow.version]
        kind = self._random.randrange(4)
        if kind == 0:
            sizes = [self._random.randrange(_HEAD.size, 200)]
        elif kind == 1:
            sizes = [room]
        else:
            size = self._random.choice([room, room, self._random.randrange(200, room)])
            count = self._random.randrange(2, min(32, 60_000 // size))
            sizes = [size] * count
            if kind == 3:
                sizes[-1] = self._random.randrange(_HEAD.size, size + 1)
        octets = b"".join(self._datagram(flow, flow.sent + index, size) for index, size in enumerate(sizes))
        control = [(_SOL_UDP, _UDP_SEGMENT, struct.pack("=H", sizes[0]))] if len(sizes) > 1 else []
        try:
            flow.sender.sendmsg([octets], control)
        except BlockingIOError:
            return
        flow.lengths += sizes
        flow.sent += len(sizes)

    @staticmethod
    def _datagram(flow: Flow, number: int, size: int) -> bytes:
        return _HEAD.pack(number, flow.number, size) + bytes([number * 7 & 0xFF]) * (size - _HEAD.size)

    def _receive(self, milliseconds: int) -> None:
        for descriptor, _ in self._poll.poll(milliseconds):
            flow = self._by_descriptor[descriptor]
            while True:
                try:
                    octets = flow.receiver.recv(65536)
                except BlockingIOError:
                    break
                number = int.from_bytes(octets[:8], "big")
                if number >= flow.sent or octets != self._datagram(flow, number, flow.lengths[number]):
                    self.damage.append(f"flow {flow.number}: {len(octets)} octets: {octets[:32].hex()}")
                    continue
                if number <= flow.last:
                    self.disorder.append(f"flow {flow.number}: {number} came behind {flow.last}")
                flow.last = max(number, flow.last)
                flow.received += 1

    def check(self, *, lossless: bool = True) -> None:
        """Everything came as it was sent and in order, and with `lossless` all of it."""
        assert not self.damage, f"{len(self.damage)} damaged: {self.damage[:5]}"
        assert not self.disorder, f"{len(self.disorder)} out of order: {self.disorder[:5]}"
        assert self.received > 0
        if lossless:
            assert self.received == self.sent, f"{self.sent - self.received} of {self.sent} were lost"
