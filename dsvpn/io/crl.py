"""Fetching revocation lists by URL: bounded in time and size, off the event loop, and the last good answer is kept."""

from __future__ import annotations

import asyncio
import http.client
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from contextlib import suppress
from time import monotonic
from typing import IO

from dsvpn.errors import HostError, MisuseError
from dsvpn.ike.authentication.revocation import MAX_CRL, parse_crl

#: Seconds between fetches, after one that worked and after one that did not.
REFRESH_INTERVAL = 3600.0
RETRY_INTERVAL = 60.0
#: Seconds for one fetch in all, and for each step of it.
_DEADLINE = 30.0
_TIMEOUT = 10.0
_CHUNK = 1 << 16


class _NoRedirectElsewhere(urllib.request.HTTPRedirectHandler):
    """Follows redirects to http and https alone: an answer must not lead to files of this machine."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        """The request to follow with."""
        request = super().redirect_request(req, fp, code, msg, headers, newurl)
        if request is not None and request.type not in ("http", "https"):
            raise urllib.error.URLError(f"redirected to {request.type}")
        return request


#: No file, ftp or data handlers, and no proxy that the environment might name for others.
_OPENER = urllib.request.OpenerDirector()
for _handler in (
    urllib.request.HTTPHandler(),
    urllib.request.HTTPSHandler(),
    urllib.request.HTTPDefaultErrorHandler(),
    urllib.request.HTTPErrorProcessor(),
    _NoRedirectElsewhere(),
):
    _OPENER.add_handler(_handler)


def fetch(url: str) -> bytes:
    """The list at `url`. HostError if it cannot be had, or is no CRL. Blocks for half a minute at the most."""
    deadline = monotonic() + _DEADLINE
    data = bytearray()
    try:
        with _OPENER.open(url, timeout=_TIMEOUT) as answer:
            while chunk := answer.read1(_CHUNK):
                data += chunk
                if len(data) > MAX_CRL:
                    raise HostError(f"{url}: the answer is longer than {MAX_CRL} octets")
                if monotonic() > deadline:
                    raise HostError(f"{url}: the answer takes longer than {_DEADLINE:.0f} s")
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise HostError(f"{url}: the CRL cannot be fetched: {reason}") from None
    try:
        parse_crl(bytes(data), url)
    except MisuseError as error:
        raise HostError(str(error)) from None
    return bytes(data)


class CrlFetcher:
    """The lists of some URLs, fetched again and again. `on_change` is called in the event loop when one has changed,
    `on_error` with what went wrong."""

    def __init__(
        self, urls: Iterable[str], on_change: Callable[[], None], on_error: Callable[[HostError], None]
    ) -> None:
        self._urls = tuple(urls)
        self._on_change = on_change
        self._on_error = on_error
        self._now = asyncio.Event()
        #: The last good answer by URL.
        self.lists: dict[str, bytes] = {}

    def fetch_now(self, urls: Iterable[str]) -> None:
        """Fetch these from here on, and do not wait for the next time."""
        self._urls = tuple(urls)
        self._now.set()

    async def run(self) -> None:
        """Fetch until cancelled; without URLs there is nothing to do until there are some."""
        while True:
            self._now.clear()
            failed = await self._fetch_all()
            interval = RETRY_INTERVAL if failed else REFRESH_INTERVAL
            with suppress(TimeoutError):
                async with asyncio.timeout(interval if self._urls else None):
                    await self._now.wait()

    async def _fetch_all(self) -> bool:
        failed = changed = False
        for url in self._urls:
            try:
                data = await asyncio.to_thread(fetch, url)
            except HostError as error:
                failed = True
                self._on_error(error)
            else:
                changed |= self.lists.get(url) != data
                self.lists[url] = data
        if changed:
            self._on_change()
        return failed
