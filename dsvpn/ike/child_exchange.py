"""What IKE_AUTH and CREATE_CHILD_SA have in common: negotiating a CHILD_SA.

[N(USE_TRANSPORT_MODE),] SA, TSi, TSr  -->
                                <--  [N(USE_TRANSPORT_MODE),] SA, TSi, TSr
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from dsvpn.addresses import Address
from dsvpn.errors import PeerError
from dsvpn.ike import selectors
from dsvpn.ike.key_exchange import KeyExchange, answer_key_exchange
from dsvpn.ike.keymat import derive_child_keymat
from dsvpn.ike.mode import check_answered_mode, check_requested_mode, mode_payloads
from dsvpn.ike.proposals import check_esp_answer, choose_esp, offer_esp
from dsvpn.ike.suites import Additional, EspSuite
from dsvpn.ike.task import Payloads
from dsvpn.wire import ikev2 as wire
from dsvpn.wire.ikev2 import NotifyType

if TYPE_CHECKING:
    from dsvpn.ike.child_sa import ChildSa
    from dsvpn.ike.ike_sa import IkeSa


@dataclass(frozen=True, slots=True)
class Negotiated:
    """A CHILD_SA that both ends agree on. `sa` and `selectors` are the responder's SA payload, TSi and TSr.

    While `additional` key exchanges are to follow it has no key material; `with_additional` gives it."""

    suite: EspSuite
    esn: bool
    inbound_spi: int
    outbound_spi: int
    inbound_keymat: bytes = field(repr=False)
    outbound_keymat: bytes = field(repr=False)
    public: bytes
    remote_claimed: Address | None
    secret: bytes = field(repr=False)
    nonces: tuple[bytes, bytes] = field(repr=False)
    additional: tuple[Additional, ...] = ()
    sa: wire.SecurityAssociation | None = None
    selectors: tuple[wire.TrafficSelector, wire.TrafficSelector] | None = None


def offer_child(sa: IkeSa, suites: Sequence[EspSuite], spi: int, with_groups: bool) -> list[wire.Payload]:
    """The mode, SA, TSi and TSr of a request; the caller puts nonce and KE behind SA."""
    profile = sa.association.profile
    assert profile is not None
    ts_i, ts_r = selectors.propose(sa.association.path)
    return [
        *mode_payloads(profile),
        offer_esp(suites, spi, with_groups, profile.esn),
        wire.TrafficSelectorsInitiator((ts_i,)),
        wire.TrafficSelectorsResponder((ts_r,)),
    ]


def accept_answer(
    sa: IkeSa,
    payloads: Payloads,
    suites: Sequence[EspSuite],
    inbound_spi: int,
    nonces: tuple[bytes, bytes],
    *,
    with_groups: bool,
    key_exchange: KeyExchange | None = None,
) -> Negotiated:
    """The CHILD_SA that the peer's answer makes. PeerError when it does not answer what was offered."""
    association = sa.association
    answer = wire.find(payloads, wire.SecurityAssociation)
    ts_i = wire.find(payloads, wire.TrafficSelectorsInitiator)
    ts_r = wire.find(payloads, wire.TrafficSelectorsResponder)
    if answer is None or ts_i is None or ts_r is None:
        raise PeerError("peer's answer has no CHILD_SA")
    assert association.profile is not None
    check_answered_mode(association.profile, payloads)
    choice = check_esp_answer(suites, answer, with_groups, association.profile.esn)
    if choice is None:
        raise PeerError("peer chose an ESP proposal that was not offered")
    nat = association.udp_encapsulation
    if not selectors.acceptable(ts_i.selectors, ts_r.selectors, association.path, nat=nat):
        raise PeerError("peer's traffic selectors go beyond GRE between the two ends")
    secret = b""
    if with_groups and choice.suite.group is not None:
        public = wire.find(payloads, wire.KeyExchange)
        group = choice.suite.group
        if (
            public is None
            or key_exchange is None
            or {public.group, key_exchange.group.key_exchange_id} != {group.key_exchange_id}
        ):
            raise PeerError(f"peer's key exchange is not the {group.name} of its proposal")
        secret = key_exchange.shared_secret(public.data)
    additional = choice.suite.additional if with_groups else ()
    outbound, inbound = (b"", b"") if additional else _keymat(sa, choice.suite, nonces, secret)
    return Negotiated(
        choice.suite,
        choice.esn,
        inbound_spi,
        choice.peer_spi,
        inbound,
        outbound,
        b"",
        _claimed(ts_r.selectors),
        secret,
        nonces,
        additional,
    )


def answer_offer(
    sa: IkeSa,
    offer: wire.SecurityAssociation,
    payloads: Payloads,
    nonces: tuple[bytes, bytes],
    *,
    with_groups: bool,
    suites: Sequence[EspSuite] | None = None,
    replaces: ChildSa | None = None,
) -> Negotiated:
    """The CHILD_SA to answer with, of the profile's suites or, where they are given, of `suites`; in the place of
    `replaces`, if it rekeys one. PeerError with the notification to answer otherwise; then no SPI is taken."""
    association = sa.association
    context = sa.context
    profile = association.profile
    assert profile is not None
    ts_i = wire.find(payloads, wire.TrafficSelectorsInitiator)
    ts_r = wire.find(payloads, wire.TrafficSelectorsResponder)
    if ts_i is None or ts_r is None:
        raise PeerError("peer's request for a CHILD_SA lacks traffic selectors", NotifyType.INVALID_SYNTAX)
    check_requested_mode(profile, payloads, local_nat=association.local_nat, remote_nat=association.remote_nat)
    narrowed = selectors.narrow(
        ts_i.selectors,
        ts_r.selectors,
        association.path,
        local_nat=association.local_nat or association.udp_encapsulation,
        remote_nat=association.remote_nat or association.udp_encapsulation,
    )
    if narrowed is None:
        raise PeerError("peer's traffic selectors have no GRE between the two ends", NotifyType.TS_UNACCEPTABLE)
    choice = choose_esp(profile.esp if suites is None else suites, offer, 0, with_groups, profile.esn)
    if choice is None:
        raise PeerError("no ESP suite in common", NotifyType.NO_PROPOSAL_CHOSEN)
    secret = public = b""
    if with_groups and choice.suite.group is not None:
        group = choice.suite.group
        peer_public = wire.find(payloads, wire.KeyExchange)
        if peer_public is None or peer_public.group != group.key_exchange_id:
            raise PeerError(
                "key exchange of another group",
                NotifyType.INVALID_KE_PAYLOAD,
                group.key_exchange_id.to_bytes(2, "big"),
            )
        try:
            public, secret = answer_key_exchange(group, peer_public.data, context.random, context.kems)
        except PeerError as error:
            raise PeerError(error.reason, NotifyType.INVALID_SYNTAX) from None
    spi = context.allocate_spi(replaces)
    if spi is None:
        raise PeerError("no inbound SPI left", NotifyType.NO_ADDITIONAL_SAS)
    additional = choice.suite.additional if with_groups else ()
    inbound, outbound = (b"", b"") if additional else _keymat(sa, choice.suite, nonces, secret)
    answer = wire.SecurityAssociation((replace(choice.answer, spi=spi.to_bytes(4, "big")),))
    return Negotiated(
        choice.suite,
        choice.esn,
        spi,
        choice.peer_spi,
        inbound,
        outbound,
        public,
        _claimed(ts_i.selectors),
        secret,
        nonces,
        additional,
        answer,
        narrowed,
    )


def with_additional(sa: IkeSa, negotiated: Negotiated, secrets: bytes, is_initiator: bool) -> Negotiated:
    """The CHILD_SA with the key material that its additional key exchanges give; `secrets` is SK(1) | SK(2) | ...,
    `is_initiator` whether we began the exchange."""
    from_initiator, from_responder = _keymat(sa, negotiated.suite, negotiated.nonces, negotiated.secret, secrets)
    inbound, outbound = (from_responder, from_initiator) if is_initiator else (from_initiator, from_responder)
    return replace(negotiated, inbound_keymat=inbound, outbound_keymat=outbound, additional=())


def _keymat(
    sa: IkeSa, suite: EspSuite, nonces: tuple[bytes, bytes], secret: bytes, additional: bytes = b""
) -> tuple[bytes, bytes]:
    """The key material that the initiator of the exchange seals with, then the responder's."""
    assert sa.suite is not None
    return derive_child_keymat(sa.suite.prf, sa.sk_d, suite, nonces[0], nonces[1], secret, additional)


def _claimed(proposed: Sequence[wire.Selector]) -> Address | None:
    for selector in proposed:
        if isinstance(selector, wire.TrafficSelector) and selector.start == selector.end:
            return selector.start
    return None
