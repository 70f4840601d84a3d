"""ICMP echo requests through a tunnel: the probes of NHSs.

The request takes the way of any packet of this host, through the TUN device and the data plane, and so does its
answer; nobody reads that, for the data plane has counted it.
"""

from __future__ import annotations

import socket
import struct
from contextlib import suppress

from dsvpn.addresses import Address
from dsvpn.errors import HostError

_ECHO_REQUEST = {4: 8, 6: 128}
_PROTOCOL = {4: socket.IPPROTO_ICMP, 6: socket.IPPROTO_ICMPV6}
_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
#: linux/icmp.h, linux/icmpv6.h: a filter that lets nothing up. Answers would only fill the socket's queue.
_SOL_RAW = 255
_ICMP_FILTER = 1
_ICMPV6_FILTER = 1
_TEXT = b"dsvpn probe"


class ProbeSockets:
    """A raw socket for each tunnel and IP version, made when it is first wanted."""

    def __init__(self) -> None:
        self._sockets: dict[tuple[str, int], socket.socket] = {}
        self._sequence = 0

    def close(self) -> None:
        """Close all of them."""
        for opened in self._sockets.values():
            opened.close()
        self._sockets.clear()

    def send(self, device: str, destination: Address) -> None:
        """Send one request by a device. HostError if the host refuses sockets; a packet that it refuses is lost."""
        self._sequence = (self._sequence + 1) & 0xFFFF
        request = echo_request(destination.version, self._sequence)
        opened = self._socket(device, destination.version)
        # What the kernel says here (no route, no buffer) is what a lost probe says, too.
        with suppress(OSError):
            opened.sendto(request, socket.MSG_DONTWAIT, (str(destination), 0))

    def _socket(self, device: str, version: int) -> socket.socket:
        opened = self._sockets.get((device, version))
        if opened is None:
            try:
                opened = socket.socket(_FAMILIES[version], socket.SOCK_RAW | socket.SOCK_CLOEXEC, _PROTOCOL[version])
                opened.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode() + b"\0")
                if version == 4:
                    opened.setsockopt(_SOL_RAW, _ICMP_FILTER, struct.pack("=I", 0xFFFFFFFF))
                else:
                    opened.setsockopt(socket.IPPROTO_ICMPV6, _ICMPV6_FILTER, b"\xff" * 32)
            except OSError as error:
                raise HostError(f"{device}: cannot make a socket for probes: {error.strerror}") from None
            self._sockets[device, version] = opened
        return opened


def echo_request(version: int, sequence: int) -> bytes:
    """An ICMP echo request (RFC 792, RFC 4443). The kernel fills in the checksum of ICMPv6, not that of ICMP."""
    head = struct.pack("!BBHHH", _ECHO_REQUEST[version], 0, 0, 0x6476, sequence)
    data = head + _TEXT
    if version == 6:
        return data
    return data[:2] + struct.pack("!H", _checksum(data)) + data[4:]


def _checksum(data: bytes) -> int:
    total: int = sum(struct.unpack(f"!{(len(data) + 1) // 2}H", data + b"\0" * (len(data) % 2)))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
