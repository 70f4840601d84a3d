"""Looking names up, off the event loop, as the host is set up to (its hosts file, DNS servers, and so on)."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from ipaddress import ip_address

from dsvpn.addresses import Address
from dsvpn.commands import LookUp

#: Seconds after which a resolver that says nothing has failed. glibc gives up after 10 to 30 of its own.
_DEADLINE = 15.0

#: Called with the command, the addresses found in the resolver's order, and what went wrong ("" for nothing).
Answered = Callable[[LookUp, tuple[Address, ...], str], None]


class Resolver:
    """Every look-up is answered exactly once, in the event loop, unless `close` comes first."""

    def __init__(self, on_answer: Answered) -> None:
        self._on_answer = on_answer
        self._tasks: set[asyncio.Task[None]] = set()

    def look_up(self, command: LookUp) -> None:
        """Begin to look a name up."""
        task = asyncio.get_running_loop().create_task(self._look_up(command))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def close(self) -> None:
        """Answer nothing any more."""
        for task in self._tasks:
            task.cancel()

    async def _look_up(self, command: LookUp) -> None:
        addresses: tuple[Address, ...] = ()
        error = ""
        try:
            async with asyncio.timeout(_DEADLINE):
                found = await asyncio.get_running_loop().getaddrinfo(command.name, None, type=socket.SOCK_DGRAM)
            # A link-local address comes with its zone; no other has one.
            texts = dict.fromkeys(str(entry[4][0]).partition("%")[0] for entry in found)
            addresses = tuple(ip_address(text) for text in texts)
        except TimeoutError:
            error = f"{command.name}: no answer in {_DEADLINE:.0f} s"
        except (OSError, UnicodeError) as failure:
            error = f"{command.name}: {getattr(failure, 'strerror', None) or failure}"
        self._on_answer(command, addresses, error)
