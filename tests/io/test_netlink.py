"""Netlink against the real kernel, in a namespace of the test's own."""

from __future__ import annotations

import errno
import random
import select
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from ipaddress import ip_address, ip_interface, ip_network

import pytest

from dsvpn.addresses import Prefix
from dsvpn.errors import HostError
from dsvpn.gateway.forwarding import Via
from dsvpn.io import netlink as netlink_module
from dsvpn.io import resync as resync_module
from dsvpn.io import rtnetlink
from dsvpn.io.netlink import Netlink
from dsvpn.io.routes import RouteAdded, RouteChange, RouteRemoved
from dsvpn.nhrp import Route
from tests.io.namespace import ip, new_namespace, tun

pytestmark = pytest.mark.root

_DEADLINE = 5.0


@pytest.fixture
def netlink() -> Iterator[Netlink]:
    """A tunnel device `dsvpn0` (10.0.0.11/24, fd00::11/64) and an underlay `eth0` (192.0.2.11/24), watched."""
    with new_namespace():
        ip("link add eth0 mtu 1400 type veth peer name eth0-far mtu 1400")
        ip("link set eth0-far up")
        ip("link set eth0 up")
        ip("addr add 192.0.2.11/24 dev eth0")
        with tun("dsvpn0"):
            netlink = Netlink()
            netlink.add_tunnel("dsvpn0", [ip_interface("10.0.0.11/24"), ip_interface("fd00::11/64")], 1380)
            netlink.resync()
            try:
                yield netlink
            finally:
                netlink.close()


def changes_until(netlink: Netlink, done: Callable[[], bool]) -> list[RouteChange]:
    """Everything that the monitor reports until `done`."""
    changes: list[RouteChange] = []
    deadline = time.monotonic() + _DEADLINE
    while not done():
        left = deadline - time.monotonic()
        assert left > 0, f"nothing more after {changes[-20:]}; mirrored: {list(netlink.routes('dsvpn0').items())[:20]}"
        select.select([netlink], [], [], 0 if netlink.busy else left)
        changes.extend(netlink.read_changes())
    return changes


def quieten(netlink: Netlink) -> None:
    """Wait until the kernel has said all about the setting up: last, that nobody else has the IPv6 address."""
    deadline = time.monotonic() + _DEADLINE
    while "tentative" in ip("-6 addr show"):
        assert time.monotonic() < deadline
        select.select([netlink], [], [], 0.1)
        netlink.read_changes()
    while netlink.busy or select.select([netlink], [], [], 0)[0]:
        netlink.read_changes()


def next_hop(netlink: Netlink, prefix: str) -> Via | str:
    """The mirrored next hop, "absent" if the prefix is not mirrored."""
    return netlink.routes("dsvpn0").get(ip_network(prefix), "absent")


def test_the_device_is_set_up(netlink: Netlink) -> None:
    shown = ip("addr show dsvpn0")
    assert "mtu 1380" in shown
    assert "qlen 2000" in shown
    assert "10.0.0.11/24" in shown
    assert "fd00::11/64" in shown
    assert "UP" in shown


def test_connected_routes_are_mirrored_on_link(netlink: Netlink) -> None:
    assert netlink.routes("dsvpn0") == {ip_network("10.0.0.0/24"): None, ip_network("fd00::/64"): None}


def test_a_route_of_another_process_comes_changes_and_goes(netlink: Netlink) -> None:
    prefix = ip_network("10.2.0.0/16")
    ip("route add 10.2.0.0/16 via 10.0.0.12 dev dsvpn0")
    came = changes_until(netlink, lambda: next_hop(netlink, "10.2.0.0/16") != "absent")
    assert RouteAdded("dsvpn0", prefix, ip_address("10.0.0.12")) in came

    ip("route replace 10.2.0.0/16 via 10.0.0.13 dev dsvpn0")
    moved = changes_until(netlink, lambda: next_hop(netlink, "10.2.0.0/16") == ip_address("10.0.0.13"))
    assert moved == [RouteAdded("dsvpn0", prefix, ip_address("10.0.0.13"))]

    ip("route replace 10.2.0.0/16 via 192.0.2.1 dev eth0")
    gone = changes_until(netlink, lambda: next_hop(netlink, "10.2.0.0/16") == "absent")
    assert gone == [RouteRemoved("dsvpn0", prefix)]

    ip("route replace 10.2.0.0/16 via 10.0.0.14 dev dsvpn0")
    changes_until(netlink, lambda: next_hop(netlink, "10.2.0.0/16") == ip_address("10.0.0.14"))
    ip("route del 10.2.0.0/16")
    changes_until(netlink, lambda: next_hop(netlink, "10.2.0.0/16") == "absent")


def test_ipv6_routes_are_mirrored(netlink: Netlink) -> None:
    ip("-6 route add fd02::/32 via fd00::12 dev dsvpn0")
    changes_until(netlink, lambda: next_hop(netlink, "fd02::/32") == ip_address("fd00::12"))
    ip("-6 route replace fd02::/32 via fd00::13 dev dsvpn0")
    changes_until(netlink, lambda: next_hop(netlink, "fd02::/32") == ip_address("fd00::13"))
    ip("-6 route del fd02::/32")
    changes_until(netlink, lambda: next_hop(netlink, "fd02::/32") == "absent")


def test_the_lower_metric_wins_and_its_loss_uncovers_the_other(netlink: Netlink) -> None:
    ip("route add 10.3.0.0/16 via 10.0.0.12 dev dsvpn0 metric 50")
    changes_until(netlink, lambda: next_hop(netlink, "10.3.0.0/16") == ip_address("10.0.0.12"))
    ip("route add 10.3.0.0/16 via 10.0.0.13 dev dsvpn0 metric 20")
    changes_until(netlink, lambda: next_hop(netlink, "10.3.0.0/16") == ip_address("10.0.0.13"))
    ip("route del 10.3.0.0/16 metric 20")
    changes_until(netlink, lambda: next_hop(netlink, "10.3.0.0/16") == ip_address("10.0.0.12"))


def test_multipath_and_next_hop_objects_are_understood(netlink: Netlink) -> None:
    ip("route add 10.4.0.0/16 nexthop via 192.0.2.9 dev eth0 nexthop via 10.0.0.12 dev dsvpn0")
    changes_until(netlink, lambda: next_hop(netlink, "10.4.0.0/16") == ip_address("10.0.0.12"))
    ip("route add 10.7.0.0/16 nexthop via 10.0.0.13 dev dsvpn0 nexthop via 10.0.0.12 dev dsvpn0")
    both = (ip_address("10.0.0.12"), ip_address("10.0.0.13"))
    changes_until(netlink, lambda: next_hop(netlink, "10.7.0.0/16") == both)
    ip("route add fd03::/32 metric 9 via fd00::12 dev dsvpn0")
    changes_until(netlink, lambda: next_hop(netlink, "fd03::/32") == ip_address("fd00::12"))
    ip("route append fd03::/32 metric 9 via fd00::13 dev dsvpn0")
    changes_until(netlink, lambda: next_hop(netlink, "fd03::/32") == (ip_address("fd00::12"), ip_address("fd00::13")))
    ip("route del fd03::/32 via fd00::12")
    changes_until(netlink, lambda: next_hop(netlink, "fd03::/32") == ip_address("fd00::13"))
    ip("nexthop add id 7 via 10.0.0.15 dev dsvpn0")
    ip("route add 10.5.0.0/16 nhid 7")
    changes_until(netlink, lambda: next_hop(netlink, "10.5.0.0/16") == ip_address("10.0.0.15"))
    # The kernel flushes the route with its next hop and says nothing about the route.
    ip("nexthop del id 7")
    changes_until(netlink, lambda: next_hop(netlink, "10.5.0.0/16") == "absent")


def test_routes_that_vanish_silently_are_noticed(netlink: Netlink) -> None:
    ip("route add 10.6.0.0/16 via 10.0.0.12 dev dsvpn0")
    changes_until(netlink, lambda: next_hop(netlink, "10.6.0.0/16") != "absent")
    ip("link set dsvpn0 down")
    changes_until(netlink, lambda: netlink.routes("dsvpn0") == {})


def test_routes_that_vanish_with_their_source_address_are_noticed(netlink: Netlink) -> None:
    quieten(netlink)
    ip("addr add 192.0.2.77/32 dev eth0")
    ip("route add 10.6.0.0/16 via 10.0.0.12 dev dsvpn0 src 192.0.2.77")
    changes_until(netlink, lambda: next_hop(netlink, "10.6.0.0/16") != "absent")
    ip("addr del 192.0.2.77/32 dev eth0")
    changes_until(netlink, lambda: next_hop(netlink, "10.6.0.0/16") == "absent")


def test_devices_that_come_and_go_beside_the_tunnel_have_no_routes_looked_at(netlink: Netlink) -> None:
    quieten(netlink)
    before = netlink.counters["netlink_resyncs"]
    for command in (
        "link add container0 type veth peer name container1",
        "link set container0 up",
        "link set container1 up",
        "addr add 198.51.100.1/24 dev container0",
        "link del container0",
    ):
        ip(command)
        netlink.read_changes()
    ip("route add 10.6.0.0/16 via 10.0.0.12 dev dsvpn0")
    changes_until(netlink, lambda: next_hop(netlink, "10.6.0.0/16") != "absent")
    # One for the address that went, on which a route of the tunnel might have depended.
    assert netlink.counters["netlink_resyncs"] <= before + 1


def test_own_routes_return_when_the_device_comes_up_again() -> None:
    with new_namespace():
        ip("tuntap add dev dsvpn0 mode tun")
        netlink = Netlink()
        try:
            summary = (ip_network("10.0.0.0/8"), (ip_address("10.0.0.1"),))
            netlink.add_tunnel("dsvpn0", [ip_interface("10.0.0.11/24")], 1380, [summary])
            netlink.resync()
            assert next_hop(netlink, "10.0.0.0/8") == ip_address("10.0.0.1")
            netlink.install_shortcut("dsvpn0", ip_network("10.2.0.0/16"), ip_address("10.0.0.12"))
            ip("link set dsvpn0 down")
            changes_until(netlink, lambda: next_hop(netlink, "10.0.0.0/8") == "absent")
            assert ip("route show") == ""
            ip("link set dsvpn0 up")
            changes_until(netlink, lambda: next_hop(netlink, "10.0.0.0/8") == ip_address("10.0.0.1"))
            assert "10.2.0.0/16 via 10.0.0.12 dev dsvpn0 proto 147 metric 10 onlink" in ip("-N route show")
        finally:
            netlink.close()


def test_a_static_route_that_is_taken_is_an_error() -> None:
    with new_namespace():
        ip("tuntap add dev dsvpn0 mode tun")
        ip("link add eth0 type veth peer name eth0-far")
        ip("link set eth0 up")
        ip("route add 10.0.0.0/8 dev eth0")
        netlink = Netlink()
        try:
            summary = (ip_network("10.0.0.0/8"), (ip_address("10.0.0.1"),))
            with pytest.raises(HostError, match=r"^dsvpn0: cannot add the route 10\.0\.0\.0/8 via 10\.0\.0\.1: the ke"):
                netlink.add_tunnel("dsvpn0", [ip_interface("10.0.0.11/24")], 1380, [summary])
        finally:
            netlink.close()


def test_shortcuts_are_written_replaced_removed_and_not_mirrored(netlink: Netlink) -> None:
    prefix = ip_network("10.7.0.0/24")
    netlink.install_shortcut("dsvpn0", prefix, ip_address("10.0.0.12"))
    netlink.install_shortcut("dsvpn0", prefix, ip_address("10.0.0.13"))
    host: Prefix = ip_network("10.0.0.13/32")
    netlink.install_shortcut("dsvpn0", host, None)
    shown = ip("-N route show")
    assert "10.7.0.0/24 via 10.0.0.13 dev dsvpn0 proto 147 metric 10 onlink" in shown
    assert "10.0.0.13 dev dsvpn0 proto 147 scope 253 metric 10" in shown
    # The marker comes after the shortcuts in the monitor's queue.
    ip("route add 10.99.0.0/16 via 10.0.0.12 dev dsvpn0")
    changes = changes_until(netlink, lambda: next_hop(netlink, "10.99.0.0/16") != "absent")
    assert [change.prefix for change in changes] == [ip_network("10.99.0.0/16")]
    netlink.remove_shortcut("dsvpn0", prefix)
    netlink.remove_shortcut("dsvpn0", prefix)
    netlink.remove_shortcut("dsvpn0", host)
    assert "proto 147" not in ip("-N route show")


def test_route_lookup(netlink: Netlink) -> None:
    ip("link add lan0 type veth peer name lan0-far")
    ip("link set lan0-far up")
    ip("link set lan0 up")
    ip("addr add 10.1.0.1/24 dev lan0")
    ip("route add 10.0.0.0/8 via 10.0.0.1 dev dsvpn0")
    ip("route add 10.66.0.0/16 via 10.1.0.2 dev lan0")
    ip("route add unreachable 10.67.0.0/16")

    def lookup(text: str) -> Route | None:
        return netlink.route_lookup("dsvpn0", ip_address(text))

    summary = Route(ip_network("10.0.0.0/8"), tunnel=True, next_hop=ip_address("10.0.0.1"), local=False)
    assert lookup("10.9.9.9") == summary
    assert lookup("10.0.0.77") == Route(ip_network("10.0.0.0/24"), tunnel=True, next_hop=None, local=False)
    assert lookup("10.1.0.77") == Route(ip_network("10.1.0.0/24"), tunnel=False, next_hop=None, local=False)
    own = lookup("10.1.0.1")
    assert own is not None
    assert own.local
    assert not own.tunnel
    by_lan = Route(ip_network("10.66.0.0/16"), tunnel=False, next_hop=ip_address("10.1.0.2"), local=False)
    assert lookup("10.66.1.1") == by_lan
    assert lookup("10.67.1.1") is None
    assert lookup("203.0.113.1") is None
    assert lookup("fd00::99") == Route(ip_network("fd00::/64"), tunnel=True, next_hop=None, local=False)
    own6 = lookup("fd00::11")
    assert own6 is not None
    assert own6.local
    assert lookup("fd77::1") is None


def test_route_lookup_looks_under_a_shortcut(netlink: Netlink) -> None:
    ip("route add 10.0.0.0/8 via 10.0.0.1 dev dsvpn0")
    netlink.install_shortcut("dsvpn0", ip_network("10.2.0.0/16"), ip_address("10.0.0.12"))
    found = netlink.route_lookup("dsvpn0", ip_address("10.2.3.4"))
    assert found == Route(ip_network("10.0.0.0/8"), tunnel=True, next_hop=ip_address("10.0.0.1"), local=False)
    ip("route add 10.2.0.0/15 via 192.0.2.9 dev eth0")
    found = netlink.route_lookup("dsvpn0", ip_address("10.2.3.4"))
    assert found == Route(ip_network("10.2.0.0/15"), tunnel=False, next_hop=ip_address("192.0.2.9"), local=False)


def test_the_source_address_is_followed(netlink: Netlink) -> None:
    source = netlink.source("eth0", 4)
    assert (source.address, source.mtu) == (ip_address("192.0.2.11"), 1400)
    assert netlink.source(ip_address("192.0.2.11"), 4).mtu == 1400
    assert netlink.source("eth9", 4).address is None

    ip("addr add 192.0.2.99/24 dev eth0")
    ip("addr del 192.0.2.11/24 dev eth0")
    ip("link set eth0 mtu 1300")
    changes_until(netlink, lambda: netlink.source("eth0", 4).mtu == 1300)
    # The kernel drops secondary addresses with their primary unless promote_secondaries is set.
    ip("addr replace 192.0.2.99/24 dev eth0")
    changes_until(netlink, lambda: netlink.source("eth0", 4).address == ip_address("192.0.2.99"))
    assert netlink.source(ip_address("192.0.2.11"), 4).address is None
    ip("link set eth0 down")
    changes_until(netlink, lambda: netlink.source("eth0", 4).address is None)


def batch(commands: Iterable[str]) -> None:
    """Give `ip` many commands at once."""
    subprocess.run(["ip", "-batch", "-"], input="\n".join(commands), text=True, check=True)


def overrun_soon(netlink: Netlink) -> None:
    """Let the monitor overrun after a handful of messages."""
    netlink._monitor._socket.setsockopt(1, 8, 4096)  # SOL_SOCKET, SO_RCVBUF


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many routes each call of `read_changes` has decoded, with the number of its changes."""
    done: list[int] = []
    decoded = 0

    def counted(message: rtnetlink.Message) -> rtnetlink.KernelRoute | None:
        nonlocal decoded
        decoded += 1
        return rtnetlink.decode_route(message)

    read = Netlink.read_changes

    def called(self: Netlink) -> list[RouteChange]:
        nonlocal decoded
        decoded = 0
        changes = read(self)
        done.append(decoded + len(changes))
        return changes

    for module in (netlink_module, resync_module):
        monkeypatch.setattr(module, "decode_route", counted)
    monkeypatch.setattr(Netlink, "read_changes", called)
    return done


def test_a_flood_that_overruns_the_monitor_loses_nothing_and_keeps_no_turn_long(
    netlink: Netlink, work: list[int]
) -> None:
    overrun_soon(netlink)
    batch(f"route add 10.128.{i >> 4}.{(i & 15) << 4}/28 via 10.0.0.12 dev dsvpn0" for i in range(3000))
    changes = changes_until(netlink, lambda: len(netlink.routes("dsvpn0")) == 3002 and not netlink.busy)
    assert netlink.counters["netlink_overruns"] > 0, "the receive buffer was meant to overrun"
    assert len({change.prefix for change in changes}) == 3000
    # A route of the dump counts one, the change that it makes another, and so does what the monitor has read.
    assert max(work) <= 2 * (resync_module.SLICE + 64)
    assert len(work) > 3000 // resync_module.SLICE


def test_what_changes_while_routes_are_looked_at_anew_counts(netlink: Netlink, work: list[int]) -> None:
    batch(f"route add 10.128.{i >> 4}.{(i & 15) << 4}/28 via 10.0.0.12 dev dsvpn0" for i in range(1500))
    changes_until(netlink, lambda: len(netlink.routes("dsvpn0")) == 1502 and not netlink.busy)
    overrun_soon(netlink)
    batch(f"route replace 10.128.{i >> 4}.{(i & 15) << 4}/28 via 10.0.0.13 dev dsvpn0" for i in range(1500))
    changes_until(netlink, lambda: netlink.busy)
    dice = random.Random(1)
    expected = {ip_network(f"10.128.{i >> 4}.{(i & 15) << 4}/28"): ip_address("10.0.0.13") for i in range(1500)}
    before = len(work)
    while netlink.busy and len(work) < before + 8:  # a few of them, between any two slices
        prefix = dice.choice(list(expected))
        if dice.random() < 0.5:
            ip(f"route del {prefix}")
            del expected[prefix]
        else:
            ip(f"route replace {prefix} via 10.0.0.14 dev dsvpn0")
            expected[prefix] = ip_address("10.0.0.14")
        netlink.read_changes()
    assert len(work) > before + 3, "the dump was meant to take several turns"
    on_link = {ip_network("10.0.0.0/24"): None, ip_network("fd00::/64"): None}
    changes_until(netlink, lambda: not netlink.busy)
    assert netlink.routes("dsvpn0") == {**expected, **on_link}


def test_an_overrun_while_routes_are_looked_at_anew_has_them_looked_at_once_more(netlink: Netlink) -> None:
    overrun_soon(netlink)
    prefixes = [f"10.128.{i >> 4}.{(i & 15) << 4}/28" for i in range(1500)]
    batch(f"route add {prefix} via 10.0.0.12 dev dsvpn0" for prefix in prefixes)
    changes_until(netlink, lambda: netlink.busy)
    # All in the part of the dump that has been read.
    batch(f"route del {prefix}" for prefix in prefixes[:100])
    batch(f"route add {prefix} via 10.0.0.13 dev dsvpn0" for prefix in prefixes[:50])
    changes_until(netlink, lambda: not netlink.busy)
    assert netlink.counters["netlink_overruns"] == 2
    routes = netlink.routes("dsvpn0")
    assert len(routes) == 1452
    assert {routes.get(ip_network(prefix)) for prefix in prefixes[:50]} == {ip_address("10.0.0.13")}
    assert {routes.get(ip_network(prefix), "absent") for prefix in prefixes[50:100]} == {"absent"}


def test_what_happens_before_a_lost_flood_is_read_is_not_missed(netlink: Netlink) -> None:
    """The kernel tells nothing of what comes between an overrun and the reading of all that waits."""
    # Of setting up: it asks for a look at the routes as well.
    assert netlink.read_changes() == []
    overrun_soon(netlink)
    batch(f"route add 10.128.{i}.0/24 via 10.0.0.12 dev dsvpn0" for i in range(200))
    netlink._monitor.read, read = (lambda limit: read(1)), netlink._monitor.read  # type: ignore[method-assign]
    for _ in range(5):
        netlink.read_changes()
    assert netlink.counters["netlink_overruns"] == 1
    ip("route add 10.129.0.0/16 via 10.0.0.12 dev dsvpn0")
    changes_until(netlink, lambda: len(netlink.routes("dsvpn0")) == 203)


def test_a_kernel_that_refuses_a_dump_is_asked_again_when_something_changes(
    netlink: Netlink, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as refusing:

        def refused(*_: object) -> None:
            raise OSError(errno.ENOBUFS, "No buffer space available")

        refusing.setattr(rtnetlink.RequestSocket, "read_dump", refused)
        ip("route add 10.5.0.0/16 via 10.0.0.12 dev dsvpn0")
        ip("link set dsvpn0 down")
        # What the monitor has told is not lost with it.
        assert RouteAdded("dsvpn0", ip_network("10.5.0.0/16"), ip_address("10.0.0.12")) in netlink.read_changes()
        assert netlink.busy
        with pytest.raises(HostError, match=r"^cannot read the kernel's routes: No buffer space available$"):
            netlink.read_changes()
        assert not netlink.busy
    assert netlink.routes("dsvpn0") != {}
    ip("route add 10.6.0.0/16 dev eth0")
    changes_until(netlink, lambda: netlink.routes("dsvpn0") == {})
