"""The extensions part of an NHRP packet (RFC 2332 section 5.3), Cisco's NAT and authentication forms included.

 0                   1                   2                   3
 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
|C|u|        Type               |        Length                 |
+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
|                         Value...                              |
+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum

from dsvpn.errors import DecodeError, MisuseError
from dsvpn.wire.cursor import Reader
from dsvpn.wire.nhrp_cie import Cie, decode_cies, encode_cies, fit


class ExtensionType(IntEnum):
    """Extension types (RFC 2332 section 5.3; 9 is Cisco's)."""

    END = 0
    RESPONDER_ADDRESS = 3
    FORWARD_TRANSIT = 4
    REVERSE_TRANSIT = 5
    AUTHENTICATION = 7
    VENDOR = 8
    NAT_ADDRESS = 9


_COMPULSORY = 0x8000
_TYPE_MASK = 0x3FFF
_CIE_TYPES = frozenset(
    (
        ExtensionType.RESPONDER_ADDRESS,
        ExtensionType.FORWARD_TRANSIT,
        ExtensionType.REVERSE_TRANSIT,
        ExtensionType.NAT_ADDRESS,
    )
)
_END = _COMPULSORY.to_bytes(2, "big") + bytes(2)

#: Reserved 0, SPI 1: Cisco's plaintext authentication, which FRR and OpenNHRP share.
_CISCO_PLAINTEXT = (1).to_bytes(4, "big")


@dataclass(slots=True)
class CieExtension:
    """An extension whose value is a list of CIEs: responder address, transit NHS records, NAT address."""

    type: int
    compulsory: bool = True
    cies: list[Cie] = field(default_factory=list)


@dataclass(slots=True)
class RawExtension:
    """An extension whose value this codec does not read: authentication, vendor-private, unknown."""

    type: int
    compulsory: bool = False
    value: bytes = b""


Extension = CieExtension | RawExtension


def decode_extensions(reader: Reader, family: int, protocol: int) -> list[Extension]:
    """The extensions in their order, up to the End extension, which must be the last thing of the packet."""
    extensions: list[Extension] = []
    while True:
        start = reader.offset
        head = reader.u16("extension type")
        length = reader.u16("extension length")
        number = head & _TYPE_MASK
        if number == ExtensionType.END:
            if length:
                raise DecodeError(f"End extension of {length} octets", start)
            reader.expect_end("the End extension")
            return extensions
        value = reader.sub(length, f"extension {number}")
        compulsory = bool(head & _COMPULSORY)
        if number in _CIE_TYPES:
            extensions.append(CieExtension(number, compulsory, decode_cies(value, family, protocol)))
        else:
            extensions.append(RawExtension(number, compulsory, value.rest()))


def encode_extensions(extensions: list[Extension], family: int, protocol: int) -> bytes:
    """The extensions part with its End extension; nothing for no extensions."""
    if not extensions:
        return b""
    parts = []
    for extension in extensions:
        number = extension.type
        # The type decides how the value is read, so a mismatch could not be decoded again.
        if not 0 < number <= _TYPE_MASK or isinstance(extension, CieExtension) is not (number in _CIE_TYPES):
            raise MisuseError(f"extension type {number} does not go with {type(extension).__name__}")
        if isinstance(extension, CieExtension):
            value = encode_cies(extension.cies, family, protocol)
        else:
            value = extension.value
        head = number | (_COMPULSORY if extension.compulsory else 0)
        parts.append(head.to_bytes(2, "big") + fit(len(value), 16, f"length of extension {number}").to_bytes(2, "big"))
        parts.append(value)
    parts.append(_END)
    return b"".join(parts)


def cisco_authentication(word: bytes) -> RawExtension:
    """The authentication extension with a plaintext word."""
    return RawExtension(ExtensionType.AUTHENTICATION, True, _CISCO_PLAINTEXT + word)


def cisco_authentication_word(extension: RawExtension) -> bytes | None:
    """The plaintext word of an authentication extension, None when it is of another form."""
    if extension.value[:4] != _CISCO_PLAINTEXT:
        return None
    return extension.value[4:]
