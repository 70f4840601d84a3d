"""NHRP (RFC 2332 with the DMVPN extensions) of one tunnel, without I/O."""

from __future__ import annotations

from dsvpn.nhrp.authorization import Claim
from dsvpn.nhrp.config import NhrpConfig, NhsConfig, Route
from dsvpn.nhrp.engine import NhrpEngine

__all__ = ["Claim", "NhrpConfig", "NhrpEngine", "NhsConfig", "Route"]
