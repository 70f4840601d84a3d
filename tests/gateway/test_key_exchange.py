"""What gateways with a default configuration agree on."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from dsvpn.observe.tables import render
from tests.gateway.network import Network

HYBRID = "aes256gcm16-prfsha384-x25519-ke1_mlkem768"
CLASSIC = "aes128gcm16-prfsha256-x25519"


def shown(network: Network, name: str) -> str:
    """What `dsvpn show sa` prints on a wide terminal."""
    status = network[name].gateway.status(network.simulation.now)
    console = Console(file=io.StringIO(), width=300)
    for table in render("sa", status["sa"]):
        console.print(table)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def suites(network: Network, name: str) -> list[str]:
    return [sa["suite"] for sa in network[name].gateway.status(network.simulation.now)["sa"]]


def test_two_default_gateways_agree_on_x25519_and_ml_kem_768() -> None:
    network = Network(seed=1, nated=(1,))
    network.start()
    network.stream("s1", "s2", 2.0)
    for name in ("hub", "s1", "s2"):
        # The shortcut is protected the same way as the way by the hub.
        assert suites(network, name) == [HYBRID] * 2
        assert shown(network, name).count(HYBRID) == 2
    assert network.path("s1", "s2") == ("s1", "s2")


@pytest.mark.parametrize("classic", ["hub", "s1"])
def test_one_that_has_no_ml_kem_is_met_without(classic: str) -> None:
    network = Network(seed=1, nated=(), overrides={classic: {"profile": {"ike": [CLASSIC]}}})
    network.start()
    assert suites(network, "s1") == [CLASSIC]
    assert suites(network, "s2") == [CLASSIC if classic == "hub" else HYBRID]


def test_counters_tell_of_strangers() -> None:
    network = Network(seed=1, nated=())
    network.start()
    counters = network["hub"].gateway.status(network.simulation.now)["ike"]
    strangers = {name: count for name, count in counters.items() if name.startswith(("cookies", "half_open", "ikev1"))}
    assert strangers == {
        "cookies_accepted": 0,
        "cookies_refused": 0,
        "cookies_sent": 0,
        "half_open": 0,
        "half_open_evicted": 0,
        "half_open_refused": 0,
        "ikev1": 0,
    }
    tables = render("counters", {"dataplane": {}, "kernel": {}, "control": {}, "nhrp": {}, "ike": counters})
    assert "IKE" in [getattr(table, "title", None) for table in tables]
