"""IKEv2 messages: header, payloads and their numbers. RFC 7296, RFC 7383.

`Message.decode(datagram)` and `Message.encode()` are the whole; `encode_payloads`, `decode_payloads`,
`encode_associated_data`, `add_padding` and `remove_padding` serve who seals and opens SK payloads.
"""

from __future__ import annotations

from dsvpn.wire.ikev2.auth import Authentication
from dsvpn.wire.ikev2.cert import Certificate, CertificateRequest
from dsvpn.wire.ikev2.constants import (
    AttributeType,
    AuthMethod,
    CertificateEncoding,
    ConfigurationAttributeType,
    ConfigurationType,
    EapCode,
    EncryptionId,
    EsnId,
    ExchangeType,
    Flag,
    HashId,
    IdType,
    IntegrityId,
    KeyExchangeId,
    NotifyType,
    PayloadType,
    PrfId,
    ProtocolId,
    TransformType,
    TsType,
    name_of,
)
from dsvpn.wire.ikev2.cp import Configuration, ConfigurationAttribute
from dsvpn.wire.ikev2.delete import Delete
from dsvpn.wire.ikev2.eap import Eap
from dsvpn.wire.ikev2.encrypted import Encrypted, EncryptedFragment, add_padding, remove_padding
from dsvpn.wire.ikev2.header import HEADER_LENGTH, SPI_LENGTH, ZERO_SPI, Header
from dsvpn.wire.ikev2.identification import IdentificationInitiator, IdentificationResponder
from dsvpn.wire.ikev2.ke import KeyExchange
from dsvpn.wire.ikev2.message import Message, encode_associated_data, encode_fragment_associated_data
from dsvpn.wire.ikev2.nonce import Nonce
from dsvpn.wire.ikev2.notify import Notify
from dsvpn.wire.ikev2.payload import (
    Payload,
    UnknownPayload,
    decode_payloads,
    encode_payloads,
    find,
    find_all,
    find_notify,
    unsupported_critical,
)
from dsvpn.wire.ikev2.sa import Proposal, SecurityAssociation, Transform, TransformAttribute
from dsvpn.wire.ikev2.ts import (
    ANY_PORTS,
    OPAQUE_PORTS,
    Selector,
    TrafficSelector,
    TrafficSelectorsInitiator,
    TrafficSelectorsResponder,
    UnknownTrafficSelector,
)
from dsvpn.wire.ikev2.vendor import VendorId

__all__ = [
    "ANY_PORTS",
    "HEADER_LENGTH",
    "OPAQUE_PORTS",
    "SPI_LENGTH",
    "ZERO_SPI",
    "AttributeType",
    "AuthMethod",
    "Authentication",
    "Certificate",
    "CertificateEncoding",
    "CertificateRequest",
    "Configuration",
    "ConfigurationAttribute",
    "ConfigurationAttributeType",
    "ConfigurationType",
    "Delete",
    "Eap",
    "EapCode",
    "Encrypted",
    "EncryptedFragment",
    "EncryptionId",
    "EsnId",
    "ExchangeType",
    "Flag",
    "HashId",
    "Header",
    "IdType",
    "IdentificationInitiator",
    "IdentificationResponder",
    "IntegrityId",
    "KeyExchange",
    "KeyExchangeId",
    "Message",
    "Nonce",
    "Notify",
    "NotifyType",
    "Payload",
    "PayloadType",
    "PrfId",
    "Proposal",
    "ProtocolId",
    "SecurityAssociation",
    "Selector",
    "TrafficSelector",
    "TrafficSelectorsInitiator",
    "TrafficSelectorsResponder",
    "Transform",
    "TransformAttribute",
    "TransformType",
    "TsType",
    "UnknownPayload",
    "UnknownTrafficSelector",
    "VendorId",
    "add_padding",
    "decode_payloads",
    "encode_associated_data",
    "encode_fragment_associated_data",
    "encode_payloads",
    "find",
    "find_all",
    "find_notify",
    "name_of",
    "remove_padding",
    "unsupported_critical",
]
