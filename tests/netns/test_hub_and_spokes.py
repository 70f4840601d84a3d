"""The main job with real processes: registration, hub path, direct path, and a clean end."""

from __future__ import annotations

import json
import time

import pytest

from dsvpn.lab.capture import PROTECTED, Traffic, count, find_switch, holds_plaintext
from dsvpn.lab.measure import PLAINTEXT
from dsvpn.lab.run import wait_until
from dsvpn.lab.status import data_packets, path_to, peers, registrations
from dsvpn.lab.topology import HUB, SITES, SPOKE1, SPOKE2, Site
from tests.netns.network import DEADLINE, QUICK, Network

pytestmark = [pytest.mark.root, pytest.mark.netns]

SECTIONS = ("summary", "nhrp", "peers", "sa", "routes", "counters")


def test_spokes_register_and_reach_the_hub_and_everything_ends_cleanly() -> None:
    with Network() as network:
        capture = network.capture()
        network.start().wait_registered()
        assert registrations(network.gateways["hub"]) == {
            SPOKE1.tunnel: SPOKE1.public,  # what the NAT box made of it
            SPOKE2.tunnel: SPOKE2.public,
        }
        for spoke in ("spoke1", "spoke2"):
            assert network.ping(spoke, HUB.host).lost == 0
        assert network.ping("hub", SPOKE1.host).lost == 0
        assert capture.stop() == 0
        packets = capture.packets()
        assert {packet.traffic for packet in packets} <= PROTECTED
        assert not holds_plaintext(packets, PLAINTEXT)

        for site in SITES:
            for section in SECTIONS:
                gateway = network.gateways[site.name]
                shown = json.loads(gateway.show_command(section, "--json"))
                assert shown, f"{site.name} shows nothing for {section}"
                assert type(shown) is type(gateway.show(section))
                assert gateway.show_command(section).strip()
        # spoke1 alone is behind NAT, and both ends know.
        (peer,) = [peer for peer in peers(network.gateways["hub"]) if peer["nbma"] == str(SPOKE1.public)]
        assert (peer["state"], peer["remote_nat"], peer["encapsulation"]) == ("up", True, "udp")

        for gateway in reversed(network.gateways.values()):
            assert gateway.stop() == 0, gateway.last_lines(10)
            assert gateway.leftovers() == []


def test_a_spoke_that_ends_tells_its_hub() -> None:
    with Network() as network:
        network.start().wait_registered()
        assert network.gateways["spoke2"].stop() == 0
        # A purge and a delete: long before the mapping would expire.
        wait_until(
            lambda: SPOKE2.tunnel not in registrations(network.gateways["hub"]),
            QUICK_GOODBYE,
            "the hub to forget spoke2",
            interval=0.1,
        )
        wait_until(
            lambda: all(peer["nbma"] != str(SPOKE2.public) for peer in peers(network.gateways["hub"])),
            DEADLINE,
            "the hub to drop the peer",
            interval=0.1,
        )


#: Far below the holding time of QUICK (30 s).
QUICK_GOODBYE = 10.0


@pytest.mark.parametrize(("source", "target"), [(SPOKE1, SPOKE2), (SPOKE2, SPOKE1)], ids=lambda site: site.name)
@pytest.mark.parametrize("nat", ["masquerade", "masquerade fully-random"])
def test_a_shortcut_forms_and_no_ping_is_lost(source: Site, target: Site, nat: str) -> None:
    with Network(nat=nat) as network:
        network.start().wait_registered()
        capture = network.capture()
        begun = time.time()
        pings = network.ping(source.name, target.host, 150, size=1000)
        assert capture.stop() == 0
        assert (pings.lost, pings.duplicates) == (0, 0)
        packets = capture.packets()
        switch = find_switch(packets, begun, 1000)
        assert switch.by_hub > 0
        assert switch.seconds is not None, "the direct path was never used"
        assert switch.seconds < 1.0
        assert {packet.traffic for packet in packets} <= PROTECTED
        assert path_to(network.gateways[source.name], str(target.lan)) == "direct"

        hub = network.gateways["hub"]
        before = data_packets(hub)
        assert network.ping(source.name, target.host, 20).lost == 0
        assert data_packets(hub) == before


def test_esp_is_raw_without_nat_and_in_udp_where_that_is_asked_for() -> None:
    for encapsulation, kind in (("auto", Traffic.ESP), ("udp", Traffic.ESP_IN_UDP)):
        with Network(every=QUICK.but(encapsulation=encapsulation)) as network:
            capture = network.capture()
            network.start("hub", "spoke2").wait_registered("spoke2")
            assert network.ping("spoke2", HUB.host).lost == 0
            assert capture.stop() == 0
            kinds = count(capture.packets())
            del kinds[Traffic.NEIGHBOUR]
            assert kinds.keys() == {Traffic.IKE, kind}
            (peer,) = peers(network.gateways["spoke2"])
            assert peer["encapsulation"] == {"auto": "esp", "udp": "udp"}[encapsulation]


def test_without_ipsec_gre_is_in_clear_and_shortcuts_work_the_same() -> None:
    with Network(every=QUICK.but(ipsec=False)) as network:
        capture = network.capture()
        network.start("hub", "spoke2").wait_registered("spoke2")
        assert network.ping("spoke2", HUB.host).lost == 0
        assert capture.stop() == 0
        packets = capture.packets()
        assert {packet.traffic for packet in packets} <= {Traffic.GRE, Traffic.NEIGHBOUR}
        assert holds_plaintext(packets, PLAINTEXT)


def test_two_tunnels_in_one_process() -> None:
    second = """
[tunnel.dsvpn1]
address = ["10.9.0.{host}/24"]
source = "eth0"
key = 43
[tunnel.dsvpn1.nhrp]
holding_time = "30s"
{nhs}
"""
    nhs = f'nhs = [{{ protocol = "10.9.0.1", nbma = "{HUB.public}" }}]'
    with Network(
        {
            "hub": QUICK.but(extra=second.format(host=1, nhs="")),
            "spoke2": QUICK.but(extra=second.format(host=12, nhs=nhs)),
        }
    ) as network:
        network.start("hub", "spoke2").wait_registered("spoke2")
        hub, spoke = network.topology.gateways["hub"], network.topology.gateways["spoke2"]
        for first_or_second in ("10.0.0.12", "10.9.0.12"):
            wait_until(
                lambda target=first_or_second: hub.command(  # type: ignore[misc]
                    ["sh", "-c", f"ping -n -c 1 -W 0.3 {target} >/dev/null && echo answered || true"]
                ).strip(),
                DEADLINE,
                f"{first_or_second} to answer",
            )
        assert {link for link in ("dsvpn0", "dsvpn1") if link in spoke.ip("link", "show")} == {"dsvpn0", "dsvpn1"}
        assert network.gateways["spoke2"].stop() == 0
        assert network.gateways["spoke2"].leftovers() == []
