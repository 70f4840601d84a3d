"""The contestants by name."""

from __future__ import annotations

from collections.abc import Callable

from bench.peers.base import Peer
from bench.peers.dataplane import StaticDataplane
from bench.peers.dsvpn import Dsvpn
from bench.peers.libipsec import Libipsec
from bench.peers.nebula import Nebula
from bench.peers.openvpn import OpenVpn
from bench.peers.plain import PlainVeth
from bench.peers.wireguard import WireguardGo

#: Makers, in the order of the report. A peer is made anew for every run.
PEERS: tuple[Callable[[], Peer], ...] = (
    PlainVeth,
    Dsvpn,
    lambda: Dsvpn(suite="chacha20poly1305"),
    lambda: Dsvpn(encapsulation="esp"),
    lambda: Dsvpn(driver="uvloop"),
    lambda: Dsvpn(threads=2),
    lambda: StaticDataplane(suite="aes128gcm16"),
    lambda: StaticDataplane(suite="null"),
    lambda: WireguardGo(packaged=False),
    lambda: WireguardGo(packaged=True),
    Nebula,
    OpenVpn,
    Libipsec,
)
#: Those of the quick run.
QUICK = ("plain", "dsvpn", "dsvpn-chacha20", "dsvpn-esp", "dataplane", "dataplane-null", "wireguard-go")
#: What ratios are against.
REFERENCE = "wireguard-go"


def make(names: tuple[str, ...] | None = None) -> list[Peer]:
    """The peers of these names, or all. ValueError names one that there is not."""
    made = [maker() for maker in PEERS]
    known = [peer.name for peer in made]
    if names is None:
        return made
    for name in names:
        if name not in known:
            raise ValueError(f"there is no contestant {name!r}; choose among {', '.join(known)}")
    return [peer for peer in made if peer.name in names]
