"""OpenVPN as Debian packages it, in user space (no DCO), point to point with TLS."""

from __future__ import annotations

import shutil

from bench.netns.bed import LEFT, RIGHT, TUNNEL_LEFT, TUNNEL_RIGHT, Bed
from bench.peers.base import Peer
from dsvpn.errors import HostError
from dsvpn.lab.run import command

PORT = 1194
#: The most that fits 1500 octets: 20 IP, 8 UDP, 4 opcode and peer id, 4 packet id, 16 tag.
MTU = 1448


class OpenVpn(Peer):
    """OpenVPN between the gateways, AES-128-GCM over UDP."""

    device = "ovpn0"

    def __init__(self) -> None:
        super().__init__(
            "openvpn",
            "OpenVPN",
            cipher="AES-128-GCM",
            notes=["user space: data channel offload is off", f"tun-mtu {MTU}, --fast-io"],
        )

    def install(self) -> None:
        """Look for Debian's."""
        for program in ("openvpn", "openssl"):
            if shutil.which(program) is None:
                raise HostError(f"{program} is not installed: apt-get install {program}")

    def version(self) -> str:
        """Of the package."""
        return command(["dpkg-query", "-W", "-f", "${Version}", "openvpn"]).strip()

    def start(self, bed: Bed) -> None:
        """Two processes that know each other by the fingerprints of their certificates."""
        fingerprints = {}
        for side in ("left", "right"):
            key, certificate = bed.directory / f"{side}.key", bed.directory / f"{side}.crt"
            argv = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
            command([*argv, "-days", "2", "-subj", f"/CN={side}", "-keyout", str(key), "-out", str(certificate)])
            text = command(["openssl", "x509", "-fingerprint", "-sha256", "-noout", "-in", str(certificate)])
            fingerprints[side] = text.strip().partition("=")[2]
        sides = (
            ("right", "left", bed.right, "--tls-server", TUNNEL_RIGHT, TUNNEL_LEFT, LEFT),
            ("left", "right", bed.left, "--tls-client", TUNNEL_LEFT, TUNNEL_RIGHT, RIGHT),
        )
        for side, other, namespace, role, address, far, remote in sides:
            argv = ["openvpn", "--dev", str(self.device), "--dev-type", "tun", "--proto", "udp", role, "--dh", "none"]
            argv += ["--remote", str(remote), str(PORT), "--port", str(PORT), "--ifconfig", str(address), str(far)]
            argv += ["--cert", str(bed.directory / f"{side}.crt"), "--key", str(bed.directory / f"{side}.key")]
            argv += [
                "--peer-fingerprint",
                fingerprints[other],
                "--data-ciphers",
                "AES-128-GCM",
                "--cipher",
                "AES-128-GCM",
            ]
            argv += ["--tun-mtu", str(MTU), "--mssfix", "0", "--fast-io", "--disable-dco", "--verb", "1"]
            # Without it the side that comes up first waits a whole second before it tries again.
            argv += ["--connect-retry", "1", "1", "--allow-compression", "no"]
            process = self._spawn(bed, namespace, argv, side)
            self._wait_for_device(bed, namespace, process, side)
        self._route_lans(bed)
