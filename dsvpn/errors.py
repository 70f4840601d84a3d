"""Errors by origin, so that a caller can tell whose fault it was.

Five origins, one class each: bytes that do not decode, a peer that broke the protocol, a caller that
misused an interface, an environment that lacks something, and a configuration that says something wrong.
Every error is one line that names what, where and, where there is a cure, what to do instead.
"""

from __future__ import annotations


class DsvpnError(Exception):
    """Base of every error that dsvpn raises on purpose."""

    #: Exit code of a command that ends with this error (sysexits.h numbering).
    exit_code: int = 70


class DecodeError(DsvpnError):
    """Bytes that are not what they claim to be.

    `what` names the field or structure that could not be read, `offset` is its position in octets from the
    start of the packet that was being decoded.
    """

    exit_code = 65

    def __init__(self, what: str, offset: int) -> None:
        super().__init__(f"{what} at offset {offset}")
        self.what = what
        self.offset = offset


class PeerError(DsvpnError):
    """A well-formed message that the protocol does not allow here.

    `code` is the wire code to answer with (an IKEv2 notify type or an NHRP error code), or None when the
    protocol says to stay silent.
    """

    exit_code = 76

    def __init__(self, reason: str, code: int | None = None, data: bytes = b"") -> None:
        super().__init__(reason)
        self.reason = reason
        self.code = code
        self.data = data


class MisuseError(DsvpnError):
    """An interface was called with something it does not take: a defect of the caller."""

    exit_code = 70


class HostError(DsvpnError):
    """The machine lacks something: a device, a right, a free port, a readable file."""

    exit_code = 71


class ConfigurationError(DsvpnError):
    """The configuration says something that cannot be.

    `file` and `key` say where, `why` says what is wrong and `instead` says what to write.
    """

    exit_code = 78

    def __init__(self, file: str, key: str, why: str, instead: str = "") -> None:
        text = f"{file}: {key}: {why}" if key else f"{file}: {why}"
        super().__init__(f"{text}; write {instead}" if instead else text)
        self.file = file
        self.key = key
        self.why = why
        self.instead = instead
