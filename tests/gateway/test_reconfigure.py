"""A changed configuration that a running gateway takes over, in a network of simulated time."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path as FilePath
from typing import Any

from dsvpn.config.changes import compare
from dsvpn.config.load import parse_config
from tests.gateway.model import Site
from tests.gateway.network import Network


def reconfigure(site: Site, edit: Callable[[dict[str, Any]], None]) -> list[str]:
    """Give a running gateway an edited configuration; which keys it takes."""
    raw = deepcopy(site.config)
    edit(raw)
    changes = compare(site.gateway.config, parse_config(raw, FilePath("simulation.toml")))
    assert changes.waiting == []
    fresh = parse_config(raw, FilePath("simulation.toml"))
    running = changes.running.model_copy(update={"materials": fresh.materials})
    site.gateway.reconfigure(running, site.simulation.now)
    site._flush()
    return changes.taken


def test_a_shorter_lifetime_holds_for_the_sas_that_are_made_from_then_on() -> None:
    network = Network(seed=61, spokes=1, nated=(), options={"profile": {"child_lifetime": "100s"}})
    network.start()
    spoke = network["s1"]
    (ike_sa,) = [sa["initiator_spi"] for sa in spoke.gateway.status(network.simulation.now)["sa"]]
    assert reconfigure(spoke, lambda raw: raw["ipsec"]["default"].update(child_lifetime="20s")) == [
        "ipsec.default.child_lifetime"
    ]
    network.simulation.run_for(100.0)
    seen = set(spoke.inbound)
    for _ in range(100):
        network.simulation.run_for(1.0)
        seen |= set(spoke.inbound)
    assert len(seen) >= 5, "100 s are five lifetimes"
    assert [sa["initiator_spi"] for sa in spoke.gateway.status(network.simulation.now)["sa"]] == [ike_sa]
    assert network.path("s1", "hub") == ("s1", "hub")


def test_other_rules_of_authorization_hold_for_what_peers_claim_from_then_on() -> None:
    rules = {"s1": ["10.0.0.11", "172.16.1.0/24"], "s2": ["10.0.0.12", "172.16.9.0/24"]}
    network = Network(seed=62, nated=())
    network["hub"].config["tunnel"]["dsvpn0"]["authorize"] = rules
    network.start()
    network.stream("s1", "s2", 4.0)
    assert network.path("s1", "s2") == ("s1", "hub", "s2")
    hub = network["hub"]
    before = set(hub.inbound)

    def allow(raw: dict[str, Any]) -> None:
        raw["tunnel"]["dsvpn0"]["authorize"]["s2"] = ["10.0.0.12", "172.16.2.0/24"]

    assert reconfigure(hub, allow) == ["tunnel.dsvpn0.authorize"]
    assert set(hub.inbound) == before, "no SA was made anew"
    network.simulation.run_for(60.0)  # the answer that was refused is forgotten
    network.stream("s1", "s2", 10.0)
    assert network.path("s1", "s2") == ("s1", "s2")


def test_an_address_that_is_taken_from_a_peer_goes_with_its_registration() -> None:
    network = Network(seed=64, nated=())
    network["hub"].config["tunnel"]["dsvpn0"]["authorize"] = {"s1": "10.0.0.11", "s2": "10.0.0.12"}
    network.start()

    def registered() -> set[str]:
        mappings = network["hub"].gateway.tunnels["dsvpn0"].mappings
        return {str(protocol) for protocol in mappings}

    assert registered() == {"10.0.0.11", "10.0.0.12"}
    reconfigure(network["hub"], lambda raw: raw["tunnel"]["dsvpn0"]["authorize"].update(s2="10.0.0.99"))
    network.simulation.run_for(310.0)
    assert registered() == {"10.0.0.11"}


def test_another_pre_shared_key_is_used_for_the_calls_that_follow() -> None:
    network = Network(seed=63, spokes=1, nated=())
    network.start()
    spoke, hub = network["s1"], network["hub"]
    before = set(spoke.inbound)
    for site in (spoke, hub):
        assert reconfigure(site, lambda raw: raw["ipsec"]["default"]["auth"].update(psk="another")) == [
            "ipsec.default.auth.psk"
        ]
    network.simulation.run_for(30.0)
    assert set(spoke.inbound) == before, "established SAs stay"
    spoke.kill()
    spoke.config["ipsec"]["default"]["auth"]["psk"] = "another"
    network.simulation.run_for(2.0)
    spoke.start()
    network.simulation.run_until(lambda: network.registered(spoke), 30, "the spoke being back with the other key")
