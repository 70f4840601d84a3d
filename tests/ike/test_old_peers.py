"""ESP suites for old peers: AES-CBC and AES-CTR with HMAC-SHA2, as proposals and in the key material."""

from __future__ import annotations

import pytest

from dsvpn.config.model import AuthConfig, IpsecConfig
from dsvpn.ike.proposals import offer_esp
from dsvpn.ike.suites import CBC_CIPHERS, CTR_CIPHERS, INTEGRITIES, parse_esp_suite
from dsvpn.wire import ikev2 as wire
from dsvpn.wire.ikev2 import EsnId, Transform, TransformType
from tests.ike.harness import make_profile, make_wire

SUITES = [f"{cipher}-{integrity}" for cipher in [*CBC_CIPHERS, *CTR_CIPHERS] for integrity in INTEGRITIES]


@pytest.mark.parametrize("suite", SUITES)
def test_both_ends_get_the_same_keys_in_the_handshake_and_in_rekeys(suite: str) -> None:
    esp = (f"{suite}-x25519",)
    net = make_wire(make_profile("a", esp=esp), make_profile("b", esp=esp))
    net.connect()
    net.check_agreement()
    for end in net.ends:
        old = end.child
        assert old.suite == suite
        assert len(old.inbound_keymat) == len(old.outbound_keymat) == parse_esp_suite(suite).keymat_length
        end.engine.rekey_child(end.handle, old.inbound_spi, net.now)
        net.settle()
        net.sleep(10.0)
        assert end.child.suite == suite
        assert end.child.inbound_keymat != old.inbound_keymat
        net.check_agreement()


def test_transforms_are_those_of_the_registry() -> None:
    (proposal,) = offer_esp([parse_esp_suite("aes256ctr-sha384")], 0x1234, with_groups=False).proposals
    assert proposal.transforms == (
        Transform(TransformType.ENCR, 13, 256),
        Transform(TransformType.INTEG, 13),
        Transform(TransformType.ESN, EsnId.ESN),
        Transform(TransformType.ESN, EsnId.NONE),
    )
    cbc, aead = offer_esp(
        [parse_esp_suite("aes192-sha512"), parse_esp_suite("aes128gcm16")], 0x1234, with_groups=False
    ).proposals
    assert cbc.transforms[:2] == (Transform(TransformType.ENCR, 12, 192), Transform(TransformType.INTEG, 14))
    assert not list(aead.of_type(TransformType.INTEG))


def test_an_aead_is_preferred_where_both_have_one() -> None:
    both = ("aes128gcm16", "aes256-sha256", "aes256-sha512")
    for a, b, chosen in [
        (both, both, "aes128gcm16"),
        (both, both[1:], "aes256-sha256"),
        (both[2:], both, "aes256-sha512"),
        (("aes128-sha256", "aes128ctr-sha256"), ("aes128ctr-sha256",), "aes128ctr-sha256"),
    ]:
        net = make_wire(make_profile("a", esp=a), make_profile("b", esp=b))
        net.connect()
        net.check_agreement()
        assert net.a.child.suite == chosen


@pytest.mark.parametrize(
    ("a", "b"),
    [("aes256-sha256", "aes256-sha384"), ("aes256-sha256", "aes128-sha256"), ("aes128ctr-sha256", "aes128-sha256")],
)
def test_another_hash_key_or_mode_is_no_proposal_in_common(a: str, b: str) -> None:
    net = make_wire(make_profile("a", esp=(a,)), make_profile("b", esp=(b,)))
    net.a.engine.initiate("default", net.a.path_to(net.b), net.now)
    net.settle()
    assert not net.a.children
    assert not net.b.children


def test_a_proposal_with_a_cipher_and_no_integrity_is_not_taken() -> None:
    offer = offer_esp([parse_esp_suite("aes256-sha256")], 0x1234, with_groups=False)
    (proposal,) = offer.proposals
    from dsvpn.ike.proposals import choose_esp

    suites = [parse_esp_suite("aes256-sha256")]
    assert choose_esp(suites, offer, 0x5678, with_groups=False) is not None
    bare = tuple(transform for transform in proposal.transforms if transform.type != TransformType.INTEG)
    for transforms in (bare, (*bare, Transform(TransformType.INTEG, 0))):
        stripped = wire.SecurityAssociation(
            (wire.Proposal(proposal.number, proposal.protocol, proposal.spi, transforms),)
        )
        assert choose_esp(suites, stripped, 0x5678, with_groups=False) is None


def test_none_of_them_is_offered_unless_a_profile_names_it() -> None:
    profile = IpsecConfig(auth=AuthConfig(psk="x"))
    assert all(parse_esp_suite(text).integrity is None for text in profile.esp)
