"""Which prefixes are guarded."""

from __future__ import annotations

from ipaddress import ip_network
from pathlib import Path
from typing import Any

from dsvpn.config.load import parse_config
from dsvpn.policy import guarded_prefixes


def guarded(**tunnel: Any) -> set[str]:
    data = {
        "gateway": {"name": "s1"},
        "tunnel": {"dsvpn0": {"address": "10.0.0.11/24", "source": "192.0.2.11", "ipsec": "none"} | tunnel},
    }
    return {str(prefix) for prefix in guarded_prefixes(parse_config(data, Path("test.toml")))}


def route(prefix: str) -> dict[str, str]:
    return {"prefix": str(ip_network(prefix)), "via": "10.0.0.1"}


def test_the_tunnels_prefixes_and_routes_are_guarded() -> None:
    assert guarded() == {"10.0.0.0/24"}
    assert guarded(routes=[route("172.16.0.0/12")]) == {"10.0.0.0/24", "172.16.0.0/12"}
    assert guarded(guard=False) == set()


def test_what_the_tunnel_itself_needs_stays_reachable() -> None:
    hub = {"nhs": [{"protocol": "10.0.0.1", "nbma": "198.51.100.1"}]}
    routes = [route("0.0.0.0/0"), route("198.51.0.0/16"), route("192.0.2.0/24"), route("203.0.113.0/24")]
    assert guarded(routes=routes, nhrp=hub) == {"10.0.0.0/24", "203.0.113.0/24"}


def test_each_vrf_has_guards_of_its_own() -> None:
    tunnel = {"source": "192.0.2.11", "ipsec": "none"}
    tunnels = {
        "dsvpn0": tunnel | {"address": "10.0.0.11/24", "key": 1},
        "dsvpn1": tunnel | {"address": "10.0.1.11/24", "key": 2, "vrf": "inside"},
    }
    config = parse_config({"gateway": {"name": "s1"}, "tunnel": tunnels}, Path("test.toml"))
    assert guarded_prefixes(config) == {ip_network("10.0.0.0/24")}
    assert guarded_prefixes(config, "inside") == {ip_network("10.0.1.0/24")}
