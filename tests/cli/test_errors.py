"""Whatever is wrong, the command line says so in one line and with the right exit code."""

from __future__ import annotations

import shutil
import socket
import threading
from pathlib import Path

import pytest

import dsvpn as package
from tests.cli.command import SPOKE, dsvpn, fails, write_spoke
from tests.io.namespace import ip, new_namespace, require_root, tun

CONFIGURATION, HOST, MISUSE, USAGE = 78, 71, 70, 2


def test_version() -> None:
    done = dsvpn("--version")
    assert done.returncode == 0
    assert done.stdout == f"dsvpn {package.__version__}\n"


def test_help_names_the_commands() -> None:
    done = dsvpn("--help")
    assert done.returncode == 0
    for name in ("up", "check", "show", "lab"):
        assert f" {name} " in done.stdout


def test_check_says_what_the_file_is(tmp_path: Path) -> None:
    file = write_spoke(tmp_path)
    done = dsvpn("check", file)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{file}: good: gateway spoke1, tunnel dsvpn0 (ipsec default)\n"


@pytest.mark.parametrize("verb", ["check", "up"])
@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ("holding_time", "holdingtime", "tunnel.dsvpn0.nhrp.holdingtime: there is no such key; write holding_time"),
        ('"2h"', '"2 weeks"', "tunnel.dsvpn0.nhrp.holding_time: '2 weeks' is no duration; write"),
        ('ipsec = "default"', 'ipsec = "other"', 'names the profile "other"'),
        ("[gateway]", "[gateway", "the file is not TOML"),
    ],
)
def test_configuration_errors_name_file_key_reason_and_cure(
    tmp_path: Path, verb: str, before: str, after: str, told: str
) -> None:
    file = write_spoke(tmp_path, SPOKE.replace(before, after))
    line = fails(dsvpn(verb, file), CONFIGURATION)
    assert line.startswith(f"{file}: ")
    assert told in line


def test_a_configuration_that_is_not_there(tmp_path: Path) -> None:
    line = fails(dsvpn("check", tmp_path / "none.toml"), HOST)
    assert line == f"{tmp_path}/none.toml: the configuration cannot be read: No such file or directory"


def test_a_key_file_that_cannot_be_read(tmp_path: Path) -> None:
    file = write_spoke(tmp_path)
    (tmp_path / "psk").unlink()
    line = fails(dsvpn("up", file), HOST)
    assert line.startswith(f"{file}: ipsec.default.auth.psk: the key file {tmp_path}/psk cannot be read")


def test_a_section_that_is_not_there() -> None:
    done = dsvpn("show", "everything")
    assert done.returncode == USAGE
    assert "everything" in done.stderr
    assert "Traceback" not in done.stderr


def test_no_gateway_to_show(tmp_path: Path) -> None:
    line = fails(dsvpn("show", "peers", "--socket", tmp_path / "none.sock"), HOST)
    assert line == f"{tmp_path}/none.sock: no gateway answers there"
    line = fails(dsvpn("show", "--gateway", "no-such-gateway"), HOST)
    assert line == "/run/dsvpn/no-such-gateway.sock: no gateway answers there"
    line = fails(dsvpn("show", "--gateway", "a", "--socket", "b"), MISUSE)
    assert "give one of them" in line


def test_what_answers_is_no_gateway(tmp_path: Path) -> None:
    def serve(listener: socket.socket) -> None:
        client, _ = listener.accept()
        with client:
            client.recv(4096)
            client.sendall(b"220 mail.example ESMTP\r\n")

    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(tmp_path / "other.sock"))
        other.listen()
        server = threading.Thread(target=serve, args=(other,), daemon=True)
        server.start()
        line = fails(dsvpn("show", "--socket", tmp_path / "other.sock"), HOST)
        server.join(10)
    assert line == f"{tmp_path}/other.sock: what answers there is no gateway"


# -- what the machine lacks: these go as far as the machine lets them --------------------------------------


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A spoke's configuration that nothing is wrong with."""
    require_root()
    return write_spoke(tmp_path)


def nothing_is_left(file: Path) -> None:
    assert not (file.parent / "spoke1.sock").exists()


@pytest.mark.root
def test_without_rights(file: Path) -> None:
    if shutil.which("setpriv") is None:
        pytest.skip("needs setpriv of util-linux")
    with new_namespace():
        line = fails(dsvpn("up", file, before=("setpriv", "--bounding-set", "-all")), HOST)
    assert line == "a gateway needs CAP_NET_BIND_SERVICE, CAP_NET_ADMIN, CAP_NET_RAW; run it as root"
    nothing_is_left(file)


@pytest.mark.root
def test_without_the_tun_device(file: Path) -> None:
    hidden = ("unshare", "--mount", "sh", "-c", 'mount -t tmpfs none /dev/net && exec "$@"', "sh")
    with new_namespace():
        line = fails(dsvpn("up", file, before=hidden), HOST)
    assert line == "/dev/net/tun is missing; load the kernel module tun, or give the container this device"
    nothing_is_left(file)


@pytest.mark.netns
@pytest.mark.parametrize("port", [500, 4500])
def test_a_port_that_is_taken(file: Path, port: int) -> None:
    with new_namespace(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("0.0.0.0", port))
        line = fails(dsvpn("up", file), HOST)
        assert "dsvpn0" not in ip("link show")
    assert f"{port}" in line
    assert "in use" in line
    nothing_is_left(file)


@pytest.mark.netns
def test_a_device_name_that_is_taken(file: Path) -> None:
    with new_namespace(), tun("dsvpn0"):
        line = fails(dsvpn("up", file), HOST)
        assert "dsvpn0" in ip("link show")
    assert line == ("tunnel.dsvpn0: a device named dsvpn0 exists already; stop its owner or rename one")
    nothing_is_left(file)


@pytest.mark.netns
def test_a_control_socket_that_is_taken(file: Path) -> None:
    with new_namespace(), socket.socket(socket.AF_UNIX) as other:
        other.bind(str(file.parent / "spoke1.sock"))
        other.listen()
        line = fails(dsvpn("up", file), HOST)
    assert "another gateway answers there" in line


@pytest.mark.netns
def test_a_route_that_is_taken_leaves_nothing_behind(file: Path) -> None:
    text = file.read_text().replace(
        'ipsec = "default"', 'ipsec = "default"\nroutes = [{ prefix = "10.0.0.0/8", via = "10.0.0.1" }]'
    )
    file.write_text(text)
    with new_namespace():
        ip("route add 10.0.0.0/8 dev lo")
        line = fails(dsvpn("up", file), HOST)
        assert "dsvpn0" not in ip("link show")
    assert line == "dsvpn0: cannot add the route 10.0.0.0/8 via 10.0.0.1: the kernel has another route for it"
    nothing_is_left(file)
