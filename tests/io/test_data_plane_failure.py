"""A gateway that cannot forward any more ends with a message, whichever driver runs, and tells which offloads run."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.command import dsvpn
from tests.io.namespace import ip
from tests.io.test_driver import Running, running
from tests.native.faults import ALWAYS, LIE_RECEIVE, LIE_TUN_READ, Faults, build

pytestmark = [pytest.mark.root, pytest.mark.netns]

DRIVERS = pytest.mark.parametrize("driver", ["workers", "uvloop"])


@pytest.fixture
def faults(tmp_path: Path) -> Iterator[Faults]:
    with Faults(build(tmp_path), tmp_path / "faults") as made:
        yield made


def ended(gateway: Running) -> str:
    """The last words of a gateway that ends by itself; not a traceback."""
    gateway.process.wait(15)
    log = (gateway.directory / "log").read_text()
    assert "Traceback" not in log, log
    return log.splitlines()[-1]


@DRIVERS
def test_it_ends_when_its_device_is_taken_away(tmp_path: Path, driver: str) -> None:
    with running(tmp_path, driver) as gateway:
        ip("link delete dsvpn0")
        last = ended(gateway)
        assert last == "dsvpn: error: tunnel.dsvpn0: somebody took the network device away; start the gateway anew"
        assert gateway.process.returncode == 71
        assert "plain0" not in ip("link show"), "what it made goes with it"


@pytest.mark.parametrize(
    ("driver", "threads", "lie", "what"),
    [
        ("workers", 2, LIE_TUN_READ, "the encap worker failed: "),
        ("workers", 2, LIE_RECEIVE, "the decap worker failed: "),
        ("workers", 1, LIE_TUN_READ, "the forward worker failed: "),
        ("workers", 4, LIE_TUN_READ, "the encap"),
        ("workers", 4, LIE_RECEIVE, "the decap"),
        ("uvloop", None, LIE_TUN_READ, "the drain failed: "),
        ("uvloop", None, LIE_RECEIVE, "the drain failed: "),
    ],
)
def test_it_ends_by_a_defect_of_its_data_plane(
    tmp_path: Path, faults: Faults, driver: str, threads: int | None, lie: int, what: str
) -> None:
    with running(tmp_path, driver, faults.environment, threads=threads) as gateway:
        faults.set(lie=lie)
        if lie == LIE_TUN_READ:
            # Any packet that the kernel routes into the tunnel.
            ip("route add 203.0.113.0/24 dev dsvpn0")
            ip("-6 route add 2001:db8:1::/64 dev dsvpn0")
        prod()
        # What the panic itself says to standard error stands before the gateway's last words.
        last = ended(gateway)
        assert last.startswith(f"dsvpn: error: the data plane failed: {what}"), last
        assert gateway.process.returncode == 70


def prod() -> None:
    """One packet into the tunnel and one to the gateway's own port."""

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"to a tunnel", ("10.0.0.77", 9))
        sender.sendto(b"to the NAT port, no IKE and no ESP", ("192.0.2.11", 4500))


def test_the_summary_tells_the_offloads(tmp_path: Path, faults: Faults) -> None:
    faults.set(mangle_tail=1, offloads=0x60)
    with running(tmp_path, "workers", faults.environment) as gateway:
        offloads = gateway.show("summary")["offloads"]
        assert offloads["UDP GSO, IPv4"] == "off: the self-test failed"
        assert offloads["UDP GSO self-test"].startswith("failed: 2 segments of 1448 octets, the last of 1448")
        assert offloads["UDP GRO"] == "on"
        assert offloads["device dsvpn0"] == "csum tso4 tso6"
        warned = {line["offload"] for line in gateway.log() if line.get("name") == "offload"}
        assert warned == {"UDP GSO, IPv4", "UDP GSO, IPv6", "UDP GSO self-test"}
        shown = dsvpn("show", "summary", "--socket", gateway.socket).stdout
        assert "off: the self-test failed" in shown
        assert "csum tso4 tso6" in shown


def test_a_loopback_that_refuses_the_self_test_is_told(tmp_path: Path, faults: Faults) -> None:
    faults.set(gso_errno=errno.EIO, gso_left=ALWAYS)
    with running(tmp_path, "workers", faults.environment) as gateway:
        offloads = gateway.show("summary")["offloads"]
        assert offloads["UDP GSO self-test"].startswith("not done: ")
        assert offloads["UDP GSO, IPv4"] == "on"
