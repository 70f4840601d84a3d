"""CREATE_CHILD_SA for the IKE SA: rekeying it (RFC 7296 sections 1.3.2, 2.8.2, 2.18).

    HDR, SK {SA, Ni, KEi}  -->
                        <--  HDR, SK {SA, Nr, KEr}

Both ends may rekey at once. Call the old IKE SA O, that of our exchange A, that of the peer's exchange P.

1.  The peer's request comes while ours is outstanding: both exchanges run, and O stays in use. When our answer comes,
    the IKE SA of the exchange with the lowest of the four nonces is redundant.
    a.  A wins: the association goes on under A, and we delete O. The peer deletes P.
    b.  P wins: the association goes on under P, and we delete A. The peer deletes O.
    c.  The peer deletes O before our answer: it won, or did not notice our rekey. The association goes on under P, and
        our attempt is forgotten; an A that the peer made for it vanishes there after FAREWELL.
    d.  The peer deletes P before our answer: it lost. Our answer then makes A.
2.  The peer's request comes when our exchange is done and O is being deleted: TEMPORARY_FAILURE (section 2.25.2).
3.  Our request meets case 2 at the peer: the association goes on under P, our attempt is forgotten.
4.  The peer's request comes while a CREATE_CHILD_SA or delete of ours for a CHILD_SA is outstanding:
    TEMPORARY_FAILURE; and while our rekey is outstanding, the peer's CREATE_CHILD_SA for a CHILD_SA gets the same.
5.  Our rekey waits for the window when the peer's request comes: ours is dropped before it is sent.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING

from dsvpn.errors import PeerError
from dsvpn.ike.create_child import MAX_TRIES, RETRY, CreateChild
from dsvpn.ike.delete import DeleteChild, DeleteStillborn
from dsvpn.ike.key_exchange import KeyExchange, make_key_exchange
from dsvpn.ike.keymat import derive_rekeyed_ike_keys
from dsvpn.ike.proposals import check_ike_answer, choose_ike, offer_ike
from dsvpn.ike.state import FAREWELL, IkeState
from dsvpn.ike.suites import Group, IkeSuite
from dsvpn.ike.task import Payloads, Task, first_error
from dsvpn.wire import ikev2 as wire
from dsvpn.wire.ikev2 import SPI_LENGTH, ExchangeType, NotifyType

if TYPE_CHECKING:
    from dsvpn.ike.ike_sa import IkeSa

#: IKE SAs that one association may have at a time, with those on their way out.
MAX_IKE_SAS = 8


class RekeyIke(Task):
    """Replace the IKE SA that this task runs on."""

    exchange = ExchangeType.CREATE_CHILD_SA

    def __init__(self) -> None:
        self.spi = b""
        self.nonce = b""
        self.group: Group | None = None
        self.key_exchange: KeyExchange | None = None
        self.tries = 0
        #: The peer's simultaneous rekey (P above) and its nonces, which outlive it.
        self.passive: IkeSa | None = None
        self.passive_nonces: tuple[bytes, bytes] | None = None

    def build(self, sa: IkeSa, now: float) -> list[wire.Payload] | None:
        """The request, unless the IKE SA is already replaced."""
        if sa.state is not IkeState.ESTABLISHED or sa is not sa.association.current:
            return None
        suites = self._suites(sa)
        if self.group is None:
            assert sa.suite is not None
            groups = [suite.group for suite in suites]
            self.group = sa.suite.group if sa.suite.group in groups else groups[0]
        self.spi = sa.context.new_ike_spi()
        self.nonce = sa.context.new_nonce()
        self.key_exchange = make_key_exchange(self.group, sa.context.random)
        self.tries += 1
        return [
            offer_ike(suites, self.spi),
            wire.Nonce(self.nonce),
            wire.KeyExchange(self.group.key_exchange_id, self.key_exchange.public),
        ]

    def process(self, sa: IkeSa, payloads: Payloads, now: float) -> None:
        """The new IKE SA, or why there is none."""
        if sa.state is not IkeState.ESTABLISHED:
            return
        error = first_error(payloads)
        if error is not None:
            self._refused(sa, error, now)
            return
        try:
            new, nonces = self._accept(sa, payloads, now)
        except PeerError:
            self._give_up(sa, now)
            return
        association, passive = sa.association, self.passive
        association.add_ike_sa(new)
        new.establish(now)
        alive = passive is not None and passive.state is IkeState.ESTABLISHED
        if alive and self.passive_nonces is not None and min(nonces) < min(self.passive_nonces):
            assert passive is not None
            _replace(sa, passive, now)
            new.start_delete(now)
            return
        association.promote(new, now)
        if passive is not None and alive:
            # Its maker deletes it; FAREWELL is for a maker that forgot.
            passive.state = IkeState.REKEYED
            passive.drop_at = now + FAREWELL
        sa.start_delete(now)

    def _accept(self, sa: IkeSa, payloads: Payloads, now: float) -> tuple[IkeSa, tuple[bytes, bytes]]:
        answer = wire.find(payloads, wire.SecurityAssociation)
        nonce = wire.find(payloads, wire.Nonce)
        public = wire.find(payloads, wire.KeyExchange)
        if answer is None or nonce is None or public is None:
            raise PeerError("peer's rekey of the IKE SA lacks SA, nonce or KE")
        choice = check_ike_answer(self._suites(sa), answer, SPI_LENGTH)
        assert self.key_exchange is not None
        group = self.key_exchange.group
        if choice is None or choice.suite.group != group or public.group != group.key_exchange_id:
            raise PeerError("peer chose an IKE proposal that was not offered")
        if choice.peer_spi == wire.ZERO_SPI:
            raise PeerError("peer's new IKE SPI is zero")
        secret = self.key_exchange.shared_secret(public.data)
        nonces = (self.nonce, nonce.data)
        new = _successor(sa, True, self.spi, choice.peer_spi, choice.suite, secret, nonces, now)
        return new, nonces

    def _refused(self, sa: IkeSa, error: wire.Notify, now: float) -> None:
        if error.type == NotifyType.INVALID_KE_PAYLOAD and self.tries < MAX_TRIES and self.passive is None:
            wanted = int.from_bytes(error.data, "big") if len(error.data) == 2 else 0
            for suite in self._suites(sa):
                if suite.group.key_exchange_id == wanted and suite.group != self.group:
                    self.group = suite.group
                    sa.add_task(self, now, urgent=True)
                    return
        self._give_up(sa, now)

    def _give_up(self, sa: IkeSa, now: float) -> None:
        if self.passive is not None and self.passive.state is IkeState.ESTABLISHED:
            _replace(sa, self.passive, now)
        else:
            sa.rekey_at = now + RETRY * (1.0 + sa.context.uniform())

    def _suites(self, sa: IkeSa) -> tuple[IkeSuite, ...]:
        profile = sa.association.profile
        assert profile is not None
        return profile.ike


def respond_rekey_ike(sa: IkeSa, offer: wire.SecurityAssociation, payloads: Payloads, now: float) -> list[wire.Payload]:
    """Answer the peer's rekey of the IKE SA."""
    association, context = sa.association, sa.context
    profile = association.profile
    assert profile is not None
    outstanding = sa.requests.outstanding
    if outstanding is not None and isinstance(outstanding.task, CreateChild | DeleteChild | DeleteStillborn):
        raise PeerError("a CHILD_SA is being made or deleted", NotifyType.TEMPORARY_FAILURE)
    task = sa.rekey_task
    if sa is not association.current or (task is not None and task.passive is not None):
        raise PeerError("the IKE SA is being replaced", NotifyType.TEMPORARY_FAILURE)
    if len(association.ike_sas) >= MAX_IKE_SAS:
        raise PeerError("too many rekeys", NotifyType.TEMPORARY_FAILURE)
    nonce = wire.find(payloads, wire.Nonce)
    public = wire.find(payloads, wire.KeyExchange)
    if nonce is None or public is None:
        raise PeerError("rekey of the IKE SA lacks nonce or KE", NotifyType.INVALID_SYNTAX)
    spi = context.new_ike_spi()
    choice = choose_ike(profile.ike, offer, spi)
    if choice is None or choice.peer_spi == wire.ZERO_SPI:
        raise PeerError("no IKE suite in common", NotifyType.NO_PROPOSAL_CHOSEN)
    group = choice.suite.group
    if public.group != group.key_exchange_id:
        wanted = group.key_exchange_id.to_bytes(2, "big")
        raise PeerError("key exchange of another group", NotifyType.INVALID_KE_PAYLOAD, wanted)
    key_exchange = make_key_exchange(group, context.random)
    try:
        secret = key_exchange.shared_secret(public.data)
    except PeerError as error:
        raise PeerError(error.reason, NotifyType.INVALID_SYNTAX) from None
    nonces = (nonce.data, context.new_nonce())
    new = _successor(sa, False, choice.peer_spi, spi, choice.suite, secret, nonces, now)
    association.add_ike_sa(new)
    new.establish(now)
    if task is None:
        _replace(sa, new, now)
    else:
        task.passive, task.passive_nonces = new, nonces
    return [
        wire.SecurityAssociation((choice.answer,)),
        wire.Nonce(nonces[1]),
        wire.KeyExchange(group.key_exchange_id, key_exchange.public),
    ]


def _successor(
    sa: IkeSa,
    is_initiator: bool,
    initiator_spi: bytes,
    responder_spi: bytes,
    suite: IkeSuite,
    secret: bytes,
    nonces: tuple[bytes, bytes],
    now: float,
) -> IkeSa:
    """The IKE SA after `sa`; its initiator is who began this exchange, whoever began the old one."""
    assert sa.suite is not None
    new = type(sa)(sa.association, is_initiator, initiator_spi, responder_spi, now)
    keys = derive_rekeyed_ike_keys(
        suite, sa.suite.prf, sa.sk_d, secret, nonces[0], nonces[1], initiator_spi, responder_spi
    )
    new.set_keys(suite, keys)
    return new


def _replace(old: IkeSa, new: IkeSa, now: float) -> None:
    """The peer's `new` takes over, and `old` waits for the peer's delete."""
    old.state = IkeState.REKEYED
    old.rekey_at = inf
    old.drop_at = now + FAREWELL
    old.association.promote(new, now)
