"""wireguard-go: built from its module at the latest version, or as Debian packages it."""

from __future__ import annotations

import shutil
from pathlib import Path

from bench.netns.bed import LEFT, LEFT_LAN, RIGHT, RIGHT_LAN, TUNNEL, TUNNEL_LEFT, TUNNEL_RIGHT, Bed
from bench.peers import golang
from bench.peers.base import Peer
from dsvpn.errors import HostError
from dsvpn.lab.run import command, wait_until

MODULE = "golang.zx2c4.com/wireguard"
#: The usual MTU of wg-quick over a 1500-octet underlay.
MTU = 1420
PORT = 51820
# Its control sockets are named by the device alone, across namespaces.
_SOCKETS = Path("/var/run/wireguard")


class WireguardGo(Peer):
    """wireguard-go between the gateways. ChaCha20-Poly1305 is all that WireGuard has."""

    def __init__(self, *, packaged: bool) -> None:
        name, title = ("wireguard-go-debian", "wireguard-go (Debian)") if packaged else ("wireguard-go", "wireguard-go")
        super().__init__(name, title, cipher="ChaCha20-Poly1305")
        self._packaged = packaged
        self._program = "wireguard-go"
        self._version = ""
        self._mark = "dbwd" if packaged else "dbwg"

    def install(self) -> None:
        """Build it by the Go module proxy, or look for the package's."""
        if shutil.which("wg") is None:
            raise HostError("wg is not installed: apt-get install wireguard-tools")
        if self._packaged:
            if shutil.which(self._program) is None:
                raise HostError("wireguard-go is not installed: apt-get install wireguard-go")
            self._version = command(["dpkg-query", "-W", "-f", "${Version}", "wireguard-go"]).strip()
            return
        built = golang.install(MODULE, ("",))
        self._program = built.program("wireguard")
        self._version = f"{built.version} ({built.go})"
        self.notes += built.skipped

    def version(self) -> str:
        """Of the module or of the package."""
        return self._version

    def start(self, bed: Bed) -> None:
        """Two processes, one peer each."""
        keys = [command(["wg", "genkey"]).strip() for _ in range(2)]
        public = [command(["wg", "pubkey"], stdin=key).strip() for key in keys]
        sides = (
            (0, "left", bed.left, TUNNEL_LEFT, RIGHT, TUNNEL_RIGHT, RIGHT_LAN),
            (1, "right", bed.right, TUNNEL_RIGHT, LEFT, TUNNEL_LEFT, LEFT_LAN),
        )
        for index, side, namespace, address, endpoint, far, far_lan in sides:
            self.device = f"{self._mark}-{side}"
            process = self._spawn(bed, namespace, [self._program, "-f", self.device], side)
            self._wait_for_device(bed, namespace, process, side)
            socket = _SOCKETS / f"{self.device}.sock"
            wait_until(socket.exists, 10, f"{socket}")
            key_file = bed.directory / f"{side}.key"
            key_file.touch(mode=0o600)
            key_file.write_text(keys[index] + "\n")
            namespace.command(
                [
                    "wg",
                    "set",
                    self.device,
                    "listen-port",
                    str(PORT),
                    "private-key",
                    str(key_file),
                    "peer",
                    public[1 - index],
                    "endpoint",
                    f"{endpoint}:{PORT}",
                    "allowed-ips",
                    f"{far}/32,{far_lan}",
                ]
            )
            namespace.ip("address", "add", f"{address}/{TUNNEL.prefixlen}", "dev", self.device)
            namespace.ip("link", "set", self.device, "mtu", str(MTU), "up")
            namespace.ip("route", "add", str(far_lan), "dev", self.device)
        self.device = f"{self._mark}-left"

    def stop(self) -> None:
        """End both; a killed one leaves its socket."""
        super().stop()
        for side in ("left", "right"):
            (_SOCKETS / f"{self._mark}-{side}.sock").unlink(missing_ok=True)
