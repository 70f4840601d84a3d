"""Offers and answers (RFC 7296 sections 2.7 and 3.3): what is chosen, and which answers are none."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dsvpn.ike.proposals import check_esp_answer, check_ike_answer, choose_esp, choose_ike, offer_esp, offer_ike
from dsvpn.ike.suites import parse_esp_suite, parse_ike_suite
from dsvpn.wire.ikev2 import Proposal, ProtocolId, SecurityAssociation, Transform, TransformAttribute, TransformType

KINDS = TransformType
GCM, PRF, X25519, ECP256 = Transform(KINDS.ENCR, 20, 128), Transform(KINDS.PRF, 5), Transform(4, 31), Transform(4, 19)
IKE = parse_ike_suite("aes128gcm16-prfsha256-x25519")
ESP = parse_esp_suite("aes128gcm16")
SPI = (0x12345678).to_bytes(4, "big")


def ike(*transforms: Transform, spi: bytes = b"") -> SecurityAssociation:
    return SecurityAssociation((Proposal(1, ProtocolId.IKE, spi, transforms),))


def test_one_transform_of_each_type_is_chosen_of_many() -> None:
    """A proposal may name several of each type, in any order; the answer has one of each, and the proposal's number."""
    cbc, sha1 = Transform(KINDS.ENCR, 12, 256), Transform(KINDS.PRF, 2)
    offer = SecurityAssociation(
        (
            Proposal(1, ProtocolId.IKE, b"", (cbc, sha1, Transform(KINDS.INTEG, 12), ECP256)),
            Proposal(2, ProtocolId.IKE, b"", (ECP256, X25519, sha1, PRF, Transform(KINDS.ENCR, 20, 256), GCM)),
        )
    )
    choice = choose_ike((IKE,), offer, b"")
    assert choice is not None
    assert choice.answer.number == 2
    assert sorted(choice.answer.transforms, key=lambda transform: transform.type) == [GCM, PRF, X25519]


@pytest.mark.parametrize(
    "offer",
    [
        # An attribute that nobody knows makes a transform one that nobody knows; so does a key length of its own.
        ike(replace(GCM, attributes=(TransformAttribute(99, 1),)), PRF, X25519),
        ike(replace(GCM, key_length=None), PRF, X25519),
        ike(replace(GCM, key_length=192), PRF, X25519),
        ike(GCM, replace(PRF, key_length=128), X25519),
        # A type that nobody knows cannot be left out of the answer, nor one that is needed out of the offer.
        ike(GCM, PRF, X25519, Transform(200, 1)),
        ike(GCM, PRF),
        ike(GCM, X25519),
        # An AEAD with an integrity algorithm that is not NONE.
        ike(GCM, PRF, X25519, Transform(KINDS.INTEG, 12)),
        # An SPI in IKE_SA_INIT, and another protocol.
        ike(GCM, PRF, X25519, spi=bytes(range(8))),
        SecurityAssociation((Proposal(1, ProtocolId.ESP, SPI, (GCM, PRF, X25519)),)),
    ],
)
def test_a_proposal_that_is_not_taken(offer: SecurityAssociation) -> None:
    assert choose_ike((IKE,), offer, b"") is None


def test_a_transform_that_is_not_understood_leaves_the_others() -> None:
    odd = replace(GCM, attributes=(TransformAttribute(99, b"what"),))
    assert choose_ike((IKE,), ike(odd, GCM, PRF, X25519), b"") is not None


def test_integrity_none_stands_beside_an_aead() -> None:
    """RFC 7296 section 3.3.3: NONE may be written out, and is then answered."""
    none = Transform(KINDS.INTEG, 0)
    choice = choose_ike((IKE,), ike(GCM, PRF, none, X25519), b"")
    assert choice is not None
    assert none in choice.answer.transforms


@pytest.mark.parametrize("spi", [0, 1, 255])
def test_reserved_spis_are_none(spi: int) -> None:
    """RFC 4303 section 2.1."""
    good = offer_esp((ESP,), 256, with_groups=False)
    assert choose_esp((ESP,), good, 999, with_groups=False) is not None
    assert choose_esp((ESP,), offer_esp((ESP,), spi, with_groups=False), 999, with_groups=False) is None


def test_proposals_are_numbered_in_order_of_preference() -> None:
    suites = tuple(parse_ike_suite(f"aes128gcm16-prfsha256-{group}") for group in ("x25519", "ecp256", "modp2048"))
    offer = offer_ike(suites, bytes(range(8)))
    assert [proposal.number for proposal in offer.proposals] == [1, 2, 3]
    assert {proposal.spi for proposal in offer.proposals} == {bytes(range(8))}
    assert [proposal.of_type(KINDS.KE)[0].id for proposal in offer.proposals] == [31, 19, 14]


def test_ike_auth_offers_no_key_exchange() -> None:
    """RFC 7296 section 1.2: there is no KE payload in IKE_AUTH, so nothing of type KE is on offer."""
    pfs = parse_esp_suite("aes128gcm16-x25519-ke1_mlkem768")
    for with_groups in (False, True):
        (proposal,) = offer_esp((pfs,), 256, with_groups=with_groups).proposals
        kinds = {transform.type for transform in proposal.transforms}
        assert {KINDS.KE, KINDS.ADDKE1} & kinds == ({KINDS.KE, KINDS.ADDKE1} if with_groups else set())


def test_an_answer_is_one_of_the_proposals_and_nothing_else() -> None:
    suites = (IKE, parse_ike_suite("aes256gcm16-prfsha384-ecp384"))
    offer = offer_ike(suites)
    first, second = offer.proposals
    for proposal, suite in ((first, suites[0]), (second, suites[1])):
        choice = check_ike_answer(suites, SecurityAssociation((proposal,)), 0)
        assert choice is not None
        assert choice.suite == suite
    wrong = [
        offer,
        SecurityAssociation((replace(first, number=2),)),
        SecurityAssociation((replace(first, number=3),)),
        SecurityAssociation((replace(first, number=0),)),
        SecurityAssociation((replace(first, transforms=(*first.transforms, ECP256)),)),
        SecurityAssociation((replace(first, transforms=first.transforms[:-1]),)),
        SecurityAssociation((replace(first, transforms=second.transforms),)),
        SecurityAssociation((replace(first, spi=bytes(range(8))),)),
    ]
    for answer in wrong:
        assert check_ike_answer(suites, answer, 0) is None


def test_an_answer_for_esp_chooses_one_way_to_number() -> None:
    (offered,) = offer_esp((ESP,), 256, with_groups=False).proposals
    encryption, extended, plain = offered.transforms
    for numbering, esn in ((extended, True), (plain, False)):
        answer = SecurityAssociation((replace(offered, spi=SPI, transforms=(encryption, numbering)),))
        choice = check_esp_answer((ESP,), answer, with_groups=False)
        assert choice is not None
        assert (choice.esn, choice.peer_spi) == (esn, 0x12345678)
    assert check_esp_answer((ESP,), SecurityAssociation((replace(offered, spi=SPI),)), with_groups=False) is None
