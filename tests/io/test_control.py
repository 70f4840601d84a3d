"""The control socket between a server in an event loop and the client."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
from pathlib import Path
from typing import Any

import pytest

from dsvpn.errors import HostError, MisuseError
from dsvpn.io.control import ControlServer, answers, ask, running_gateways


def handler(request: dict[str, Any]) -> Any:
    if request.get("show") == "everything":
        raise MisuseError("there is no section 'everything' to show")
    return {"asked": request, "large": "x" * 300_000}


def with_server(path: Path, use: Any) -> Any:
    """Run `use()`, which blocks, in a thread while a server answers at `path`."""

    async def run() -> Any:
        server = ControlServer(path, handler)
        try:
            await server.start()
            return await asyncio.to_thread(use)
        finally:
            server.close()

    return asyncio.run(run())


def raw(path: Path, sent: bytes) -> dict[str, Any]:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(5)
        client.connect(str(path))
        client.sendall(sent)
        received = b""
        while chunk := client.recv(65536):
            received += chunk
    answer: dict[str, Any] = json.loads(received)
    return answer


def test_a_request_is_answered_and_the_socket_goes_with_the_server(tmp_path: Path) -> None:
    path = tmp_path / "run" / "hub.sock"

    def use() -> Any:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert running_gateways(path.parent) == [path]
        return ask(path, {"show": "peers"})

    answer = with_server(path, use)
    assert answer["asked"] == {"show": "peers"}
    assert len(answer["large"]) == 300_000
    assert not path.exists()


def test_a_refused_request_says_why(tmp_path: Path) -> None:
    path = tmp_path / "hub.sock"
    with pytest.raises(MisuseError, match="no section 'everything'"):
        with_server(path, lambda: ask(path, {"show": "everything"}))


@pytest.mark.parametrize("sent", [b"\n", b"nonsense\n", b"[]\n", b"\xff\xfe\n", b"x" * 100_000 + b"\n"])
def test_nonsense_gets_an_error_and_harms_nobody(tmp_path: Path, sent: bytes) -> None:
    path = tmp_path / "hub.sock"

    def use() -> Any:
        # The server may cut off a request that is too long while it is still being sent.
        try:
            assert "error" in raw(path, sent)
        except (BrokenPipeError, ConnectionResetError):
            assert len(sent) > 4096
        return ask(path, {"show": "peers"})

    assert with_server(path, use)["asked"] == {"show": "peers"}


def test_a_live_gateway_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "hub.sock"

    def use() -> Any:
        with pytest.raises(HostError, match="another gateway answers there"):
            ControlServer(path, handler)
        return ask(path, {"show": "peers"})

    assert with_server(path, use)["asked"] == {"show": "peers"}


def test_a_dead_gateway_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "hub.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
        dead.listen()
    assert path.exists()
    assert not answers(path)
    with pytest.raises(HostError, match="no gateway answers there"):
        ask(path, {"show": "peers"})
    assert with_server(path, lambda: ask(path, {"show": "sa"}))["asked"] == {"show": "sa"}


def test_a_file_that_is_no_socket_stays(tmp_path: Path) -> None:
    path = tmp_path / "hub.sock"
    path.write_text("precious")
    with pytest.raises(HostError, match="is no socket"):
        ControlServer(path, handler)
    assert path.read_text() == "precious"


def test_the_successors_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "hub.sock"

    async def run() -> None:
        first = ControlServer(path, handler)
        path.unlink()
        second = ControlServer(path, handler)
        first.close()
        assert path.exists()
        second.close()
        assert not path.exists()

    asyncio.run(run())


def test_a_path_that_is_too_long_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="longer than"):
        ControlServer(tmp_path / ("x" * 120), handler)


def test_silent_clients_do_not_keep_others_out(tmp_path: Path) -> None:
    path = tmp_path / "hub.sock"

    def use() -> Any:
        silent = []
        try:
            for _ in range(8):
                silent.append(socket.socket(socket.AF_UNIX))
                silent[-1].connect(str(path))
            return ask(path, {"show": "peers"})
        finally:
            for one in silent:
                one.close()

    assert with_server(path, use)["asked"] == {"show": "peers"}


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it looks at a socket with another user's rights")
def test_only_the_owner_may_ask(tmp_path: Path) -> None:
    path = tmp_path / "hub.sock"
    for directory in (tmp_path, *tmp_path.parents):
        if directory.stat().st_uid == 0 and directory != Path("/"):
            directory.chmod(directory.stat().st_mode | 0o011)

    def use() -> Any:
        child = os.fork()
        if child == 0:
            code = 9
            try:
                os.setuid(65534)
                ask(path, {"show": "peers"})
            except HostError as error:
                code = 7 if "Permission denied" in str(error) else 8
            finally:
                os._exit(code)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    assert with_server(path, use) == 7
