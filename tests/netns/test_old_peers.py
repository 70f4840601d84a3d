"""The main job with ESP suites for old peers, in raw ESP and through NAT."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from dsvpn.lab.capture import PROTECTED, holds_plaintext
from dsvpn.lab.measure import PLAINTEXT
from dsvpn.lab.run import wait_until
from dsvpn.lab.status import path_to, peers
from dsvpn.lab.topology import HUB, SPOKE1, SPOKE2
from tests.netns.network import DEADLINE, QUICK, Network
from tests.netns.test_key_log import tshark

pytestmark = [pytest.mark.root, pytest.mark.netns]


@pytest.mark.parametrize("suite", ["aes256-sha256", "aes128-sha512", "aes256ctr-sha384"])
def test_old_suites_carry_everything(suite: str, tmp_path: Path) -> None:
    assert shutil.which("tshark"), "tshark is missing: apt-get install tshark"
    log = tmp_path / "keys"
    log.mkdir(mode=0o700)
    every = QUICK.but(profile={**QUICK.profile, "esp": f'["{suite}"]'})
    hub = every.but(gateway={"key_log": f'"{log}"'})
    with Network({"hub": hub}, every=every) as network:
        capture = network.capture()
        network.start().wait_registered()
        for spoke in ("spoke1", "spoke2"):
            assert network.ping(spoke, HUB.host, 3).lost == 0
            # More than one packet holds: fragments of all sizes, each with padding of its own.
            assert network.ping(spoke, HUB.host, 3, size=5000).lost == 0
        assert {peer["suite"] for peer in peers(network.gateways["hub"])} == {suite}
        assert suite in network.gateways["hub"].show_command("sa")
        network.wait_ping("spoke2", SPOKE1.host)
        wait_until(
            lambda: (
                network.ping("spoke2", SPOKE1.host, 1).received
                and path_to(network.gateways["spoke2"], str(SPOKE1.lan)) == "direct"
            ),
            DEADLINE,
            "the direct path",
            interval=0.2,
        )
        assert network.ping("spoke2", SPOKE1.host, 5, size=1000).lost == 0
        counters = network.gateways["hub"].show("counters")
        assert counters["dataplane"].get("drop_unauthentic", 0) == 0, counters
        assert capture.stop() == 0
        packets = capture.packets()
        assert {packet.traffic for packet in packets} <= PROTECTED
        assert not holds_plaintext(packets, PLAINTEXT)
        copy = Path(shutil.copy(capture.file, tmp_path / "underlay.pcap"))

    requests = tshark(copy, log, f"icmp.type == 8 && ip.dst == {HUB.host}", "ip.src")
    assert any(str(SPOKE1.host) in line for line in requests)
    assert any(str(SPOKE2.host) in line for line in requests)
