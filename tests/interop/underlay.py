"""The underlay between a guest and a gateway of ours: two routers, each of which can be a NAT box.

    guest ──tap── left ── right ── ours

A peer behind NAT that is to be called has UDP 500 and 4500 of its box forwarded to it, as operators do.
"""

from __future__ import annotations

import itertools
import json
from ipaddress import IPv4Address, IPv4Interface

from dsvpn.lab.run import Run
from dsvpn.lab.topology import Namespace, Site

TAP = "guest"
GUEST = IPv4Interface("192.0.2.1/29")
GUEST_GATEWAY = IPv4Address("192.0.2.6")
LEFT = IPv4Address("198.51.100.1")
RIGHT = IPv4Address("198.51.100.2")
OURS = IPv4Interface("203.0.113.1/29")
OURS_GATEWAY = IPv4Address("203.0.113.6")
NEIGHBOUR = IPv4Interface("203.0.113.9/29")
NEIGHBOUR_GATEWAY = IPv4Address("203.0.113.14")

#: IKE_SA_INIT requests (exchange type 34, no response flag) on port 500, found behind the UDP header and the SPIs.
_CALL = "udp dport 500 @th,208,8 34 @th,216,8 & 0x20 == 0"


class Underlay:
    """Three namespaces; the tap device for the guest is in `left`."""

    def __init__(self, run: Run) -> None:
        self.left, self.right, self.ours = (Namespace(run, role) for role in ("left", "right", "ours"))
        self._zones = itertools.count(1)
        self._guest_nat = self._ours_nat = False

    def build(self) -> None:
        """Make it."""
        for namespace in (self.left, self.right, self.ours):
            namespace.create()
        for router in (self.left, self.right):
            router.forward()
        self.left.ip("tuntap", "add", TAP, "mode", "tap")
        self.left.cable("core", self.right, "core")
        self.right.cable("inside", self.ours, "eth0")
        for namespace, device, address in (
            (self.left, TAP, f"{GUEST_GATEWAY}/29"),
            (self.left, "core", f"{LEFT}/30"),
            (self.right, "core", f"{RIGHT}/30"),
            (self.right, "inside", f"{OURS_GATEWAY}/29"),
            (self.ours, "eth0", str(OURS)),
        ):
            namespace.ip("address", "add", address, "dev", device)
        self.left.ip("link", "set", TAP, "up")
        self.left.ip("route", "add", "default", "via", str(RIGHT))
        self.right.ip("route", "add", "default", "via", str(LEFT))
        self.ours.ip("route", "add", "default", "via", str(OURS_GATEWAY))

    def arrange(self, *, guest_nat: bool = False, ours_nat: bool = False, calls: str = "both") -> None:
        """Make the routers NAT boxes or plain routers, without memory of earlier flows, and reset the counters.

        `calls` is whose IKE_SA_INIT gets through: "ours", "theirs", "both" or "neither".
        """
        self._guest_nat, self._ours_nat = guest_nat, ours_nat
        # A connection tracking zone of its own makes every arrangement a box that was just switched on.
        zone = next(self._zones)
        for router, device, nat, inside, closed in (
            (self.left, TAP, guest_nat, GUEST.ip, calls in ("ours", "neither")),
            (self.right, "inside", ours_nat, OURS.ip, calls in ("theirs", "neither")),
        ):
            router.command(["nft", "-f", "-"], stdin=_rules(zone, device, nat=nat, inside=inside, closed=closed))

    def move_ours(self) -> IPv4Address:
        """Give our end another address instead of its own, and say which."""
        fresh = OURS.ip + 1
        self._readdress(IPv4Interface(f"{fresh}/{OURS.network.prefixlen}"), OURS)
        return fresh

    def move_back(self) -> None:
        """Give our end its own address again."""
        self._readdress(OURS, IPv4Interface(f"{OURS.ip + 1}/{OURS.network.prefixlen}"))

    def _readdress(self, new: IPv4Interface, old: IPv4Interface) -> None:
        self.ours.ip("address", "del", str(old), "dev", "eth0")
        self.ours.ip("address", "add", str(new), "dev", "eth0")
        self.ours.ip("route", "replace", "default", "via", str(OURS_GATEWAY))

    @property
    def guest_seen(self) -> IPv4Address:
        """The guest's address as our end sees it."""
        return LEFT if self._guest_nat else GUEST.ip

    @property
    def ours_seen(self) -> IPv4Address:
        """Our address as the guest sees it."""
        return RIGHT if self._ours_nat else OURS.ip

    def add_neighbour(self) -> tuple[Namespace, Site]:
        """A second gateway of ours behind the same box, in a namespace of its own."""
        namespace = Namespace(self.ours.run_book, "neighbour")
        namespace.create()
        self.right.cable("inside2", namespace, "eth0")
        for one, device, address in (
            (self.right, "inside2", f"{NEIGHBOUR_GATEWAY}/29"),
            (namespace, "eth0", str(NEIGHBOUR)),
        ):
            one.ip("address", "add", address, "dev", device)
        namespace.ip("route", "add", "default", "via", str(NEIGHBOUR_GATEWAY))
        lan = IPv4Interface("172.16.2.0/24").network
        return namespace, Site("neighbour", NEIGHBOUR, NEIGHBOUR_GATEWAY, RIGHT, IPv4Address("10.1.0.1"), lan)

    def remove_neighbour(self) -> None:
        """Unplug it; its namespace goes with the run."""
        self.right.ip("link", "delete", "inside2")

    def carried(self) -> dict[str, int]:
        """Octets that went through the routers since `arrange`: esp, natt (ESP in UDP), ike, icmp, other.

        Octets, for a router sees several packets that were sent at once as one.
        """
        listed = json.loads(self.right.command(["nft", "-j", "list", "counters"]))["nftables"]
        return {
            entry["counter"]["name"].removeprefix("n_"): entry["counter"]["bytes"]
            for entry in listed
            if "counter" in entry
        }

    def site(self) -> Site:
        """Our end as a site for `GatewayProcess`."""
        lan = IPv4Interface("172.16.1.0/24").network
        return Site("ours", OURS, OURS_GATEWAY, self.ours_seen, IPv4Address("10.0.0.1"), lan)


def _rules(zone: int, inner: str, *, nat: bool, inside: IPv4Address, closed: bool) -> str:
    # `add` before `delete`: deleting what is not there is an error.
    chains = f"""
  chain enter {{
    type filter hook prerouting priority raw; policy accept;
    ct zone set {zone}
  }}
  chain cross {{
    type filter hook forward priority 0; policy accept;
    {f'iifname "{inner}" {_CALL} drop' if closed else ""}
    ip protocol esp counter name "n_esp" accept
    udp dport 4500 @th,64,32 0 counter name "n_ike" accept
    udp sport 4500 @th,64,32 0 counter name "n_ike" accept
    udp dport 4500 counter name "n_natt" accept
    udp sport 4500 counter name "n_natt" accept
    udp dport 500 counter name "n_ike" accept
    udp sport 500 counter name "n_ike" accept
    ip protocol icmp counter name "n_icmp" accept
    counter name "n_other"
  }}
"""
    if nat:
        chains += f"""
  chain towards {{
    type nat hook prerouting priority dstnat; policy accept;
    iifname "core" udp dport {{ 500, 4500 }} dnat to {inside}
  }}
  chain away {{
    type nat hook postrouting priority srcnat; policy accept;
    oifname "core" masquerade
  }}
"""
    counters = "".join(f"  counter n_{name} {{ }}\n" for name in ("esp", "natt", "ike", "icmp", "other"))
    return f"add table ip box\ndelete table ip box\ntable ip box {{\n{counters}{chains}}}\n"
