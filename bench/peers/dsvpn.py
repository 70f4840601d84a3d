"""dsvpn itself: `dsvpn up CONFIG` on both sides, the left a spoke of the right."""

from __future__ import annotations

import dsvpn
from bench.environment import native, python
from bench.netns.bed import LEFT_LAN, RIGHT, RIGHT_LAN, TUNNEL, TUNNEL_LEFT, TUNNEL_RIGHT, Bed
from bench.peers.base import Peer
from dsvpn.errors import HostError
from dsvpn.io.control import answers
from dsvpn.lab.run import wait_until

_CIPHERS = {"aes128gcm16": "AES-128-GCM", "aes256gcm16": "AES-256-GCM", "chacha20poly1305": "ChaCha20-Poly1305"}


class Dsvpn(Peer):
    """A hub and a spoke. `driver`: "workers" or "uvloop"; `encapsulation`: "udp", or "esp" for protocol 50."""

    device = "dsvpn0"

    def __init__(
        self,
        *,
        driver: str = "workers",
        encapsulation: str = "udp",
        suite: str = "aes128gcm16",
        threads: int | None = None,
    ) -> None:
        variant = [
            part
            for part, usual in ((suite, "aes128gcm16"), (encapsulation, "udp"), (driver, "workers"))
            if part != usual
        ]
        if threads is not None:
            variant.append(f"{threads}threads")
            driver += f" with {threads} threads"
        super().__init__(
            "-".join(["dsvpn", *(part.removesuffix("poly1305") for part in variant)]),
            f"dsvpn {_CIPHERS[suite]}, {'ESP in UDP' if encapsulation == 'udp' else 'raw ESP'}, {driver}",
            cipher=_CIPHERS[suite],
            notes=["transport mode with GRE, a hub and a spoke brought up by IKEv2 and NHRP"],
        )
        self._driver = driver.partition(" ")[0]
        self._threads = "" if threads is None else f"worker_threads = {threads}\n"
        self._encapsulation = encapsulation
        self._suite = suite

    def install(self) -> None:
        """It is the product: `make setup`."""
        if missing := native().missing:
            raise HostError(f"{missing}; run `make setup`")

    def version(self) -> str:
        """Of both packages, with build profile and AEAD backend."""
        found = native()
        return f"{dsvpn.__version__}, native {found.version} ({found.profile}), {found.aead}"

    def start(self, bed: Bed) -> None:
        """The hub first, so that the spoke's first try finds it."""
        for side in ("right", "left"):
            self._gateway(bed, side)

    def _gateway(self, bed: Bed, side: str) -> None:
        hub = side == "right"
        namespace = bed.right if hub else bed.left
        address, far, far_lan = (TUNNEL_RIGHT, TUNNEL_LEFT, LEFT_LAN) if hub else (TUNNEL_LEFT, TUNNEL_RIGHT, RIGHT_LAN)
        socket = bed.directory / f"{side}.sock"
        (bed.directory / "psk").touch(mode=0o600)
        (bed.directory / "psk").write_text("a key for the bench only\n")
        nhs = "" if hub else f'nhs = [{{ protocol = "{far}", nbma = "{RIGHT}" }}]\n'
        configuration = bed.directory / f"{side}.toml"
        configuration.write_text(
            f"""\
[gateway]
name = "{side}"
control_socket = "{socket}"
state_directory = "{socket}.state"
driver = "{self._driver}"
{self._threads}
[tunnel.{self.device}]
address = ["{address}/{TUNNEL.prefixlen}"]
source = "eth0"
routes = [{{ prefix = "{far_lan}", via = "{far}" }}]

[tunnel.{self.device}.nhrp]
{nhs}
[ipsec.default]
encapsulation = "{"udp" if self._encapsulation == "udp" else "auto"}"
esp = ["{self._suite}"]

[ipsec.default.auth]
psk = {{ file = "psk" }}
"""
        )
        process = self._spawn(bed, namespace, [*python(), "-m", "dsvpn", "up", str(configuration)], side)
        self._wait_for_device(bed, namespace, process, side)
        wait_until(lambda: answers(socket), 20, f"the control socket of {self.name}, {side}")
