"""The configuration files of the lab, read by the product's own loader."""

from __future__ import annotations

from ipaddress import IPv4Address
from pathlib import Path

import pytest

from dsvpn.config import load_config
from dsvpn.lab.gateways import Settings, configuration
from dsvpn.lab.topology import HUB, SITES, SPOKE1, SPOKE2, SUMMARY, Site


def loaded(site: Site, directory: Path, settings: Settings):  # type: ignore[no-untyped-def]
    (directory / f"{site.name}.psk").write_text(settings.psk + "\n")
    file = directory / f"{site.name}.toml"
    file.write_text(configuration(site, directory, settings))
    return load_config(file)


@pytest.mark.parametrize("site", SITES, ids=lambda site: site.name)
@pytest.mark.parametrize("ipsec", [True, False])
def test_every_file_loads(site: Site, ipsec: bool, tmp_path: Path) -> None:
    config = loaded(site, tmp_path, Settings(ipsec=ipsec))
    assert config.gateway.name == site.name
    assert config.tunnels["dsvpn0"].protected is ipsec
    assert config.tunnels["dsvpn0"].addresses[0].ip == site.tunnel


def test_a_spoke_points_a_summary_at_its_hub(tmp_path: Path) -> None:
    tunnel = loaded(SPOKE1, tmp_path, Settings()).tunnels["dsvpn0"]
    assert [(route.prefix, route.via) for route in tunnel.routes] == [(SUMMARY, HUB.tunnel)]
    assert tunnel.nhrp.shortcut
    assert [(nhs.protocol, nhs.nbma) for nhs in tunnel.nhrp.nhs] == [(HUB.tunnel, IPv4Address("192.0.2.1"))]


def test_the_hub_knows_the_lans(tmp_path: Path) -> None:
    tunnel = loaded(HUB, tmp_path, Settings()).tunnels["dsvpn0"]
    assert [(route.prefix, route.via) for route in tunnel.routes] == [
        (SPOKE1.lan, SPOKE1.tunnel),
        (SPOKE2.lan, SPOKE2.tunnel),
    ]
    assert tunnel.nhrp.redirect
    assert not tunnel.nhrp.nhs


def test_settings_reach_their_sections(tmp_path: Path) -> None:
    settings = Settings(
        profile={"dpd": '"2s"'},
        tunnel={"mtu": "1300"},
        nhrp={"shortcut": "false"},
        gateway={"driver": '"uvloop"'},
        extra='[tunnel.second]\naddress = "10.9.0.1/24"\nsource = "eth0"\nkey = 43\n',
    )
    config = loaded(SPOKE2, tmp_path, settings)
    assert config.ipsec["default"].dpd == 2.0
    assert config.tunnels["dsvpn0"].mtu == 1300
    assert not config.tunnels["dsvpn0"].nhrp.shortcut
    assert config.gateway.driver == "uvloop"
    assert config.tunnels["second"].key == 43
