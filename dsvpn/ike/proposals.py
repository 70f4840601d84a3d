"""Proposals: what is offered, what is chosen, and whether an answer is one of the things offered (RFC 7296
section 2.7)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from dsvpn.ike.suites import Additional, EspSuite, IkeSuite
from dsvpn.wire.ikev2 import EsnId, Proposal, ProtocolId, SecurityAssociation, Transform, TransformType

_NONE: Final = 0

#: Types that may be answered with NONE: an AEAD has no integrity transform (RFC 7296 section 3.3.3), a CHILD_SA may
#: do without key exchange, and RFC 9370 section 2.2.1 lets additional exchanges be declined so.
_DECLINABLE: Final = frozenset((TransformType.INTEG, TransformType.KE, *range(TransformType.ADDKE1, 13)))


@dataclass(frozen=True, slots=True)
class IkeChoice:
    """An IKE suite out of an offer: `answer` is the proposal to send back, `peer_spi` the offering end's."""

    suite: IkeSuite
    answer: Proposal
    peer_spi: bytes


@dataclass(frozen=True, slots=True)
class EspChoice:
    """An ESP suite out of an offer."""

    suite: EspSuite
    esn: bool
    answer: Proposal
    peer_spi: int


def offer_ike(suites: Sequence[IkeSuite], spi: bytes = b"") -> SecurityAssociation:
    """One proposal per suite, in order of preference. `spi` is empty in IKE_SA_INIT and 8 octets in a rekey."""
    return SecurityAssociation(
        tuple(Proposal(n, ProtocolId.IKE, spi, tuple(_ike_transforms(suite))) for n, suite in enumerate(suites, 1))
    )


def offer_esp(suites: Sequence[EspSuite], spi: int, with_groups: bool, esn: bool = True) -> SecurityAssociation:
    """One proposal per suite, extended sequence numbers preferred, or not offered without
    `esn`. IKE_AUTH has no KE payload and so offers no groups (RFC 7296 section 1.2)."""
    proposals = []
    for number, suite in enumerate(suites, 1):
        transforms = _protection(suite)
        if with_groups and suite.group is not None:
            transforms.append(Transform(TransformType.KE, suite.group.key_exchange_id))
            transforms += _additional_transforms(suite.additional)
        if esn:
            transforms.append(Transform(TransformType.ESN, EsnId.ESN))
        transforms.append(Transform(TransformType.ESN, EsnId.NONE))
        proposals.append(Proposal(number, ProtocolId.ESP, spi.to_bytes(4, "big"), tuple(transforms)))
    return SecurityAssociation(tuple(proposals))


def choose_ike(suites: Iterable[IkeSuite], offer: SecurityAssociation, spi: bytes) -> IkeChoice | None:
    """The first of `suites` that `offer` has. `spi` is ours, for the answer; its length says which offer fits."""
    for suite in suites:
        for proposal in offer.proposals:
            if proposal.protocol != ProtocolId.IKE or len(proposal.spi) != len(spi):
                continue
            transforms = _pick(proposal, _ike_transforms(suite))
            if transforms is not None:
                answer = Proposal(proposal.number, ProtocolId.IKE, spi, transforms)
                return IkeChoice(suite, answer, proposal.spi)
    return None


def choose_esp(
    suites: Iterable[EspSuite], offer: SecurityAssociation, spi: int, with_groups: bool, esn: bool = True
) -> EspChoice | None:
    """The first of `suites` that `offer` has, with extended sequence numbers where the peer has them too; never
    without `esn`."""
    for suite in suites:
        for proposal in offer.proposals:
            # SPIs 1 to 255 are reserved, 0 is none (RFC 4303 section 2.1).
            if proposal.protocol != ProtocolId.ESP or int.from_bytes(proposal.spi, "big") < 256:
                continue
            wanted = _protection(suite)
            if with_groups and suite.group is not None:
                wanted.append(Transform(TransformType.KE, suite.group.key_exchange_id))
                wanted += _additional_transforms(suite.additional)
            numbering = {transform.id for transform in proposal.of_type(TransformType.ESN)}
            extended = esn and EsnId.ESN in numbering
            if numbering:
                wanted.append(Transform(TransformType.ESN, EsnId.ESN if extended else EsnId.NONE))
            transforms = _pick(proposal, wanted)
            if transforms is not None:
                answer = Proposal(proposal.number, ProtocolId.ESP, spi.to_bytes(4, "big"), transforms)
                return EspChoice(suite, extended, answer, int.from_bytes(proposal.spi, "big"))
    return None


def check_ike_answer(suites: Sequence[IkeSuite], answer: SecurityAssociation, spi_length: int) -> IkeChoice | None:
    """The suite that a peer chose out of `offer_ike(suites)`; None for an answer that was not on offer."""
    proposal = _single(answer, len(suites))
    if proposal is None:
        return None
    return choose_ike((suites[proposal.number - 1],), answer, bytes(spi_length))


def check_esp_answer(
    suites: Sequence[EspSuite], answer: SecurityAssociation, with_groups: bool, esn: bool = True
) -> EspChoice | None:
    """The suite that a peer chose out of `offer_esp(suites)`; None for an answer that was not on offer."""
    proposal = _single(answer, len(suites))
    if proposal is None:
        return None
    return choose_esp((suites[proposal.number - 1],), answer, 0, with_groups, esn)


def _single(answer: SecurityAssociation, offered: int) -> Proposal | None:
    """The one proposal of an answer, if it has one transform per type and a number that was offered."""
    if len(answer.proposals) != 1:
        return None
    proposal = answer.proposals[0]
    types = [transform.type for transform in proposal.transforms]
    if not 1 <= proposal.number <= offered or len(types) != len(set(types)):
        return None
    return proposal


def _encryption(suite: IkeSuite | EspSuite) -> Transform:
    cipher = suite.cipher
    return Transform(TransformType.ENCR, cipher.encryption_id, cipher.key_length_attribute)


def _protection(suite: EspSuite) -> list[Transform]:
    # RFC 7296 section 3.3: an AEAD and a cipher that needs an integrity algorithm never stand in one proposal.
    transforms = [_encryption(suite)]
    if suite.integrity is not None:
        transforms.append(Transform(TransformType.INTEG, suite.integrity.integrity_id))
    return transforms


def _ike_transforms(suite: IkeSuite) -> list[Transform]:
    transforms = [_encryption(suite), Transform(TransformType.PRF, suite.prf.prf_id)]
    if suite.integrity is not None:
        transforms.append(Transform(TransformType.INTEG, suite.integrity.integrity_id))
    transforms.append(Transform(TransformType.KE, suite.group.key_exchange_id))
    return transforms + _additional_transforms(suite.additional)


def _additional_transforms(additional: Iterable[Additional]) -> list[Transform]:
    """Transform types ADDKE1 to ADDKE7 (RFC 9370 section 2.2.1)."""
    return [Transform(TransformType.ADDKE1 + number - 1, group.key_exchange_id) for number, group in additional]


def _pick(proposal: Proposal, wanted: Sequence[Transform]) -> tuple[Transform, ...] | None:
    """The wanted transforms plus NONE for every other type on offer; None when the proposal lacks one."""
    types = {transform.type for transform in wanted}
    picked = []
    for transform in wanted:
        # A transform with an attribute that is not understood is not understood (RFC 7296 section 3.3.6).
        if transform not in proposal.transforms:
            return None
        picked.append(transform)
    for other in dict.fromkeys(transform.type for transform in proposal.transforms):
        if other in types:
            continue
        none = Transform(other, _NONE)
        if other not in _DECLINABLE or none not in proposal.transforms:
            return None
        picked.append(none)
    return tuple(picked)
