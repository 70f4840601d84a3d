"""dsvpn's data plane alone, keyed statically: no IKE, no NHRP, and with the null cipher where it was built in.

What it shows against `dsvpn` is what the control plane costs in steady state (nothing, it should be), and with the
null cipher, what cryptography costs. No gateway can be configured for the null cipher: only the `dsvpn_native` that
`bench.null_native` builds knows it, and only this module loads that.
"""

from __future__ import annotations

import json
from typing import Any

from bench import null_native
from bench.environment import native, python
from bench.netns.bed import LEFT, LEFT_LAN, RIGHT, RIGHT_LAN, TUNNEL, TUNNEL_LEFT, TUNNEL_RIGHT, Bed
from bench.peers.base import Peer
from dsvpn.errors import HostError
from dsvpn.lab.run import command, wait_until

#: The same geometry as the gateway's: 1500 less 20 IP, 8 UDP, 8 ESP, 8 IV, 16 ICV, 2 trailer and 4 GRE.
MTU = 1434
#: What a module says of itself, and whether it has the null cipher.
_PROBE = """\
import json, dsvpn_native as n
d = n.Dataplane()
try:
    n.Cipher("null", bytes(4))
    null = True
except ValueError:
    null = False
print(json.dumps({"version": n.__version__, "profile": n.BUILD_PROFILE, "aead": d.aead_backend, "null": null}))
"""
_CIPHERS = {"aes128gcm16": "AES-128-GCM", "chacha20poly1305": "ChaCha20-Poly1305", "null": "null"}


class StaticDataplane(Peer):
    """Two processes that run `bench.peers.static_gateway`."""

    device = "dsvpn0"

    def __init__(self, *, suite: str) -> None:
        suffix = {"aes128gcm16": "", "chacha20poly1305": "-chacha20", "null": "-null"}[suite]
        super().__init__(
            f"dataplane{suffix}",
            f"dsvpn data plane alone, {_CIPHERS[suite]}",
            cipher=_CIPHERS[suite],
            notes=["static keys, no control plane"] + (["no secrecy at all: benchmarks only"] * (suite == "null")),
        )
        self._suite = suite
        self._found: dict[str, Any] = {}

    def install(self) -> None:
        """Have the module that knows the suite, and no other than that: the installed one has no null cipher."""
        null = self._suite == "null"
        if null:
            null_native.build()
        elif missing := native().missing:
            raise HostError(f"{missing}; run `make setup`")
        self._found = json.loads(command([*self._python(), "-c", _PROBE]))
        if self._found["null"] != null:
            raise HostError(f"the module of {self.name} {'lacks' if null else 'has'} the null cipher; run `make setup`")

    def _python(self) -> list[str]:
        return python(*[null_native.DIRECTORY] * (self._suite == "null"))

    def version(self) -> str:
        """Of the native package."""
        built = "feature bench, " if self._found["null"] else ""
        return f"native {self._found['version']} ({built}{self._found['profile']}), {self._found['aead']}"

    def start(self, bed: Bed) -> None:
        """Both at once: neither waits for the other."""
        sides = (
            ("left", bed.left, LEFT, RIGHT, TUNNEL_LEFT, RIGHT_LAN),
            ("right", bed.right, RIGHT, LEFT, TUNNEL_RIGHT, LEFT_LAN),
        )
        started = []
        for side, namespace, local, remote, address, far_lan in sides:
            argv = [*self._python(), "-m", "bench.peers.static_gateway", side, self._suite, str(local), str(remote)]
            argv.append(str(bed.directory))
            process = self._spawn(bed, namespace, argv, side)
            started.append((namespace, process, side, address, far_lan))
        for namespace, process, side, address, far_lan in started:
            self._wait_for_device(bed, namespace, process, side)
            wait_until((bed.directory / f"{side}.spi").exists, 20, f"the SPI of {self.name}, {side}")
            namespace.ip("address", "add", f"{address}/{TUNNEL.prefixlen}", "dev", str(self.device))
            namespace.ip("link", "set", str(self.device), "mtu", str(MTU), "up")
            namespace.ip("route", "add", str(far_lan), "dev", str(self.device))
