"""Several workers per direction: each has a queue of every TUN device, and a socket that shares port 4500."""

from __future__ import annotations

import errno
import os
import select
import socket
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import numpy as np
import pytest

from dsvpn_native import Dataplane
from tests.native.faults import Faults
from tests.native.flows import Flows, inside
from tests.native.network import Pair, wait_for

pytestmark = [
    pytest.mark.root,
    pytest.mark.netns,
    pytest.mark.skipif(not Path("/dev/net/tun").exists(), reason="needs /dev/net/tun: load the kernel module 'tun'"),
]

PAIRS = 4
FLOWS = 24


def packets(network: Pair, side: int, direction: str) -> dict[str, int]:
    """What each worker of a direction has taken in."""
    counted: dict[str, int] = network.nodes[side]("worker_packets")
    return {name: count for name, count in counted.items() if name.startswith(direction)}


@pytest.fixture
def sockets(network: Pair) -> Iterator[list[tuple[socket.socket, socket.socket]]]:
    """The two ends of flows through the tunnel, from side 0 to side 1."""
    network.forward(workers=2 * PAIRS)
    with ExitStack() as undo:

        def bound(address: str, port: int) -> socket.socket:
            made = undo.enter_context(closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)))
            made.bind((address, port))
            return made

        made = []
        for number in range(FLOWS):
            port = 7000 + number
            one = inside(network.names[0], lambda port=port: bound("10.9.0.1", port))  # type: ignore[misc]
            other = inside(network.names[1], lambda port=port: bound("10.9.0.2", port))  # type: ignore[misc]
            one.connect(("10.9.0.2", port))
            other.connect(("10.9.0.1", port))
            made.append((one, other))
        yield made


def arrives(receiver: socket.socket) -> bytes:
    assert select.select([receiver], [], [], 10)[0], "nothing came within 10 s"
    return receiver.recv(100)


def carry(network: Pair, sender: socket.socket, receiver: socket.socket) -> str:
    """Send one datagram through the tunnel. Gives the worker of side 0 that took it in."""
    before = packets(network, 0, "encap")
    sender.send(b"datagram")
    assert arrives(receiver) == b"datagram"
    changed = {}

    def is_counted() -> bool:
        changed.update({name: count for name, count in packets(network, 0, "encap").items() if count != before[name]})
        return bool(changed)

    wait_for("a worker that has counted it", is_counted)
    assert len(changed) == 1, f"{before} -> {changed}"
    return next(iter(changed))


def test_flows_are_spread_and_stay_on_their_queue_when_they_are_answered(
    network: Pair, sockets: list[tuple[socket.socket, socket.socket]]
) -> None:
    # The kernel solicits for routers by itself as the device comes up.
    for side in (0, 1):
        network.execute(side, "sysctl", "-qw", "net.ipv6.conf.tunnel0.router_solicitations=0")
        network.ip(side, "address", "flush", "dev", "tunnel0", "scope", "link")
    taken = [carry(network, one, other) for one, other in sockets]
    assert set(taken) == {f"encap{number}" for number in range(PAIRS)}, taken
    for one, other in sockets:
        # Its answer is written to the device by one worker of the other direction, whichever it is.
        for _ in range(3):
            other.send(b"answer")
            assert arrives(one) == b"answer"
    assert [carry(network, one, other) for one, other in sockets] == taken, "flows moved to other queues"
    assert network.drops() == [{}, {}]


def test_numbers_of_one_key_leave_in_their_order(network: Pair, faults: Faults) -> None:
    """All workers seal with one key, for a peer whose replay window may be small."""
    network.forward(workers=2 * PAIRS, environments=(faults.environment, None))
    faults.set(recording=1)
    with closing(Flows(*network.names, count=12)) as flows:
        flows.run(8000)
        flows.check()
    recorded = faults.recorded()
    sequences = recorded["sequence"][recorded["spi"] == network.nodes[1].spis[0]].astype(np.int64)
    assert len(sequences) >= 8000
    assert (np.diff(sequences) == 1).all(), "packets left behind later ones"
    taken = sorted(packets(network, 0, "encap").values())
    assert taken[-2] > 100, "one worker alone sealed"


def test_a_device_that_is_taken_away_is_told_once(network: Pair) -> None:
    network.forward(workers=2 * PAIRS)
    network.ip(0, "link", "delete", "tunnel0")
    wait_for("the punt", lambda: network.counters(0)["tun_gone"] > 0)
    # Every worker that had a queue of it still answers: nothing is ready for ever.
    assert network.nodes[0]("remove_tunnel", 0) is None
    assert network.counters(0)["tun_gone"] == 1
    assert [punt["kind"] for punt in network.nodes[0]("punts")].count("gone") == 1


def taken_by(network: Pair, port: int, *datagrams: bytes) -> set[str]:
    """Which workers of side 1 took datagrams from a port of side 0 to its port 4500."""
    before = packets(network, 1, "decap")
    with closing(inside(network.names[0], lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))) as sender:
        sender.bind(("192.0.2.1", port))
        for datagram in datagrams:
            sender.sendto(datagram, ("192.0.2.2", 4500))
    total = sum(before.values())
    wait_for("the datagrams", lambda: sum(packets(network, 1, "decap").values()) == total + len(datagrams))
    after = packets(network, 1, "decap")
    return {name for name, count in after.items() if count != before[name]}


def test_an_sa_stays_on_one_socket_and_sas_are_spread(network: Pair) -> None:
    network.forward(workers=2 * PAIRS)
    node = network.nodes[1]
    assert node("offloads")["choice of the socket by SPI, IPv4"] == "on"
    assert node("offloads")["choice of the socket by SPI, IPv6"] == "on"
    # The first one was side 1's own.
    spis = [node("allocate_spi") for _ in range(2 * PAIRS)]
    found = []
    for spi in spis:
        datagram = spi.to_bytes(4, "big") + bytes(60)
        # A NAT box gives the peer another port, and another.
        workers = [taken_by(network, port, datagram, datagram) for port in (20_000, 20_001, 33_333)]
        assert workers == [workers[0]] * 3
        found.append(workers[0].pop())
    assert set(found) == {f"decap{number}" for number in range(PAIRS)}
    assert found[PAIRS:] == found[:PAIRS], "SAs that are made one after another go round"
    beside = node("allocate_spi", spis[2])
    assert taken_by(network, 20_000, beside.to_bytes(4, "big") + bytes(60)) == {found[2]}


def test_ike_and_keepalives_go_to_the_first_worker(network: Pair) -> None:
    """And so does what is too short for an SPI, which strangers may send."""
    network.forward(workers=2 * PAIRS)
    for port in range(20_000, 20_008):
        shorts = [b"", b"\xfe", b"\x00", b"\x01\x02", b"\x01\x02\x03", bytes(3), bytes(4)]
        assert taken_by(network, port, bytes(4) + b"message", b"\xff", *shorts) == {"decap0"}
    punts = network.nodes[1]("punts")
    assert {(punt["kind"], punt["local_port"]) for punt in punts} == {("ike", 4500)}
    assert sum(punt["data"] == b"message".hex() for punt in punts) == 8
    counters = network.counters(1)
    assert counters["keepalives_received"] == 8
    assert counters["worker_panics"] == 0
    assert set(network.drops()[1]) == {"drop_malformed_datagram"}
    assert counters["drop_malformed_datagram"] + counters["punt_ike"] == 8 * 8
    network.execute(0, "ping", "-c", "2", "-i", "0.1", "-W", "2", "10.9.0.2")


def test_where_the_filter_is_refused_the_kernel_chooses_by_address_and_port(network: Pair, faults: Faults) -> None:
    faults.set(no_steering=errno.ENOPROTOOPT)
    network.forward(workers=2 * PAIRS, environments=(None, faults.environment))
    offloads = network.nodes[1]("offloads")
    for version in ("IPv4", "IPv6"):
        shown = offloads[f"choice of the socket by SPI, {version}"]
        assert shown.startswith("off: the kernel refuses the filter (Protocol not available"), shown
    found = [taken_by(network, port, *[bytes(4) + b"message"] * 8) for port in range(20_000, 20_032)]
    assert all(len(workers) == 1 for workers in found), found
    assert set().union(*found) == {f"decap{number}" for number in range(PAIRS)}
    punts = network.nodes[1]("punts")
    assert len(punts) == 8 * 32, "IKE goes to the control plane from every socket"
    assert {(punt["kind"], punt["local_port"]) for punt in punts} == {("ike", 4500)}
    with closing(Flows(*network.names)) as flows:
        flows.run(1000)
        flows.check()


def test_another_gateways_port_is_not_shared(network: Pair) -> None:
    def taken() -> socket.socket:
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        made.bind(("", 4500))
        return made

    def open_underlay() -> str:
        with closing(taken()), pytest.raises(OSError, match="UDP port 4500 is in use") as error:
            Dataplane(queues=PAIRS).open_underlay(esp=False)
        return str(error.value)

    assert "4500" in inside(network.names[0], open_underlay)


def test_a_kernel_with_one_queue_forwards_by_one_queue(network: Pair, faults: Faults) -> None:
    faults.set(one_queue=errno.EINVAL)
    network.forward(workers=2 * PAIRS, environments=(faults.environment, None))
    offloads = network.nodes[0]("offloads")
    assert offloads["queues of tunnel0"].startswith("off: the kernel gives no more than one (Invalid argument")
    assert network.nodes[1]("offloads")["queues of tunnel0"] == str(PAIRS)
    network.execute(0, "ping", "-c", "3", "-i", "0.1", "-W", "2", "10.9.0.2")
    counted = packets(network, 0, "encap")
    assert counted["encap0"] >= 3
    assert set(counted.values()) == {counted["encap0"], 0}
    assert network.drops() == [{}, {}]


@pytest.mark.parametrize("threads", [2 * PAIRS, PAIRS, 2, 1, 0])
def test_queues_and_sockets_are_shared_out_among_any_number_of_threads(network: Pair, threads: int) -> None:
    """Over IPv6, whose sockets are a group of their own."""
    for side in (0, 1):
        network.ip(side, "link", "set", "under", "mtu", "1600")
    network.forward(workers=threads, queues=PAIRS, ipv6=True)
    with closing(Flows(*network.names, count=12)) as flows:
        flows.run(2000)
        flows.check()
    assert len(network.nodes[0]("worker_packets")) == threads
    assert network.drops() == [{}, {}]


def test_a_device_of_another_process_is_not_joined(network: Pair) -> None:
    network.forward(workers=2 * PAIRS)

    def join() -> str:
        with pytest.raises(OSError, match="tunnel0") as error:
            Dataplane(queues=PAIRS).add_tunnel("tunnel0")
        return str(error.value)

    inside(network.names[0], join)
    network.execute(0, "ping", "-c", "3", "-i", "0.1", "-W", "2", "10.9.0.2")


def test_queues_end_with_their_tunnel(network: Pair) -> None:
    network.forward(workers=2 * PAIRS)
    for _ in range(3):
        network.nodes[0]("remove_tunnel", 0)
        assert "tunnel0" not in network.execute(0, "ip", "-brief", "link")
        assert network.nodes[0]("add_tunnel", "tunnel0") == 0
    assert len(os.listdir(f"/proc/{network.nodes[0].pid}/fd")) < 100


@pytest.mark.parametrize(("queues", "threads"), [(1, 4), (1, 3), (4, 0), (4, 3), (4, 10)])
def test_threads_that_do_not_fit_the_queues_are_refused(queues: int, threads: int) -> None:
    with pytest.raises(ValueError, match="threads"):
        Dataplane(queues=queues).start_workers(threads)


@pytest.mark.parametrize("queues", [0, 9, -1])
def test_queues_are_one_to_eight(queues: int) -> None:
    with pytest.raises(ValueError, match="queues"):
        Dataplane(queues=queues)


def test_workers_are_a_pair_for_each_queue() -> None:
    dataplane = Dataplane(queues=3)
    dataplane.start_workers()
    assert dataplane.worker_threads == 6
    assert dataplane.worker_packets == {
        f"{direction}{number}": 0 for direction in ("encap", "decap") for number in range(3)
    }
    dataplane.stop_workers()
    assert dataplane.worker_packets == {}
    assert Dataplane.best_worker_threads() in {1, 2, 4, 6, 8, 10, 12, 14, 16}
