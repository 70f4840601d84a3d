"""A peer with an SA for each worker (RFC 9611): nobody waits, flows stay in order, no number is used twice."""

from __future__ import annotations

import socket
import struct
from contextlib import closing
from pathlib import Path

import pytest

from tests.native.faults import Faults
from tests.native.flows import Flows
from tests.native.network import Pair
from tests.native.test_order import frames
from tests.native.uniqueness import check_unique

pytestmark = [
    pytest.mark.root,
    pytest.mark.netns,
    pytest.mark.skipif(not Path("/dev/net/tun").exists(), reason="needs /dev/net/tun: load the kernel module 'tun'"),
]

PAIRS = 4
SUITE = "aes128gcm16"
ADJACENCY = 7


def install(network: Pair, resource: int, number: int, beside: int = 0) -> int:
    """An SA from side 0 to side 1, for one worker of side 0. Gives its SPI."""
    one, other = network.nodes
    spi: int = other("allocate_spi", beside)
    keymat = bytes([number % 256, number // 256, resource]) + bytes(17)
    other("add_inbound_sa", spi, SUITE, keymat, [ADJACENCY], True, 1024)
    other("commit")
    one("set_outbound_sa", spi, SUITE, keymat, [ADJACENCY], True, resource)
    one("commit")
    return spi


def carried(network: Pair, resource: int) -> int:
    packets: int = network.nodes[0]("outbound_sa_counters", ADJACENCY, resource)["packets"]
    return packets


def test_every_worker_seals_and_opens_by_an_sa_of_its_own(network: Pair, faults: Faults) -> None:
    network.forward(workers=2 * PAIRS, environments=(faults.environment, None))
    # The fallback again, so that the four are of four sockets.
    spis = [install(network, resource, resource) for resource in range(PAIRS)]
    faults.set(recording=1)
    with closing(Flows(*network.names, count=24)) as flows:
        flows.run(10_000)
        flows.check()
    packets = [carried(network, resource) for resource in range(PAIRS)]
    assert all(count > 0 for count in packets), packets
    assert sum(packets) == network.nodes[0]("adjacency_counters", ADJACENCY)["packets_out"] >= 10_000
    opened = [network.nodes[1]("sa_counters", spi)["packets"] for spi in spis]
    assert opened == packets
    workers = network.nodes[1]("worker_packets")
    assert all(workers[f"decap{number}"] > 0 for number in range(PAIRS)), workers
    assert network.drops() == [{}, {}]
    assert check_unique(faults) >= 10_000


def test_order_holds_while_the_sas_of_workers_are_replaced(network: Pair, faults: Faults) -> None:
    """A successor is opened by the same worker as what it succeeds: nothing passes anything."""
    network.forward(workers=2 * PAIRS, environments=(faults.environment, None))
    spis = [install(network, resource, resource) for resource in range(PAIRS)]
    faults.set(recording=1)
    with closing(Flows(*network.names, count=24)) as flows:
        steps = iter(range(PAIRS, 1_000_000))

        def change(sent: int) -> None:
            step = next(steps)
            if step % 20 == 0:
                resource = step // 20 % PAIRS
                spis[resource] = install(network, resource, step, beside=spis[resource])

        flows.run(8000, meanwhile=change)
        flows.check()
    assert network.drops() == [{}, {}]
    assert check_unique(faults) >= 8000


def test_sas_of_workers_come_and_go_without_a_loss(network: Pair, faults: Faults) -> None:
    """A flow that moves to another SA may be opened by another worker, which passes what is under way then."""
    network.forward(workers=2 * PAIRS, environments=(faults.environment, None))
    faults.set(recording=1)
    with closing(Flows(*network.names, count=24)) as flows:
        steps = iter(range(1, 1_000_000))
        moves = []

        def change(sent: int) -> None:
            step = next(steps)
            if step % 20 == 0:
                resource = 1 + step // 20 % (PAIRS - 1)
                if step // 60 % 2 == 0:
                    install(network, resource, step)
                else:
                    network.nodes[0]("clear_outbound_sa", ADJACENCY, resource)
                    network.nodes[0]("commit")
                moves.append(step)

        flows.run(5000, meanwhile=change)
        assert not flows.damage
        assert flows.received == flows.sent
        # At most what was under way at one move, for each of them.
        assert len(flows.disorder) <= len(moves) * 400
    assert len(moves) > 10
    assert network.drops() == [{}, {}]
    assert check_unique(faults) >= 5000


def test_the_fallback_is_the_last_to_seal(network: Pair) -> None:
    network.forward(workers=2 * PAIRS)
    one = network.nodes[0]
    install(network, 1, 1)
    one("clear_outbound_sa", ADJACENCY)
    one("commit")
    assert not one("send_nhrp", ADJACENCY, "hex:" + bytes(40).hex())
    one("clear_outbound_sa", ADJACENCY, 1)
    one("clear_outbound_sa", ADJACENCY, 1)
    one("commit")
    install(network, 0, 2)
    with closing(Flows(*network.names, count=12)) as flows:
        flows.run(500)
        flows.check()


def test_workers_send_with_hop_limits_of_their_own(network: Pair) -> None:
    """What a peer's kernel joins between two ports is then of one worker, and so of one SA."""
    network.forward(workers=2 * PAIRS)
    for resource in range(PAIRS):
        install(network, resource, resource)
    spis = {network.nodes[0]("outbound_sa_counters", ADJACENCY, resource)["spi"] for resource in range(PAIRS)}
    limits: dict[int, set[int]] = {spi: set() for spi in spis}

    def take(packet: bytes) -> None:
        if packet[0] == 0x45 and packet[9] == socket.IPPROTO_UDP and packet[12:16] == bytes([192, 0, 2, 1]):
            (spi,) = struct.unpack_from(">I", packet, 28)
            if spi in limits:
                limits[spi].add(packet[8])

    with frames(network.names[1], "under", take), closing(Flows(*network.names, count=24)) as flows:
        flows.run(2000)
        flows.check()
    assert all(len(found) == 1 for found in limits.values()), limits
    assert len(set.union(*limits.values())) == PAIRS
