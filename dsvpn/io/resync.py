"""Dumps of tunnels' routes, taken in by slices.

A gateway may carry a hundred thousand routes, which take seconds to read. Whenever the monitor has lost messages, or
the kernel may have dropped routes without a word, the dump is compared with the mirror a slice at a time, and what
the monitor tells meanwhile counts as well (`RouteMirror` says how that comes out right).
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from itertools import islice
from typing import Any

from pyroute2.netlink.rtnl.rtmsg import rtmsg

from dsvpn.errors import HostError
from dsvpn.io.routes import RouteChange, RouteMirror
from dsvpn.io.rtnetlink import FAMILIES, RTM_GETROUTE, RTM_NEWROUTE, RequestSocket, decode_route

#: What one step may cost: a route of the dump is 1, and so is a change. A few milliseconds.
SLICE = 128
#: The least that a piece costs, however few routes it has: a system call, or a look through the mirror.
_PIECE = 16
#: Dumps of one tunnel until one is taken that the table changed under.
_PASSES = 2
#: The kernel makes a datagram as large as the buffer, and makes it while the gateway waits.
_RECEIVE = 1 << 14

#: Changes, and what they and finding them cost.
_Piece = tuple[list[RouteChange], int]


class Resync:
    """Looks at the routes of tunnels anew, one tunnel after the other, a slice in each `step`."""

    def __init__(self, mirror: RouteMirror) -> None:
        self._mirror = mirror
        self._socket: RequestSocket | None = None
        #: The tunnels that wait for their turn, with the indexes of their devices.
        self._wanted: dict[str, int] = {}
        #: The tunnel whose turn it is, and what is left to do for it.
        self._current: tuple[str, int] | None = None
        self._pieces: Iterator[_Piece] = iter(())
        self._disturbed = False
        self._failed = False
        self._error: HostError | None = None
        #: How many tunnels have been looked at to the end.
        self.count = 0

    @property
    def busy(self) -> bool:
        """Whether `check` and `step` have something to do, so that they should be called again soon."""
        return self._error is not None or self._current is not None or (bool(self._wanted) and not self._failed)

    def close(self) -> None:
        """Close the socket, and with it the dump that has not ended."""
        self._current, self._pieces = None, iter(())
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def request(self, tunnel: str, device: int) -> None:
        """Look at a tunnel anew. One that is being looked at is looked at once more, after that."""
        self._wanted[tunnel] = device

    def disturb(self) -> None:
        """The table has changed. The kernel finds its place in a dump by counting, so what did not change may
        be missing."""
        self._disturbed = True

    def check(self) -> None:
        """HostError if the kernel did not give its routes: the tunnel's turn comes again with the next step, for which
        there is no hurry. Apart from `step`, so that no changes are lost with it."""
        error, self._error = self._error, None
        if error is not None:
            raise error

    def step(self) -> list[RouteChange]:
        """Go on by one slice."""
        changes: list[RouteChange] = []
        spent = 0
        self._failed = False
        while spent < SLICE:
            if self._current is None:
                if not self._wanted:
                    break
                # Off the list before the dump begins: what is asked for from here on takes another.
                tunnel = next(iter(self._wanted))
                self._current = tunnel, self._wanted.pop(tunnel)
                self._pieces = self._look(*self._current)
            try:
                piece, cost = next(self._pieces, ([], 0))
            except OSError as error:
                tunnel, device = self._current
                self.close()
                self._wanted.setdefault(tunnel, device)
                self._failed = True
                self._error = HostError(f"cannot read the kernel's routes: {error.strerror}")
                break
            if cost == 0:
                self._current = None
                self.count += 1
            changes.extend(piece)
            spent += cost
        return changes

    def _look(self, tunnel: str, device: int) -> Iterator[_Piece]:
        begun: int | None = None
        for _ in range(_PASSES):
            self._disturbed = False
            # What any of them has is there: what went since, a message has told.
            first = self._mirror.begin_dump(tunnel)
            begun = first if begun is None else begun
            for family in FAMILIES.values():
                yield from self._dump(tunnel, device, family)
            if not self._disturbed:
                break
        assert begun is not None
        for changes in self._mirror.end_dump(tunnel, begun, SLICE):
            yield changes, _PIECE + len(changes)

    def _dump(self, tunnel: str, device: int, family: int) -> Iterator[_Piece]:
        """The routes by a device, of every table."""
        if self._socket is None:
            # Of its own, because other questions are asked between two pieces.
            self._socket = RequestSocket(_RECEIVE)
        question: Any = rtmsg()
        question["family"] = family
        question["attrs"] = [("RTA_OIF", device)]
        try:
            answer = self._socket.read_dump(RTM_GETROUTE, question)
            while part := list(islice(answer, SLICE)):
                routes = (decode_route(message) for message in part if message.kind == RTM_NEWROUTE)
                yield self._mirror.take_dump(tunnel, filter(None, routes)), _PIECE + len(part)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EAFNOSUPPORT):
                raise  # these two: a host without this family
        self._disturbed |= self._socket.interrupted
