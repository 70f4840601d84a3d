"""Unreachable routes that outlive a crash, so that a LAN's packets never leave in clear.

A gateway that is killed takes its device along and with it every route into the tunnel. What the LAN sends then would
follow the default route. A route of the worst metric that refuses stays behind and is uncovered at that moment; a
gateway that ends in good order takes it along.
"""

from __future__ import annotations

import errno
import zlib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

from pyroute2.netlink.rtnl.rtmsg import rtmsg

from dsvpn.addresses import Prefix
from dsvpn.errors import HostError
from dsvpn.io.routes import OWN_PROTOCOL
from dsvpn.io.rtnetlink import (
    FAMILIES,
    NLM_F_CREATE,
    NLM_F_REPLACE,
    RT_TABLE_MAIN,
    RTM_DELROUTE,
    RTM_GETROUTE,
    RTM_NEWROUTE,
    RequestSocket,
    decode_route,
    route_message,
)

RTN_UNREACHABLE = 7
_RT_SCOPE_NOWHERE = 255
#: The metrics that are worse than everybody's; which of them says whose a route is.
_WORST = 0xF000_0000


class Guards:
    """The unreachable routes of the gateway that has this name."""

    def __init__(self, requests: RequestSocket, name: str) -> None:
        self._requests = requests
        # Several gateways of a host may have one prefix: the metric tells whose route it is, also after a crash.
        self._metric = _WORST | zlib.crc32(name.encode()) >> 4

    def keep(self, prefixes: Iterable[Prefix], others: Mapping[int, Iterable[Prefix]] | None = None) -> None:
        """Have these routes and no other, whatever an earlier process of this gateway left. HostError if refused.

        `others`: those of tables other than the main one.
        """
        wanted = {(RT_TABLE_MAIN, prefix) for prefix in prefixes}
        wanted.update((table, prefix) for table, listed in (others or {}).items() for prefix in listed)
        for table, prefix in self.present() - wanted:
            self._remove(table, prefix)
        for table, prefix in sorted(wanted, key=str):
            try:
                self._requests.change(RTM_NEWROUTE, self._route(table, prefix), NLM_F_CREATE | NLM_F_REPLACE)
            except OSError as error:
                raise HostError(f"cannot add the unreachable route {prefix}: {error.strerror}") from None

    def clear(self) -> None:
        """Take all of them out."""
        for table, prefix in self.present():
            self._remove(table, prefix)

    def present(self) -> set[tuple[int, Prefix]]:
        """Those that the kernel has, with their tables."""
        found = set()
        for family in FAMILIES.values():
            message: Any = rtmsg()
            message["family"] = family
            message["proto"] = OWN_PROTOCOL
            try:
                answer = self._requests.dump(RTM_GETROUTE, message)
            except OSError as error:
                if error.errno in (errno.ENOENT, errno.EOPNOTSUPP, errno.EAFNOSUPPORT):
                    continue  # no such table yet, or a host without this family
                raise HostError(f"cannot read the kernel's routes: {error.strerror}") from None
            for part in answer:
                route = decode_route(part) if part.kind == RTM_NEWROUTE else None
                if route is not None and (route.kind, route.protocol, route.metric) == (
                    RTN_UNREACHABLE,
                    OWN_PROTOCOL,
                    self._metric,
                ):
                    found.add((route.table, route.prefix))
        return found

    def _remove(self, table: int, prefix: Prefix) -> None:
        with suppress(OSError):  # somebody else took it out first
            message = self._route(table, prefix)
            message["scope"] = _RT_SCOPE_NOWHERE
            self._requests.change(RTM_DELROUTE, message)

    def _route(self, table: int, prefix: Prefix) -> Any:
        message = route_message(prefix, table, OWN_PROTOCOL, RTN_UNREACHABLE)
        message["attrs"].append(("RTA_PRIORITY", self._metric))
        return message
