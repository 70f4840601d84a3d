"""A peer that is not us: FRR's nhrpd on the Linux kernel's own mGRE, in a User-Mode Linux guest.

With a `Connection`, strongSwan protects the GRE underneath. nhrpd knows nothing of that: what it offers for IPsec
(vici) needs a strongSwan with FRR's patches, which no distribution has.

The guest takes the place of one site of the lab. Its network card is a tap device in the internet namespace.
"""

from __future__ import annotations

import json
import shlex
from ipaddress import IPv4Address, IPv4Network
from typing import Any

from dsvpn.lab.topology import HUB, SITES, SUMMARY, Site, Topology
from tests.interop.packages import FRR, FRR_AND_STRONGSWAN, tree
from tests.interop.strongswan import Connection, settings
from tests.interop.uml import Guest

_TAP = "guest"


class FrrGuest:
    """FRR as the hub or as spoke2 of the lab. Use `start` once; the run that owns the topology ends it."""

    def __init__(
        self, topology: Topology, site: Site, *, key: int, holding_time: int = 60, ipsec: Connection | None = None
    ) -> None:
        assert not site.behind_nat, "a guest has its card in the internet namespace"
        self._ipsec = ipsec
        self.site = site
        self._topology = topology
        self._key = key
        self._holding_time = holding_time
        packages = tree("frr", FRR) if ipsec is None else tree("frr-ipsec", FRR_AND_STRONGSWAN)
        self._guest = Guest(topology.run, site.name, packages, "frr")

    def start(self) -> None:
        """Boot, and wait until the daemons run."""
        (self._guest.boot / "routes").write_text("".join(f"{prefix} {via}\n" for prefix, via in self._routes()))
        (self._guest.boot / "frr.conf").write_text(self._frr_conf())
        if self._ipsec is not None:
            swanctl = self._guest.control / "swanctl"
            swanctl.mkdir()
            remote = IPv4Address("0.0.0.0") if self.site is HUB else HUB.public
            (swanctl / "swanctl.conf").write_text(self._ipsec.text(remote))
            (self._guest.control / "strongswan.conf").write_text(settings())
        self._plug_in()
        environment = {
            "name": self.site.name,
            "role": "hub" if self.site is HUB else "spoke",
            "wan": str(self.site.wan),
            "gateway": str(self.site.wan_gateway),
            "tunnel": str(self.site.tunnel),
            "lan": f"{self.site.host}/{self.site.lan.prefixlen}",
            "key": str(self._key),
        }
        self._guest.start(_TAP, self._topology.internet.name, environment)

    def run(self, command: str, timeout: float = 30.0) -> str:
        """Run a shell command in the guest and give its output, whatever its exit status."""
        return self._guest.run(command, timeout)

    def vtysh(self, command: str) -> Any:
        """A show command of FRR that answers in JSON."""
        return json.loads(self.run(f"vtysh -c {shlex.quote(command)}"))

    def cache(self) -> dict[IPv4Address, IPv4Address]:
        """FRR's NHRP cache: protocol address -> NBMA address, without its own entry."""
        table = self.vtysh("show ip nhrp cache json")["table"]
        return {IPv4Address(row["protocol"]): IPv4Address(row["nbma"]) for row in table if row["type"] != "local"}

    def answers(self, target: IPv4Address, *, source: IPv4Address | None = None, count: int = 3) -> int:
        """How many of `count` pings from inside the guest are answered."""
        (pings,) = self._guest.ping(target, count, interval=0.2, bind=source)
        return pings.received

    def _routes(self) -> list[tuple[IPv4Network, IPv4Address]]:
        if self.site is HUB:
            return [(site.lan, site.tunnel) for site in SITES if site is not HUB]
        return [(SUMMARY, HUB.tunnel)]

    def _frr_conf(self) -> str:
        interface = [
            "ip nhrp network-id 1",
            f"ip nhrp holdtime {self._holding_time}",
            "ip nhrp registration no-unique",
            "tunnel source vec0",
        ]
        if self.site is HUB:
            top = ["nhrp nflog-group 1"]
            interface += ["ip nhrp redirect", "ip nhrp map multicast dynamic"]
        else:
            top = []
            interface += ["ip nhrp shortcut", f"ip nhrp nhs dynamic nbma {HUB.public}"]
        lines = [f"hostname {self.site.name}", "log file /ctl/frr.log debugging", "debug nhrp all", *top]
        return "\n".join([*lines, "interface gre1", *(f" {line}" for line in interface), "exit", ""])

    def _plug_in(self) -> None:
        internet = self._topology.internet
        internet.ip("link", "delete", self.site.name)
        internet.ip("tuntap", "add", _TAP, "mode", "tap")
        internet.ip("address", "add", f"{self.site.wan_gateway}/{self.site.wan.network.prefixlen}", "dev", _TAP)
        internet.ip("link", "set", _TAP, "up")
