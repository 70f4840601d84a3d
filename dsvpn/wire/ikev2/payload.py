"""Chains of payloads behind generic payload headers. RFC 7296 sections 3.2 and 2.5 (critical bit)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from struct import Struct
from typing import TypeVar

from dsvpn.errors import DecodeError, MisuseError
from dsvpn.wire.cursor import Reader
from dsvpn.wire.ikev2.auth import Authentication
from dsvpn.wire.ikev2.cert import Certificate, CertificateRequest
from dsvpn.wire.ikev2.constants import NotifyType, PayloadType
from dsvpn.wire.ikev2.cp import Configuration
from dsvpn.wire.ikev2.delete import Delete
from dsvpn.wire.ikev2.eap import Eap
from dsvpn.wire.ikev2.encrypted import Encrypted, EncryptedFragment, decode_encrypted, decode_encrypted_fragment
from dsvpn.wire.ikev2.identification import IdentificationInitiator, IdentificationResponder
from dsvpn.wire.ikev2.ke import KeyExchange
from dsvpn.wire.ikev2.nonce import Nonce
from dsvpn.wire.ikev2.notify import Notify
from dsvpn.wire.ikev2.sa import SecurityAssociation
from dsvpn.wire.ikev2.ts import TrafficSelectorsInitiator, TrafficSelectorsResponder
from dsvpn.wire.ikev2.vendor import VendorId

#: Octets of a generic payload header.
GENERIC_HEADER_LENGTH = 4
#: Most payloads in one chain: a bound on the work a stranger causes.
MAX_PAYLOADS = 128
#: The critical bit of the generic payload header.
CRITICAL = 0x80

_MAX_PAYLOAD_LENGTH = 0xFFFF
_GENERIC_HEADER = Struct("!BBH")


@dataclass(frozen=True, slots=True)
class UnknownPayload:
    """A payload of a type that this codec does not know.

    A receiver refuses the message with UNSUPPORTED_CRITICAL_PAYLOAD if `critical` is set, and skips the payload
    otherwise (RFC 7296 section 2.5).
    """

    payload_type: int
    critical: bool
    data: bytes

    def encode(self) -> bytes:
        """The payload's body."""
        return self.data


Payload = (
    SecurityAssociation
    | KeyExchange
    | IdentificationInitiator
    | IdentificationResponder
    | Certificate
    | CertificateRequest
    | Authentication
    | Nonce
    | Notify
    | Delete
    | VendorId
    | TrafficSelectorsInitiator
    | TrafficSelectorsResponder
    | Encrypted
    | EncryptedFragment
    | Configuration
    | Eap
    | UnknownPayload
)

_ENCRYPTED = (Encrypted, EncryptedFragment)
#: Plain numbers: a member of an enumeration costs a search each time that it is named.
_SK = int(PayloadType.SK)
_SEALED = (_SK, int(PayloadType.SKF))

_DECODERS: dict[int, Callable[[Reader], Payload]] = {
    PayloadType.SA: SecurityAssociation.decode,
    PayloadType.KE: KeyExchange.decode,
    PayloadType.IDI: IdentificationInitiator.decode,
    PayloadType.IDR: IdentificationResponder.decode,
    PayloadType.CERT: Certificate.decode,
    PayloadType.CERTREQ: CertificateRequest.decode,
    PayloadType.AUTH: Authentication.decode,
    PayloadType.NONCE: Nonce.decode,
    PayloadType.NOTIFY: Notify.decode,
    PayloadType.DELETE: Delete.decode,
    PayloadType.VENDOR: VendorId.decode,
    PayloadType.TSI: TrafficSelectorsInitiator.decode,
    PayloadType.TSR: TrafficSelectorsResponder.decode,
    PayloadType.CP: Configuration.decode,
    PayloadType.EAP: Eap.decode,
}

_T = TypeVar("_T")


def find(payloads: Iterable[object], kind: type[_T]) -> _T | None:
    """The first payload of class `kind`, or None."""
    for payload in payloads:
        if isinstance(payload, kind):
            return payload
    return None


def find_all(payloads: Iterable[object], kind: type[_T]) -> list[_T]:
    """Every payload of class `kind`, in order."""
    return [payload for payload in payloads if isinstance(payload, kind)]


def find_notify(payloads: Iterable[object], notify_type: NotifyType | int) -> Notify | None:
    """The first notification of `notify_type`, or None."""
    for payload in payloads:
        if isinstance(payload, Notify) and payload.type == notify_type:
            return payload
    return None


def unsupported_critical(payloads: Iterable[object]) -> UnknownPayload | None:
    """The first unknown payload with its critical bit set, or None."""
    for payload in payloads:
        if isinstance(payload, UnknownPayload) and payload.critical:
            return payload
    return None


def decode_payloads(first_payload: int, data: bytes, base_offset: int = 0) -> tuple[Payload, ...]:
    """Decode the chain inside an opened SK payload: `data` is the plaintext without its padding.

    Errors count their offset from `base_offset`, the place of the sealed octets in the datagram.
    """
    try:
        return decode_chain(Reader(data), first_payload, False)
    except DecodeError as error:
        if not base_offset:
            raise
        raise DecodeError(error.what, base_offset + error.offset) from None


def decode_chain(reader: Reader, first_payload: int, outermost: bool) -> tuple[Payload, ...]:
    """Decode payloads up to the reader's end. SK and SKF may stand in the outermost chain alone, as its last."""
    payloads: list[Payload] = []
    kind = first_payload
    while kind:
        at = reader.offset
        if len(payloads) == MAX_PAYLOADS:
            raise DecodeError(f"more than {MAX_PAYLOADS} payloads", at)
        next_payload = reader.u8("next payload")
        critical = bool(reader.u8("critical bit") & CRITICAL)
        length = reader.u16("payload length")
        if length < GENERIC_HEADER_LENGTH:
            raise DecodeError(f"payload length {length} below {GENERIC_HEADER_LENGTH}", at + 2)
        body = reader.sub(length - GENERIC_HEADER_LENGTH, "payload")
        if kind in _SEALED:
            if not outermost:
                raise DecodeError("encrypted payload inside an encrypted payload", at)
            reader.expect_end("the encrypted payload, which is always the last")
            if kind == _SK:
                payloads.append(decode_encrypted(body, next_payload))
            else:
                payloads.append(decode_encrypted_fragment(body, next_payload))
            return tuple(payloads)
        decoder = _DECODERS.get(kind)
        if decoder is None:
            payloads.append(UnknownPayload(kind, critical, body.rest()))
        else:
            # The critical bit of a payload that is understood is ignored (RFC 7296 section 3.2).
            payloads.append(decoder(body))
        kind = next_payload
    reader.expect_end("the last payload")
    return tuple(payloads)


def encode_payloads(payloads: Sequence[Payload]) -> tuple[int, bytes]:
    """The type of the first payload (0 for an empty chain) and the chain with its generic headers."""
    parts: list[bytes] = []
    count = len(payloads)
    for index, payload in enumerate(payloads):
        critical = 0
        if index + 1 < count:
            next_payload = payloads[index + 1].payload_type
            if isinstance(payload, _ENCRYPTED):
                raise MisuseError("an encrypted payload is always the last of its message")
        else:
            next_payload = payload.first_payload if isinstance(payload, _ENCRYPTED) else 0
        if isinstance(payload, UnknownPayload) and payload.critical:
            critical = CRITICAL
        body = payload.encode()
        length = GENERIC_HEADER_LENGTH + len(body)
        if length > _MAX_PAYLOAD_LENGTH:
            raise MisuseError(f"{type(payload).__name__} of {length} octets, at most {_MAX_PAYLOAD_LENGTH}")
        parts.append(_GENERIC_HEADER.pack(next_payload, critical, length))
        parts.append(body)
    return (payloads[0].payload_type if payloads else 0), b"".join(parts)
