"""What breaks in the field: a wrong key, a dead hub, a crash. Nothing leaks, and what can recover does."""

from __future__ import annotations

import json
import time

import pytest

from dsvpn.lab.capture import DATA, PROTECTED
from dsvpn.lab.gateways import GatewayProcess
from dsvpn.lab.run import wait_until
from dsvpn.lab.status import peers, registered, registrations
from dsvpn.lab.topology import HUB, SPOKE1, SPOKE2
from tests.netns.network import DEADLINE, QUICK, Network

pytestmark = [pytest.mark.root, pytest.mark.netns]


def test_with_a_wrong_psk_nothing_passes_and_show_says_why() -> None:
    with Network({"spoke2": QUICK.but(psk="another key")}) as network:
        network.start()
        capture = network.capture()
        network.wait_registered("spoke1")
        hub, spoke2 = network.gateways["hub"], network.gateways["spoke2"]

        def refusals() -> list[dict[str, str]]:
            return [entry for entry in hub.show("peers")["refused"] if entry["remote"] == str(SPOKE2.public)]

        refused = wait_until(refusals, DEADLINE, "the hub to show the refusal", interval=0.1)
        assert "another pre-shared key" in refused[0]["reason"]
        why = wait_until(
            lambda: next((peer["last_error"] for peer in peers(spoke2) if peer["last_error"]), ""),
            DEADLINE,
            "spoke2 to show why",
            interval=0.1,
        )
        assert "AUTHENTICATION_FAILED" in why
        assert "AUTHENTICATION_FAILED" in spoke2.show_command("peers")
        assert "another pre-shared key" in hub.show_command("peers")
        assert not registered(spoke2)
        assert SPOKE2.tunnel not in registrations(hub)
        assert network.ping("spoke2", HUB.host, 10, wait=0.3).received == 0
        assert network.ping("hub", SPOKE2.host, 10, wait=0.3).received == 0
        assert network.ping("spoke1", SPOKE2.host, 10, wait=0.3).received == 0
        capture.stop()
        packets = capture.packets()
        assert {packet.traffic for packet in packets} <= PROTECTED
        assert not [
            packet
            for packet in packets
            if packet.traffic in DATA and packet.addresses is not None and SPOKE2.public in packet.addresses
        ]
        assert network.ping("spoke1", HUB.host).lost == 0


@pytest.mark.parametrize("how", ["SIGTERM", "SIGKILL"])
def test_spokes_come_back_when_a_dead_hub_returns(how: str) -> None:
    with Network() as network:
        network.start().wait_registered()
        hub = network.gateways["hub"]
        if how == "SIGTERM":
            assert hub.stop() == 0
        else:
            hub.kill()
        for name in ("spoke1", "spoke2"):
            wait_until(
                lambda name=name: not registered(network.gateways[name]),  # type: ignore[misc]
                DEADLINE,
                f"{name} to notice",
                interval=0.1,
            )
        assert network.ping("spoke1", HUB.host, 3, wait=0.3).received == 0
        hub.start()
        network.wait_registered()
        for name in ("spoke1", "spoke2"):
            network.wait_ping(name, HUB.host)


def test_a_shortcut_outlives_the_hub() -> None:
    with Network() as network:
        network.start().wait_registered()
        assert network.ping("spoke1", SPOKE2.host, 100).lost == 0
        network.gateways["hub"].kill()
        assert network.ping("spoke1", SPOKE2.host, 100).lost == 0


def test_a_spoke_that_was_killed_returns() -> None:
    with Network() as network:
        network.start().wait_registered()
        assert network.ping("spoke1", SPOKE2.host, 100).lost == 0
        for spoke in (network.gateways["spoke2"], network.gateways["spoke1"]):
            spoke.kill()
            # The kernel takes a TUN device with the process that held it: nothing is in the way of the next one.
            wait_until(lambda spoke=spoke: not devices(spoke), DEADLINE, "the device to go")  # type: ignore[misc]
            spoke.start()
            network.wait_registered(spoke.site.name)
            network.wait_ping(spoke.site.name, HUB.host)
        network.wait_ping("spoke1", SPOKE2.host)
        network.wait_ping("spoke2", SPOKE1.host)


def devices(gateway: GatewayProcess) -> list[str]:
    links = json.loads(gateway.namespace.ip("-j", "link", "show"))
    return [link["ifname"] for link in links if link["ifname"].startswith("dsvpn")]


def test_spokes_come_back_at_once_when_a_killed_hub_is_started_anew() -> None:
    """Long before dead peer detection, which takes a minute here: the hub proves that it has lost its SAs."""
    slow = QUICK.but(holding_time="600s", profile={"dpd": '"60s"'})
    with Network(every=slow) as network:
        network.start().wait_registered()
        hub = network.gateways["hub"]
        hub.kill()
        wait_until(lambda: not devices(hub), DEADLINE, "the device to go")
        hub.start()
        started = time.monotonic()
        for name in ("spoke1", "spoke2"):
            network.wait_ping(name, HUB.host)
        took = time.monotonic() - started
        print(f"both spokes were back {took:.1f} s after the hub")
        assert took < 15.0
        for name in ("spoke1", "spoke2"):
            assert network.gateways[name].show("counters")["ike"]["crash_tokens_accepted"] == 1
        assert network.ping("spoke1", SPOKE2.host, 10).received
