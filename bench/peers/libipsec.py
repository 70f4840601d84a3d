"""strongSwan with its user-space ESP (kernel-libipsec), as Debian packages it. Tunnel mode: it has no other."""

from __future__ import annotations

import shutil
from pathlib import Path

from bench.netns.bed import LEFT, LEFT_LAN, RIGHT, RIGHT_LAN, TUNNEL_LEFT, TUNNEL_RIGHT, Bed
from bench.peers.base import Peer
from dsvpn.errors import HostError
from dsvpn.lab.run import command, wait_until
from dsvpn.lab.topology import Namespace

_DAEMON = "/usr/sbin/charon-systemd"
_PLUGIN = "/usr/lib/ipsec/plugins/libstrongswan-kernel-libipsec.so"
_PACKAGES = "charon-systemd strongswan-swanctl libcharon-extra-plugins libstrongswan-standard-plugins"


class Libipsec(Peer):
    """charon with libipsec between the gateways: ESP in UDP, tunnel mode, AES-128-GCM."""

    device = "ipsec0"

    def __init__(self) -> None:
        super().__init__(
            "libipsec",
            "strongSwan kernel-libipsec",
            cipher="AES-128-GCM",
            notes=["tunnel mode without GRE: kernel-libipsec has no transport mode"],
        )

    def install(self) -> None:
        """Look for Debian's."""
        if not Path(_DAEMON).exists() or not Path(_PLUGIN).exists() or shutil.which("swanctl") is None:
            raise HostError(f"strongSwan with kernel-libipsec is not installed: apt-get install {_PACKAGES}")

    def version(self) -> str:
        """Of the package."""
        return command(["dpkg-query", "-W", "-f", "${Version}", "charon-systemd"]).strip()

    def start(self, bed: Bed) -> None:
        """Two daemons, then the left one initiates."""
        sides = (
            ("right", bed.right, RIGHT, TUNNEL_RIGHT, RIGHT_LAN, LEFT, TUNNEL_LEFT, LEFT_LAN),
            ("left", bed.left, LEFT, TUNNEL_LEFT, LEFT_LAN, RIGHT, TUNNEL_RIGHT, RIGHT_LAN),
        )
        for side, namespace, local, address, lan, remote, far, far_lan in sides:
            # libipsec's TUN gets no address: the tunnel's end is on the loopback, where its selector covers it.
            namespace.ip("address", "add", f"{address}/32", "dev", "lo")
            self._daemon(bed, namespace, side)
            configuration = bed.directory / f"{side}.swanctl"
            configuration.write_text(
                f"""\
connections {{
  bench {{
    version = 2
    local_addrs = {local}
    remote_addrs = {remote}
    proposals = aes128-sha256-x25519
    local {{
      auth = psk
      id = {side}
    }}
    remote {{
      auth = psk
    }}
    children {{
      bench {{
        mode = tunnel
        local_ts = {address}/32, {lan}
        remote_ts = {far}/32, {far_lan}
        esp_proposals = aes128gcm16
      }}
    }}
  }}
}}
secrets {{
  ike-bench {{
    secret = "a key for the bench only"
  }}
}}
"""
            )
            self._swanctl(bed, namespace, side, "--load-all", "--file", str(configuration))
        self._swanctl(bed, bed.left, "left", "--initiate", "--child", "bench", "--timeout", "15")

    def _daemon(self, bed: Bed, namespace: Namespace, side: str) -> None:
        settings = bed.directory / f"{side}.conf"
        settings.write_text(
            f"""\
charon-systemd {{
  filelog {{
    stderr {{
      default = 1
    }}
  }}
  load = random nonce openssl kdf pem pkcs1 x509 pubkey kernel-libipsec kernel-netlink socket-default vici
  plugins {{
    vici {{
      socket = unix://{bed.directory}/{side}.vici
    }}
  }}
}}
swanctl {{
  load = random openssl pem pkcs1 x509 pubkey
}}
"""
        )
        process = self._spawn(bed, namespace, ["env", f"STRONGSWAN_CONF={settings}", _DAEMON], side)
        self._wait_for_device(bed, namespace, process, side)
        wait_until((bed.directory / f"{side}.vici").exists, 10, "charon's control socket")

    @staticmethod
    def _swanctl(bed: Bed, namespace: Namespace, side: str, *arguments: str) -> None:
        settings = bed.directory / f"{side}.conf"
        uri = f"unix://{bed.directory}/{side}.vici"
        argv = ["env", f"STRONGSWAN_CONF={settings}", "swanctl", arguments[0], "--uri", uri, *arguments[1:]]
        namespace.command(argv, timeout=30)
