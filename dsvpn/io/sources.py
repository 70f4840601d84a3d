"""Which underlay address a tunnel sends from: the links and addresses of this host, and what changes in them."""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

from dsvpn.addresses import Address
from dsvpn.io.rtnetlink import RTM_DELADDR, RTM_DELLINK, RTM_NEWADDR, RTM_NEWLINK, Message

IFF_UP = 0x1
#: What stands before struct ifinfomsg and struct ifaddrmsg, which have the family and the index at the same places.
_NLMSGHDR = 16
_IFA_F_SECONDARY = 0x01
_IFA_F_DADFAILED = 0x08
_IFA_F_DEPRECATED = 0x20
_IFA_F_TENTATIVE = 0x40
_SCOPE_UNIVERSE = 0
_SCOPE_LINK = 253


def address_family(message: Message) -> int:
    """The family that a link or address message is about: AF_INET, AF_INET6, ..."""
    return message.data[_NLMSGHDR]


def link_index(message: Message) -> int:
    """The index of the device that a link or address message is about."""
    (index,) = struct.unpack_from("=i", message.data, _NLMSGHDR + 4)
    return int(index)


@dataclass(frozen=True, slots=True)
class Source:
    """The underlay side of a tunnel: the address that it sends from (None: there is none) and its device's MTU."""

    address: Address | None
    mtu: int


@dataclass(slots=True)
class _Link:
    name: str
    mtu: int
    up: bool


@dataclass(frozen=True, slots=True)
class _Assigned:
    address: Address
    scope: int
    secondary: bool
    usable: bool

    def worth(self, version: int) -> tuple[bool, bool, bool]:
        """What makes an address the source: its family, a wide scope, being the first of its prefix."""
        return self.address.version != version, self.scope != _SCOPE_UNIVERSE, self.secondary


#: MTU to report while there is no device: the least that IPv6 allows, which every adjacency survives.
_NO_DEVICE_MTU = 1280


class HostAddresses:
    """Links and addresses as the kernel tells them."""

    def __init__(self) -> None:
        self._links: dict[int, _Link] = {}
        self._addresses: dict[int, dict[Address, _Assigned]] = {}

    def clear(self) -> None:
        """Forget everything, before a dump is taken in."""
        self._links.clear()
        self._addresses.clear()

    def receive(self, message: Message) -> bool:
        """Take in a link or address message; False if it is neither."""
        if message.kind in (RTM_NEWLINK, RTM_DELLINK):
            decoded: Any = ifinfmsg(message.data)
            decoded.decode()
            # Bridge ports are told again in AF_BRIDGE, also when they merely leave the bridge.
            if decoded["family"] == socket.AF_UNSPEC:
                self._take_link(decoded, gone=message.kind == RTM_DELLINK)
            return True
        if message.kind in (RTM_NEWADDR, RTM_DELADDR):
            decoded = ifaddrmsg(message.data)
            decoded.decode()
            self._take_address(decoded, gone=message.kind == RTM_DELADDR)
            return True
        return False

    def index(self, name: str) -> int | None:
        """The index of a link, None if there is no link of that name."""
        return next((index for index, link in self._links.items() if link.name == name), None)

    def is_up(self, index: int) -> bool:
        """Whether a link exists and is up."""
        link = self._links.get(index)
        return link is not None and link.up

    def source(self, wanted: str | Address, version: int) -> Source:
        """The source that an interface name or an address stands for.

        Of an interface's addresses the first global one of the IP version asked for is taken, else of the other one.
        """
        if isinstance(wanted, str):
            index = self.index(wanted)
            if index is None:
                return Source(None, _NO_DEVICE_MTU)
            link = self._links[index]
            assigned = self._addresses.get(index, {}).values()
            usable = [one for one in assigned if one.usable and one.scope < _SCOPE_LINK]
            if not link.up or not usable:
                return Source(None, link.mtu)
            return Source(min(usable, key=lambda one: one.worth(version)).address, link.mtu)
        for index, addresses in self._addresses.items():
            if wanted in addresses and addresses[wanted].usable and self.is_up(index):
                return Source(wanted, self._links[index].mtu)
        return Source(None, _NO_DEVICE_MTU)

    def _take_link(self, message: Any, *, gone: bool) -> None:
        index = message["index"]
        if gone:
            self._links.pop(index, None)
            self._addresses.pop(index, None)
            return
        name, mtu = message.get_attr("IFLA_IFNAME"), message.get_attr("IFLA_MTU")
        if name is not None and mtu is not None:
            self._links[index] = _Link(name, mtu, bool(message["flags"] & IFF_UP))

    def _take_address(self, message: Any, *, gone: bool) -> None:
        # On a point-to-point link IFA_ADDRESS is the far end's, IFA_LOCAL this end's; IPv6 may have the former alone.
        text = message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
        if text is None:
            return
        address = ip_address(text)
        addresses = self._addresses.setdefault(message["index"], {})
        if gone:
            addresses.pop(address, None)
            return
        flags = message.get_attr("IFA_FLAGS")
        flags = message["flags"] if flags is None else flags
        addresses[address] = _Assigned(
            address,
            message["scope"],
            bool(flags & _IFA_F_SECONDARY),
            not flags & (_IFA_F_TENTATIVE | _IFA_F_DADFAILED | _IFA_F_DEPRECATED),
        )
