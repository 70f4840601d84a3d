"""Public UDP ports of stations behind NAT, in a Vendor-Private extension (RFC 2332 section 5.3.5).

Cisco's NAT Address extension has no room for a port. This one goes beside it; it is not compulsory, so that peers who
do not know it pass it on or over. Value:

 0                   1                   2                   3
 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
|             Vendor ID (02 44 53)              |   Kind (1)    |
+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
|           UDP port            | Addr length   | Protocol      |
+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+               +
| address (4 or 16 octets), and further entries ...             |
+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
"""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_address

from dsvpn.addresses import Address
from dsvpn.errors import MisuseError
from dsvpn.wire.nhrp_extensions import Extension, ExtensionType, RawExtension

#: An identifier of the locally administered kind (IEEE 802c), which is nobody's, and the kind of data.
_HEAD = bytes((0x02, 0x44, 0x53, 1))
#: A packet is about two stations, the requester and the responder.
MAX_NAT_PORTS = 4


def nat_port_extension(ports: Mapping[Address, int]) -> RawExtension:
    """The extension that tells the public UDP ports of stations, given by protocol address.

    MisuseError for a port outside 1 to 65535 and for more than MAX_NAT_PORTS entries.
    """
    if len(ports) > MAX_NAT_PORTS:
        raise MisuseError(f"{len(ports)} NAT ports in one extension, {MAX_NAT_PORTS} at most")
    parts = [_HEAD]
    for protocol, port in ports.items():
        if not 0 < port <= 0xFFFF:
            raise MisuseError(f"NAT port {port} of {protocol} is not within 1 to 65535")
        parts.append(port.to_bytes(2, "big") + len(protocol.packed).to_bytes(1, "big") + protocol.packed)
    return RawExtension(ExtensionType.VENDOR, False, b"".join(parts))


def read_nat_ports(extension: Extension) -> dict[Address, int] | None:
    """The ports that an extension tells by protocol address; None when it is none of this kind, or malformed: a vendor
    identifier that is nobody's may be somebody else's, too. Of two entries for one address the first counts."""
    if extension.type != ExtensionType.VENDOR or not isinstance(extension, RawExtension):
        return None
    value = extension.value
    if value[: len(_HEAD)] != _HEAD:
        return None
    ports: dict[Address, int] = {}
    offset = len(_HEAD)
    entries = 0
    while offset < len(value):
        entries += 1
        port, length = int.from_bytes(value[offset : offset + 2], "big"), value[offset + 2 : offset + 3]
        octets = value[offset + 3 : offset + 3 + length[0]] if length else b""
        if not port or length not in (b"\x04", b"\x10") or len(octets) != length[0] or entries > MAX_NAT_PORTS:
            return None
        ports.setdefault(ip_address(octets), port)
        offset += 3 + len(octets)
    return ports
