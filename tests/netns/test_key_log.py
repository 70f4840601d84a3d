"""With a key log, Wireshark reads a capture of the underlay down to the users' packets."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from dsvpn.lab.topology import HUB, SPOKE1, SPOKE2, Site
from tests.netns.network import QUICK, Network

pytestmark = [pytest.mark.root, pytest.mark.netns]


def tshark(file: Path, profile: Path, display: str, *fields: str) -> list[str]:
    """The fields of the packets that pass a display filter, decrypted with the tables in `profile`."""
    done = subprocess.run(
        [
            *(
                "tshark",
                "-n",
                "-r",
                str(file),
                "-o",
                "esp.enable_encryption_decode:TRUE",
                "-Y",
                display,
                "-T",
                "fields",
            ),
            *(argument for field in fields for argument in ("-e", field)),
        ],
        env={**os.environ, "WIRESHARK_CONFIG_DIR": str(profile)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    "site", [SPOKE1, SPOKE2], ids=lambda site: f"{site.name}, {'NAT' if site.behind_nat else 'raw'}"
)
def test_tshark_decrypts_ike_and_esp_down_to_the_inner_icmp(site: Site, tmp_path: Path) -> None:
    assert shutil.which("tshark"), "tshark is missing: apt-get install tshark"
    log = tmp_path / "keys"
    log.mkdir(mode=0o700)
    with Network({"hub": QUICK.but(gateway={"key_log": f'"{log}"'})}) as network:
        capture = network.capture()
        network.start("hub", site.name).wait_registered(site.name)
        assert network.ping(site.name, HUB.host, 5).lost == 0
        assert capture.stop() == 0
        copy = shutil.copy(capture.file, tmp_path / "underlay.pcap")
        assert "key" in network.gateways["hub"].log.read_text().lower()

    assert not [file for file in log.iterdir() if stat.S_IMODE(file.stat().st_mode) != 0o600]
    file = Path(copy)
    inner = f"icmp && ip.dst == {HUB.host}"
    assert tshark(file, tmp_path, inner, "icmp.type") == [], "the packets can be read without keys"
    requests = tshark(file, log, inner, "ip.src", "icmp.type", "esp.spi")
    assert len(requests) == 5
    assert all(str(site.host) in line for line in requests)
    # The identities travel inside the encrypted payload of IKE_AUTH.
    identities = tshark(file, log, "isakmp.exchangetype == 35", "isakmp.id.data.fqdn")
    assert any(site.name in line for line in identities)
