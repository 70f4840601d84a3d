"""No packet passes another of its flow, and no sequence number seals two packets, whatever happens in between."""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest

from tests.native.faults import ALWAYS, Faults
from tests.native.flows import Flows, inside
from tests.native.network import KEYMAT, Pair
from tests.native.uniqueness import check_unique

pytestmark = [
    pytest.mark.root,
    pytest.mark.netns,
    pytest.mark.skipif(not Path("/dev/net/tun").exists(), reason="needs /dev/net/tun: load the kernel module 'tun'"),
]

DRIVERS = pytest.mark.parametrize("workers", [1, 2, 8, 0], ids=["one-thread", "two-threads", "four-pairs", "drain"])
MTU = 1418
SUITE = "aes128gcm16"
_ETH_P_ALL = 3
_SO_RCVBUFFORCE = 33


@contextmanager
def flows(network: Pair) -> Iterator[Flows]:
    made = Flows(*network.names)
    try:
        yield made
    finally:
        made.close()


@contextmanager
def frames(namespace: str, device: str, take: Callable[[bytes], None]) -> Iterator[None]:
    """Give the head of every frame that a device gets or sends to `take`, in their order."""

    def opened() -> socket.socket:
        made = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0)
        made.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 64 << 20)
        made.bind((device, _ETH_P_ALL))
        made.setblocking(False)
        return made

    capture = inside(namespace, opened)
    end_read, end_write = os.pipe()

    def read() -> None:
        poll = select.poll()
        poll.register(capture, select.POLLIN)
        poll.register(end_read, select.POLLIN)
        ended = False
        while not ended:
            ended = any(descriptor == end_read for descriptor, _ in poll.poll())
            with suppress(BlockingIOError):
                while True:
                    take(capture.recv(65536))

    thread = threading.Thread(target=read)
    thread.start()
    try:
        yield
    finally:
        os.write(end_write, b"x")
        thread.join()
        capture.close()
        os.close(end_read)
        os.close(end_write)


@DRIVERS
@pytest.mark.parametrize("encapsulation", ["udp", "esp", "gre"])
def test_flows_stay_in_order(network: Pair, encapsulation: str, workers: int) -> None:
    network.forward(encapsulation, workers=workers, mtu=MTU)
    with flows(network) as made:
        made.run(10_000)
        made.check()
    assert network.drops() == [{}, {}]
    counters = network.counters(0)
    assert counters["tun_rx_packets"] < counters["underlay_tx_packets"], "no superpacket was among them"


@DRIVERS
def test_a_swap_of_two_packets_is_seen(network: Pair, faults: Faults, workers: int) -> None:
    """The tests of this file can fail: two datagrams of some bursts change places on their way."""
    network.forward(workers=workers, mtu=MTU, environments=(faults.environment, None))
    faults.set(swap=20)
    with flows(network) as made:
        made.run(2000)
        assert made.disorder
        assert not made.damage
        with pytest.raises(AssertionError, match="out of order"):
            made.check()


class IdentificationOrder:
    """Checks the IPv4 identification of one TCP flow's data packets: the sender counts it up, retransmissions too."""

    def __init__(self) -> None:
        self.seen = 0
        self.disorder: list[str] = []
        self._last: dict[tuple[bytes, bytes], int] = {}

    def take(self, packet: bytes) -> None:
        if packet[0] != 0x45 or packet[9] != socket.IPPROTO_TCP or packet[16:20] != bytes([10, 9, 0, 2]):
            return
        flow = packet[12:20], packet[20:24]
        (number,) = struct.unpack_from(">H", packet, 4)
        last = self._last.get(flow)
        # A SYN answers for none: its identification is not counted with the others.
        if packet[33] & 2 == 0:
            if last is not None and not 0 < (number - last) % 65536 < 32768:
                self.disorder.append(f"{number} behind {last}")
            self._last[flow] = number
            self.seen += 1


@DRIVERS
def test_tcp_segments_stay_in_order(network: Pair, workers: int) -> None:
    """Seen below TCP, where no retransmission hides anything: what the receiver's device gets."""
    network.forward(workers=workers, mtu=MTU)
    order = IdentificationOrder()
    with frames(network.names[1], "tunnel0", order.take):
        network.iperf("10.9.0.2", "-P", "3", "-b", "150M")
    assert order.seen > 500
    assert not order.disorder, order.disorder[:5]


def test_a_swap_of_tcp_segments_is_seen(network: Pair, faults: Faults) -> None:
    network.forward(mtu=MTU, environments=(faults.environment, None))
    order = IdentificationOrder()
    faults.set(swap=10)
    with frames(network.names[1], "tunnel0", order.take):
        network.iperf("10.9.0.2", "-b", "50M")
    assert order.disorder


def switch(network: Pair, side: int, workers: int) -> None:
    network.nodes[side](*(("start_workers", workers) if workers else ("stop_workers",)))


def replace_sa(network: Pair, number: int) -> tuple[int, bytes]:
    """A new SA from side 0 to side 1 with keys of its own, and it is used; the same worker opens what it seals."""
    one, other = network.nodes
    spi = other("allocate_spi", one("outbound_sa_counters", 7)["spi"])
    keymat = bytes([number % 256, number // 256]) + bytes(18)
    other("add_inbound_sa", spi, SUITE, keymat, [7], True, 1024)
    other("commit")
    one("set_outbound_sa", spi, SUITE, keymat, [7], True)
    one("commit")
    return spi, keymat


@pytest.mark.parametrize("queues", [1, 4])
def test_order_holds_while_drivers_and_keys_change(network: Pair, faults: Faults, queues: int) -> None:
    network.forward(mtu=MTU, environments=(faults.environment, None), queues=queues)
    threads = 2 * queues if queues > 1 else 1
    faults.set(recording=1)
    with flows(network) as made:
        steps = iter(range(1_000_000))

        def change(sent: int) -> None:
            step = next(steps)
            if step % 20 == 0:
                replace_sa(network, step)
            if step % 50 == 25:
                # Side 0 stops, side 1 stops, both start again.
                switch(network, step // 50 % 2, 0 if step // 100 % 2 == 0 else threads)

        made.run(8000, meanwhile=change)
        for side in (0, 1):
            switch(network, side, threads)
        made.run(500)
        made.check()
    assert network.drops() == [{}, {}]
    assert check_unique(faults) >= 8000


class Wire:
    """What crossed the underlay: (SPI, sequence number) with a hash of the datagram, of ESP in UDP over IPv4."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, int, int]] = []

    def take(self, packet: bytes) -> None:
        if packet[0] != 0x45 or packet[9] != socket.IPPROTO_UDP or packet[12:16] != bytes([192, 0, 2, 1]):
            return
        # Only what was not fragmented: the adjacency's MTU fits the link wherever this test looks.
        datagram = packet[28 : struct.unpack_from(">H", packet, 24)[0] + 20]
        if packet[22:24] != struct.pack(">H", 4500) or len(datagram) < 16 or datagram[:4] == bytes(4):
            return
        spi, sequence = struct.unpack_from(">II", datagram)
        self.rows.append((spi, sequence, hash(datagram)))


@DRIVERS
def test_no_sequence_number_seals_two_packets(network: Pair, faults: Faults, workers: int) -> None:
    """Routes that go, links that shrink, full sockets, refused GSO, drivers that change, keys that come back."""
    network.forward(workers=workers, mtu=MTU, environments=(faults.environment, None))
    # The capture sees datagrams, not superdatagrams that a card would cut.
    network.execute(0, "ethtool", "-K", "under", "gso", "off", "tx-udp-segmentation", "off")
    first = network.nodes[1].spis[0]
    faults.set(recording=1)
    wire = Wire()
    replaced: list[tuple[int, bytes]] = [(first, KEYMAT[SUITE])]

    def use(spi: int, keymat: bytes) -> None:
        network.nodes[0]("set_outbound_sa", spi, SUITE, keymat, [7], True)
        network.nodes[0]("commit")

    steps: list[Callable[[], object]] = [
        lambda: network.ip(0, "route", "replace", "unreachable", "192.0.2.2/32"),
        lambda: network.ip(0, "route", "delete", "unreachable", "192.0.2.2/32"),
        lambda: network.ip(0, "link", "set", "under", "mtu", "1300"),
        lambda: network.ip(0, "link", "set", "under", "mtu", "1500"),
        lambda: faults.set(send_errno=errno.ENOBUFS, send_left=200),
        lambda: faults.set(send_errno=errno.EPERM, send_left=40),
        lambda: switch(network, 0, not workers),
        lambda: faults.set(send_left=0, gso_errno=errno.EMSGSIZE, gso_left=10),
        lambda: replaced.append(replace_sa(network, 1)),
        lambda: switch(network, 0, workers),
        lambda: network.nodes[0]("clear_outbound_sa", 7) or network.nodes[0]("commit"),
        # The first SA again, as after the end of a rekeyed one: it goes on where it was.
        lambda: use(*replaced[0]),
        lambda: use(*replaced[1]),
        # A peer that moved, and back.
        lambda: move(network, 1430),
        lambda: move(network, MTU),
        lambda: use(*replaced[0]),
        lambda: faults.set(gso_errno=errno.EIO, gso_left=ALWAYS),
        lambda: switch(network, 0, not workers),
    ]
    with flows(network) as made, frames(network.names[1], "under", wire.take):
        for step in steps:
            step()
            made.run(300, lossless=False)
            # A window for what is lost is not kept: every step begins anew.
        made.check(lossless=False)
    sealed = check_unique(faults)
    assert sealed > len(steps) * 100
    rows = np.array(wire.rows, dtype=np.int64)
    assert len(rows) > 1000
    assert len(np.unique(rows, axis=0)) == len(np.unique(rows[:, :2], axis=0)), "two packets under one number"
    drops = network.drops()[0]
    assert {"drop_send_refused", "drop_send_too_big", "drop_send_busy", "drop_no_sa"} <= drops.keys()
    assert "drop_unauthentic" not in network.drops()[1]
    assert "drop_replayed" not in network.drops()[1], "an SA began again with numbers that it had used"


def move(network: Pair, mtu: int) -> None:
    network.nodes[0]("set_adjacency", 7, 0, "udp", "192.0.2.1", "192.0.2.2", 4500, mtu)
    network.nodes[0]("commit")
