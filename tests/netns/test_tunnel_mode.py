"""Tunnel mode with real processes: raw ESP with an IP header inside, and a spoke behind NAT that is told why not."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from dsvpn.lab.capture import PROTECTED, Traffic, holds_plaintext
from dsvpn.lab.measure import PLAINTEXT
from dsvpn.lab.run import wait_until
from dsvpn.lab.status import peers
from dsvpn.lab.topology import HUB, SPOKE2
from tests.netns.network import DEADLINE, QUICK, Network
from tests.netns.test_key_log import tshark

pytestmark = [pytest.mark.root, pytest.mark.netns]


@pytest.mark.parametrize("suite", ["aes128gcm16", "aes256-sha256"])
def test_tunnel_mode_carries_everything_and_refuses_nat(suite: str, tmp_path: Path) -> None:
    assert shutil.which("tshark"), "tshark is missing: apt-get install tshark"
    log = tmp_path / "keys"
    log.mkdir(mode=0o700)
    every = QUICK.but(profile={**QUICK.profile, "mode": '"tunnel"', "esp": f'["{suite}"]'})
    hub = every.but(gateway={"key_log": f'"{log}"'})
    with Network({"hub": hub}, every=every) as network:
        capture = network.capture()
        network.start().wait_registered("spoke2")
        for size in (56, 1000, 5000):
            assert network.ping("spoke2", HUB.host, 3, size=size).lost == 0
            assert network.ping("hub", SPOKE2.host, 3, size=size).lost == 0
        (peer,) = [peer for peer in peers(network.gateways["hub"]) if peer["state"] == "up"]
        assert (peer["nbma"], peer["encapsulation"], peer["suite"]) == (str(SPOKE2.public), "esp-tunnel", suite)
        assert "esp-tunnel" in network.gateways["hub"].show_command("sa")

        def reason() -> str:
            (hub_peer,) = peers(network.gateways["spoke1"])
            return str(hub_peer["last_error"])

        wait_until(lambda: "tunnel mode" in reason(), DEADLINE, "spoke1 to learn why not", interval=0.2)
        assert "there is one in front of us" in reason()
        assert 'write mode = "transport" at both ends' in reason()
        assert not any("drop_tunnel_header" in name and count for name, count in dataplane(network).items())
        assert capture.stop() == 0
        packets = capture.packets()
        kinds = {packet.traffic for packet in packets}
        assert kinds <= PROTECTED
        assert Traffic.ESP in kinds
        assert Traffic.ESP_IN_UDP not in kinds
        assert not holds_plaintext(packets, PLAINTEXT)
        copy = Path(shutil.copy(capture.file, tmp_path / "underlay.pcap"))

    requests = tshark(copy, log, f"icmp.type == 8 && ip.dst == {HUB.host}", "ip.src", "ip.proto")
    assert len(requests) >= 3
    for line in requests:
        addresses, protocols = (field.split(",") for field in line.split("\t"))
        # The underlay's header, the one inside ESP, and the user's.
        assert addresses == [str(SPOKE2.public), str(SPOKE2.public), str(SPOKE2.host)]
        assert protocols == ["50", "47", "1"]


def dataplane(network: Network) -> dict[str, int]:
    counters: dict[str, int] = network.gateways["hub"].show("counters")["dataplane"]
    return counters
