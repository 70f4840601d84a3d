"""A hub with several workers per direction between two spokes: real processes, flows both ways."""

from __future__ import annotations

import json
from typing import Any

import pytest

from dsvpn.lab.run import wait_until
from tests.netns.network import DEADLINE
from tests.netns.star import Star

pytestmark = [pytest.mark.root, pytest.mark.netns]


def iperf(star: Star, source: str, target: str) -> dict[str, Any]:
    """Eight TCP connections, four each way, for a second."""
    host = star[target].host
    server, _ = star.background(target, "iperf3", "-s", "-1")
    try:
        wait_until(lambda: ":5201" in host.command(["ss", "-Hltn"]), DEADLINE, "iperf3 to listen")
        options = ("-t", "1", "-P", "4", "--bidir", "-b", "20M")
        output = star[source].host.command(["iperf3", "-J", "-c", str(star[target].lan_host), *options])
    finally:
        star.run.end(server)
    report: dict[str, Any] = json.loads(output)
    return report


def test_spokes_reach_each_other_by_all_workers_of_their_hub() -> None:
    with Star() as star:
        for name, number in (("hub", 1), ("s1", 11), ("s2", 12)):
            star.add(name, number)
        lans = ", ".join(f'{{ prefix = "{star[s].lan}", via = "{star[s].tunnel}" }}' for s in ("s1", "s2"))
        profile = 'encapsulation = "udp"'
        star.start("hub", gateway="worker_threads = 4", tunnel=f"routes = [{lans}]", profile=profile)
        server = f'{{ protocol = "{star["hub"].tunnel}", nbma = "{star["hub"].wan.ip}" }}'
        for spoke in ("s1", "s2"):
            star.start(
                spoke,
                nhrp=f"shortcut = false\nnhs = [{server}]",
                tunnel=f'routes = [{{ prefix = "172.16.0.0/12", via = "{star["hub"].tunnel}" }}]',
                profile=profile,
            )
            star.wait_standing(spoke, "hub")
        assert star.ping("s1", star["s2"].lan_host, 20).lost == 0

        report = iperf(star, "s1", "s2")
        assert report["end"]["sum_received"]["bytes"] > 5_000_000
        assert report["end"]["sum_received_bidir_reverse"]["bytes"] > 5_000_000
        summary = star["hub"].show("summary")
        assert summary["worker_threads"] == 4
        assert summary["offloads"]["queues of dsvpn0"] == "2"
        packets = summary["worker_packets"]
        assert list(packets) == ["decap0", "decap1", "encap0", "encap1"]
        # Eight flows of TCP, and as many ways of the hash: both queues had some. Two peers may share a socket.
        assert min(packets["encap0"], packets["encap1"]) > 20, packets
        assert packets["decap0"] + packets["decap1"] > 100
        for name in ("hub", "s1", "s2"):
            counters = star[name].show("counters")["dataplane"]
            dropped = {counter: counters[counter] for counter in counters if counter.startswith("drop_re")}
            assert dropped == {"drop_replayed": 0}, name
            assert counters["drop_unauthentic"] == 0
        assert star.stop("hub") == 0
