"""NAT detection and the move to port 4500 (RFC 7296 section 2.23)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from dsvpn.addresses import Endpoint, Path
from dsvpn.wire import ikev2 as wire
from dsvpn.wire.ikev2 import NotifyType

IKE_PORT: Final = 500
NAT_TRAVERSAL_PORT: Final = 4500

_HASH_LENGTH: Final = 20


@dataclass(frozen=True, slots=True)
class NatFindings:
    """What the notifications of a peer say. `supported` False: the peer knows no NAT traversal."""

    supported: bool
    local_nat: bool
    remote_nat: bool


def detection_hash(initiator_spi: bytes, responder_spi: bytes, endpoint: Endpoint) -> bytes:
    """SHA-1 over both SPIs, address and port, as the RFC has it; it detects, it does not protect."""
    data = initiator_spi + responder_spi + endpoint.address.packed + endpoint.port.to_bytes(2, "big")
    return hashlib.sha1(data, usedforsecurity=False).digest()


def detection_payloads(
    initiator_spi: bytes, responder_spi: bytes, path: Path, forced: bool, random: Callable[[int], bytes]
) -> list[wire.Payload]:
    """The two notifications for a message that goes out on `path`.

    With `forced`, the source matches no address, so that the peer sees a NAT and both ends encapsulate in UDP.
    """
    source = random(_HASH_LENGTH) if forced else detection_hash(initiator_spi, responder_spi, path.local)
    return [
        wire.Notify(NotifyType.NAT_DETECTION_SOURCE_IP, source),
        wire.Notify(NotifyType.NAT_DETECTION_DESTINATION_IP, detection_hash(initiator_spi, responder_spi, path.remote)),
    ]


def detect(payloads: Sequence[wire.Payload], initiator_spi: bytes, responder_spi: bytes, path: Path) -> NatFindings:
    """Compare a peer's notifications with the path that its message took."""
    sources: list[bytes] = []
    destinations: list[bytes] = []
    for payload in payloads:
        if isinstance(payload, wire.Notify):
            if payload.type == NotifyType.NAT_DETECTION_SOURCE_IP:
                sources.append(payload.data)
            elif payload.type == NotifyType.NAT_DETECTION_DESTINATION_IP:
                destinations.append(payload.data)
    if not sources or not destinations:
        return NatFindings(False, False, False)
    # A sender that does not know its outgoing interface sends several sources: one match is enough.
    return NatFindings(
        True,
        detection_hash(initiator_spi, responder_spi, path.local) not in destinations,
        detection_hash(initiator_spi, responder_spi, path.remote) not in sources,
    )


def move_to_nat_traversal_port(path: Path) -> Path:
    """The path after IKE_SA_INIT when a NAT was seen. A path that was given other ports keeps them."""
    if path.local.port == IKE_PORT and path.remote.port == IKE_PORT:
        return Path(path.local._replace(port=NAT_TRAVERSAL_PORT), path.remote._replace(port=NAT_TRAVERSAL_PORT))
    return path
