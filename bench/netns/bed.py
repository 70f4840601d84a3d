"""The test bed of one contestant.

    left-lan ── left ══ underlay ══ right ── right-lan

Four namespaces and three veth pairs, MTU 1500 everywhere. Every contestant has a bed of its own, so that all of them
can stay up and take turns within one run, whatever ports and devices they use.
"""

from __future__ import annotations

from functools import partial
from ipaddress import IPv4Address, IPv4Network

from dsvpn.lab.measure import ping
from dsvpn.lab.run import Run, wait_until
from dsvpn.lab.topology import Namespace

#: Underlay addresses of the gateways.
LEFT, RIGHT = IPv4Address("192.0.2.1"), IPv4Address("192.0.2.2")
#: Addresses inside the tunnel, where the contestant is one.
TUNNEL = IPv4Network("10.99.0.0/24")
TUNNEL_LEFT, TUNNEL_RIGHT = TUNNEL[1], TUNNEL[2]
LEFT_LAN, RIGHT_LAN = IPv4Network("172.16.1.0/24"), IPv4Network("172.16.2.0/24")
LEFT_HOST, RIGHT_HOST = LEFT_LAN[10], RIGHT_LAN[10]
#: A routed stream without GSO: neither end of the first hop may build superpackets.
_NO_OFFLOADS = ("tso", "off", "gso", "off", "gro", "off")


class Bed:
    """Namespaces of one contestant. `run` owns them."""

    def __init__(self, run: Run, name: str) -> None:
        self.run = run
        self.name = name
        self.left = Namespace(run, f"{name}-left")
        self.right = Namespace(run, f"{name}-right")
        self.left_lan = Namespace(run, f"{name}-left-lan")
        self.right_lan = Namespace(run, f"{name}-right-lan")
        #: Files of this contestant: keys, configurations, logs.
        self.directory = run.directory / name

    def build(self) -> None:
        """Make it. HostError says which step the machine refused."""
        self.directory.mkdir()
        for namespace in (self.left, self.right, self.left_lan, self.right_lan):
            namespace.create()
        for gateway in (self.left, self.right):
            gateway.forward()
        self.left.cable("eth0", self.right, "eth0")
        self.left.ip("address", "add", f"{LEFT}/24", "dev", "eth0")
        self.right.ip("address", "add", f"{RIGHT}/24", "dev", "eth0")
        for gateway, host, lan in ((self.left, self.left_lan, LEFT_LAN), (self.right, self.right_lan, RIGHT_LAN)):
            gateway.cable("lan", host, "eth0")
            gateway.ip("address", "add", f"{lan[1]}/24", "dev", "lan")
            host.ip("address", "add", f"{lan[10]}/24", "dev", "eth0")
            host.ip("route", "add", "default", "via", str(lan[1]))
            host.command(["ethtool", "-K", "eth0", *_NO_OFFLOADS])
            gateway.command(["ethtool", "-K", "lan", *_NO_OFFLOADS])

    def wait_for_answers(self, left: IPv4Address, right: IPv4Address, seconds: float = 30.0) -> None:
        """Wait until pings come back between the gateways' ends and between the LAN hosts. TimeoutError if not."""
        for source, bind, target in ((self.left, left, right), (self.left_lan, LEFT_HOST, RIGHT_HOST)):
            wait_until(
                partial(_answers, source, bind, target),
                seconds,
                f"an answer from {target} in the bed {self.name}",
                interval=0.1,
            )


def _answers(source: Namespace, bind: IPv4Address, target: IPv4Address) -> bool:
    return ping(source, target, 1, wait=0.5, bind=bind).received > 0
