"""The data plane: batch forwarder between a TUN and the underlay."""

from __future__ import annotations

from dsvpn_native._native import (
    BUILD_PROFILE,
    Cipher,
    Dataplane,
    DecapResult,
    EncapResult,
    MemoryForwarder,
    MlKem512,
    MlKem768,
    MlKem1024,
    Punt,
    ReplayWindow,
    Tables,
    __version__,
    checksum,
    coalesce,
    parse_gre,
    segment,
    write_gre,
)

__all__ = [
    "BUILD_PROFILE",
    "Cipher",
    "Dataplane",
    "DecapResult",
    "EncapResult",
    "MemoryForwarder",
    "MlKem512",
    "MlKem768",
    "MlKem1024",
    "Punt",
    "ReplayWindow",
    "Tables",
    "__version__",
    "checksum",
    "coalesce",
    "parse_gre",
    "segment",
    "write_gre",
]
