"""Two data planes in two network namespaces, over real TUN devices and sockets."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dsvpn_native import Dataplane
from tests.io.namespace import ip, new_namespace
from tests.native.network import KEYMAT, Pair, pair, run, wait_for

pytestmark = [
    pytest.mark.root,
    pytest.mark.netns,
    pytest.mark.skipif(not Path("/dev/net/tun").exists(), reason="needs /dev/net/tun: load the kernel module 'tun'"),
]

#: The largest inner packet that fits a link of 1500 octets, by encapsulation.
MTU = {"udp": 1430, "esp": 1438, "gre": 1468}
DRIVERS = pytest.mark.parametrize("workers", [1, 2, 0], ids=["one-thread", "two-threads", "drain"])


def ping(network: Pair, target: str, *options: str) -> None:
    """Five packets must all come back; the kernel may first have to find the neighbour."""
    output = network.execute(0, "ping", "-c", "5", "-i", "0.05", "-W", "5", *options, target)
    assert " 0% packet loss" in output, output


def received_bits(report: dict[str, Any]) -> float:
    return float(report["end"]["sum_received"]["bits_per_second"])


@DRIVERS
@pytest.mark.parametrize("encapsulation", ["udp", "esp", "gre"])
def test_ping_and_tcp_pass(network: Pair, encapsulation: str, workers: int) -> None:
    network.forward(encapsulation, workers=workers, mtu=MTU[encapsulation])
    for target in ("10.9.0.2", "fd09::2"):
        ping(network, target)
        ping(network, target, "-s", "1380", "-M", "do")
        assert received_bits(network.iperf(target)) > 0
        assert received_bits(network.iperf(target, "-R")) > 0
    assert network.drops() == [{}, {}]
    for side in (0, 1):
        counters = network.counters(side)
        assert counters["coalesced"] > 0
        if encapsulation == "udp":
            assert counters["underlay_tx_messages"] < counters["underlay_tx_packets"], "UDP GSO was not used"
        assert network.nodes[side]("adjacency_counters", 7)["packets_in"] > 0


@DRIVERS
@pytest.mark.parametrize("suite", ["aes256gcm16", "chacha20poly1305"])
def test_other_suites_pass(network: Pair, suite: str, workers: int) -> None:
    network.forward(workers=workers, suite=suite)
    ping(network, "10.9.0.2")
    assert received_bits(network.iperf("10.9.0.2")) > 0
    assert network.drops() == [{}, {}]


@pytest.mark.parametrize("encapsulation", ["udp", "esp", "gre"])
def test_an_ipv6_underlay_passes(network: Pair, encapsulation: str) -> None:
    network.forward(encapsulation, mtu=MTU[encapsulation] - 20, ipv6=True)
    ping(network, "10.9.0.2", "-s", "1300", "-M", "do")
    assert received_bits(network.iperf("10.9.0.2")) > 0
    assert network.drops() == [{}, {}]


@DRIVERS
def test_udp_passes_in_order_and_undamaged(network: Pair, workers: int) -> None:
    network.forward(workers=workers)
    report = network.iperf("10.9.0.2", "-u", "-b", "100M", "-l", "1200")
    names, values = (
        line.split() for line in network.execute(1, "cat", "/proc/net/snmp").splitlines() if line.startswith("Udp:")
    )
    # iperf3 itself may read too slowly, and misses none that comes behind its last; nothing is lost before its socket.
    assert report["end"]["sum"]["lost_packets"] <= int(dict(zip(names, values, strict=True))["RcvbufErrors"])
    assert network.drops() == [{}, {}]
    assert report["end"]["sum"].get("out_of_order", 0) == 0


def test_octets_arrive_as_they_were_sent(network: Pair) -> None:
    network.forward()
    source = network.names[0]
    sent = os.urandom(8 << 20)
    path = Path("/tmp") / f"{source}.octets"
    path.write_bytes(sent)
    serve = (
        "import socket, sys; s = socket.create_server(('10.9.0.2', 9)); print('up', flush=True); c = s.accept()[0]\n"
        "import hashlib; h = hashlib.sha256()\nwhile d := c.recv(1 << 20): h.update(d)\nprint(h.hexdigest())"
    )
    push = f"import socket; s = socket.create_connection(('10.9.0.2', 9)); s.sendall(open({str(path)!r}, 'rb').read())"
    server = network.spawn(1, sys.executable, "-c", serve)
    try:
        assert server.stdout is not None
        assert server.stdout.readline() == "up\n"
        network.execute(0, sys.executable, "-c", push)
        assert server.stdout.readline().strip() == hashlib.sha256(sent).hexdigest()
        server.wait(10)
    finally:
        server.kill()
        server.wait()
        assert server.stdout is not None
        server.stdout.close()
        path.unlink()


def test_without_gso_the_same_traffic_passes(network: Pair) -> None:
    network.forward(underlay={"udp_gso": False})
    assert received_bits(network.iperf("10.9.0.2")) > 0
    assert network.drops() == [{}, {}]
    assert network.counters(0)["gso_refused"] == 0


def test_refused_gso_is_sent_again_datagram_by_datagram(network: Pair) -> None:
    """A link smaller than the adjacency's MTU: the kernel cuts no larger datagrams, but fragments single ones."""
    for side in (0, 1):
        network.ip(side, "link", "set", "under", "mtu", "1320")
    network.forward(underlay={"dont_fragment": False}, mtu=1430)
    ping(network, "10.9.0.2", "-s", "1400", "-M", "do")
    assert received_bits(network.iperf("10.9.0.2")) > 0
    counters = network.counters(0)
    # After so many refusals in a row the socket offers no more.
    assert 0 < counters["gso_refused"] <= 64
    assert network.drops() == [{}, {}], "nothing is sealed twice, so nothing is replayed"
    sa = network.nodes[1]("sa_counters", network.nodes[1].spis[0])
    assert sa["replayed"] == 0
    assert sa["packets"] > counters["gso_refused"]


def test_a_datagram_larger_than_the_link_is_counted(network: Pair) -> None:
    network.ip(0, "link", "set", "under", "mtu", "1320")
    network.forward(mtu=1430)
    ping(network, "10.9.0.2")
    network.execute(0, "sh", "-c", "ping -c 1 -W 1 -s 1400 10.9.0.2 || true")
    assert network.drops()[0] == {"drop_send_too_big": 1}
    ping(network, "10.9.0.2")


def test_ike_keepalives_and_nhrp_reach_the_other_side(network: Pair) -> None:
    network.forward()
    one, other = network.nodes
    ike = bytes(range(28))
    one("send_ike", "192.0.2.1", 500, "192.0.2.2", 500, ike)
    one("send_ike", "", 4500, "192.0.2.2", 4500, ike + b"x")
    one("send_ike", "2001:db8::1", 500, "2001:db8::2", 500, ike)
    one("send_keepalive", "", "192.0.2.2", 4500)
    assert one("send_nhrp", 7, b"nhrp packet") is True
    punts: list[dict[str, Any]] = []

    def all_came() -> bool:
        punts.extend(other("punts"))
        return len(punts) >= 4 and other("counters")["keepalives_received"] >= 1

    wait_for("punts", all_came)
    came = {
        (punt["kind"], punt["local"], punt["local_port"], punt["remote"], punt["remote_port"], punt["data"])
        for punt in punts
    }
    assert came == {
        ("ike", "192.0.2.2", 500, "192.0.2.1", 500, ike.hex()),
        ("ike", "192.0.2.2", 4500, "192.0.2.1", 4500, (ike + b"x").hex()),
        ("ike", "2001:db8::2", 500, "2001:db8::1", 500, ike.hex()),
        ("nhrp", "192.0.2.2", 4500, "192.0.2.1", 4500, b"nhrp packet".hex()),
    }
    assert [(punt["tunnel"], punt["adjacency"]) for punt in punts if punt["kind"] == "nhrp"] == [(0, 7)]
    assert other("adjacency_counters", 7)["idle_ms_in"] == -1, "NHRP is not data"


@DRIVERS
def test_an_unreachable_port_does_not_stop_the_others(network: Pair, workers: int) -> None:
    network.forward(workers=workers)
    network.ip(0, "address", "add", "192.0.2.99/32", "dev", "lo")
    for _ in range(50):
        network.nodes[0]("send_ike", "", 500, "192.0.2.2", 9999, b"nobody listens")
        network.nodes[0]("send_ike", "", 500, "198.51.100.1", 500, b"no route")
    ping(network, "10.9.0.2")
    assert network.drops()[0] == {"drop_send_refused": 50}


def test_tunnels_come_and_go_while_workers_run(network: Pair) -> None:
    network.forward()
    for _ in range(3):
        assert network.nodes[0]("add_tunnel", "second") == 1
        assert "second" in network.execute(0, "ip", "link", "show", "dev", "second")
        ping(network, "10.9.0.2")
        network.nodes[0]("remove_tunnel", 1)
        assert "second" not in network.execute(0, "ip", "link", "show"), "the device outlives its removal"
    ping(network, "10.9.0.2")


def processor_ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def test_the_device_holds_more_packets_than_its_default() -> None:
    with new_namespace():
        dataplane = Dataplane()
        dataplane.add_tunnel("held0", protected=True)
        (link,) = json.loads(ip("-j link show dev held0"))
    assert link["txqlen"] == 4096


def test_idle_workers_sleep(network: Pair) -> None:
    """Also with a device that somebody took away, which is readable (with an error) for ever."""
    network.forward()
    ping(network, "10.9.0.2")
    node = network.nodes[0]
    network.ip(0, "link", "delete", "tunnel0")
    node("counters")
    before = processor_ticks(node.pid)
    # A second of somebody else's work is what a spinning thread would show as 100 ticks.
    with contextlib.suppress(subprocess.TimeoutExpired):
        network.execute(1, "ping", "-c", "5", "-i", "0.2", "-W", "1", "192.0.2.1")
    assert processor_ticks(node.pid) - before < 20


@pytest.mark.parametrize(("threads", "named"), [(1, {"dsvpn-forward"}), (2, {"dsvpn-encap", "dsvpn-decap"})])
def test_workers_are_named_threads_that_end(threads: int, named: set[str]) -> None:
    def names() -> set[str]:
        found = set()
        for path in Path("/proc/self/task").glob("*/comm"):
            # A thread that was joined may still be on its way out of the list.
            with contextlib.suppress(OSError):
                found.add(path.read_text().strip())
        return {name for name in found if name.startswith("dsvpn-")}

    wait_for("no threads of earlier tests", lambda: not names())
    dataplane = Dataplane()
    dataplane.start_workers(threads)
    assert dataplane.worker_threads == threads
    wait_for("named threads", lambda: names() == named)
    dataplane.stop_workers()
    assert dataplane.worker_threads == 0
    wait_for("their end", lambda: not names())
    dataplane.start_workers(threads)
    del dataplane
    wait_for("their end with the data plane", lambda: not names())


def test_workers_are_as_many_as_serve_the_machine_or_as_asked_for() -> None:
    dataplane = Dataplane()
    for wrong in (0, 3, -1):
        with pytest.raises(ValueError, match="threads"):
            dataplane.start_workers(wrong)
    dataplane.start_workers()
    assert dataplane.worker_threads == (1 if len(os.sched_getaffinity(0)) <= 2 else 2)
    dataplane.stop_workers()


def test_the_punt_descriptor_wakes_a_poll(network: Pair) -> None:
    network.forward(workers=0)
    network.nodes[0]("send_ike", "", 500, "192.0.2.2", 500, b"x" * 28)
    wait_for("an IKE punt", lambda: [punt["kind"] for punt in network.nodes[1]("punts")] == ["ike"])


SCRIPT = """
import sys
from dsvpn_native import Dataplane
dataplane = Dataplane()
try:
    {call}
except OSError as error:
    print(error.errno, error.strerror)
"""


def refused(call: str, *prefix: str, namespace: str | None = None) -> str:
    command = [*prefix, sys.executable, "-c", SCRIPT.format(call=call)]
    if namespace is not None:
        command = ["ip", "netns", "exec", namespace, *command]
    return run(*command).strip()


def test_a_busy_port_is_named(network: Pair) -> None:
    network.forward(underlay={"ike_port": 1500, "nat_port": 1501})
    call = "dataplane.open_underlay(ike_port={}, nat_port={})"
    assert refused(call.format(1500, 1502), namespace=network.names[0]) == "98 UDP port 1500 is in use"
    assert refused(call.format(1502, 1501), namespace=network.names[0]) == "98 UDP port 1501 is in use"


def test_a_busy_device_is_named(network: Pair) -> None:
    network.forward()
    busy = "16 network device tunnel0 is in use by another process"
    assert refused("dataplane.add_tunnel('tunnel0')", namespace=network.names[0]) == busy
    other = "22 network device under exists and is no TUN of this kind: remove it or take another name"
    assert refused("dataplane.add_tunnel('under')", namespace=network.names[0]) == other


def test_missing_rights_are_named(network: Pair) -> None:
    drop = ("setpriv", "--bounding-set=-all", "--inh-caps=-all")
    space = network.names[0]
    tun = refused("dataplane.add_tunnel('x')", *drop, namespace=space)
    assert tun == "1 cannot create network device x: run as root or with CAP_NET_ADMIN"
    port = refused("dataplane.open_underlay(esp=False)", *drop, namespace=space)
    assert port == "13 UDP port 500 cannot be bound: run as root or with CAP_NET_BIND_SERVICE"
    raw = refused("dataplane.open_underlay(ike_port=5000, nat_port=5001)", *drop, namespace=space)
    assert raw == "1 cannot open raw socket of protocol 50 (ESP) over IPv4: run as root or with CAP_NET_RAW"


def test_sockets_can_be_bound_to_a_device() -> None:
    with new_namespace():
        ip("link set lo up")
        index = socket.if_nametoindex("lo")
        dataplane = Dataplane()
        dataplane.open_underlay(ike_port=1500, nat_port=1501, gre=True, device=index)
        bound = [line.split()[3] for line in run("ss", "-Hlnu").splitlines()]
        assert len(bound) >= 2
        assert all("%lo:" in address for address in bound), bound


def test_nothing_stays_open_when_a_port_is_busy() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as busy:
        busy.bind(("127.0.0.1", 0))
        port = busy.getsockname()[1]
        dataplane = Dataplane()
        before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(OSError, match=f"UDP port {port} is in use"):
            dataplane.open_underlay(ike_port=port - 1, nat_port=port, esp=False)
        assert len(os.listdir("/proc/self/fd")) == before
        assert dataplane.descriptors() == []


def test_tables_change_under_traffic(network: Pair) -> None:
    """Commits while packets fly: the SA is changed over and over, and not one packet is lost."""
    network.forward()
    one, other = network.nodes
    flood = network.spawn(0, "ping", "-f", "-c", "2000", "-w", "20", "10.9.0.2")
    try:
        for _ in range(40):
            spi = other("allocate_spi")
            other("add_inbound_sa", spi, "aes128gcm16", KEYMAT["aes128gcm16"], [7], True, 1024)
            other("commit")
            one("set_outbound_sa", spi, "aes128gcm16", KEYMAT["aes128gcm16"], [7], True)
            one("commit")
        output, _ = flood.communicate(timeout=30)
    finally:
        flood.kill()
        flood.wait()
    assert " 0% packet loss" in output, output
    assert network.drops() == [{}, {}]


@pytest.mark.slow
def test_rates_are_reported(network: Pair, capsys: pytest.CaptureFixture[str]) -> None:
    """Not a benchmark: shows gross slowness, beside what the bare link gives in the same run."""
    rates = {"veth": received_bits(network.iperf("192.0.2.2", seconds=2))}
    for encapsulation in ("udp", "esp", "gre"):
        for workers in (1, 0):
            with pair() as tunnel:
                tunnel.forward(encapsulation, workers=workers, mtu=MTU[encapsulation])
                name = f"{encapsulation} {'workers' if workers else 'drain'}"
                rates[name] = received_bits(tunnel.iperf("10.9.0.2", seconds=2))
    with capsys.disabled():
        print("\n" + "".join(f"{name:12} {rate / 1e9:6.2f} Gb/s\n" for name, rate in rates.items()))
    assert min(rates.values()) > 50e6


def test_a_killed_process_leaves_no_device(network: Pair) -> None:
    network.forward()
    node = network.nodes.pop(0)
    node.kill(signal.SIGKILL)
    wait_for("the device is gone", lambda: "tunnel0" not in network.execute(0, "ip", "link", "show"))
