"""Pings as values."""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import select
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address

import pytest

from dsvpn.errors import HostError
from dsvpn.io.echo import ECHO_REPLY, PLAINTEXT, checksum
from dsvpn.lab.measure import Echo, Pings, median_rtt, parse_pings, ping
from dsvpn.lab.run import Run
from dsvpn.lab.topology import Namespace

TARGET = IPv4Address("10.9.9.2")


def test_replies_losses_and_duplicates() -> None:
    said = {"transmitted": 3, "duplicates": 1, "errors": {}, "echoes": [[1, 7.0, 0.4, 60], [3, 7.1, 0.001, 62]]}
    (pings,) = parse_pings(json.dumps(said) + "\n")
    assert (pings.transmitted, pings.received, pings.lost, pings.duplicates) == (3, 2, 1, 1)
    assert pings.missing == [2]
    assert pings.echoes[0] == Echo(1, 7.0, 0.4, 60)


def test_what_is_no_result_is_an_error() -> None:
    with pytest.raises(HostError, match="no Python there"):
        parse_pings("sh: no Python there")


def test_median_round_trip() -> None:
    echoes = [Echo(number, 0.0, rtt, 62) for number, rtt in enumerate((0.3, 0.1, 0.2))]
    assert median_rtt(echoes) == 0.2
    assert median_rtt([]) is None


@pytest.mark.root
@pytest.mark.netns
class TestAgainstAnAnsweringHost:
    """`answer(sequence)` says after how many seconds each ping is answered; none: never."""

    def test_the_last_answer_may_be_late(self) -> None:
        # iputils' ping takes the last one for lost, whatever -W says.
        pings = pings_of(lambda sequence: [0.3] if sequence == 10 else [0.0])
        assert (pings.transmitted, pings.received, pings.duplicates) == (10, 10, 0)
        assert pings.echoes[-1].rtt == pytest.approx(0.3, abs=0.25)
        assert {echo.ttl for echo in pings.echoes} == {61}

    def test_answers_out_of_order(self) -> None:
        pings = pings_of(lambda sequence: [0.2 - sequence / 100])
        assert pings.missing == []
        assert pings.echoes[0].rtt > pings.echoes[-1].rtt

    def test_lost_and_doubled(self) -> None:
        begun = time.monotonic()
        pings = pings_of(lambda sequence: {3: [], 10: []}.get(sequence, [0.0, 0.0]), wait=0.3)
        assert (pings.transmitted, pings.missing, pings.duplicates) == (10, [3, 10], 8)
        assert time.monotonic() - begun >= 0.3

    def test_nobody_there(self) -> None:
        pings = pings_of(lambda sequence: [], wait=0.1)
        assert (pings.transmitted, pings.received, pings.lost) == (10, 0, 10)


def pings_of(answer: Callable[[int], list[float]], wait: float = 5.0) -> Pings:
    """Ten pings to a host that answers as told."""
    run = Run(f"dsvpn-e{os.getpid()}")
    run.open()
    try:
        namespace = Namespace(run, "pinger")
        namespace.create()
        with answering(namespace, answer):
            return ping(namespace, TARGET, 10, interval=0.005, wait=wait)
    finally:
        run.close()


@contextmanager
def answering(namespace: Namespace, answer: Callable[[int], list[float]]) -> Iterator[None]:
    """A TUN device in the namespace, behind which a host is that answers as told."""
    device = _tun(namespace)
    namespace.ip("address", "add", "10.9.9.1/24", "dev", "late")
    namespace.ip("link", "set", "late", "up")
    done = threading.Event()

    def host() -> None:
        answers: list[tuple[float, bytes]] = []
        while not done.is_set():
            if select.select([device], [], [], 0.005)[0]:
                packet = os.read(device, 2000)
                if packet[0] >> 4 == 4 and packet[9] == 1:
                    (sequence,) = struct.unpack("!H", packet[26:28])
                    answers += [(time.monotonic() + delay, reply(packet)) for delay in answer(sequence)]
            for due, packet in sorted(answers):
                if due <= time.monotonic():
                    os.write(device, packet)
                    answers.remove((due, packet))

    thread = threading.Thread(target=host)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        os.close(device)


def _tun(namespace: Namespace) -> int:
    """A TUN device belongs to the namespace in which its thread is."""
    made: list[int] = []

    def make() -> None:
        with open(f"/run/netns/{namespace.name}") as other:
            libc.setns(other.fileno(), 0x40000000)
        device = os.open("/dev/net/tun", os.O_RDWR)
        fcntl.ioctl(device, 0x400454CA, struct.pack("16sH22x", b"late", 0x1001))
        made.append(device)

    libc = ctypes.CDLL(None, use_errno=True)
    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    return made[0]


def reply(packet: bytes) -> bytes:
    """The echo reply to an IPv4 packet without options."""
    icmp = struct.pack("!BBH", ECHO_REPLY, 0, 0) + packet[24:]
    assert PLAINTEXT in icmp
    icmp = icmp[:2] + struct.pack("!H", checksum(icmp)) + icmp[4:]
    header = packet[:8] + b"\x3d\x01\0\0" + packet[16:20] + packet[12:16]
    return header[:10] + struct.pack("!H", checksum(header)) + header[12:] + icmp
