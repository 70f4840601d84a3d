"""What the gateway makes and watches in this host's network: devices, addresses, routes."""

from __future__ import annotations

import errno
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import IPv4Interface, IPv6Interface
from pathlib import Path
from typing import Any

from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from dsvpn.addresses import Address, Prefix
from dsvpn.errors import HostError
from dsvpn.gateway.forwarding import Via
from dsvpn.io.guards import Guards
from dsvpn.io.resync import Resync
from dsvpn.io.routes import OWN_PROTOCOL, RouteChange, RouteMirror
from dsvpn.io.rtnetlink import (
    FAMILIES,
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    RT_TABLE_MAIN,
    RTM_DELADDR,
    RTM_DELNEXTHOP,
    RTM_DELROUTE,
    RTM_GETADDR,
    RTM_GETLINK,
    RTM_GETROUTE,
    RTM_NEWADDR,
    RTM_NEWLINK,
    RTM_NEWNEXTHOP,
    RTM_NEWROUTE,
    RTN_LOCAL,
    RTN_UNICAST,
    RTNH_F_ONLINK,
    CoveringSearch,
    KernelRoute,
    Message,
    MonitorSocket,
    RequestSocket,
    decode_route,
    route_covers,
    route_message,
)
from dsvpn.io.sources import IFF_UP, HostAddresses, Source, address_family, link_index
from dsvpn.io.vrf import Vrf, find_vrf
from dsvpn.nhrp import Route

#: Metric of shortcut routes: better than what routing daemons give (20 and up), worse than a bare `ip route add`.
SHORTCUT_METRIC = 10
_RTPROT_STATIC = 4
_RT_SCOPE_LINK = 253
_RT_SCOPE_NOWHERE = 255
#: The TUN's default of 500 drops the bursts that a TCP sender with a full window makes.
_TXQUEUELEN = 2000
#: Datagrams taken from the monitor before the event loop gets its turn again.
_MONITOR_BUDGET = 64

Interface = IPv4Interface | IPv6Interface


@dataclass(slots=True)
class _Device:
    name: str
    index: int
    addresses: tuple[Interface, ...]
    static_routes: tuple[tuple[Prefix, tuple[Address, ...]], ...]
    shortcuts: dict[Prefix, Address | None] = field(default_factory=dict)
    up: bool = True
    vrf: Vrf | None = None

    @property
    def table(self) -> int:
        """The table of its routes."""
        return RT_TABLE_MAIN if self.vrf is None else self.vrf.table


class Netlink:
    """The kernel's view of this gateway's tunnels.

    Every method that changes something raises HostError with one line that says what could not be done and why.
    """

    def __init__(self) -> None:
        try:
            self._monitor = MonitorSocket()
            self._requests = RequestSocket()
        except OSError as error:
            raise HostError(f"cannot open a netlink socket: {error.strerror}") from None
        self._devices: dict[str, _Device] = {}
        self._mirror = RouteMirror()
        self._resync = Resync(self._mirror)
        self._addresses = HostAddresses()
        #: The monitor has lost messages, and all that waits has been read since.
        self._lost = self._drained = False
        self._overruns = 0
        self._load_addresses()

    def fileno(self) -> int:
        """The monitor's descriptor, readable when something has changed."""
        return self._monitor.fileno()

    def close(self) -> None:
        """Close the sockets. Routes of a tunnel go with its device."""
        self._monitor.close()
        self._requests.close()
        self._resync.close()

    # -- devices -------------------------------------------------------------------------------------------

    def has_link(self, name: str) -> bool:
        """Whether a device of that name exists."""
        self._load_addresses()
        return self._addresses.index(name) is not None

    def add_tunnel(
        self,
        name: str,
        addresses: Iterable[Interface],
        mtu: int,
        routes: Iterable[tuple[Prefix, tuple[Address, ...]]] = (),
        vrf: str | None = None,
    ) -> None:
        """Set up the tunnel device `name`, which exists: addresses, MTU in octets, up, static routes (prefix, its
        gateways), all in the VRF if one is named."""
        self._load_addresses()
        index = self._addresses.index(name)
        if index is None:
            raise HostError(f"{name}: the device is gone")
        device = _Device(name, index, tuple(addresses), tuple(routes))
        self._quieten(device)
        if vrf is not None:
            device.vrf = self.vrf(vrf)
            self._set_link(device, f"put it into the VRF {vrf}", [("IFLA_MASTER", device.vrf.index)])
        self._set_link(device, "set its MTU", [("IFLA_MTU", mtu)])
        self._set_link(device, "set its queue length", [("IFLA_TXQLEN", _TXQUEUELEN)])
        self._set_link(device, "bring it up", [], up=True)
        self._assign(device)
        self._devices[name] = device
        self._mirror.add_tunnel(name, index, device.table)
        for prefix, via in device.static_routes:
            self._write_static(device, prefix, via)

    def vrf(self, name: str) -> Vrf:
        """The VRF of that name; HostError if there is none."""
        return find_vrf(self._requests, name)

    def set_mtu(self, name: str, mtu: int) -> None:
        """Change the MTU of a tunnel device, octets."""
        self._set_link(self._devices[name], f"set its MTU to {mtu}", [("IFLA_MTU", mtu)])

    def _set_link(self, device: _Device, what: str, attributes: list[tuple[str, int]], *, up: bool = False) -> None:
        message: Any = ifinfmsg()
        message["index"] = device.index
        message["flags"] = message["change"] = IFF_UP if up else 0
        message["attrs"] = attributes
        try:
            self._requests.change(RTM_NEWLINK, message)
        except OSError as error:
            raise HostError(f"{device.name}: cannot {what}: {error.strerror}") from None

    def _assign(self, device: _Device) -> None:
        for interface in device.addresses:
            message: Any = ifaddrmsg()
            message["family"] = FAMILIES[interface.version]
            message["prefixlen"] = interface.network.prefixlen
            message["index"] = device.index
            message["attrs"] = [("IFA_LOCAL", str(interface.ip)), ("IFA_ADDRESS", str(interface.ip))]
            try:
                self._requests.change(RTM_NEWADDR, message, NLM_F_CREATE | NLM_F_REPLACE)
            except OSError as error:
                raise HostError(f"{device.name}: cannot assign {interface}: {error.strerror}") from None

    def _quieten(self, device: _Device) -> None:
        # A device without IPv6 of its own needs no link-local address, whose router solicitations and multicast
        # reports would only count as drops. Redirects between peers of one device are NHRP's business, not ICMP's.
        settings = {f"ipv4/conf/{device.name}/send_redirects": "0", f"ipv4/conf/{device.name}/accept_redirects": "0"}
        if all(interface.version == 4 for interface in device.addresses):
            settings[f"ipv6/conf/{device.name}/addr_gen_mode"] = "1"
        for key, value in settings.items():
            with suppress(OSError):  # read-only in some containers; nothing depends on it
                Path("/proc/sys/net", key).write_text(value)

    # -- routes that this gateway writes -------------------------------------------------------------------

    def install_shortcut(self, tunnel: str, prefix: Prefix, via: Address | None) -> None:
        """Show a shortcut to the kernel, or change the one that is there."""
        device = self._devices[tunnel]
        device.shortcuts[prefix] = via
        self._write_shortcut(device, prefix, via)

    def remove_shortcut(self, tunnel: str, prefix: Prefix) -> None:
        """Take a shortcut out of the kernel. One that somebody else took out before is no error."""
        device = self._devices[tunnel]
        device.shortcuts.pop(prefix, None)
        message = self._route(device, prefix, None, OWN_PROTOCOL, SHORTCUT_METRIC)
        message["scope"] = _RT_SCOPE_NOWHERE  # any: whether it has a gateway does not matter
        try:
            self._requests.change(RTM_DELROUTE, message)
        except OSError as error:
            if error.errno != errno.ESRCH:
                raise HostError(f"{tunnel}: cannot remove the shortcut {prefix}: {error.strerror}") from None

    def _write_shortcut(self, device: _Device, prefix: Prefix, via: Address | None) -> None:
        message = self._route(device, prefix, via, OWN_PROTOCOL, SHORTCUT_METRIC)
        try:
            self._requests.change(RTM_NEWROUTE, message, NLM_F_CREATE | NLM_F_REPLACE)
        except OSError as error:
            raise HostError(
                f"{device.name}: cannot write the shortcut {prefix} via {via or 'the link'}: {error.strerror}"
            ) from None

    def _write_static(self, device: _Device, prefix: Prefix, via: tuple[Address, ...]) -> None:
        # Without NLM_F_REPLACE: a route that the operator or a daemon has already is theirs.
        message = self._route(device, prefix, via[0], _RTPROT_STATIC, None)
        if len(via) > 1:
            way = {"oif": device.index, "flags": RTNH_F_ONLINK, "hops": 0}
            ways = [way | {"attrs": [("RTA_GATEWAY", str(gateway))]} for gateway in via]
            message["flags"] = 0
            kept = [pair for pair in message["attrs"] if pair[0] in ("RTA_DST", "RTA_TABLE")]
            message["attrs"] = [*kept, ("RTA_MULTIPATH", ways)]
        try:
            self._requests.change(RTM_NEWROUTE, message, NLM_F_CREATE | NLM_F_EXCL)
        except OSError as error:
            reason = "the kernel has another route for it" if error.errno == errno.EEXIST else error.strerror
            raise HostError(
                f"{device.name}: cannot add the route {prefix} via {', '.join(map(str, via))}: {reason}"
            ) from None

    @staticmethod
    def _route(device: _Device, prefix: Prefix, via: Address | None, protocol: int, metric: int | None) -> Any:
        message = route_message(prefix, device.table, protocol, RTN_UNICAST)
        message["scope"] = 0 if via is not None or prefix.version == 6 else _RT_SCOPE_LINK
        message["attrs"].append(("RTA_OIF", device.index))
        if via is not None:
            # The next hop is a tunnel address that need not lie in the device's prefix (a /32 is a fair choice).
            message["flags"] = RTNH_F_ONLINK
            message["attrs"].append(("RTA_GATEWAY", str(via)))
        if metric is not None:
            message["attrs"].append(("RTA_PRIORITY", metric))
        return message

    def guards(self, name: str) -> Guards:
        """The unreachable routes of the gateway `name`."""
        return Guards(self._requests, name)

    # -- what the kernel says ------------------------------------------------------------------------------

    def source(self, wanted: str | Address, version: int) -> Source:
        """The underlay address that a tunnel's `source` stands for at the moment."""
        return self._addresses.source(wanted, version)

    @property
    def busy(self) -> bool:
        """Whether routes are being looked at anew: call `read_changes` again soon, whether the monitor is readable or
        not."""
        # All that waits may have been read without its showing: the monitor is not readable then.
        return self._resync.busy or (self._lost and not self._drained)

    @property
    def counters(self) -> dict[str, int]:
        """How often the monitor has lost messages, and how often a tunnel's routes were looked at anew."""
        return {"netlink_overruns": self._overruns, "netlink_resyncs": self._resync.count}

    def resync(self) -> list[RouteChange]:
        """Look at everything anew, at once: at the start."""
        self._look_at_all()
        changes: list[RouteChange] = []
        while self._resync.busy:
            self._resync.check()
            changes.extend(self._resync.step())
        return changes

    def read_changes(self) -> list[RouteChange]:
        """Take in what has changed, as much as does not keep the event loop for long; `busy` tells that there is more.
        Sources may have changed too: ask for them after this."""
        self._resync.check()
        messages, lost, self._drained = self._monitor.read(_MONITOR_BUDGET)
        if lost:
            self._lost = True
            self._overruns += 1
        if self._lost:
            messages.clear()  # there may be tens of thousands, and the look that follows tells more
        changes: list[RouteChange] = []
        stale: set[str] = set()
        for message in messages:
            if message.kind in (RTM_NEWROUTE, RTM_DELROUTE):
                self._resync.disturb()
                route = decode_route(message)
                if route is None:
                    continue
                if message.kind == RTM_NEWROUTE:
                    changes.extend(self._mirror.changed(route, replaces=bool(message.flags & NLM_F_REPLACE)))
                else:
                    changes.extend(self._mirror.removed(route))
            elif message.kind in (RTM_NEWNEXTHOP, RTM_DELNEXTHOP):
                stale.update(self._devices)
            elif self._addresses.receive(message):
                stale.update(self._stale(message))
        self._look_at(stale)
        # Not before all that waits has been read: until then, what happens is lost as well.
        if self._lost and self._drained:
            self._look_at_all()
            self._lost = False
        changes.extend(self._resync.step())
        return changes

    def _stale(self, message: Message) -> Iterable[str]:
        """The tunnels whose routes may have gone without a word, by what a link or address message says.

        The kernel drops a device's routes when the device goes down, and IPv4 routes when the source address that they
        name goes (of which newer kernels tell). Other devices and addresses, of which containers make many, take
        nothing from a tunnel.
        """
        if message.kind == RTM_DELADDR and address_family(message) == FAMILIES[4]:
            return self._devices
        index = link_index(message)
        return [name for name, device in self._devices.items() if device.index == index]

    def _look_at_all(self) -> None:
        self._load_addresses()
        self._look_at(self._devices)

    def _look_at(self, names: Iterable[str]) -> None:
        devices = [self._devices[name] for name in names]
        for device in devices:
            self._resync.request(device.name, device.index)
        for device in devices:
            self._restore(device)

    def _restore(self, device: _Device) -> None:
        """Write again what the kernel forgot while somebody had the device down."""
        came_up = self._addresses.is_up(device.index) and not device.up
        device.up = self._addresses.is_up(device.index)
        if not came_up:
            return
        self._assign(device)
        for prefix, via in device.static_routes:
            with suppress(HostError):  # the one route that may be there already is what is wanted
                self._write_static(device, prefix, via)
        for prefix, shortcut in device.shortcuts.items():
            self._write_shortcut(device, prefix, shortcut)

    def routes(self, tunnel: str) -> dict[Prefix, Via]:
        """The mirrored routes of a tunnel with their next hops."""
        return self._mirror.best(tunnel)

    def route_lookup(self, tunnel: str, destination: Address) -> Route | None:
        """The longest match that the kernel has for a destination, shortcuts of this gateway left out.

        Policy rules are followed as for a packet of this host's own. None: there is no route, or it is one that
        refuses (unreachable, blackhole, prohibit).
        """
        device = self._devices[tunnel]
        try:
            match = decode_route(self._requests.route_to(destination, 0 if device.vrf is None else device.vrf.index))
        except OSError:
            return None  # ENETUNREACH, EHOSTUNREACH, EACCES, EINVAL: the kinds of route that refuse
        if match is not None and self._is_shortcut(match):
            match = self._covering(destination, device.table)
        if match is None or match.kind not in (RTN_UNICAST, RTN_LOCAL):
            return None
        if match.kind == RTN_LOCAL:
            return Route(match.prefix, tunnel=False, next_hop=None, local=True)
        hop = match.hop_through(device.index)
        if hop is not None:
            return Route(match.prefix, tunnel=True, next_hop=hop.gateway, local=False)
        return Route(match.prefix, tunnel=False, next_hop=match.hops[0].gateway if match.hops else None, local=False)

    def _is_shortcut(self, route: KernelRoute) -> bool:
        return route.protocol == OWN_PROTOCOL and any(
            route.hop_through(device.index) is not None for device in self._devices.values()
        )

    def _covering(self, destination: Address, table: int) -> KernelRoute | None:
        """What the kernel would follow if there were no shortcut.

        The kernel has no question for that, so the table is read. Only a destination that has a shortcut comes
        here, which is once in a holding time.
        """
        best: KernelRoute | None = None
        for message in self._dump(destination.version, table, CoveringSearch(destination)):
            if not route_covers(message, destination):
                continue
            route = decode_route(message)
            if (
                route is not None
                and route.table == table
                and not self._is_shortcut(route)
                and (best is None or _preference(route) > _preference(best))
            ):
                best = route
        return best

    def _dump(self, version: int, table: int, search: CoveringSearch) -> list[Message]:
        """The routes of a table that pass a search."""
        message: Any = rtmsg()
        message["family"] = FAMILIES[version]
        message["attrs"] = [("RTA_TABLE", table)]
        try:
            answer = self._requests.dump(RTM_GETROUTE, message, search)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EOPNOTSUPP, errno.EAFNOSUPPORT):
                return []  # no such table yet, or a host without this family
            raise HostError(f"cannot read the kernel's routes: {error.strerror}") from None
        return [part for part in answer if part.kind == RTM_NEWROUTE]

    def _load_addresses(self) -> None:
        self._addresses.clear()
        for kind, message in ((RTM_GETLINK, ifinfmsg()), (RTM_GETADDR, ifaddrmsg())):
            try:
                answer = self._requests.dump(kind, message)
            except OSError as error:
                raise HostError(f"cannot read the host's interfaces: {error.strerror}") from None
            for part in answer:
                self._addresses.receive(part)


def _preference(route: KernelRoute) -> tuple[int, int]:
    return route.prefix.prefixlen, -route.metric


def forwards(version: int) -> bool:
    """Whether this host forwards packets of an IP version."""
    key = "ipv4/ip_forward" if version == 4 else "ipv6/conf/all/forwarding"
    try:
        return Path("/proc/sys/net", key).read_text().strip() != "0"
    except OSError:
        return True  # not readable, so nothing to warn of
