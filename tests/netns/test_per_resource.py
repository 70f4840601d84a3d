"""Two gateways with several workers: each worker has an SA of its own towards the one peer (RFC 9611)."""

from __future__ import annotations

import json
from collections import Counter
from ipaddress import IPv4Address
from typing import Any

import pytest

from dsvpn.lab.capture import Capture, Traffic
from dsvpn.lab.run import wait_until
from tests.netns.network import DEADLINE
from tests.netns.star import Gateway, Star

pytestmark = [pytest.mark.root, pytest.mark.netns]

#: A CHILD_SA of this age, seconds, is rekeyed after 8 to 9.
LIFETIME = 10
#: So many that the kernel's hash gives each of two workers some: one run in half a million has all with one.
FLOWS = 20
RATE = 50


def sealing(gateway: Gateway) -> dict[str, str]:
    """Outbound SPIs by resource."""
    (peer,) = gateway.show("peers")["peers"]
    found: dict[str, str] = peer["sealing"]
    return found


def flows(star: Star, seconds: int) -> dict[str, Any]:
    """As many UDP flows in each direction, of `RATE` packets a second each; iperf3's report of the receivers."""
    host = star["hub"].host
    server, _ = star.background("hub", "iperf3", "-s", "-1")
    try:
        wait_until(lambda: ":5201" in host.command(["ss", "-Hltn"]), DEADLINE, "iperf3 to listen")
        options = ("-u", "-t", str(seconds), "-P", str(FLOWS), "--bidir", "-b", str(RATE * 1600), "-l", "200")
        report = json.loads(star["s1"].host.command(["iperf3", "-J", "-c", str(star["hub"].lan_host), *options]))
    finally:
        star.run.end(server)
    end: dict[str, Any] = report["end"]
    return end


def spis(capture: Capture, source: IPv4Address) -> Counter[str]:
    """ESP packets of one gateway by SPI."""
    found: Counter[str] = Counter()
    for packet in capture.packets():
        if packet.traffic is Traffic.ESP_IN_UDP and packet.addresses and packet.addresses[0] == source:
            header = (packet.data[0] & 15) * 4 + 8
            found[packet.data[header : header + 4].hex()] += 1
    return found


def test_the_flows_of_one_peer_go_by_the_sas_of_all_workers_over_rekeys() -> None:
    with Star() as star:
        star.add("hub", 1)
        star.add("s1", 11)
        profile = f'encapsulation = "udp"\nchild_lifetime = "{LIFETIME}s"'
        route = f'routes = [{{ prefix = "{star["s1"].lan}", via = "{star["s1"].tunnel}" }}]'
        star.start("hub", gateway="worker_threads = 4", tunnel=route, profile=profile)
        star.start(
            "s1",
            gateway="worker_threads = 4",
            nhrp=f'nhs = [{{ protocol = "{star["hub"].tunnel}", nbma = "{star["hub"].wan.ip}" }}]',
            tunnel=f'routes = [{{ prefix = "{star["hub"].lan}", via = "{star["hub"].tunnel}" }}]',
            profile=profile,
        )
        star.wait_standing("s1", "hub")
        ends = star["hub"], star["s1"]
        assert [list(sealing(end)) for end in ends] == [["0"], ["0"]], "no data has gone yet"
        assert star.ping("s1", star["hub"].lan_host, 5).received

        wait_until(lambda: all(list(sealing(end)) == ["0", "1"] for end in ends), DEADLINE, "an SA for each worker")
        before = {end.name: set(sealing(end).values()) for end in ends}
        capture = Capture(star.run, star.internet, star.run.directory / "underlay.pcap")
        end = flows(star, LIFETIME + 2)
        assert capture.stop() == 0
        for way in ("sum", "sum_bidir_reverse"):
            assert end[way]["packets"] > FLOWS * RATE * LIFETIME
            assert end[way]["lost_packets"] == 0
        for gateway in ends:
            # Each worker's SA carried flows before and after its rekey.
            used = spis(capture, gateway.wan.ip)
            after = set(sealing(gateway).values())
            assert list(sealing(gateway)) == ["0", "1"]
            assert not before[gateway.name] & after, "one of them was not rekeyed"
            assert all(used[spi] > 50 for spi in before[gateway.name]), (used, before)
            successors = [spi for spi in used if spi not in before[gateway.name] and used[spi] > 50]
            assert len(successors) >= 2, (used, before)
            counters = gateway.show("counters")["dataplane"]
            dropped = {name: count for name, count in counters.items() if name.startswith("drop_") and count}
            assert dropped == {}, gateway.name
            packets = gateway.show("summary")["worker_packets"]
            assert min(packets["encap0"], packets["encap1"], packets["decap0"], packets["decap1"]) > 100, packets
        assert star.stop("s1") == 0
        assert star.stop("hub") == 0
