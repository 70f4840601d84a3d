"""What the kernel may refuse or get wrong, each forced: the fallback carries the traffic, in order, and is told."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.native.faults import ALWAYS, LIE_RECEIVE, LIE_TUN_READ, Faults
from tests.native.flows import Flows
from tests.native.network import Pair, wait_for
from tests.native.uniqueness import check_unique

pytestmark = [
    pytest.mark.root,
    pytest.mark.netns,
    pytest.mark.skipif(not Path("/dev/net/tun").exists(), reason="needs /dev/net/tun: load the kernel module 'tun'"),
]

DRIVERS = pytest.mark.parametrize("workers", [1, 0], ids=["workers", "drain"])
#: Refusals in a row after which a socket offers no more GSO (native/io/src/socket.rs).
GSO_REFUSALS = 64
#: gso_type of the virtio header.
TCPV4, TCPV6, UDP_L4 = 1, 4, 5


@contextmanager
def flows(network: Pair) -> Iterator[Flows]:
    made = Flows(*network.names)
    try:
        yield made
    finally:
        made.close()


def offload(network: Pair, side: int, name: str) -> str:
    offloads: dict[str, str] = network.nodes[side]("offloads")
    return offloads[name]


@DRIVERS
@pytest.mark.parametrize(
    ("refusal", "refusals", "state"),
    [
        (errno.EIO, 1, "off: the device refused it (EIO)"),
        (errno.EINVAL, GSO_REFUSALS, "off: refused again and again (EINVAL or EMSGSIZE)"),
        (errno.EMSGSIZE, GSO_REFUSALS, "off: refused again and again (EINVAL or EMSGSIZE)"),
    ],
    ids=["EIO", "EINVAL", "EMSGSIZE"],
)
def test_refused_gso_is_sent_again_without(
    network: Pair, faults: Faults, refusal: int, refusals: int, state: str, workers: int
) -> None:
    network.forward(workers=workers, environments=(faults.environment, None))
    assert offload(network, 0, "UDP GSO, IPv4") == "on"
    faults.set(recording=1, gso_errno=refusal, gso_left=ALWAYS)
    with flows(network) as made:
        made.run(4000)
        made.check()
    assert network.counters(0)["gso_refused"] == refusals
    assert offload(network, 0, "UDP GSO, IPv4") == state
    assert offload(network, 1, "UDP GSO, IPv4") == "on"
    assert network.drops() == [{}, {}]
    assert check_unique(faults) >= 4000
    assert network.nodes[1]("sa_counters", network.nodes[1].spis[0])["replayed"] == 0


@DRIVERS
@pytest.mark.parametrize("refusal", [errno.EINVAL, errno.EMSGSIZE], ids=["EINVAL", "EMSGSIZE"])
def test_single_refusals_leave_gso_on(network: Pair, faults: Faults, refusal: int, workers: int) -> None:
    """One peer behind a small link must not take GSO from the others."""
    network.forward(workers=workers, environments=(faults.environment, None))
    with flows(network) as made:

        def refuse(sent: int) -> None:
            faults.set(gso_left=0, gso_errno=refusal)
            faults.set(gso_left=1)

        made.run(3000, meanwhile=refuse)
        made.check()
    assert network.counters(0)["gso_refused"] > 0
    assert network.drops() == [{}, {}]
    assert offload(network, 0, "UDP GSO, IPv4") == "on"


def test_gso_that_the_configuration_turns_off_is_told(network: Pair) -> None:
    network.forward(underlay={"udp_gso": False})
    assert offload(network, 0, "UDP GSO, IPv4") == "off: configured"
    assert offload(network, 0, "UDP GSO self-test") == "not done: UDP GSO is off"


@DRIVERS
def test_a_kernel_that_mangles_full_tails_is_found_out(network: Pair, faults: Faults, workers: int) -> None:
    """The self-test sees the damage before the first packet, and nothing is cut by that kernel."""
    faults.set(mangle_tail=1)
    network.forward(workers=workers, environments=(faults.environment, None))
    found = offload(network, 0, "UDP GSO self-test")
    assert found.startswith("failed: 2 segments of 1448 octets, the last of 1448"), found
    assert offload(network, 0, "UDP GSO, IPv4") == "off: the self-test failed"
    assert offload(network, 0, "UDP GSO, IPv6") == "off: the self-test failed"
    with flows(network) as made:
        made.run(2000)
        made.check()
    counters = network.counters(0)
    assert counters["gso_refused"] == 0
    assert network.drops() == [{}, {}]


def test_the_mangled_tails_would_do_harm(network: Pair, faults: Faults) -> None:
    """What the self-test keeps away: with the fault from later on, packets are lost as unauthentic."""
    network.forward(environments=(faults.environment, None))
    assert offload(network, 0, "UDP GSO self-test") == "passed"
    faults.set(mangle_tail=1)
    with flows(network) as made:
        made.run(1000, lossless=False)
        made.check(lossless=False)
        assert made.received < made.sent
    assert network.drops()[1].keys() == {"drop_unauthentic"}


@DRIVERS
@pytest.mark.parametrize(
    ("refused", "left"),
    [(0x60, "csum tso4 tso6"), (0x64, "csum tso4"), (0x66, "csum"), (0x67, "none")],
    ids=["no-uso", "no-tso6", "no-tso", "nothing"],
)
def test_a_device_without_offloads_forwards(
    network: Pair, make_faults: Callable[[], Faults], refused: int, left: str, workers: int
) -> None:
    both = make_faults(), make_faults()
    for one in both:
        one.set(offloads=refused)
    network.forward(workers=workers, environments=(both[0].environment, both[1].environment))
    assert [offload(network, side, "device tunnel0") for side in (0, 1)] == [left, left]
    with flows(network) as made:
        made.run(2000)
        made.check()
    for target in ("10.9.0.2", "fd09::2"):
        assert float(network.iperf(target)["end"]["sum_received"]["bits_per_second"]) > 0
    assert network.drops() == [{}, {}]


@DRIVERS
@pytest.mark.parametrize("kind", [TCPV4, TCPV6, UDP_L4], ids=["tcp4", "tcp6", "udp"])
def test_refused_superpackets_are_written_one_by_one(network: Pair, faults: Faults, kind: int, workers: int) -> None:
    faults.set(tun_kinds=1 << kind)
    network.forward(workers=workers, environments=(None, faults.environment))
    with flows(network) as made:
        made.run(2000)
        made.check()
    for target in ("10.9.0.2", "fd09::2"):
        assert float(network.iperf(target)["end"]["sum_received"]["bits_per_second"]) > 0
    assert network.counters(1)["tun_gso_refused"] == faults.get("tun_refused") == 1, "remembered"
    assert network.drops() == [{}, {}]


def test_the_fallback_cipher_is_forced_and_told(network: Pair) -> None:
    network.forward(aead_backend="ring")
    assert network.nodes[0]("aead_backend").startswith("ring")
    with flows(network) as made:
        made.run(1000)
        made.check()
    assert network.drops() == [{}, {}]


@pytest.mark.parametrize(
    ("lie", "direction"), [(LIE_TUN_READ, "encap"), (LIE_RECEIVE, "decap")], ids=["encap", "decap"]
)
def test_a_worker_that_panics_is_counted_and_told(network: Pair, faults: Faults, lie: int, direction: str) -> None:
    """A kernel that claims to have given more than there was room for makes the worker's own checks stop it."""
    network.forward(workers=2, environments=(faults.environment, None))
    node = network.nodes[0]
    assert node("counters")["worker_panics"] == 0
    faults.set(lie=lie)
    network.execute(1, "sh", "-c", "ping -c 1 -W 1 192.0.2.1; ping -c 1 -W 1 10.9.0.1 || true")
    network.execute(0, "sh", "-c", "ping -c 1 -W 1 10.9.0.2 || true")
    wait_for("the failure is told", lambda: bool(node("failures")))
    assert node("counters")["worker_panics"] == 1
    (failure,) = node("failures")
    assert failure.startswith(f"the {direction} worker failed: "), failure


@DRIVERS
def test_a_device_that_was_taken_away_is_told(network: Pair, workers: int) -> None:
    network.forward(workers=workers)
    node = network.nodes[0]
    network.ip(0, "link", "delete", "tunnel0")
    wait_for("the punt", lambda: node("counters")["tun_gone"] == 1)
    (punt,) = [punt for punt in node("punts") if punt["kind"] == "gone"]
    assert punt["tunnel"] == 0
    assert node("failures") == ([] if workers else ["[Errno 19] network device tunnel0 was taken away"])
    assert node("counters")["worker_panics"] == 0


def test_a_loopback_that_carries_nothing_is_no_failure(network: Pair) -> None:
    network.ip(0, "link", "set", "lo", "down")
    network.forward()
    assert offload(network, 0, "UDP GSO self-test").startswith("not done: ")
    assert offload(network, 0, "UDP GSO, IPv4") == "on"


def test_a_packet_filter_on_loopback_is_no_failure(network: Pair) -> None:
    network.execute(0, "nft", "add table inet t; add chain inet t c { type filter hook input priority 0; }")
    network.execute(0, "nft", "add rule inet t c iif lo drop")
    network.forward()
    assert "loopback carries no datagrams" in offload(network, 0, "UDP GSO self-test")
    assert offload(network, 0, "UDP GSO, IPv4") == "on"
    with flows(network) as made:
        made.run(500)
        made.check()
