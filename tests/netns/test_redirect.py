"""`dsvpn redirect` with real gateways (RFC 5685): who may follow does, and nobody loses traffic by it."""

from __future__ import annotations

import pytest

from dsvpn.lab.run import command, wait_until
from dsvpn.lab.topology import HUB
from tests.netns.network import DEADLINE, QUICK, Network

pytestmark = [pytest.mark.root, pytest.mark.netns]

#: Nobody is there: the spoke tries, and stays where it is.
ELSEWHERE = "192.0.2.3"


def test_a_redirect_is_followed_only_where_it_may_be_and_costs_nothing() -> None:
    follows = QUICK.but(profile={**QUICK.profile, "follow_redirects": f'["{ELSEWHERE}"]'})
    with Network({"spoke2": follows}) as network:
        network.start().wait_registered()
        hub, spoke1, spoke2 = (network.gateways[name] for name in ("hub", "spoke1", "spoke2"))
        asked = command(hub._dsvpn("redirect", ELSEWHERE, "--socket", str(hub.socket)))
        # spoke1 did not say that it follows.
        assert asked.strip() == f"1 peers were asked to go to {ELSEWHERE}"
        wait_until(
            lambda: spoke2.show("counters")["ike"]["redirects_followed"] == 1,
            DEADLINE,
            "the spoke to try",
            interval=0.1,
        )
        assert network.ping("spoke2", HUB.host, 100).lost == 0
        wait_until(
            lambda: all(peer["redirected_to"] is None for peer in spoke2.show("peers")["peers"]),
            DEADLINE,
            "the spoke to give up",
            interval=0.1,
        )
        assert network.ping("spoke2", HUB.host, 20).lost == 0
        assert spoke1.show("counters")["ike"]["redirects_followed"] == 0
        assert hub.show("counters")["ike"]["redirects_sent"] == 1
