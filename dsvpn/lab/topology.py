"""The network of the lab: an internet that routes, a NAT box, three gateways, a LAN host behind each.

    hub-lan ── hub ───────────────┐
                                  internet ── spoke2 ── spoke2-lan
    spoke1-lan ── spoke1 ── nat ──┘

Every box is a network namespace and every line a veth pair. The internet routes between subnets of 192.0.2.0/24 and
knows no private address, so that a packet that leaves a tunnel in clear cannot arrive by accident.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

from dsvpn.lab.run import Run, command

#: MTU of every underlay link, octets.
UNDERLAY_MTU = 1500
#: Prefix of all LANs: the summary that spokes point at the hub.
SUMMARY = IPv4Network("172.16.0.0/12")
#: The tunnel's own prefix.
TUNNEL_PREFIX = IPv4Network("10.0.0.0/24")
#: Second addresses of the LAN hosts, for traffic that goes by another VPN in the same run.
COMPARISON = IPv4Network("198.18.0.0/16")
#: Ports of the internet namespace, where every underlay frame enters exactly once.
_NAT_OUTSIDE = IPv4Interface("192.0.2.18/29")


@dataclass(frozen=True, slots=True)
class Site:
    """A gateway with its LAN. `wan` is its own underlay address, `public` the one that others see."""

    name: str
    wan: IPv4Interface
    wan_gateway: IPv4Address
    public: IPv4Address
    tunnel: IPv4Address
    lan: IPv4Network

    @property
    def behind_nat(self) -> bool:
        """Whether others see another address than its own."""
        return self.wan.ip != self.public

    @property
    def lan_gateway(self) -> IPv4Address:
        """The gateway's address in its LAN."""
        return self.lan[1]

    @property
    def host(self) -> IPv4Address:
        """The LAN host's address."""
        return self.lan[10]

    @property
    def comparison(self) -> IPv4Network:
        """Prefix of the LAN host's second address."""
        return IPv4Network(f"198.18.{self.lan.network_address.packed[2]}.0/24")

    @property
    def comparison_host(self) -> IPv4Address:
        """The LAN host's second address."""
        return self.comparison[10]


HUB = Site(
    "hub",
    IPv4Interface("192.0.2.1/29"),
    IPv4Address("192.0.2.6"),
    IPv4Address("192.0.2.1"),
    IPv4Address("10.0.0.1"),
    IPv4Network("172.16.0.0/24"),
)
#: Behind the NAT box: others see the box's outside address.
SPOKE1 = Site(
    "spoke1",
    IPv4Interface("192.168.100.11/24"),
    IPv4Address("192.168.100.1"),
    _NAT_OUTSIDE.ip,
    IPv4Address("10.0.0.11"),
    IPv4Network("172.16.1.0/24"),
)
SPOKE2 = Site(
    "spoke2",
    IPv4Interface("192.0.2.12/29"),
    IPv4Address("192.0.2.9"),
    IPv4Address("192.0.2.12"),
    IPv4Address("10.0.0.12"),
    IPv4Network("172.16.2.0/24"),
)
SITES = (HUB, SPOKE1, SPOKE2)


class Namespace:
    """One box of the network."""

    def __init__(self, run: Run, role: str) -> None:
        self.run_book = run
        self.role = role
        self.name = f"{run.prefix}-{role}"

    def create(self) -> None:
        """Make it, its loopback up, without IPv6 autoconfiguration chatter on the links to come."""
        self.run_book.add_namespace(self.name)
        self.ip("link", "set", "lo", "up")

    def command(self, argv: Sequence[str], *, stdin: str | None = None, timeout: float = 60.0) -> str:
        """Run a command in it to its end and give its output; HostError if it fails."""
        return command(["ip", "netns", "exec", self.name, *argv], stdin=stdin, timeout=timeout)

    def ip(self, *arguments: str) -> str:
        """Run `ip` in it."""
        return command(["ip", "-n", self.name, *arguments])

    def set(self, **values: str | int) -> None:
        """Set sysctls of net.*, a double underscore standing for a dot. One that the kernel lacks is left out."""
        lines = []
        for key, value in values.items():
            path = f"/proc/sys/net/{key.replace('__', '/')}"
            lines.append(f"[ ! -e {path} ] || echo {value} > {path}")
        self.command(["sh", "-e", "-c", "\n".join(lines)])

    def forward(self) -> None:
        """Make it a router that tells nobody of better ways."""
        self.set(ipv4__ip_forward=1, ipv4__conf__all__send_redirects=0, ipv4__conf__default__send_redirects=0)

    def cable(self, device: str, other: Namespace, other_device: str) -> None:
        """Make a veth pair between a device here and one in another namespace, both up."""
        self.ip(
            *("link", "add", device, "mtu", str(UNDERLAY_MTU), "type", "veth"),
            *("peer", "name", other_device, "mtu", str(UNDERLAY_MTU), "netns", other.name),
        )
        for namespace, end in ((self, device), (other, other_device)):
            # IPv4 only: neighbour discovery of an unused protocol would only blur the captures.
            namespace.set(**{f"ipv6__conf__{end}__disable_ipv6": 1})
            namespace.ip("link", "set", end, "up")


class Topology:
    """The whole network. `nat` is the statement that the NAT box translates with ("masquerade fully-random" changes
    every port, as carrier-grade boxes do)."""

    def __init__(self, run: Run, *, nat: str = "masquerade") -> None:
        self.run = run
        self._nat_statement = nat
        self.internet = Namespace(run, "internet")
        self.nat = Namespace(run, "nat")
        self.gateways = {site.name: Namespace(run, site.name) for site in SITES}
        self.hosts = {site.name: Namespace(run, f"{site.name}-lan") for site in SITES}

    #: Devices of the internet namespace.
    ports = ("hub", "spoke2", "nat")

    def build(self) -> None:
        """Make all of it. HostError says which step the machine refused."""
        for namespace in (self.internet, self.nat, *self.gateways.values(), *self.hosts.values()):
            namespace.create()
        for router in (self.internet, self.nat, *self.gateways.values()):
            router.forward()
        self._underlay(self.gateways["hub"], "eth0", HUB.wan, "hub", HUB.wan_gateway)
        self._underlay(self.gateways["spoke2"], "eth0", SPOKE2.wan, "spoke2", SPOKE2.wan_gateway)
        self._underlay(self.nat, "outside", _NAT_OUTSIDE, "nat", _NAT_OUTSIDE.network[1])
        self._nat_box()
        for site in SITES:
            self._lan(site)

    def _underlay(
        self, namespace: Namespace, device: str, address: IPv4Interface, port: str, gateway: IPv4Address
    ) -> None:
        namespace.cable(device, self.internet, port)
        namespace.ip("address", "add", str(address), "dev", device)
        self.internet.ip("address", "add", f"{gateway}/{address.network.prefixlen}", "dev", port)
        namespace.ip("route", "add", "default", "via", str(gateway))

    def _nat_box(self) -> None:
        spoke = self.gateways["spoke1"]
        spoke.cable("eth0", self.nat, "inside")
        spoke.ip("address", "add", str(SPOKE1.wan), "dev", "eth0")
        self.nat.ip("address", "add", f"{SPOKE1.wan_gateway}/{SPOKE1.wan.network.prefixlen}", "dev", "inside")
        spoke.ip("route", "add", "default", "via", str(SPOKE1.wan_gateway))
        # A home router: translates what leaves, takes only answers, and is silent to strangers.
        self.nat.command(
            ["nft", "-f", "-"],
            stdin=f"""
table ip nat_box {{
  chain outgoing {{
    type nat hook postrouting priority 100; policy accept;
    oifname "outside" {self._nat_statement}
  }}
  chain forwarded {{
    type filter hook forward priority 0; policy drop;
    iifname "inside" accept
    ct state established,related accept
  }}
  chain incoming {{
    type filter hook input priority 0; policy accept;
    iifname "outside" ct state != established,related drop
  }}
}}
""",
        )

    def _lan(self, site: Site) -> None:
        gateway, host = self.gateways[site.name], self.hosts[site.name]
        gateway.cable("lan", host, "eth0")
        for network, address in ((site.lan, site.host), (site.comparison, site.comparison_host)):
            gateway.ip("address", "add", f"{network[1]}/{network.prefixlen}", "dev", "lan")
            host.ip("address", "add", f"{address}/{network.prefixlen}", "dev", "eth0")
        host.ip("route", "add", "default", "via", str(site.lan_gateway))
