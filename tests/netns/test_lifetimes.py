"""Real gateways under traffic: CHILD_SAs that are used up, and peers that prove themselves anew."""

from __future__ import annotations

from typing import Any

import pytest

from dsvpn.lab.gateways import GatewayProcess
from dsvpn.lab.measure import ping
from dsvpn.lab.run import wait_until
from dsvpn.lab.topology import SITES
from tests.netns.network import QUICK, Network

pytestmark = [pytest.mark.root, pytest.mark.netns]


def spis(gateway: GatewayProcess) -> set[int]:
    return {child["inbound_spi"] for sa in gateway.show("sa") for child in sa["children"]}


def carried(gateway: GatewayProcess) -> list[dict[str, Any]]:
    return [child for sa in gateway.show("sa") for child in sa["children"]]


def handles(gateway: GatewayProcess) -> dict[str, int]:
    """The established IKE SAs by the peer's identity."""
    return {sa["remote_identity"]: sa["ike_sa"] for sa in gateway.show("sa") if sa["state"] == "established"}


@pytest.mark.slow
def test_limits_and_reauthentication_lose_nothing_under_traffic() -> None:
    profile = {
        **QUICK.profile,
        "dpd": '"20s"',
        "child_lifetime_packets": "1000",
        "reauthentication": '"60s"',
        "childless": '"prefer"',
        "esp": '["aes128gcm16-x25519"]',
    }
    with Network(every=QUICK.but(profile=profile)) as network:
        network.start().wait_registered()
        spoke, hub = network.gateways["spoke1"], network.gateways["hub"]
        before = spis(spoke), spis(hub), handles(spoke)
        lan = {site.name: site.host for site in SITES}
        # Behind NAT: 64 s of traffic, in which every CHILD_SA is used up and every IKE SA is made anew once.
        pings = network.ping("spoke1", lan["hub"], 3200, wait=2.0)
        assert (pings.transmitted, pings.lost, pings.duplicates) == (3200, 0, 0)
        assert before[0].isdisjoint(spis(spoke))
        assert before[1].isdisjoint(spis(hub))
        for gateway in (spoke, hub):
            assert all(max(child["packets_in"], child["packets_out"]) < 1000 for child in carried(gateway))
            assert any(child["used"] > 0 for child in carried(gateway))
        after = handles(spoke)
        assert after.keys() == before[2].keys()
        assert set(after.values()).isdisjoint(before[2].values())
        # To NHRP nothing happened.
        assert not [line for line in spoke.last_lines(500) if "nhs_down" in line or "not registered" in line]


@pytest.mark.slow
def test_traffic_that_outruns_a_limit_goes_on_with_the_next_child_sa() -> None:
    """More between two readings of the counters than the limit allows, with ML-KEM-512 in every key: the next CHILD_SA
    takes over, and the peer is not given up."""
    suites = {"ike": '["aes256gcm16-prfsha384-x25519-ke1_mlkem512"]', "esp": '["aes128gcm16-x25519-ke1_mlkem512"]'}
    profile = {**QUICK.profile, "dpd": '"20s"', "child_lifetime_packets": "1000", **suites}
    with Network(every=QUICK.but(profile=profile)) as network:
        network.start().wait_registered()
        spoke = network.gateways["spoke1"]
        assert all("mlkem512" in sa["suite"] for sa in spoke.show("sa"))
        before = spis(spoke), handles(spoke)
        target = {site.name: site.host for site in SITES}["hub"]
        pings = ping(network.topology.hosts["spoke1"], target, 4000, interval=0.001, wait=2.0)
        assert pings.transmitted == 4000
        assert pings.lost < 400
        # What a rekey has replaced still opens late packets for a while.
        wait_until(lambda: before[0].isdisjoint(spis(spoke)), 20, "the first CHILD_SAs to be gone")
        assert handles(spoke) == before[1]
        assert not [line for line in spoke.last_lines(500) if "nhs_down" in line or "not registered" in line]
