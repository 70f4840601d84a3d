"""Our gateway with its underlay in one VRF and its tunnel in another, on a kernel that has them."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

import dsvpn
from dsvpn.lab.gateways import configuration
from dsvpn.lab.run import wait_until
from dsvpn.lab.status import registrations
from dsvpn.lab.topology import HUB, SPOKE1, SPOKE2
from tests.interop.uml import Guest
from tests.netns.network import DEADLINE, QUICK, Network

pytestmark = [pytest.mark.root, pytest.mark.netns, pytest.mark.interop, pytest.mark.slow]


def test_underlay_and_tunnel_live_in_vrfs_of_their_own(tmp_path: Path) -> None:
    with Network() as network:
        internet = network.topology.internet
        internet.ip("link", "delete", SPOKE2.name)
        internet.ip("tuntap", "add", "guest", "mode", "tap")
        internet.ip("address", "add", f"{SPOKE2.wan_gateway}/{SPOKE2.wan.network.prefixlen}", "dev", "guest")
        internet.ip("link", "set", "guest", "up")
        network.start("hub", "spoke1")

        guest = Guest(network.run, "vrf", tmp_path, "vrf", memory=512)
        settings = QUICK.but(gateway={"underlay_vrf": '"front"'}, tunnel={"vrf": '"inside"'})
        text = configuration(SPOKE2, Path("/run/dsvpn"), settings).replace('source = "eth0"', 'source = "vec0"')
        (guest.boot / "spoke2.toml").write_text(text)
        (guest.boot / "spoke2.psk").write_text(settings.psk + "\n")
        for file in guest.boot.glob("spoke2.*"):
            file.chmod(0o600)
        environment = {
            "name": SPOKE2.name,
            "wan": str(SPOKE2.wan),
            "gateway": str(SPOKE2.wan_gateway),
            "lan": f"{SPOKE2.host}/{SPOKE2.lan.prefixlen}",
            "python": sys.executable,
            "pythonpath": f"{Path(dsvpn.__file__).parent.parent}:{os.environ.get('PYTHONPATH', '')}",
        }
        guest.start("guest", internet.name, environment)

        def is_registered() -> bool:
            said = guest.run("cat /ctl/dsvpn.log")
            assert "error" not in said, said[-2000:]
            return SPOKE2.tunnel in registrations(network.gateways["hub"])

        wait_until(is_registered, 3 * DEADLINE, "the gateway in its VRFs to register", interval=0.5)
        # The tunnel's routes are in the table of its VRF, and none in the main one; guards as well.
        inside = guest.run("ip route show table 10", check=True)
        assert f"172.16.0.0/12 via {HUB.tunnel} dev dsvpn0" in inside
        assert "unreachable 172.16.0.0/12" in inside
        assert guest.run("ip route show", check=True) == ""
        assert guest.run("ip -br link show dev dsvpn0 master inside", check=True)

        # From the LAN, over the hub at first, then on a shortcut that both kernels show.
        assert network.ping("spoke1", SPOKE2.host, 20).lost == 0
        pings = guest.run(f"ip vrf exec inside ping -c 5 -i 0.2 -W 1 -I {SPOKE2.host} {SPOKE1.host}")
        assert pings.count("bytes from") == 5, pings
        shortcut = f"{SPOKE1.lan} via {SPOKE1.tunnel} dev dsvpn0 proto 147"
        wait_until(lambda: shortcut in guest.run("ip route show table 10"), DEADLINE, "the shortcut", interval=0.3)
        network.gateways["hub"].kill()
        assert network.ping("spoke1", SPOKE2.host, 20).lost == 0
