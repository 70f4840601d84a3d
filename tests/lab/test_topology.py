"""The lab's network by itself, and the two witnesses of what crosses its underlay."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import pytest

from dsvpn.lab.capture import PROTECTED, Capture, FrameCounters, Traffic, count, holds_plaintext
from dsvpn.lab.measure import PLAINTEXT, ping
from dsvpn.lab.run import Run
from dsvpn.lab.topology import HUB, SPOKE1, SPOKE2, Topology

SEND = """
import socket, sys
payload, host, port = sys.argv[1:]
socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(bytes.fromhex(payload), (host, int(port)))
"""

pytestmark = [pytest.mark.root, pytest.mark.netns]


@pytest.fixture
def network() -> Iterator[Topology]:
    run = Run(f"dsvpn-tt{os.getpid()}")
    run.open()
    try:
        topology = Topology(run)
        topology.build()
        yield topology
    finally:
        run.close()


def test_gateways_reach_each_other_and_lans_do_not(network: Topology) -> None:
    assert ping(network.gateways["spoke1"], HUB.public, 3).lost == 0
    assert ping(network.gateways["spoke1"], SPOKE2.public, 3).lost == 0
    assert ping(network.gateways["spoke2"], HUB.public, 3).lost == 0
    assert ping(network.hosts["spoke1"], SPOKE1.lan_gateway, 3).lost == 0
    assert ping(network.hosts["spoke1"], SPOKE2.host, 3, wait=0.2).received == 0
    assert ping(network.hosts["spoke2"], HUB.host, 3, wait=0.2).received == 0


def test_the_nat_box_is_silent_to_strangers(network: Topology) -> None:
    assert ping(network.gateways["hub"], SPOKE1.public, 3, wait=0.2).received == 0


def test_a_packet_in_clear_is_seen_by_both_witnesses(network: Topology) -> None:
    counters = FrameCounters(network.internet, network.ports)
    capture = Capture(network.run, network.internet, network.run.directory / "clear.pcap")
    assert ping(network.gateways["spoke1"], SPOKE2.public, 5).received == 5
    assert capture.stop() == 0
    packets = capture.packets()
    assert count(packets)[Traffic.OTHER] == 10
    assert len(holds_plaintext(packets, PLAINTEXT)) == 10
    assert counters.read().strangers(PROTECTED) == {Traffic.OTHER: 10}


@pytest.mark.parametrize(
    ("source", "port", "payload", "kind", "hub_data"),
    [
        ("spoke2", 4500, "ff", Traffic.KEEPALIVE, 0),
        ("spoke2", 4500, "12345678 00000001 0000000000000000", Traffic.ESP_IN_UDP, 1),
        ("spoke2", 4500, "000000ff 00000001 0000000000000000", Traffic.OTHER, 0),
        ("spoke1", 500, "0101010101010101 0000000000000000 2120220800000000 0000001c", Traffic.IKE, 0),
        ("spoke1", 4500, "00000000 0101010101010101 0000000000000000 2120220800000000 0000001c", Traffic.IKE, 0),
        ("spoke1", 500, "474554202f20485454502f312e310d0a0d0a0d0a0d0a0d0a0d0a0d0a", Traffic.OTHER, 0),
        ("spoke1", 51820, "01000000", Traffic.COMPARISON, 0),
        ("spoke1", 9, "01000000", Traffic.OTHER, 0),
    ],
)
def test_the_kernel_counts_as_the_capture_classifies(
    network: Topology, source: str, port: int, payload: str, kind: Traffic, hub_data: int
) -> None:
    # The hub answers a closed port with ICMP, which would be counted as well.
    network.gateways["hub"].command(
        ["nft", "add table ip t; add chain ip t c { type filter hook input priority 0; policy drop; }"]
    )
    counters = FrameCounters(network.internet, network.ports)
    capture = Capture(network.run, network.internet, network.run.directory / "kinds.pcap")
    network.gateways[source].command([sys.executable, "-c", SEND, payload, str(HUB.public), str(port)])
    ping(network.gateways[source], HUB.public, 1, wait=0.1)  # dropped by the hub; it follows the datagram on its way
    capture.stop()
    seen = counters.read()
    expected = dict.fromkeys([kind], 1)
    expected[Traffic.OTHER] = expected.get(Traffic.OTHER, 0) + 1
    found = {each: number for each, number in seen.kinds.items() if number and each is not Traffic.NEIGHBOUR}
    assert found == expected
    captured = count(capture.packets())
    del captured[Traffic.NEIGHBOUR]
    assert captured == expected
    assert seen.hub_data == hub_data
