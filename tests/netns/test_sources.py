"""A spoke that sends from addresses which are not its own, with real processes."""

from __future__ import annotations

import pytest

from dsvpn.lab.gateways import TUNNEL, GatewayProcess
from dsvpn.lab.measure import ping
from dsvpn.lab.run import wait_until
from dsvpn.lab.status import path_to
from dsvpn.lab.topology import HUB, SPOKE1
from tests.netns.network import DEADLINE, Network

pytestmark = [pytest.mark.root, pytest.mark.netns]


def dropped(gateway: GatewayProcess) -> int:
    return int(gateway.show("counters")["dataplane"]["drop_wrong_source"])


def test_a_spoke_that_spoofs_is_dropped_counted_and_told_and_honest_packets_pass() -> None:
    with Network() as network:
        network.start().wait_registered()
        # The path moves to the direct one while these run.
        assert network.ping("spoke2", SPOKE1.host, 100).lost == 0
        assert path_to(network.gateways["spoke2"], str(SPOKE1.lan)) == "direct"
        assert network.ping("spoke1", HUB.host, 20).lost == 0
        assert [dropped(gateway) for gateway in network.gateways.values()] == [0, 0, 0]

        hub, liar = network.gateways["hub"], network.topology.hosts["spoke2"]
        forged = SPOKE1.lan[77]
        liar.ip("address", "add", f"{forged}/32", "dev", "lo")
        ping(liar, HUB.host, 10, wait=0.2, bind=forged)
        wait_until(lambda: dropped(hub) >= 10, DEADLINE, "the hub to drop them", interval=0.1)
        (denial,) = hub.show("nhrp")[TUNNEL]["denials"]
        assert (denial["identity"], denial["action"], denial["protocol"]) == ("spoke2", "send", str(forged))
        assert "spoke1" in denial["reason"]
        assert str(forged) in hub.show_command("nhrp")
        told = [line for line in hub.last_lines(200) if "claim_denied" in line or "may not send from" in line]
        assert len(told) == 1
        # Who lies is heard as before where it does not.
        assert network.ping("spoke2", HUB.host, 20).lost == 0
        assert dropped(hub) == 10
