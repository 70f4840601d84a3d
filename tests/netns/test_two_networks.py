"""One gateway in two DSVPN networks with a key and a pre-shared key each: spoke of one, hub of the other."""

from __future__ import annotations

import json

import pytest

from dsvpn.lab.run import wait_until
from tests.netns.network import DEADLINE
from tests.netns.star import Star

pytestmark = [pytest.mark.root, pytest.mark.netns]


def section(tunnel: str, network: int, number: int, routes: dict[str, str], nhs: tuple[int, str] | None) -> str:
    """A tunnel of network 0 (10.0.0.0/24, key 42) or 1 (10.0.1.0/24, key 43), with its profile."""
    entries = ", ".join(f'{{ prefix = "{prefix}", via = "{via}" }}' for prefix, via in routes.items())
    servers = (
        "redirect = true" if nhs is None else f'nhs = [{{ protocol = "10.0.{network}.{nhs[0]}", nbma = "{nhs[1]}" }}]'
    )
    return f"""
[tunnel.{tunnel}]
address = ["10.0.{network}.{number}/24"]
source = "eth0"
key = {42 + network}
ipsec = "network{network}"
routes = [{entries}]
[tunnel.{tunnel}.nhrp]
holding_time = "60s"
shortcut = true
{servers}
[ipsec.network{network}.auth]
psk = "key of network {network}"
"""


def test_spoke_of_one_and_hub_of_the_other() -> None:
    with Star() as star:
        head, middle, far, near = (star.add(name, number) for number, name in enumerate(("h", "m", "b", "a"), 1))
        everything = "172.16.0.0/12"
        texts = {
            "h": section(
                "dsvpn0",
                0,
                1,
                {str(middle.lan): "10.0.0.2", str(far.lan): "10.0.0.2", str(near.lan): "10.0.0.4"},
                None,
            ),
            "m": section("dsvpn0", 0, 2, {everything: "10.0.0.1"}, (1, str(head.wan.ip)))
            + section("dsvpn1", 1, 2, {str(far.lan): "10.0.1.3"}, None),
            "b": section("dsvpn0", 1, 3, {everything: "10.0.1.2"}, (2, str(middle.wan.ip))),
            "a": section("dsvpn0", 0, 4, {everything: "10.0.0.1"}, (1, str(head.wan.ip))),
        }
        for name, text in texts.items():
            star.start_file(name, f'[gateway]\nname = "{name}"\nlog_level = "debug"\n{text}')

        # From end to end through both networks, and to the LAN of the gateway in the middle from both sides.
        for source, target in (("a", far), ("b", near), ("a", middle), ("b", middle), ("m", far), ("m", head)):
            star.wait_ping(source, target.lan_host)
        assert star.ping("a", far.lan_host, 20).lost == 0

        # Network 0's direct path leads to the gateway that is in both: what is on it needs the head no more.
        def shortcut() -> bool:
            star.ping("a", far.lan_host, 1)
            return any(route["dst"] == str(far.lan) and route["gateway"] == "10.0.0.2" for route in near.routes())

        wait_until(shortcut, DEADLINE, "the shortcut to the other network", interval=0.3)

        # `dsvpn show` tells the two networks apart.
        tunnels = middle.show("summary")["tunnels"]
        assert [entry["protocol"] for entry in tunnels["dsvpn0"]["nhs"]] == ["10.0.0.1"]
        assert tunnels["dsvpn1"]["nhs"] == []
        nhrp = middle.show("nhrp")
        assert "10.0.1.3" in json.dumps(nhrp["dsvpn1"])
        assert "10.0.1.3" not in json.dumps(nhrp["dsvpn0"])

        # The head knows nobody of the other network, and a network without its hub leaves the other alone.
        assert "10.0.1." not in json.dumps(head.show("nhrp"))
        head.kill()
        assert star.ping("b", middle.lan_host, 20).lost == 0
        assert star.ping("a", far.lan_host, 20).lost == 0
