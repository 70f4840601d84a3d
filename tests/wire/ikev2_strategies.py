"""Hypothesis strategies for every payload, and one sample of each for tests that enumerate."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

from hypothesis import strategies as st

from dsvpn.wire.ikev2 import (
    Authentication,
    Certificate,
    CertificateRequest,
    Configuration,
    ConfigurationAttribute,
    Delete,
    Eap,
    Encrypted,
    EncryptedFragment,
    Header,
    IdentificationInitiator,
    IdentificationResponder,
    KeyExchange,
    Message,
    Nonce,
    Notify,
    Payload,
    PayloadType,
    Proposal,
    SecurityAssociation,
    TrafficSelector,
    TrafficSelectorsInitiator,
    TrafficSelectorsResponder,
    Transform,
    TransformAttribute,
    UnknownPayload,
    UnknownTrafficSelector,
    VendorId,
)

u8 = st.integers(0, 0xFF)
u16 = st.integers(0, 0xFFFF)
u32 = st.integers(0, 0xFFFFFFFF)
octets = st.binary(max_size=60)

attributes = st.one_of(
    # A Key Length in the two-octet form has its own field.
    st.builds(TransformAttribute, st.integers(0, 0x7FFF).filter(lambda kind: kind != 14), u16),
    st.builds(TransformAttribute, st.integers(0, 0x7FFF), octets),
)
transforms = st.builds(Transform, u8, u16, st.none() | u16, st.lists(attributes, max_size=3).map(tuple))
transform_lists = st.lists(transforms, max_size=6).map(tuple)
numberless_proposals = st.one_of(
    st.tuples(st.just(1), st.just(b"") | st.binary(min_size=8, max_size=8), transform_lists),
    st.tuples(st.sampled_from([2, 3]), st.binary(min_size=4, max_size=4), transform_lists),
    st.tuples(st.integers(4, 255), octets, transform_lists),
)
proposal_lists = st.builds(
    lambda first, parts: tuple([Proposal(first + index, *part) for index, part in enumerate(parts)]),
    st.integers(1, 250),
    st.lists(numberless_proposals, min_size=1, max_size=5),
)
ports = u16
selectors = st.one_of(
    st.builds(TrafficSelector, st.ip_addresses(v=4), st.ip_addresses(v=4), u8, ports, ports),
    st.builds(TrafficSelector, st.ip_addresses(v=6), st.ip_addresses(v=6), u8, ports, ports),
    st.builds(UnknownTrafficSelector, u8.filter(lambda kind: kind not in (7, 8)), u8, octets),
)
selector_lists = st.lists(selectors, min_size=1, max_size=5).map(tuple)
deletes = st.one_of(
    st.just(Delete(1)),
    st.builds(
        lambda protocol, spis: Delete(protocol, tuple(spis)),
        st.sampled_from([2, 3]),
        st.lists(st.binary(min_size=4, max_size=4), max_size=5),
    ),
)
configuration_attributes = st.builds(ConfigurationAttribute, st.integers(0, 0x7FFF), octets)

plain_payloads: dict[type[object], st.SearchStrategy[Payload]] = {
    SecurityAssociation: st.builds(SecurityAssociation, proposal_lists),
    KeyExchange: st.builds(KeyExchange, u16, octets),
    IdentificationInitiator: st.builds(IdentificationInitiator, u8, octets, st.binary(min_size=3, max_size=3)),
    IdentificationResponder: st.builds(IdentificationResponder, u8, octets, st.binary(min_size=3, max_size=3)),
    Certificate: st.builds(Certificate, u8, octets),
    CertificateRequest: st.builds(CertificateRequest, u8, octets),
    Authentication: st.builds(Authentication, u8, octets),
    Nonce: st.builds(Nonce, st.binary(min_size=16, max_size=256)),
    Notify: st.builds(Notify, u16, octets, u8, octets),
    Delete: deletes,
    VendorId: st.builds(VendorId, octets),
    TrafficSelectorsInitiator: st.builds(TrafficSelectorsInitiator, selector_lists),
    TrafficSelectorsResponder: st.builds(TrafficSelectorsResponder, selector_lists),
    Configuration: st.builds(Configuration, u8, st.lists(configuration_attributes, max_size=5).map(tuple)),
    Eap: st.one_of(
        st.builds(Eap, u8, u8, u8, octets),
        st.builds(Eap, u8.filter(lambda code: code not in (1, 2)), u8),
    ),
    UnknownPayload: st.builds(
        UnknownPayload,
        u8.filter(lambda kind: kind not in (0, PayloadType.SKF) and not PayloadType.SA <= kind <= PayloadType.EAP),
        st.booleans(),
        octets,
    ),
}

encrypted_payloads: dict[type[object], st.SearchStrategy[Payload]] = {
    Encrypted: st.builds(Encrypted, u8, octets),
    EncryptedFragment: st.one_of(
        st.builds(EncryptedFragment, u8, st.just(1), st.integers(1, 0xFFFF), octets),
        st.integers(2, 0xFFFF).flatmap(
            lambda number: st.builds(
                EncryptedFragment, st.just(0), st.just(number), st.integers(number, 0xFFFF), octets
            )
        ),
    ),
}

headers = st.builds(
    Header,
    st.binary(min_size=8, max_size=8),
    st.binary(min_size=8, max_size=8),
    u8,
    st.sampled_from([0x00, 0x08, 0x20, 0x28, 0x10, 0x38]),
    u32,
    st.sampled_from([0x20, 0x21]),
)

plain_chains = st.lists(st.one_of(*plain_payloads.values()), max_size=6)
messages = st.builds(
    lambda header, chain, last: Message(header, tuple(chain + last)),
    headers,
    plain_chains,
    st.lists(st.one_of(*encrypted_payloads.values()), max_size=1),
)

GCM_PROPOSAL = Proposal(1, 1, b"", (Transform(1, 20, 128), Transform(2, 5), Transform(4, 31)))
CBC_PROPOSAL = Proposal(2, 1, b"", (Transform(1, 12, 256), Transform(2, 5), Transform(3, 12), Transform(4, 14)))
ESP_PROPOSALS = (
    Proposal(1, 3, b"\xc0\x01\x02\x03", (Transform(1, 20, 128), Transform(4, 31), Transform(5, 1), Transform(5, 0))),
    Proposal(2, 3, b"\xc0\x01\x02\x03", (Transform(1, 28), Transform(5, 0))),
)
SELECTOR_4 = TrafficSelector(IPv4Address("192.0.2.1"), IPv4Address("192.0.2.1"), 47)
SELECTOR_6 = TrafficSelector(IPv6Address("2001:db8::"), IPv6Address("2001:db8::ffff"), 17, 500, 4500)

#: One of every payload that may stand anywhere in a chain.
SAMPLES: tuple[Payload, ...] = (
    SecurityAssociation((GCM_PROPOSAL, CBC_PROPOSAL)),
    SecurityAssociation(ESP_PROPOSALS),
    KeyExchange(31, bytes(range(32))),
    IdentificationInitiator(2, b"spoke1.example.org"),
    IdentificationResponder(1, IPv4Address("192.0.2.1").packed),
    Certificate(4, b"certificate"),
    CertificateRequest(4, bytes(range(40))),
    Authentication(2, bytes(range(32))),
    Nonce(bytes(range(32))),
    Notify(16388, bytes(range(20))),
    Notify(16393, b"", 3, b"\xc0\x01\x02\x03"),
    Delete(1),
    Delete(3, (b"\xc0\x01\x02\x03", b"\xc0\x01\x02\x04")),
    VendorId(b"vendor"),
    TrafficSelectorsInitiator((SELECTOR_4, SELECTOR_6)),
    TrafficSelectorsResponder((SELECTOR_6, UnknownTrafficSelector(10, 0, b"label"))),
    Configuration(1, (ConfigurationAttribute(1), ConfigurationAttribute(3, b"\xc0\x00\x02\x35"))),
    Eap(2, 7, 1, b"identity"),
    UnknownPayload(200, False, b"of a later RFC"),
)
ENCRYPTED_SAMPLES: tuple[Payload, ...] = (
    Encrypted(35, bytes(range(64))),
    EncryptedFragment(35, 1, 3, bytes(range(64))),
    EncryptedFragment(0, 2, 3, bytes(range(64))),
)
