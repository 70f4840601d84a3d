"""Nebula, built from its module at the newest version that builds."""

from __future__ import annotations

from bench.netns.bed import LEFT, LEFT_LAN, RIGHT, RIGHT_LAN, TUNNEL_LEFT, TUNNEL_RIGHT, Bed
from bench.peers import golang
from bench.peers.base import Peer
from dsvpn.lab.run import command

MODULE = "github.com/slackhq/nebula"
PORT = 4242
#: The most that fits 1500 octets: 20 IP, 8 UDP, 16 header, 16 tag. Its default of 1300 would count against it.
MTU = 1440


class Nebula(Peer):
    """Nebula between the gateways, AES-256-GCM."""

    device = "nebula1"

    def __init__(self) -> None:
        super().__init__("nebula", "Nebula", cipher="AES-256-GCM", notes=[f"tun.mtu {MTU} instead of its default 1300"])
        self._built: golang.Built | None = None

    @property
    def _programs(self) -> golang.Built:
        if self._built is None:
            self.install()
        assert self._built is not None
        return self._built

    def install(self) -> None:
        """Build it by the Go module proxy."""
        self._built = golang.install(MODULE, ("cmd/nebula", "cmd/nebula-cert"))
        self.notes += self._built.skipped

    def version(self) -> str:
        """Of the module."""
        return f"{self._programs.version} ({self._programs.go})"

    def start(self, bed: Bed) -> None:
        """A certificate authority for this run, and two processes that know each other's address."""
        certifier = self._programs.program("nebula-cert")
        authority = [str(bed.directory / "ca.crt"), str(bed.directory / "ca.key")]
        command([certifier, "ca", "-name", "bench", "-out-crt", authority[0], "-out-key", authority[1]])
        sides = (
            ("left", bed.left, TUNNEL_LEFT, LEFT_LAN, TUNNEL_RIGHT, RIGHT, RIGHT_LAN),
            ("right", bed.right, TUNNEL_RIGHT, RIGHT_LAN, TUNNEL_LEFT, LEFT, LEFT_LAN),
        )
        for side, _, address, lan, *_ in sides:
            command(
                [
                    certifier,
                    "sign",
                    "-name",
                    side,
                    "-ip",
                    f"{address}/24",
                    "-subnets",
                    str(lan),
                    "-ca-crt",
                    authority[0],
                    "-ca-key",
                    authority[1],
                    "-out-crt",
                    str(bed.directory / f"{side}.crt"),
                    "-out-key",
                    str(bed.directory / f"{side}.key"),
                ]
            )
        for side, namespace, _, _, far, endpoint, far_lan in sides:
            file = bed.directory / f"{side}.yml"
            file.write_text(
                f"""\
pki: {{ca: {authority[0]}, cert: {bed.directory}/{side}.crt, key: {bed.directory}/{side}.key}}
static_host_map: {{"{far}": ["{endpoint}:{PORT}"]}}
lighthouse: {{am_lighthouse: false}}
listen: {{host: 0.0.0.0, port: {PORT}}}
cipher: aes
tun:
  dev: {self.device}
  mtu: {MTU}
  unsafe_routes: [{{route: {far_lan}, via: {far}, mtu: {MTU}}}]
logging: {{level: warning}}
firewall:
  default_local_cidr_any: true
  outbound: [{{port: any, proto: any, host: any}}]
  inbound: [{{port: any, proto: any, host: any}}]
"""
            )
            process = self._spawn(bed, namespace, [self._programs.program("nebula"), "-config", str(file)], side)
            self._wait_for_device(bed, namespace, process, side)
