"""Codecs: bytes to values and back. Nothing here reads a clock, a socket or a file."""

from __future__ import annotations

from dsvpn.wire import cursor

#: True if Cython compiled the codecs, False if the same sources run interpreted.
COMPILED = not cursor.__file__.endswith(".py")
