"""DSVPN in user space: NHRP, IKEv2, GRE and ESP in one gateway."""

from __future__ import annotations

__version__ = "0.1.0"
