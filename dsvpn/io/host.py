"""What a gateway needs of the machine, checked before anything is made, so that the error names the cause."""

from __future__ import annotations

from pathlib import Path

from dsvpn.errors import HostError

#: linux/capability.h
_CAPABILITIES = {10: "CAP_NET_BIND_SERVICE", 12: "CAP_NET_ADMIN", 13: "CAP_NET_RAW"}


def require_host(status: Path = Path("/proc/self/status"), tun: Path = Path("/dev/net/tun")) -> None:
    """Raise HostError if this process may not, or this machine cannot, run a gateway."""
    effective = next(int(line.split()[1], 16) for line in status.read_text().splitlines() if line.startswith("CapEff:"))
    missing = [name for bit, name in _CAPABILITIES.items() if not effective >> bit & 1]
    if missing:
        raise HostError(f"a gateway needs {', '.join(missing)}; run it as root")
    if not tun.exists():
        raise HostError(f"{tun} is missing; load the kernel module tun, or give the container this device")
