"""Two hubs and two spokes with real processes: one hub is killed while traffic runs."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator

import pytest

from dsvpn.lab.run import wait_until
from tests.netns.network import DEADLINE
from tests.netns.star import Star

pytestmark = [pytest.mark.root, pytest.mark.netns]

#: A dead hub may cost the traffic that goes by it so much, seconds, with default timers.
RECOVERY = 3.0


def start(star: Star, *, shortcut: bool, fallback: str = "10s") -> None:
    """hub1 and hub2 with routes to both spokes; the spokes' summary leads to hub1."""
    for name, number in (("hub1", 1), ("hub2", 2), ("s1", 11), ("s2", 12)):
        star.add(name, number)
    lans = ", ".join(f'{{ prefix = "{star[s].lan}", via = "{star[s].tunnel}" }}' for s in ("s1", "s2"))
    for hub in ("hub1", "hub2"):
        star.start(hub, nhrp='redirect = true\nmulticast = "dynamic"', tunnel=f"routes = [{lans}]")
    servers = ", ".join(
        f'{{ protocol = "{star[hub].tunnel}", nbma = "{star[hub].wan.ip}", priority = {priority} }}'
        for priority, hub in enumerate(("hub1", "hub2"))
    )
    for spoke in ("s1", "s2"):
        star.start(
            spoke,
            nhrp=f'shortcut = {str(shortcut).lower()}\nnhs_fallback = "{fallback}"\nnhs = [{servers}]',
            tunnel=f'routes = [{{ prefix = "172.16.0.0/12", via = "{star["hub1"].tunnel}" }}]',
        )
    for spoke in ("s1", "s2"):
        for hub in ("hub1", "hub2"):
            star.wait_standing(spoke, hub)


@pytest.fixture
def star() -> Iterator[Star]:
    with Star() as made:
        yield made


def gaps(text: str) -> list[float]:
    """Seconds between each two answers of `ping -D`."""
    times = [float(found) for found in re.findall(r"^\[(\d+\.\d+)\] \d+ bytes from", text, re.M)]
    return [after - before for before, after in itertools.pairwise(times)]


def test_traffic_by_a_killed_hub_recovers_and_returns(star: Star) -> None:
    start(star, shortcut=False, fallback="2s")
    s1, s2 = star["s1"], star["s2"]
    assert star.ping("s1", s2.lan_host, 5).lost == 0
    pings, output = star.background("s1", "ping", "-D", "-n", "-i", "0.02", str(s2.lan_host))
    wait_until(lambda: len(gaps(output.read_text())) > 50, DEADLINE, "pings to be answered")
    star["hub1"].kill()
    star.wait_standing("s1", "hub1", "lost")
    seen = len(gaps(output.read_text()))
    wait_until(lambda: len(gaps(output.read_text())) > seen + 100, DEADLINE, "pings to be answered by hub2")
    assert 0.1 < max(gaps(output.read_text())) < RECOVERY

    # It comes back: traffic returns after it has been well for a while, and loses nothing by that.
    lans = ", ".join(f'{{ prefix = "{star[s].lan}", via = "{star[s].tunnel}" }}' for s in ("s1", "s2"))
    seen = len(gaps(output.read_text()))
    star.start("hub1", nhrp="redirect = true", tunnel=f"routes = [{lans}]")
    for spoke in ("s1", "s2"):
        star.wait_standing(spoke, "hub1")
    total = len(gaps(output.read_text()))
    wait_until(lambda: len(gaps(output.read_text())) > total + 50, DEADLINE, "pings to be answered")
    star.run.end(pings)
    assert max(gaps(output.read_text())[seen:]) < 0.5
    paths = {route["prefix"]: route["path"] for route in s1.show("routes")}
    assert paths["172.16.0.0/12"] == "direct"
    assert "reliable" in str(s1.show("summary"))


def test_a_shortcut_loses_nothing_when_its_hub_is_killed(star: Star) -> None:
    start(star, shortcut=True)
    s1, s2 = star["s1"], star["s2"]
    wait_until(
        lambda: (
            star.ping("s1", s2.lan_host, 5).received
            and all(
                route["path"] == "direct"
                for gateway, other in ((s1, s2), (s2, s1))
                for route in [next((r for r in gateway.show("routes") if r["prefix"] == str(other.lan)), {"path": ""})]
            )
        ),
        DEADLINE,
        "the direct path both ways",
    )
    pings, output = star.background("s1", "ping", "-D", "-n", "-i", "0.02", str(s2.lan_host))
    wait_until(lambda: len(gaps(output.read_text())) > 50, DEADLINE, "pings to be answered")
    star["hub1"].kill()
    for spoke in ("s1", "s2"):
        star.wait_standing(spoke, "hub1", "lost")
    seen = len(gaps(output.read_text()))
    wait_until(lambda: len(gaps(output.read_text())) > seen + 100, DEADLINE, "pings to be answered")
    pings.send_signal(2)
    pings.wait()
    sent, received = map(
        int,
        re.search(r"(\d+) packets transmitted, (\d+) received", output.read_text()).groups(),  # type: ignore[union-attr]
    )
    assert sent - received <= 1, "the last ping may be on its way"


def test_a_multipath_route_distributes_flows_over_two_hubs_until_one_dies(star: Star) -> None:
    for name, number in (("hub1", 1), ("hub2", 2), ("s1", 11), ("s2", 12)):
        star.add(name, number)
    s1, s2, hubs = star["s1"], star["s2"], [star["hub1"], star["hub2"]]
    targets = [s2.lan[10 + number] for number in range(16)]
    for target in targets[1:]:
        s2.host.ip("address", "add", f"{target}/24", "dev", "eth0")
    lans = ", ".join(f'{{ prefix = "{spoke.lan}", via = "{spoke.tunnel}" }}' for spoke in (s1, s2))
    servers = ", ".join(f'{{ protocol = "{hub.tunnel}", nbma = "{hub.wan.ip}" }}' for hub in hubs)
    for hub in hubs:
        star.launch(hub.name, tunnel=f"routes = [{lans}]")
    for spoke in (s1, s2):
        star.launch(
            spoke.name,
            nhrp=f"nhs = [{servers}]",
            tunnel=f'routes = [{{ prefix = "172.16.0.0/12", via = ["{hubs[0].tunnel}", "{hubs[1].tunnel}"] }}]',
        )
    for name in star.gateways:
        star.wait_listening(name)
    for name in ("s1", "s2"):
        for hub in hubs:
            star.wait_standing(name, hub.name)
    shown = next(route for route in s1.show("routes") if route["prefix"] == "172.16.0.0/12")
    assert (shown["next_hop"], shown["path"]) == ("10.0.0.1, 10.0.0.2", "direct")

    def forwarded() -> list[int]:
        return [hub.show("counters")["dataplane"]["tun_rx_packets"] for hub in hubs]

    # Each flow goes by one hub, all of its packets; both hubs have some of them.
    there = {hub.name: 0 for hub in hubs}
    for target in targets:
        before = forwarded()
        assert star.ping("s1", target, 20).lost == 0
        after = forwarded()
        carried = [now - then for now, then in zip(after, before, strict=True)]
        there[hubs[carried.index(max(carried))].name] += 1
        # There and back are flows of their own; probes are few.
        assert all(count < 10 or 20 <= count < 30 or 40 <= count < 50 for count in carried), carried
    assert min(there.values()) >= 2, there

    hubs[0].kill()
    star.wait_standing("s1", "hub1", "lost")
    star.wait_standing("s2", "hub1", "lost")
    for target in targets:
        assert star.ping("s1", target, 3).lost == 0
