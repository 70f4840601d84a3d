"""DSVPN in user space: NHRP, IKEv2, GRE and ESP in one gateway."""

__version__ = "0.1.0"
