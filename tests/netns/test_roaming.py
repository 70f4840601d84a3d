"""A spoke's underlay address is replaced under traffic, and traffic goes on by itself (RFC 4555)."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address, ip_address

import pytest

from dsvpn.lab.run import wait_until
from dsvpn.lab.status import registrations
from dsvpn.lab.topology import HUB, SPOKE1, SPOKE2, Namespace
from tests.netns.network import DEADLINE, Network

pytestmark = [pytest.mark.root, pytest.mark.netns]

#: Packets of a stream, one each 20 ms.
STREAM = 300
#: What the interruption may cost: two seconds, in packets of that stream.
MAX_LOST = 100
NEW = IPv4Address("192.0.2.13")


def underlay_device(namespace: Namespace, address: IPv4Address) -> str:
    links = json.loads(namespace.ip("-j", "addr", "show"))
    return next(link["ifname"] for link in links if any(one.get("local") == str(address) for one in link["addr_info"]))


def renumber(namespace: Namespace, old: IPv4Address, new: IPv4Address, length: int, gateway: IPv4Address) -> None:
    """As a DHCP client does it with a lease that is gone: there is no address and no route in between."""
    device = underlay_device(namespace, old)
    namespace.ip("addr", "del", f"{old}/{length}", "dev", device)
    namespace.ip("addr", "add", f"{new}/{length}", "dev", device)
    namespace.ip("route", "replace", "default", "via", str(gateway))


def spis_with_hub(network: Network) -> list[int]:
    return [sa["initiator_spi"] for sa in network.gateways["spoke2"].show("sa") if sa["remote_identity"] == "hub"]


def test_a_spoke_gets_another_address_under_traffic() -> None:
    with Network() as network:
        network.start().wait_registered()
        assert network.ping("spoke1", SPOKE2.host, 100).lost == 0
        before = spis_with_hub(network)
        spoke2 = network.gateways["spoke2"]
        with ThreadPoolExecutor() as pool:
            to_hub = pool.submit(network.ping, "spoke2", HUB.host, STREAM)
            to_spoke1 = pool.submit(network.ping, "spoke2", SPOKE1.host, STREAM)
            wait_until(lambda: _packets(network) > 50, DEADLINE, "traffic", interval=0.05)
            renumber(spoke2.namespace, SPOKE2.wan.ip, NEW, SPOKE2.wan.network.prefixlen, SPOKE2.wan_gateway)
            wait_until(
                lambda: registrations(network.gateways["hub"]).get(SPOKE2.tunnel) == NEW,
                5.0,
                "the hub to have the new address",
                interval=0.05,
            )
            lost = {"hub": to_hub.result().lost, "spoke1": to_spoke1.result().lost}
        print(f"of {STREAM} packets each way, 20 ms apart, were lost: {lost}")
        assert max(lost.values()) <= MAX_LOST
        # The hub's IKE SA is the same. The shortcut is made anew: spoke1 called through its NAT, which lets nobody in
        # from an address that it does not know. Everything runs between the new addresses.
        assert spis_with_hub(network) == before
        for name in ("hub", "spoke1"):
            (peer,) = [p for p in network.gateways[name].show("peers")["peers"] if p["identity"] == "spoke2"]
            assert ip_address(peer["nbma"]) == NEW
        assert spoke2.show("counters")["ike"]["moved"] == 1
        assert network.ping("spoke2", SPOKE1.host, 50).lost == 0
        assert network.ping("hub", SPOKE2.host, 50).lost == 0


def _packets(network: Network) -> int:
    peers = network.gateways["spoke2"].show("peers")["peers"]
    return sum(one.get("packets_in", 0) for peer in peers for one in peer["traffic"].values())
