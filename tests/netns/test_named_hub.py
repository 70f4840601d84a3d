"""A hub that spokes know by name, in their hosts file: found late, and followed to another address."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from dsvpn.lab.run import wait_until
from tests.netns.network import DEADLINE
from tests.netns.star import Star

pytestmark = [pytest.mark.root, pytest.mark.netns]

NAME = "hub.dsvpn.test"


@pytest.fixture
def star() -> Iterator[Star]:
    with Star() as made:
        yield made


@pytest.fixture
def hosts(star: Star) -> Iterator[Path]:
    """The hosts file of s1: `ip netns exec` shows a namespace its own."""
    for name, number in (("hub", 1), ("moved", 2), ("s1", 11)):
        star.add(name, number)
    directory = Path("/etc/netns") / star["s1"].namespace.name
    directory.mkdir(parents=True)
    try:
        (directory / "hosts").write_text("127.0.0.1 localhost\n")
        (directory / "nsswitch.conf").write_text("hosts: files\n")
        yield directory / "hosts"
    finally:
        shutil.rmtree(directory)


def test_a_spoke_finds_its_hub_by_name_and_follows_it(star: Star, hosts: Path) -> None:
    star.start("hub")
    quick = 'dpd = "1s"\nretransmission = { timeout = "250ms", factor = 1.5, limit = "1s", tries = 4 }'
    spoke = star.start("s1", nhrp=f'nhs = [{{ protocol = "10.0.0.1", nbma = "{NAME}" }}]', profile=quick)

    def shown() -> dict[str, str]:
        found: dict[str, str] = spoke.show("summary")["tunnels"]["dsvpn0"]["nhs"][0]
        return found

    wait_until(lambda: shown()["error"].startswith(NAME), DEADLINE, "the spoke to say that it does not find the name")
    assert shown()["name"] == NAME

    hosts.write_text(f"{star['hub'].wan.ip} {NAME}\n")
    star.wait_standing("s1", "hub")
    assert shown()["nbma"] == str(star["hub"].wan.ip)

    # The hub moves to another machine with its tunnel address and its name.
    star["hub"].kill()
    star["moved"].number = 1
    star.start("moved")
    hosts.write_text(f"{star['moved'].wan.ip} {NAME}\n")
    wait_until(lambda: shown()["nbma"] == str(star["moved"].wan.ip), DEADLINE, "the spoke to find the new address")
    star.wait_standing("s1", "moved")
    answer = spoke.namespace.command(["ping", "-n", "-c", "3", "-i", "0.2", "10.0.0.1"])
    assert "3 received" in answer
