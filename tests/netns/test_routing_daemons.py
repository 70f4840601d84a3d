"""The examples of routing daemons over the tunnel, run as they stand: FRR's ospfd and bgpd, Debian's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dsvpn.lab.run import wait_until
from tests.interop.routing import Router
from tests.netns.network import DEADLINE
from tests.netns.star import Star

pytestmark = [pytest.mark.root, pytest.mark.netns]

EXAMPLES = Path(__file__).parents[2] / "examples"


class Routed(Star):
    """A hub and two spokes, each with the files of an example."""

    def __init__(self, example: str, daemon: str) -> None:
        super().__init__()
        self.example = EXAMPLES / example
        self.daemon = daemon
        self.routers: dict[str, Router] = {}

    def __exit__(self, *arguments: object) -> None:
        if arguments[1] is not None:
            for name, router in self.routers.items():
                for log in sorted(router.directory.glob("*.log")):
                    print(f"--- {name} {log.name}", *log.read_text(errors="replace").splitlines()[-30:], sep="\n")
        super().__exit__(*arguments)  # type: ignore[arg-type]
        for router in self.routers.values():
            router.close()

    def _text(self, file: str, number: int) -> str:
        return (
            (self.example / file)
            .read_text()
            .replace("10.0.0.11", f"10.0.0.{number}")
            .replace("172.16.11.0", f"172.16.{number}.0")
        )

    def begin(self) -> None:
        for name, number in (("hub", 1), ("s1", 11), ("s2", 12)):
            self.add(name, number)
        for name, gateway in self.gateways.items():
            role = "hub" if name == "hub" else "spoke"
            text = self._text(f"{role}.toml", gateway.number)
            if role == "spoke":
                text = text.replace('"spoke11"', f'"{name}"')
            self.start_file(name, text)
        for spoke in ("s1", "s2"):
            self.wait_standing(spoke, "hub")
        for name, gateway in self.gateways.items():
            self.start_daemons(name, gateway.number)

    def start_daemons(self, name: str, number: int) -> None:
        router = self.routers[name] = Router(self.run, self[name].namespace)
        router.start("zebra", "")
        wait_until((router.directory / "zserv.api").exists, DEADLINE, "zebra")
        router.start(self.daemon, self._text("hub.conf" if name == "hub" else "spoke.conf", number))

    def next_hop(self, source: str, target: str) -> str | None:
        """The gateway of the kernel's route to a LAN, written by the daemon."""
        for route in self[source].routes(str(self[target].lan), "proto", self.protocol):
            return str(route.get("gateway"))
        return None

    @property
    def protocol(self) -> str:
        return {"ospfd": "ospf", "bgpd": "bgp"}[self.daemon]

    def wait_routes(self) -> None:
        names = list(self.gateways)
        for source in names:
            for target in names:
                if source != target:
                    wait_until(
                        lambda s=source, t=target: self.next_hop(s, t),  # type: ignore[misc]
                        DEADLINE,
                        f"{source} to have a route to {target}",
                        interval=0.2,
                    )

    def wait_direct(self) -> None:
        """Wait until s1 and s2 exchange packets without the hub."""

        def direct() -> bool:
            self.ping("s1", self["s2"].lan_host, 3)
            shown = [
                peer["path"]
                for gateway, other in (("s1", "s2"), ("s2", "s1"))
                for peer in self[gateway].show("peers")["peers"]
                if any(mapping["protocol"] == str(self[other].tunnel) for mapping in peer["mappings"])
            ]
            return shown == ["direct", "direct"]

        wait_until(direct, DEADLINE, "a direct path")


@pytest.fixture
def ospf() -> Iterator[Routed]:
    with Routed("ospf", "ospfd") as made:
        made.begin()
        yield made


@pytest.fixture
def bgp() -> Iterator[Routed]:
    with Routed("bgp", "bgpd") as made:
        made.begin()
        yield made


def test_ospf_neighbours_form_and_shortcuts_with_them(ospf: Routed) -> None:
    ospf.wait_routes()
    assert ospf.next_hop("s1", "s2") == "10.0.0.1"
    neighbours = ospf.routers["hub"].show("ospfd", "show ip ospf neighbor")
    assert neighbours.count("Full/") == 2
    ospf.wait_direct()
    # A LAN that goes is a route that goes, in the kernel and in the data plane.
    ospf["s2"].namespace.ip("link", "set", "lan", "down")
    wait_until(lambda: ospf.next_hop("hub", "s2") is None, DEADLINE, "the route to s2's LAN to go", interval=0.2)
    lan = str(ospf["s2"].lan)
    wait_until(
        lambda: lan not in [route["prefix"] for route in ospf["hub"].show("routes")],
        DEADLINE,
        "the hub's data plane to forget it",
        interval=0.2,
    )


def test_bgp_keeps_next_hops_and_spokes_resolve_them(bgp: Routed) -> None:
    bgp.wait_routes()
    assert bgp.next_hop("s1", "s2") == "10.0.0.12"
    assert bgp.ping("s1", bgp["s2"].lan_host, 20).lost == 0
    bgp.wait_direct()
