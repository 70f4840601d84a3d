"""rtnetlink (rtnetlink(7)): requests with their answers, the monitor, and what a route message says.

pyroute2 gives the message codecs. Its own transport is not used, for two reasons: it wants an event loop of its own
for every synchronous call, and uvloop does not take netlink sockets as datagram endpoints. Route messages are decoded
here, because a gateway may carry a full table: this is some ten times faster than a general decoder.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any, Final, NamedTuple

from pyroute2.netlink.rtnl.rtmsg import rtmsg

from dsvpn.addresses import Address, Prefix

RTM_NEWLINK: Final = 16
RTM_DELLINK: Final = 17
RTM_GETLINK: Final = 18
RTM_NEWADDR: Final = 20
RTM_DELADDR: Final = 21
RTM_GETADDR: Final = 22
RTM_NEWROUTE: Final = 24
RTM_DELROUTE: Final = 25
RTM_GETROUTE: Final = 26
RTM_NEWNEXTHOP: Final = 104
RTM_DELNEXTHOP: Final = 105

NLM_F_REQUEST: Final = 0x001
NLM_F_ACK: Final = 0x004
NLM_F_DUMP_INTR: Final = 0x010
NLM_F_REPLACE: Final = 0x100
NLM_F_DUMP: Final = 0x300
NLM_F_EXCL: Final = 0x200
NLM_F_CREATE: Final = 0x400

RTM_F_FIB_MATCH: Final = 0x2000
RTNH_F_ONLINK: Final = 0x4

RTN_UNICAST: Final = 1
RTN_LOCAL: Final = 2

RT_TABLE_MAIN: Final = 254
RT_TABLE_LOCAL: Final = 255

_NLMSG_ERROR = 2
_NLMSG_DONE = 3
_SOL_NETLINK = 270
_NETLINK_ADD_MEMBERSHIP = 1
_NETLINK_EXT_ACK = 11
_NETLINK_GET_STRICT_CHK = 12
_NLM_F_CAPPED = 0x100
_NLM_F_ACK_TLVS = 0x200
_NLMSGERR_ATTR_MSG = 1
_SO_RCVBUFFORCE = 33

#: RTNLGRP_LINK, _IPV4_IFADDR, _IPV4_ROUTE, _IPV6_IFADDR, _IPV6_ROUTE, _NEXTHOP.
_MONITOR_GROUPS = (1, 5, 7, 9, 11, 32)
_MONITOR_BUFFER = 8 << 20
_RECEIVE = 1 << 16
#: The kernel answers at once; this guards against waiting for ever on a message that was lost.
_ANSWER_DEADLINE = 5
_DUMP_TRIES = 8

_HEADER = struct.Struct("=IHHII")
_RTMSG = struct.Struct("=BBBBBBBBI")
_RTA = struct.Struct("=HH")
_RTNEXTHOP = struct.Struct("=HBBi")
_U32 = struct.Struct("=I")

#: From a route's header to its second attribute.
_DESTINATION = _RTMSG.size + _RTA.size + _U32.size

#: The address family of an IP version.
FAMILIES: Final = {4: socket.AF_INET, 6: socket.AF_INET6}

_RTA_DST = 1
_RTA_OIF = 4
_RTA_GATEWAY = 5
_RTA_PRIORITY = 6
_RTA_MULTIPATH = 9
_RTA_TABLE = 15
_RTA_VIA = 18


def route_message(prefix: Prefix, table: int, protocol: int, kind: int) -> Any:
    """What a request says of any route. `protocol`: who makes it; `kind`: RTN_UNICAST, ... Attributes may follow."""
    message: Any = rtmsg()
    message["family"] = FAMILIES[prefix.version]
    message["dst_len"] = prefix.prefixlen
    # The header has one octet for it; larger ones stand in the attribute alone.
    message["table"] = table if table < 256 else 0
    message["proto"] = protocol
    message["type"] = kind
    message["attrs"] = [("RTA_DST", str(prefix.network_address)), ("RTA_TABLE", table)]
    return message


class Message(NamedTuple):
    """One netlink message: its type, its flags, and all of it with its header."""

    kind: int
    flags: int
    data: bytes


class RouteHop(NamedTuple):
    """One way of a route: the device's index and the gateway (None: on-link)."""

    device: int
    gateway: Address | None


@dataclass(frozen=True, slots=True)
class KernelRoute:
    """A route as the kernel tells it. `kind` is RTN_UNICAST, RTN_LOCAL, ...; `protocol` who made it."""

    prefix: Prefix
    kind: int
    table: int
    protocol: int
    metric: int
    tos: int
    hops: tuple[RouteHop, ...]

    def hops_through(self, device: int) -> tuple[RouteHop, ...]:
        """All ways through a device: flows are distributed over them."""
        return tuple(hop for hop in self.hops if hop.device == device)

    def hop_through(self, device: int) -> RouteHop | None:
        """The first way through a device, None if it has none."""
        return next((hop for hop in self.hops if hop.device == device), None)


def _attributes(data: bytes, offset: int, end: int) -> Iterator[tuple[int, int, int]]:
    while offset + 4 <= end:
        length, kind = _RTA.unpack_from(data, offset)
        if length < 4:
            return
        yield kind & 0x3FFF, offset + 4, min(offset + length, end)
        offset += (length + 3) & ~3


def _address(data: bytes) -> Address:
    return IPv4Address(data) if len(data) == 4 else IPv6Address(data)


def decode_route(message: Message) -> KernelRoute | None:
    """The route of an RTM_NEWROUTE or RTM_DELROUTE message; None for families other than IPv4 and IPv6."""
    data = message.data
    family, length, _, tos, table, protocol, _, kind, _ = _RTMSG.unpack_from(data, _HEADER.size)
    if family not in (socket.AF_INET, socket.AF_INET6):
        return None
    destination = b""
    device, metric = 0, 0
    gateway: Address | None = None
    hops: list[RouteHop] = []
    for attribute, start, end in _attributes(data, _HEADER.size + _RTMSG.size, len(data)):
        if attribute == _RTA_DST:
            destination = data[start:end]
        elif attribute == _RTA_OIF:
            (device,) = _U32.unpack_from(data, start)
        elif attribute == _RTA_GATEWAY:
            gateway = _address(data[start:end])
        elif attribute == _RTA_VIA:
            gateway = _address(data[start + 2 : end])
        elif attribute == _RTA_PRIORITY:
            (metric,) = _U32.unpack_from(data, start)
        elif attribute == _RTA_TABLE:
            (table,) = _U32.unpack_from(data, start)
        elif attribute == _RTA_MULTIPATH:
            hops.extend(_multipath(data, start, end))
    if device:
        hops.insert(0, RouteHop(device, gateway))
    prefix: Prefix
    if family == socket.AF_INET:
        prefix = IPv4Network((destination or b"\0\0\0\0", length))
    else:
        prefix = IPv6Network((destination or bytes(16), length))
    return KernelRoute(prefix, kind, table, protocol, metric, tos, tuple(hops))


def route_covers(message: Message, destination: Address) -> bool:
    """Whether the route of a message has a destination in its prefix; False for the other family.

    Tells it from the octets alone, so that a full table can be searched.
    """
    data = message.data
    length = data[_HEADER.size + 1]
    if data[_HEADER.size] != FAMILIES[destination.version]:
        return False
    if length == 0:
        return True
    for attribute, start, end in _attributes(data, _HEADER.size + _RTMSG.size, len(data)):
        if attribute == _RTA_DST:
            shift = destination.max_prefixlen - length
            return int.from_bytes(data[start:end]) >> shift == int(destination) >> shift
    return False


class CoveringSearch:
    """Picks the routes out of a dump that may have a destination in their prefix; `route_covers` is sure.

    A full table is a million routes of which some ten are wanted: the others are passed over by comparing octets.
    """

    def __init__(self, destination: Address) -> None:
        bits, width = int(destination), destination.max_prefixlen
        family = FAMILIES[destination.version]
        self._size = width // 8
        self._head = _RTA.pack(_RTA.size + self._size, _RTA_DST)
        #: By family and length, as a message has them: the prefix that the destination is in. Bits behind it are 0.
        self._prefixes = {
            bytes((family, length)): (bits >> (width - length) << (width - length)).to_bytes(self._size)
            for length in range(width + 1)
        }

    def split(self, data: bytes) -> Iterator[tuple[Message, int]]:
        """The messages of a datagram with their sequence numbers, but for routes that do not cover the destination."""
        # In one piece, for the sake of the million.
        unpack, find, head, size = _HEADER.unpack_from, self._prefixes.get, self._head, self._size
        offset, end = 0, len(data)
        while offset + _HEADER.size <= end:
            length, kind, flags, sequence, _ = unpack(data, offset)
            if length < _HEADER.size:
                return
            body = offset + _HEADER.size
            # The kernel writes the table first and the destination next. What looks otherwise is looked at closer.
            at = body + _DESTINATION
            start = at + _RTA.size
            prefix = find(data[body : body + 2])
            if (
                kind != RTM_NEWROUTE
                or flags & NLM_F_DUMP_INTR
                or (prefix is not None and (data[start : start + size] == prefix or data[at:start] != head))
            ):
                yield Message(kind, flags, data[offset : offset + length]), sequence
            offset += (length + 3) & ~3


def _multipath(data: bytes, offset: int, end: int) -> Iterator[RouteHop]:
    while offset + _RTNEXTHOP.size <= end:
        length, _, _, device = _RTNEXTHOP.unpack_from(data, offset)
        if length < _RTNEXTHOP.size:
            return
        gateway: Address | None = None
        for attribute, start, stop in _attributes(data, offset + _RTNEXTHOP.size, min(offset + length, end)):
            if attribute == _RTA_GATEWAY:
                gateway = _address(data[start:stop])
            elif attribute == _RTA_VIA:
                gateway = _address(data[start + 2 : stop])
        yield RouteHop(device, gateway)
        offset += (length + 3) & ~3


def _split(data: bytes) -> Iterator[tuple[Message, int]]:
    """The messages of a datagram with their sequence numbers."""
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind, flags, sequence, _ = _HEADER.unpack_from(data, offset)
        if length < _HEADER.size:
            return
        yield Message(kind, flags, data[offset : offset + length]), sequence
        offset += (length + 3) & ~3


#: Takes a datagram apart.
Split = Callable[[bytes], Iterator[tuple[Message, int]]]


def _failure(message: Message) -> OSError | None:
    """The error that an NLMSG_ERROR carries, None for an acknowledgement."""
    (code,) = struct.unpack_from("=i", message.data, _HEADER.size)
    if code == 0:
        return None
    text = os.strerror(-code)
    if message.flags & _NLM_F_ACK_TLVS:
        (inner,) = _U32.unpack_from(message.data, _HEADER.size + 4)
        skip = _HEADER.size if message.flags & _NLM_F_CAPPED else (inner + 3) & ~3
        for attribute, start, end in _attributes(message.data, _HEADER.size + 4 + skip, len(message.data)):
            if attribute == _NLMSGERR_ATTR_MSG:
                detail = message.data[start:end].rstrip(b"\0").decode("utf-8", "replace")
                text = f"{text} ({detail.rstrip('.')})"
    return OSError(-code, text)


class RequestSocket:
    """Requests and dumps, one at a time; blocks for the microseconds that the kernel takes to answer.

    `receive`: the octets of a dump that are taken from the kernel at a time.
    """

    def __init__(self, receive: int = _RECEIVE) -> None:
        self._receive = receive
        #: The table changed under the last dump: something may be missing in it.
        self.interrupted = False
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        self._socket.bind((0, 0))
        self._socket.settimeout(_ANSWER_DEADLINE)
        self._sequence = 0
        for option in (_NETLINK_EXT_ACK, _NETLINK_GET_STRICT_CHK):
            # Kernels before 4.20 lack strict checking: dumps come unfiltered, and callers filter again anyway.
            with suppress(OSError):
                self._socket.setsockopt(_SOL_NETLINK, option, 1)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def change(self, kind: int, message: Any, flags: int = 0) -> None:
        """Carry out a change. OSError with the kernel's reason if it refuses."""
        self._exchange(kind, message, NLM_F_REQUEST | NLM_F_ACK | flags)

    def route_to(self, destination: Address, vrf: int = 0) -> Message:
        """The route that the kernel would take to a destination, from within the VRF of that index. OSError
        with the kernel's reason if there is none."""
        family = FAMILIES[destination.version]
        packed = destination.packed
        head = _RTMSG.pack(family, destination.max_prefixlen, 0, 0, 0, 0, 0, 0, RTM_F_FIB_MATCH)
        body = head + _RTA.pack(_RTA.size + len(packed), _RTA_DST) + packed
        if vrf:
            body += _RTA.pack(_RTA.size + _U32.size, _RTA_OIF) + _U32.pack(vrf)
        answer = self._exchange(RTM_GETROUTE, body, NLM_F_REQUEST | NLM_F_ACK)
        if not answer:
            raise OSError(errno.ENETUNREACH, os.strerror(errno.ENETUNREACH))
        return answer[0]

    def dump(self, kind: int, message: Any, search: CoveringSearch | None = None) -> list[Message]:
        """Everything of a kind that passes the message's filter and the search, as one consistent state."""
        split = _split if search is None else search.split
        for _ in range(_DUMP_TRIES):
            answer = self._exchange(kind, message, NLM_F_REQUEST | NLM_F_DUMP, split)
            if not self.interrupted:
                break
        # A table that never stands still is taken as it comes; its changes arrive through the monitor as well.
        return answer

    def read_dump(self, kind: int, message: Any) -> Iterator[Message]:
        """Everything of a kind that passes the message's filter, taken from the kernel as it is read. Nothing else can
        be asked until the end. `interrupted` says then whether it is one consistent state."""
        self._send(kind, message, NLM_F_REQUEST | NLM_F_DUMP)
        return self._answer(_split)

    def _exchange(self, kind: int, message: Any, flags: int, split: Split = _split) -> list[Message]:
        self._send(kind, message, flags)
        return list(self._answer(split))

    def _send(self, kind: int, message: Any, flags: int) -> None:
        self._sequence = (self._sequence + 1) & 0x7FFFFFFF
        if isinstance(message, bytes):
            header = _HEADER.pack(_HEADER.size + len(message), kind, flags, self._sequence, 0)
            self._socket.send(header + message)
        else:
            message["header"].update(type=kind, flags=flags, sequence_number=self._sequence)
            message.reset()
            message.encode()
            self._socket.send(bytes(message.data))

    def _answer(self, split: Split) -> Iterator[Message]:
        self.interrupted = False
        while True:
            try:
                received = self._socket.recv(self._receive)
            except TimeoutError:
                raise OSError(errno.ETIMEDOUT, "the kernel did not answer a netlink request") from None
            for part, sequence in split(received):
                if sequence != self._sequence:
                    continue  # the rest of an exchange that was given up
                if part.flags & NLM_F_DUMP_INTR and part.kind != _NLMSG_ERROR:
                    self.interrupted = True
                if part.kind == _NLMSG_ERROR:
                    failure = _failure(part)
                    if failure is not None:
                        raise failure
                    return
                if part.kind == _NLMSG_DONE:
                    return
                yield part


class MonitorSocket:
    """What changes in the kernel's links, addresses, routes and next hops, as it happens."""

    def __init__(self) -> None:
        self._socket = socket.socket(
            socket.AF_NETLINK,
            socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK,
            socket.NETLINK_ROUTE,
        )
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _MONITOR_BUFFER)
        except PermissionError:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _MONITOR_BUFFER)
        self._socket.bind((0, 0))
        for group in _MONITOR_GROUPS:
            try:
                self._socket.setsockopt(_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP, group)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise  # EINVAL: a kernel without next-hop objects (before 5.3), or without IPv6
        # An overrun is an error of the socket, on which libuv stops watching a descriptor (EPOLLERR). What is watched
        # is this, which is readable then.
        self._ready = select.epoll()
        self._ready.register(self._socket, select.EPOLLIN)

    def fileno(self) -> int:
        """The descriptor to watch for reading."""
        return self._ready.fileno()

    def close(self) -> None:
        """Close the socket."""
        self._ready.close()
        self._socket.close()

    def read(self, limit: int) -> tuple[list[Message], bool, bool]:
        """Up to `limit` datagrams' messages, whether some were lost because they came too fast, and whether those that
        wait have all been read.

        When some are lost, so are all that come until those that wait have been read (netlink(7), ENOBUFS).
        """
        messages: list[Message] = []
        lost = False
        for _ in range(limit):
            try:
                received = self._socket.recv(_RECEIVE)
            except BlockingIOError:
                return messages, lost, True
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                lost = True
                continue
            messages.extend(message for message, _ in _split(received))
        return messages, lost, False
