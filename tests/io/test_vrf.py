"""VRFs: what is read of them, and that a tunnel's routes go into their tables. See also tests/interop/test_vrf.py."""

from __future__ import annotations

from ipaddress import ip_address, ip_interface, ip_network
from typing import Any

import pytest
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

from dsvpn.errors import HostError
from dsvpn.io import netlink as module
from dsvpn.io.guards import Guards
from dsvpn.io.netlink import Netlink
from dsvpn.io.rtnetlink import RTM_NEWLINK, Message, RequestSocket
from dsvpn.io.vrf import Vrf, decode_vrf
from dsvpn.nhrp import Route
from tests.io.namespace import ip, new_namespace

#: Beyond what the one octet in a route's header can say.
TABLE = 1020


def link(kind: str, data: list[tuple[str, int]]) -> Message:
    message: Any = ifinfmsg()
    message["index"] = 9
    information = {"attrs": [("IFLA_INFO_KIND", kind), ("IFLA_INFO_DATA", {"attrs": data})]}
    message["attrs"] = [("IFLA_IFNAME", "inside"), ("IFLA_LINKINFO", information)]
    message["header"]["type"] = RTM_NEWLINK
    message.encode()
    return Message(RTM_NEWLINK, 0, bytes(message.data))


def test_a_vrf_is_told_from_other_devices() -> None:
    assert decode_vrf(link("vrf", [("IFLA_VRF_TABLE", TABLE)]), "inside") == Vrf("inside", 9, TABLE)
    with pytest.raises(HostError, match=r"inside is no VRF \(bridge\)"):
        decode_vrf(link("bridge", []), "inside")


@pytest.mark.root
@pytest.mark.netns
def test_a_name_that_is_no_vrf_is_told() -> None:
    with new_namespace():
        ip("link add br0 type bridge")
        netlink = Netlink()
        try:
            with pytest.raises(HostError, match=r"no VRF named red; .* type vrf table .*CONFIG_NET_VRF"):
                netlink.vrf("red")
            with pytest.raises(HostError, match=r"br0 is no VRF \(bridge\)"):
                netlink.vrf("br0")
            with pytest.raises(HostError, match="lo is no VRF"):
                netlink.vrf("lo")
        finally:
            netlink.close()


@pytest.mark.root
@pytest.mark.netns
def test_routes_and_guards_go_into_the_vrfs_table(monkeypatch: pytest.MonkeyPatch) -> None:
    # Not every kernel has VRFs: one without a device, its table reached by a rule, is enough for the routes.
    monkeypatch.setattr(module, "find_vrf", lambda requests, name: Vrf(name, 0, TABLE))
    summary, shortcut = ip_network("10.0.0.0/8"), ip_network("10.2.0.0/16")
    with new_namespace():
        ip("tuntap add dev dsvpn0 mode tun")
        ip(f"rule add to 10.0.0.0/8 lookup {TABLE} pref 100")
        netlink = Netlink()
        try:
            routes = [
                (summary, (ip_address("10.0.0.1"),)),
                (ip_network("10.9.0.0/16"), (ip_address("10.0.0.1"), ip_address("10.0.0.2"))),
            ]
            netlink.add_tunnel("dsvpn0", [ip_interface("10.0.0.11/24")], 1380, routes, "inside")
            netlink.install_shortcut("dsvpn0", shortcut, ip_address("10.0.0.12"))
            netlink.guards("s1").keep([], {TABLE: [summary]})
            shown = ip(f"-N route show table {TABLE}")
            assert "10.0.0.0/8 via 10.0.0.1 dev dsvpn0" in shown
            assert "10.2.0.0/16 via 10.0.0.12 dev dsvpn0 proto 147" in shown
            assert "7 10.0.0.0/8 proto 147" in shown  # RTN_UNREACHABLE
            assert shown.count("nexthop via") == 2
            assert "via" not in ip("route show")

            # Its table comes before the main one, whatever the metric.
            ip("route add 10.3.0.0/16 via 10.0.0.13 dev dsvpn0 onlink")
            ip(f"route add 10.3.0.0/16 via 10.0.0.14 dev dsvpn0 onlink metric 99 table {TABLE}")
            netlink.resync()
            mirrored = netlink.routes("dsvpn0")
            assert mirrored[ip_network("10.3.0.0/16")] == ip_address("10.0.0.14")
            assert mirrored[summary] == ip_address("10.0.0.1")
            # Below the shortcut lies what the table has, not what the main one has.
            ip("route add 10.2.0.0/15 via 10.0.0.13 dev dsvpn0 onlink")
            found = netlink.route_lookup("dsvpn0", ip_address("10.2.0.9"))
            assert found == Route(summary, tunnel=True, next_hop=ip_address("10.0.0.1"), local=False)

            netlink.remove_shortcut("dsvpn0", shortcut)
            guards: Guards = netlink.guards("s1")
            assert guards.present() == {(TABLE, summary)}
            guards.keep([summary])
            assert guards.present() == {(254, summary)}
            guards.clear()
            assert "147" not in ip("-N route show table all")
        finally:
            netlink.close()


@pytest.mark.root
@pytest.mark.netns
def test_a_lookup_can_be_made_from_within_a_vrf() -> None:
    with new_namespace():
        ip("link set lo up")
        requests = RequestSocket()
        try:
            assert requests.route_to(ip_address("127.0.0.1"), 1)
            with pytest.raises(OSError, match="No such device"):
                requests.route_to(ip_address("127.0.0.1"), 4711)
        finally:
            requests.close()
