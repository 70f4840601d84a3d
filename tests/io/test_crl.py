"""Fetching revocation lists: good ones, and servers that answer with anything else."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest

from dsvpn.errors import HostError
from dsvpn.ike.authentication.revocation import MAX_CRL, parse_crl
from dsvpn.io import crl
from dsvpn.io.crl import CrlFetcher, fetch
from tests.ike.authority import root


class _Server(BaseHTTPRequestHandler):
    """What it answers by path."""

    lists: ClassVar[list[bytes]] = []

    def do_GET(self) -> None:
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", "/good")
            self.end_headers()
        elif self.path in ("/file", "/ftp"):
            self.send_response(302)
            self.send_header("Location", {"/file": "file:///etc/passwd", "/ftp": "ftp://127.0.0.1/x"}[self.path])
            self.end_headers()
        elif self.path == "/loop":
            self.send_response(302)
            self.send_header("Location", "/loop")
            self.end_headers()
        elif self.path == "/missing":
            self.send_error(404)
        else:
            body = {"/good": root().crl_octets(), "/html": b"<html>", "/long": bytes(MAX_CRL + 1)}.get(self.path)
            if body is None:
                body = self.lists[0] if len(self.lists) == 1 else self.lists.pop(0)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Server)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_list(url: str) -> None:
    for path in ("/good", "/moved"):
        assert parse_crl(fetch(url + path), "a list").is_of(root().certificate)


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("/missing", "cannot be fetched: Not Found"),
        ("/html", "is no CRL in PEM or DER"),
        ("/long", f"longer than {MAX_CRL} octets"),
        ("/file", "cannot be fetched"),
        ("/ftp", "cannot be fetched: redirected to ftp"),
        ("/loop", "cannot be fetched"),
    ],
)
def test_other_answers(url: str, path: str, says: str) -> None:
    with pytest.raises(HostError, match=says):
        fetch(url + path)


def test_nobody_answers() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    with pytest.raises(HostError, match=r"cannot be fetched: .*refused"):
        fetch(f"http://127.0.0.1:{port}/")
    with pytest.raises(HostError, match="cannot be fetched"):
        fetch("http://[bad")


def test_a_server_that_never_ends_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crl, "_DEADLINE", 0.3)
    done = threading.Event()

    def drip(listener: socket.socket) -> None:
        client, _ = listener.accept()
        with client:
            client.sendall(b"HTTP/1.0 200 OK\r\n\r\n")
            while not done.wait(0.05):
                try:
                    client.sendall(b"x")
                except OSError:
                    return

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=drip, args=(listener,))
        thread.start()
        with pytest.raises(HostError, match="takes longer than"):
            fetch(f"http://127.0.0.1:{listener.getsockname()[1]}/")
        done.set()
        thread.join(10)
    assert not thread.is_alive()


def test_the_last_good_list_is_kept_and_changes_are_told(url: str) -> None:
    holder = root().issue("gw")
    first, second = root().crl_octets(), root().crl_octets(holder)
    _Server.lists = [first, b"<html>", first, second]
    seen: list[bytes] = []
    errors: list[HostError] = []

    async def run() -> None:
        progress = asyncio.Event()

        def on_change() -> None:
            seen.append(fetcher.lists[f"{url}/next"])
            progress.set()

        def on_error(error: HostError) -> None:
            errors.append(error)
            assert fetcher.lists == {f"{url}/next": first}
            progress.set()

        fetcher = CrlFetcher([f"{url}/next"], on_change, on_error)
        task = asyncio.create_task(fetcher.run())
        try:
            async with asyncio.timeout(20):
                await progress.wait()
                while len(seen) < 2:
                    fetcher.fetch_now([f"{url}/next"])
                    await asyncio.sleep(0.02)
        finally:
            task.cancel()

    asyncio.run(run())
    assert seen == [first, second]
    assert len(errors) == 1


def test_urls_that_a_reload_brings_are_fetched(url: str) -> None:
    _Server.lists = [root().crl_octets()]

    async def run() -> None:
        changed = asyncio.Event()
        fetcher = CrlFetcher([], changed.set, lambda error: None)
        task = asyncio.create_task(fetcher.run())
        try:
            await asyncio.sleep(0)
            assert not task.done()
            fetcher.fetch_now([f"{url}/next"])
            async with asyncio.timeout(20):
                await changed.wait()
            assert list(fetcher.lists) == [f"{url}/next"]
        finally:
            task.cancel()

    asyncio.run(run())
