"""Paced UDP through a tunnel and the search for the highest rate without loss.

    python -m bench.netns.udp SENDER_NAMESPACE RECEIVER_NAMESPACE ADDRESS --size 64 --seconds 0.5

prints one JSON object; with --rate it sends once at that rate instead of searching for the best. Sender and receiver
are one process each, forked from one, their sockets opened in the namespaces named. Datagrams carry a sequence number,
so that loss and reordering are both seen. Without --segments every datagram is a message of its own in `sendmmsg`; with
it, each `sendmsg` holds that many by UDP_SEGMENT, as QUIC stacks send, and the receiver takes them by UDP_GRO.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import socket
import struct
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

PORT = 5999
_CLONE_NEWNET = 0x40000000
_SOL_UDP, _UDP_SEGMENT, _UDP_GRO = 17, 103, 104
_SO_RCVBUFFORCE, _SO_SNDBUFFORCE = 33, 32
_BUFFER = 8 << 20
#: Datagrams of one `sendmmsg` and `recvmmsg`.
_BATCH = 32
#: Receive buffers: what a UDP_GRO run may hold.
_RUN = 65535
#: How long the receiver waits behind the last datagram, seconds: far more than any queue holds.
_SETTLE = 0.15
#: What sender and receiver sleep when they have nothing to do, seconds: about 20 datagrams at 200,000 a second.
_PAUSE = 0.0001

_libc = ctypes.CDLL(None, use_errno=True)


class _IoVector(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class _Header(ctypes.Structure):
    """struct msghdr; a structure of its own, because its padding counts."""

    _fields_ = (
        ("name", ctypes.c_void_p),
        ("name_length", ctypes.c_uint),
        ("vectors", ctypes.c_void_p),
        ("vector_count", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_length", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )


class _Message(ctypes.Structure):
    """struct mmsghdr."""

    _fields_ = (("header", _Header), ("received", ctypes.c_uint))


@dataclass(frozen=True, slots=True)
class Trial:
    """One burst at one rate. Rates are in datagrams per second; `offered` is what the sender managed."""

    wanted: float
    offered: float
    sent: int
    received: int
    reordered: int
    seconds: float

    @property
    def loss(self) -> float:
        """Share of the datagrams that did not arrive."""
        return 1 - self.received / self.sent if self.sent else 0.0


def open_socket(namespace: str) -> socket.socket:
    """A UDP socket in a network namespace; this process stays in its own. OSError if there is no such namespace."""
    home, there = os.open("/proc/self/ns/net", os.O_RDONLY), os.open(f"/run/netns/{namespace}", os.O_RDONLY)
    try:
        _set_namespace(there)
        try:
            return socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        finally:
            _set_namespace(home)
    finally:
        os.close(home)
        os.close(there)


def _set_namespace(descriptor: int) -> None:
    if _libc.setns(descriptor, _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")


def _messages(buffers: npt.NDArray[np.uint8]) -> tuple[ctypes.Array[_Message], list[object]]:
    """One message for each row of `buffers`, and what must outlive them."""
    count, size = buffers.shape
    vectors = (_IoVector * count)()
    messages = (_Message * count)()
    for index in range(count):
        vectors[index].base = buffers.ctypes.data + index * size
        vectors[index].length = size
        messages[index].header.vectors = ctypes.addressof(vectors[index])
        messages[index].header.vector_count = 1
    return messages, [vectors, buffers]


class Sender:
    """Sends numbered datagrams of `size` octets at a rate."""

    def __init__(self, connected: socket.socket, size: int, segments: int) -> None:
        self._socket = connected
        self._segments = segments
        rows = segments or _BATCH
        self._buffers = np.zeros((rows, size), dtype=np.uint8)
        self._sequence = self._buffers[:, :8].view(np.uint64)[:, 0]
        self._messages, self._kept = _messages(self._buffers)
        if segments:
            connected.setsockopt(_SOL_UDP, _UDP_SEGMENT, size)

    def run(self, rate: float, seconds: float) -> tuple[int, float]:
        """Send for `seconds`; gives datagrams sent and the time it took. It never catches up in bursts larger than
        what one millisecond is worth: a sender that was not scheduled must not count as loss of the tunnel."""
        rows = len(self._buffers)
        steps = np.arange(rows, dtype=np.uint64)
        sent, begun = 0, time.perf_counter()
        due, last = 0.0, begun
        most = max(rate / 1000, rows)
        while (now := time.perf_counter()) - begun < seconds:
            due = min(due + (now - last) * rate, most)
            last = now
            if due < (rows if self._segments else min(rows, max(1.0, rate * _PAUSE))):
                # A spinning sender would take the core that the gateways need.
                time.sleep(_PAUSE)
                continue
            count = rows if self._segments else min(rows, int(due))
            self._sequence[:count] = steps[:count] + np.uint64(sent)
            done = self._send(count)
            sent += done
            due -= done
        return sent, time.perf_counter() - begun

    def _send(self, count: int) -> int:
        if self._segments:
            try:
                self._socket.send(self._buffers.data)
            except BlockingIOError:
                return 0
            return count
        done: int = _libc.sendmmsg(self._socket.fileno(), self._messages, count, 0)
        if done < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        return done


class Receiver:
    """Counts numbered datagrams until none has come for a while after the sender has ended."""

    def __init__(self, bound: socket.socket, size: int, *, coalesce: bool) -> None:
        self._socket = bound
        self._size = size
        bound.settimeout(None)
        if coalesce:
            bound.setsockopt(_SOL_UDP, _UDP_GRO, 1)
        self._buffers = np.zeros((_BATCH, _RUN if coalesce else size), dtype=np.uint8)
        self._messages, self._kept = _messages(self._buffers)

    def run(self, ended: Callable[[], bool]) -> tuple[int, int]:
        """Gives datagrams received and those that came behind a later one."""
        received = reordered = 0
        highest = -1
        quiet_since: float | None = None
        while True:
            got: int = _libc.recvmmsg(self._socket.fileno(), self._messages, _BATCH, socket.MSG_DONTWAIT, None)
            if got > 0:
                quiet_since = None
                for numbers in self._numbers(got):
                    steps = np.diff(numbers, prepend=highest)
                    reordered += int((steps < 0).sum())
                    highest = max(highest, int(numbers.max()))
                    received += len(numbers)
                continue
            now = time.perf_counter()
            if ended():
                quiet_since = quiet_since or now
                if now - quiet_since > _SETTLE:
                    return received, reordered
            # Short enough that 8 MiB of socket buffer never fill meanwhile.
            time.sleep(_PAUSE)

    def _numbers(self, got: int) -> list[npt.NDArray[np.int64]]:
        if self._buffers.shape[1] == self._size:
            return [np.ascontiguousarray(self._buffers[:got, :8]).view(np.int64)[:, 0]]
        lists = []
        for index in range(got):
            count = self._messages[index].received // self._size
            run = self._buffers[index, : count * self._size].reshape(count, self._size)
            if count:
                lists.append(np.ascontiguousarray(run[:, :8]).view(np.int64)[:, 0])
        return lists


class Bench:
    """A sender and, in a forked process, a receiver."""

    def __init__(self, source: str, target: str, address: str, size: int, segments: int) -> None:
        self._size, self._segments = size, segments
        self._sending, self._receiving = open_socket(source), open_socket(target)
        self._receiving.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
        self._receiving.bind((address, PORT))
        # Small: the sender must feel a full device queue (by ENOBUFS or by waiting) rather than fill memory.
        self._sending.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, 1 << 20)
        self._sending.connect((address, PORT))
        self._sender = Sender(self._sending, size, segments)

    def close(self) -> None:
        """Close both sockets."""
        self._sending.close()
        self._receiving.close()

    def trial(self, rate: float, seconds: float) -> Trial:
        """One burst."""
        done_read, done_write = os.pipe()
        result_read, result_write = os.pipe()
        os.set_blocking(done_read, False)
        child = os.fork()
        if child == 0:
            os.close(done_write)
            status = 1
            try:
                receiver = Receiver(self._receiving, self._size, coalesce=bool(self._segments))
                os.write(result_write, b"r")

                def ended() -> bool:
                    try:
                        return os.read(done_read, 1) == b""
                    except BlockingIOError:
                        return False

                os.write(result_write, struct.pack("!QQ", *receiver.run(ended)))
                status = 0
            finally:
                os._exit(status)
        os.close(done_read)
        os.close(result_write)
        os.read(result_read, 1)
        try:
            sent, took = self._sender.run(rate, seconds)
        finally:
            os.close(done_write)
        answer = os.read(result_read, 16)
        os.close(result_read)
        os.waitpid(child, 0)
        if len(answer) != 16:
            raise OSError("the UDP receiver ended without a result")
        received, reordered = struct.unpack("!QQ", answer)
        return Trial(rate, sent / took, sent, received, reordered, took)


def search(
    trial: Callable[[float], Trial], *, start: float, ceiling: float, allowed: float, steps: int
) -> tuple[Trial | None, list[Trial]]:
    """The best trial whose loss is at most `allowed`, by doubling and then bisecting; and all trials.

    A rate that loses is tried once more before it counts as too high: one hiccup of the machine is not the tunnel's.
    None when even the lowest rate tried (a 64th of `start`) loses.
    """
    trials: list[Trial] = []

    def passes(rate: float) -> Trial | None:
        for _ in range(2):
            found = trial(rate)
            trials.append(found)
            if found.sent and found.loss <= allowed:
                return found
        return None

    best: Trial | None = None
    low, rate, high = 0.0, start, None
    while high is None and rate <= ceiling:
        if found := passes(rate):
            # The sender itself is at its end: a higher rate would offer no more.
            if best is not None and found.offered < 1.2 * best.offered:
                return max(best, found, key=lambda trial: trial.offered), trials
            best, low = found, rate
            rate *= 2
        elif best is None and rate > start / 64:
            rate /= 4
        else:
            high = rate
    high = high or ceiling
    if best is None:
        return None, trials
    for _ in range(steps):
        middle = (low + high) / 2
        if found := passes(middle):
            if found.offered > best.offered:
                best = found
            low = middle
        else:
            high = middle
    return best, trials


def main(argv: list[str]) -> None:
    """Run a search and print what it found."""
    parser = argparse.ArgumentParser(prog="python -m bench.netns.udp", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("source")
    parser.add_argument("target")
    parser.add_argument("address")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--segments", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=0.5)
    parser.add_argument("--start", type=float, default=20_000.0)
    parser.add_argument("--allowed", type=float, default=0.0)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rate", type=float)
    options = parser.parse_args(argv)
    for namespace in (options.source, options.target):
        if not Path("/run/netns", namespace).exists():
            parser.error(f"there is no namespace {namespace}")
    bench = Bench(options.source, options.target, options.address, options.size, options.segments)
    if options.rate is not None:
        print(json.dumps(asdict(bench.trial(options.rate, options.seconds))))
        return
    best, trials = search(
        lambda rate: bench.trial(rate, options.seconds),
        start=options.start,
        ceiling=8e6,
        allowed=options.allowed,
        steps=options.steps,
    )
    print(
        json.dumps(
            {"best": asdict(best) if best else None, "size": options.size, "trials": [asdict(t) for t in trials]}
        )
    )


if __name__ == "__main__":
    main(sys.argv[1:])
