"""VRFs of the Linux kernel (Documentation/networking/vrf.rst): a device that stands for a routing table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

from dsvpn.errors import HostError
from dsvpn.io.rtnetlink import RTM_GETLINK, Message, RequestSocket


@dataclass(frozen=True, slots=True)
class Vrf:
    """A VRF: its device's name and index, and its routing table."""

    name: str
    index: int
    table: int


def find_vrf(requests: RequestSocket, name: str) -> Vrf:
    """The VRF of that name. HostError if there is none, or if the device is none."""
    try:
        links = requests.dump(RTM_GETLINK, ifinfmsg())
    except OSError as error:
        raise HostError(f"cannot read the host's interfaces: {error.strerror}") from None
    for link in links:
        message: Any = ifinfmsg(link.data)
        message.decode()
        if message.get_attr("IFLA_IFNAME") == name:
            return decode_vrf(link, name)
    raise HostError(
        f"there is no VRF named {name}; make it with `ip link add {name} type vrf table NUMBER` and "
        f"`ip link set {name} up` (the kernel needs CONFIG_NET_VRF)"
    )


def decode_vrf(link: Message, name: str) -> Vrf:
    """The VRF that an RTM_NEWLINK message tells of. HostError if it tells of another kind of device."""
    message: Any = ifinfmsg(link.data)
    message.decode()
    information = message.get_attr("IFLA_LINKINFO")
    kind = None if information is None else information.get_attr("IFLA_INFO_KIND")
    data = None if information is None else information.get_attr("IFLA_INFO_DATA")
    table = None if kind != "vrf" or data is None else data.get_attr("IFLA_VRF_TABLE")
    if table is None:
        raise HostError(
            f"{name} is no VRF ({kind or 'a device of another kind'}); write the name of a device of type vrf"
        )
    return Vrf(name, int(message["index"]), int(table))
