"""Real gateways with certificates of `dsvpn pki`: renewed and revoked while they run."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import pytest

from dsvpn.io.control import ask
from dsvpn.lab.capture import Traffic
from dsvpn.lab.gateways import GatewayProcess
from dsvpn.lab.run import wait_until
from dsvpn.lab.topology import HUB, SITES
from dsvpn.pki import Algorithm, Authority
from tests.cli.command import dsvpn
from tests.netns.network import DEADLINE, QUICK, Network

pytestmark = [pytest.mark.root, pytest.mark.netns]


def identity(site: str) -> str:
    return f"{site}.example.net"


def pki(*arguments: str | Path) -> None:
    done = dsvpn("pki", *arguments)
    assert done.returncode == 0, done.stderr


def settings(directory: Path, site: str) -> Any:
    auth = {
        "certificate": f'"{directory / identity(site)}.crt"',
        "private_key": f'"{directory / identity(site)}.key"',
        "ca": f'"{directory / "ca.crt"}"',
        "crl": f'"{directory / "ca.crl"}"',
        "crl_policy": '"require"',
        "remote_identity": '"*.example.net"',
    }
    return QUICK.but(auth=auth)


def sas(gateway: GatewayProcess) -> dict[str, dict[str, Any]]:
    """The established IKE SAs by the peer's identity."""
    return {sa["remote_identity"]: sa for sa in gateway.show("sa") if sa["state"] == "established"}


def serial(gateway: GatewayProcess) -> str:
    (profile,) = gateway.show("certificates")
    (own,) = [entry for entry in profile["certificates"] if entry["role"] == "own"]
    return str(own["serial"])


def test_a_network_with_certificates_that_are_renewed_and_revoked(tmp_path: Path) -> None:
    directory = tmp_path / "pki"
    pki("init", directory)
    for site in SITES:
        pki("issue", directory, identity(site.name))
    with Network({site.name: settings(directory, site.name) for site in SITES}) as network:
        network.start("hub", "spoke2").wait_registered("spoke2")
        hub, spoke2 = network.gateways["hub"], network.gateways["spoke2"]
        assert network.ping("spoke2", HUB.host).lost == 0
        before = sas(hub)[identity("spoke2")]
        assert before["authentication"] == "ECDSA with SHA2-256"
        assert before["local_identity"] == identity("hub")
        assert "dsvpn CA" in hub.show_command("certificates")

        # The hub's certificate is renewed, key and all: nothing breaks, and who calls from then on sees the new one.
        old = serial(hub)
        pki("renew", directory, identity("hub"), "--new-key")
        assert dsvpn("reload", "--socket", hub.socket).returncode == 0
        assert serial(hub) != old
        assert sas(hub)[identity("spoke2")]["initiator_spi"] == before["initiator_spi"]
        network.start("spoke1").wait_registered("spoke1")
        assert network.ping("spoke1", HUB.host).lost == 0
        assert network.ping("spoke2", HUB.host).lost == 0

        # A file that is broken leaves everything as it was.
        certificate = directory / f"{identity('hub')}.crt"
        good = certificate.read_text()
        certificate.write_text("rubbish")
        failed = dsvpn("reload", "--socket", hub.socket)
        assert failed.returncode != 0
        assert "ipsec.default.auth.certificate" in failed.stderr
        certificate.write_text(good)

        # spoke2 is revoked: the hub closes what it has with it and takes nothing from it any more; spoke1 stays.
        kept = sas(hub)[identity("spoke1")]["initiator_spi"]
        pki("revoke", directory, identity("spoke2"))
        hub.process.send_signal(signal.SIGHUP)
        wait_until(
            lambda: any("is revoked" in refused["reason"] for refused in hub.show("peers")["refused"]),
            DEADLINE,
            "the hub to refuse spoke2",
            interval=0.1,
        )
        assert set(sas(hub)) == {identity("spoke1")}
        assert sas(hub)[identity("spoke1")]["initiator_spi"] == kept
        lost = network.ping("spoke2", HUB.host, 1, wait=0.5)
        assert lost.received == 0
        assert network.ping("spoke1", HUB.host).lost == 0
        (profile,) = hub.show("certificates")
        assert [crl["revoked"] for crl in profile["crls"]] == [1]
        for gateway in (spoke2, network.gateways["spoke1"], hub):
            assert gateway.stop() == 0, gateway.last_lines(10)


def test_large_certificates_cross_a_nat_in_fragments(tmp_path: Path) -> None:
    """spoke1 is behind NAT; ML-DSA certificates make IKE_AUTH some ten kilobytes long."""
    directory = tmp_path / "pki"
    authority = Authority.create(directory, "Test CA", Algorithm.ML_DSA_65, 100, time.time())
    for site in SITES:
        authority.issue(identity(site.name), [identity(site.name)], Algorithm.ML_DSA_65, 10, time.time())
    with Network({site.name: settings(directory, site.name) for site in SITES}) as network:
        capture = network.capture()
        network.start("hub", "spoke1").wait_registered("spoke1")
        assert network.ping("spoke1", HUB.host).lost == 0
        assert capture.stop() == 0
        assert sas(network.gateways["hub"])[identity("spoke1")]["authentication"] == "ML-DSA-65"
        assert ask(network.gateways["spoke1"].socket, {"show": "sa"})[0]["authentication"] == "ML-DSA-65"
        assert max(len(packet.data) for packet in capture.packets() if packet.traffic is Traffic.IKE) == 1280
