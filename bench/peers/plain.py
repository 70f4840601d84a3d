"""No tunnel: the veth pair itself, which nothing that crosses it can outrun."""

from __future__ import annotations

import platform

from bench.netns.bed import LEFT, LEFT_LAN, RIGHT, RIGHT_LAN, Bed
from bench.peers.base import Peer


class PlainVeth(Peer):
    """The underlay without a tunnel."""

    left_address = LEFT
    right_address = RIGHT

    def __init__(self) -> None:
        super().__init__("plain", "plain veth", cipher="none", notes=["no tunnel: the limit of the underlay"])

    def install(self) -> None:
        """It is part of the kernel."""

    def version(self) -> str:
        """The kernel's."""
        return f"Linux {platform.release()}"

    def start(self, bed: Bed) -> None:
        """Only routes are missing."""
        self._bed = bed
        bed.left.ip("route", "add", str(RIGHT_LAN), "via", str(RIGHT))
        bed.right.ip("route", "add", str(LEFT_LAN), "via", str(LEFT))
