"""dsvpn's data plane alone, keyed statically: no IKE, no NHRP, and with the null cipher where it was built in.

What it shows against `dsvpn` is what the control plane costs in steady state (nothing, it should be), and with the
null cipher, what cryptography costs. No gateway can be configured for the null cipher: only a `dsvpn_native` built
with the Cargo feature `bench` knows it, and only this module asks for it.
"""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path

import dsvpn
from bench.environment import ROOT, native
from bench.netns.bed import LEFT, LEFT_LAN, RIGHT, RIGHT_LAN, TUNNEL, TUNNEL_LEFT, TUNNEL_RIGHT, Bed
from bench.peers.base import Peer
from dsvpn.errors import HostError
from dsvpn.lab.run import command, wait_until

#: Directory of a `dsvpn_native` built with the feature `bench`, for the null cipher.
BENCH_NATIVE = "DSVPN_BENCH_NATIVE"
#: The same geometry as the gateway's: 1500 less 20 IP, 8 UDP, 8 ESP, 8 IV, 16 ICV, 2 trailer and 4 GRE.
MTU = 1434
#: Fails, with the reason, where the suite is unknown.
_PROBE = (
    "import dsvpn_native as n; d = n.Dataplane(); d.add_inbound_sa(d.allocate_spi(), 'null', bytes(4), [], False, 0)"
)
_CIPHERS = {"aes128gcm16": "AES-128-GCM", "chacha20poly1305": "ChaCha20-Poly1305", "null": "null"}


def _said(error: HostError) -> str:
    # Behind the command that failed.
    return str(error).rpartition(": ")[2]


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

    def _path(self) -> list[str]:
        built = os.environ.get(BENCH_NATIVE)
        return [built] if built and self._suite == "null" else []

    def install(self) -> None:
        """The null cipher needs a build of its own."""
        if self._suite != "null":
            if missing := native().missing:
                raise HostError(f"{missing}; run `make setup`")
            return
        if not os.environ.get(BENCH_NATIVE) and find_spec("dsvpn_native") is None:
            raise HostError("dsvpn_native is not built; run `make setup`")
        try:
            command([*self._python(), "-c", _PROBE])
        except HostError as error:
            raise HostError(
                f"this dsvpn_native gives its Dataplane no null cipher ({_said(error)}); build native/py with "
                f"`--features bench` into a directory and name it in {BENCH_NATIVE}"
            ) from None

    def _python(self) -> list[str]:
        path = os.pathsep.join([*self._path(), str(ROOT), str(Path(dsvpn.__file__).parent.parent)])
        return ["env", f"PYTHONPATH={path}", sys.executable, "-P"]

    def version(self) -> str:
        """Of the native package."""
        found = native()
        return f"native {found.version} ({found.profile}), {found.aead}"

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
