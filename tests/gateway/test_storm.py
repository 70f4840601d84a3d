"""Many spokes at once: what a hub spends on one must not grow with their number."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

from dsvpn.commands import RemoveAdjacency, SetMulticast
from dsvpn.config.load import parse_config
from dsvpn.gateway import Gateway
from dsvpn.nhrp.events import MappingAdded
from tests.gateway.model import address, site_config


def hub() -> Gateway:
    config = site_config("hub", "10.0.0.1", hub=None, ipsec=False, nhrp={"authentication": None})
    config["tunnel"]["dsvpn0"]["nhrp"].pop("authentication")
    config["tunnel"]["dsvpn0"]["address"] = ["10.0.0.1/16"]
    gateway = Gateway(
        parse_config(config, Path("storm.toml")),
        random=bytes,
        allocate_spi=lambda _: 256,
        release_spi=lambda spi: None,
        route_lookup=lambda tunnel, destination: None,
    )
    gateway.start(0.0)
    gateway.source_changed("dsvpn0", address("192.0.2.1"), 1500, 0.0)
    gateway.commands()
    return gateway


def arrive(gateway: Gateway, number: int, now: float) -> list[Any]:
    """Spoke `number` is mapped, and its plain GRE peer comes up with that."""
    nbma = ip_address(0x64400000 + number)
    event = MappingAdded(ip_address(0x0A000100 + number), nbma, nbma, "registered", None)
    gateway._on_mapping(gateway.tunnels["dsvpn0"], event, now)
    gateway._settle(now)
    return gateway.commands()


def test_few_listeners_are_told_at_once_and_many_in_intervals() -> None:
    gateway = hub()
    tunnel = gateway.tunnels["dsvpn0"]
    lists = [command for n in range(30) for command in arrive(gateway, n, 1.0) if isinstance(command, SetMulticast)]
    assert [len(command.adjacencies) for command in lists] == list(range(1, 31))
    commands = [command for n in range(30, 300) for command in arrive(gateway, n, 2.0)]
    assert sum(isinstance(command, SetMulticast) for command in commands) < 40
    due = gateway.get_timer()
    assert due is not None
    assert due <= 2.25
    gateway.handle_timer(due)
    [told] = [command for command in gateway.commands() if isinstance(command, SetMulticast)]
    assert len(told.adjacencies) == 300
    assert tunnel.multicast_timer() is None


def test_who_leaves_a_long_list_is_taken_off_at_once() -> None:
    gateway = hub()
    for number in range(200):
        arrive(gateway, number, 1.0)
    gateway.handle_timer(2.0)
    gateway.commands()
    tunnel = gateway.tunnels["dsvpn0"]
    protocol = next(iter(tunnel.mappings))
    peer = tunnel.mappings[protocol].peer
    assert peer is not None
    tunnel.remove_mapping(protocol)
    gateway.peering.release(peer, tunnel, protocol, 3.0)
    gateway._settle(3.0)
    commands = gateway.commands()
    [told] = [command for command in commands if isinstance(command, SetMulticast)]
    [gone] = [command for command in commands if isinstance(command, RemoveAdjacency)]
    assert gone.adjacency not in told.adjacencies
    assert len(told.adjacencies) == 199


def test_a_mapping_that_waits_is_found_by_its_address() -> None:
    gateway = hub()
    tunnel = gateway.tunnels["dsvpn0"]
    one, other = address("198.51.100.1"), address("198.51.100.2")
    event = MappingAdded(address("10.0.9.9"), one, one, "observed", None)
    tunnel.set_mapping(event, None)
    assert [mapping.event for mapping in tunnel.waiting_at(one)] == [event]
    moved = MappingAdded(address("10.0.9.9"), other, other, "observed", None)
    tunnel.set_mapping(moved, None)
    assert tunnel.waiting_at(one) == []
    assert [mapping.event for mapping in tunnel.waiting_at(other)] == [moved]
    tunnel.remove_mapping(address("10.0.9.9"))
    assert tunnel.waiting_at(other) == []
    assert tunnel._waiting == {}


def test_shortcuts_are_found_by_their_next_hop() -> None:
    tunnel = hub().tunnels["dsvpn0"]
    for number in range(3):
        tunnel.add_shortcut(ip_network(f"172.16.{number}.0/24"), address(f"10.0.0.{20 + number % 2}"))
    assert set(tunnel._shortcuts_by) == {address("10.0.0.20"), address("10.0.0.21")}
    tunnel.remove_all_shortcuts()
    assert tunnel._shortcuts_by == {}
