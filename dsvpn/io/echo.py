"""Pings that wait for the last answer: `python -I -S echo.py TARGET COUNT SIZES INTERVAL WAIT [BIND]`, as root.

The `ping` of iputils does not do that: as soon as there was one answer, it gives the last ones twice the longest
round trip and no more, whatever `-W` says. On a busy machine it takes for lost what comes a few milliseconds later.

This is a file of its own that needs nothing but Python, because it runs in other namespaces and in guests too. It
prints one line of JSON for each size: what `Pings` in `measure` is made from.
"""

from __future__ import annotations

import json
import os
import select
import socket
import struct
import sys
import time

#: What pings of the lab are filled with: no underlay packet may hold it.
PLAINTEXT = b"dsvpn plain text"
#: ICMP types (RFC 792), and the option of raw ICMP sockets that filters them (linux/icmp.h).
ECHO_REPLY, ECHO_REQUEST = 0, 8
SOL_RAW, ICMP_FILTER = 255, 1
#: struct timespec in a control message. Python does not name the option on every system.
SO_TIMESTAMPNS = 35


def checksum(octets: bytes) -> int:
    """The Internet checksum (RFC 1071)."""
    padded = octets + bytes(len(octets) % 2)
    total: int = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def request(identifier: int, sequence: int, payload: bytes) -> bytes:
    """An echo request. Sequence numbers are cut to 16 bits."""
    head = struct.pack("!BBHHH", ECHO_REQUEST, 0, 0, identifier, sequence & 0xFFFF)
    return head[:2] + struct.pack("!H", checksum(head + payload)) + head[4:] + payload


class Series:
    """`count` pings of one payload to `target`."""

    def __init__(self, sock: socket.socket, target: str, identifier: int, count: int, payload: bytes) -> None:
        self._socket = sock
        self._target = target
        self._identifier = identifier
        self._count = count
        self._payload = payload
        self._sent: list[float] = []
        #: By sequence number from 1: when it was sent (wall clock, s), the round trip (s) and the reply's TTL.
        self.echoes: dict[int, tuple[float, float, int]] = {}
        self.duplicates = 0
        #: What kept requests from leaving, by its name in errno.h.
        self.errors: dict[str, int] = {}

    def run(self, interval: float, wait: float) -> None:
        """Send all of them, `interval` seconds apart. Ends when all are answered, or `wait` seconds after the last."""
        due, end = time.monotonic(), 0.0
        while len(self.echoes) < self._count:
            now = time.monotonic()
            if len(self._sent) < self._count:
                if now >= due:
                    self._send()
                    # Those that are late are not made up for by a burst.
                    due, end = max(due + interval, now), now + wait
                    continue
                timeout = due - now
            elif now < end:
                timeout = end - now
            else:
                break
            if select.select([self._socket], [], [], timeout)[0]:
                self._receive()

    def _send(self) -> None:
        sequence = len(self._sent) + 1
        message = request(self._identifier, sequence, self._payload)
        self._sent.append(time.time())
        try:
            self._socket.sendto(message, (self._target, 0))
        except OSError as error:
            name = error.strerror or str(error)
            self.errors[name] = self.errors.get(name, 0) + 1

    def _receive(self) -> None:
        packet, control, _, source = self._socket.recvmsg(1 << 16, 128)
        arrived = time.time()
        for level, kind, data in control:
            if level == socket.SOL_SOCKET and kind == SO_TIMESTAMPNS:
                seconds, nanoseconds = struct.unpack("qq", data[:16])
                arrived = seconds + nanoseconds / 1e9
        header = (packet[0] & 15) * 4
        icmp = packet[header:]
        if len(icmp) < 8 or source[0] != self._target:
            return
        kind, _, _, identifier, short = struct.unpack("!BBHHH", icmp[:8])
        if kind != ECHO_REPLY or identifier != self._identifier or icmp[8:] != self._payload:
            return
        # The latest request that has these 16 bits.
        sequence = len(self._sent) - ((len(self._sent) - short) & 0xFFFF)
        if sequence < 1:
            return
        if sequence in self.echoes:
            self.duplicates += 1
            return
        sent = self._sent[sequence - 1]
        self.echoes[sequence] = (sent, max(arrived - sent, 0.0), packet[8])

    def result(self) -> dict[str, object]:
        """For JSON."""
        return {
            "transmitted": len(self._sent),
            "duplicates": self.duplicates,
            "errors": self.errors,
            "echoes": [[sequence, *echo] for sequence, echo in sorted(self.echoes.items())],
        }


def main(arguments: list[str]) -> int:
    """Run one series after the other."""
    target, count, sizes, interval, wait, *bind = arguments
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as sock:
        sock.setsockopt(SOL_RAW, ICMP_FILTER, struct.pack("I", 0xFFFFFFFF & ~(1 << ECHO_REPLY)))
        sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        if bind:
            sock.bind((bind[0], 0))
        for size in map(int, sizes.split(",")):
            payload = (PLAINTEXT * (size // len(PLAINTEXT) + 1))[:size]
            series = Series(sock, target, os.getpid() & 0xFFFF, int(count), payload)
            series.run(float(interval), float(wait))
            sys.stdout.write(json.dumps(series.result()) + "\n")
            sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
