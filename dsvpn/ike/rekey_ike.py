"""CREATE_CHILD_SA for the IKE SA: rekeying it (RFC 7296 sections 1.3.2, 2.8.2, 2.18).

    HDR, SK {SA, Ni, KEi}  -->
                        <--  HDR, SK {SA, Nr, KEr}

Additional key exchanges follow in IKE_FOLLOWUP_KE (dsvpn/ike/followup.py), and the exchange ends with the last of them.

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
6.  Case 1 with additional key exchanges, when the four nonces are known before the last of them: the end whose exchange
    has the lowest one does not go on with it, and the other end drops what it kept for it. When they are known only at
    our last answer and we have lost, A exists at both ends: we delete it, and O stays in use until the peer makes P.
7.  Our rekey waits for the window, and the peer's has begun but lacks additional key exchanges: ours is put off.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING

from dsvpn.errors import PeerError
from dsvpn.ike.create_child import MAX_TRIES, RETRY, CreateChild
from dsvpn.ike.delete import DeleteChild, DeleteStillborn
from dsvpn.ike.followup import Followup, take_link, take_public_value
from dsvpn.ike.key_exchange import KeyExchange, answer_key_exchange, make_key_exchange
from dsvpn.ike.keymat import derive_rekeyed_ike_keys
from dsvpn.ike.proposals import IkeChoice, check_ike_answer, choose_ike, offer_ike
from dsvpn.ike.quick_crash import GiveToken, give_token, take_token
from dsvpn.ike.state import FAREWELL, IkeState
from dsvpn.ike.suites import Additional, Group, IkeSuite
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
        #: The IKE SA whose additional key exchanges are under way: what is agreed on, SK(0), both nonces, the exchanges
        #: that are left, the secrets of those that are done, and the link of the next.
        self.choice: IkeChoice | None = None
        self.secret = b""
        self.nonces = (b"", b"")
        self.additional: tuple[Additional, ...] = ()
        self.secrets = b""
        self.link: wire.Notify | None = None
        #: The answer, which may have the crash token of the new IKE SA.
        self.tokens: Payloads = ()

    def build(self, sa: IkeSa, now: float) -> list[wire.Payload] | None:
        """The request, unless the IKE SA is already replaced."""
        if sa.state is not IkeState.ESTABLISHED or sa is not sa.association.current:
            return None
        if self.choice is not None:
            return self._build_followup(sa)
        if isinstance(sa.followup, IkeFollowup):
            self._give_up(sa, now)
            return None
        suites = self._suites(sa)
        if self.group is None:
            assert sa.suite is not None
            groups = [suite.group for suite in suites]
            self.group = sa.suite.group if sa.suite.group in groups else groups[0]
        self.spi = sa.context.new_ike_spi()
        self.nonce = sa.context.new_nonce()
        self.key_exchange = make_key_exchange(self.group, sa.context.random, sa.context.kems)
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
            if self.choice is None:
                self._accept(sa, payloads)
            else:
                self._accept_followup(payloads)
        except PeerError:
            self._give_up(sa, now)
            return
        if self.additional:
            self._follow_up(sa, now)
        else:
            self.tokens = payloads
            self._finish(sa, now)

    def _finish(self, sa: IkeSa, now: float) -> None:
        """The exchange is over at both ends."""
        association, passive = sa.association, self.passive
        assert self.choice is not None
        new = _successor(
            sa, True, self.spi, self.choice.peer_spi, self.choice.suite, self.secret, self.nonces, self.secrets, now
        )
        association.add_ike_sa(new)
        new.establish(now)
        alive = passive is not None and passive.state is IkeState.ESTABLISHED
        if self._has_lost():
            if alive:
                assert passive is not None
                _replace(sa, passive, now)
                new.start_delete(now)
                return
            if isinstance(sa.followup, IkeFollowup):
                new.start_delete(now)
                self._give_up(sa, now)
                return
        # The peer made it too: it may have the token. Its own came with the answer.
        take_token(new, self.tokens)
        new.tasks.append(GiveToken())
        association.promote(new, now)
        if passive is not None and alive:
            # Its maker deletes it; FAREWELL is for a maker that forgot.
            passive.state = IkeState.REKEYED
            passive.drop_at = now + FAREWELL
        sa.start_delete(now)

    def _accept(self, sa: IkeSa, payloads: Payloads) -> None:
        """What CREATE_CHILD_SA agreed on."""
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
        self.secret = self.key_exchange.shared_secret(public.data)
        if choice.suite.additional:
            self.link = take_link(payloads)
        self.nonces = (self.nonce, nonce.data)
        self.additional = choice.suite.additional
        self.choice = choice

    def _follow_up(self, sa: IkeSa, now: float) -> None:
        """Go on with the next additional key exchange, unless the peer's rekey wins."""
        if self._has_lost():
            # Only our half of A exists (RFC 9370 section 2.2.4): nothing to delete.
            self._give_up(sa, now)
            return
        if isinstance(sa.followup, IkeFollowup):
            sa.drop_followup()
        self.exchange = ExchangeType.IKE_FOLLOWUP_KE
        sa.add_task(self, now, urgent=True)

    def _build_followup(self, sa: IkeSa) -> list[wire.Payload]:
        assert self.link is not None
        group = self.additional[0][1]
        self.key_exchange = make_key_exchange(group, sa.context.random, sa.context.kems)
        return [wire.KeyExchange(group.key_exchange_id, self.key_exchange.public), self.link]

    def _accept_followup(self, payloads: Payloads) -> None:
        assert self.key_exchange is not None
        public = take_public_value(payloads, self.key_exchange.group.key_exchange_id)
        self.secrets += self.key_exchange.shared_secret(public)
        self.additional = self.additional[1:]
        if self.additional:
            self.link = take_link(payloads)

    def _has_lost(self) -> bool:
        """Whether our exchange has the lowest of the four nonces of a simultaneous rekey."""
        return self.passive_nonces is not None and min(self.nonces) < min(self.passive_nonces)

    def _refused(self, sa: IkeSa, error: wire.Notify, now: float) -> None:
        again = self.tries < MAX_TRIES and self.passive is None and self.choice is None
        if error.type == NotifyType.INVALID_KE_PAYLOAD and again:
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
    try:
        public_value, secret = answer_key_exchange(group, public.data, context.random, context.kems)
    except PeerError as error:
        raise PeerError(error.reason, NotifyType.INVALID_SYNTAX) from None
    nonces = (nonce.data, context.new_nonce())
    followup = IkeFollowup(sa, choice, spi, secret, nonces, now)
    answer: list[wire.Payload] = [
        wire.SecurityAssociation((choice.answer,)),
        wire.Nonce(nonces[1]),
        wire.KeyExchange(group.key_exchange_id, public_value),
    ]
    if not followup.additional:
        return answer + followup.complete(sa, now)
    sa.drop_followup()
    sa.followup = followup
    if task is not None:
        task.passive_nonces = nonces
    return [*answer, followup.payload]


class IkeFollowup(Followup):
    """An IKE SA that the peer asked for, P above, between its key exchanges."""

    def __init__(
        self, sa: IkeSa, choice: IkeChoice, spi: bytes, secret: bytes, nonces: tuple[bytes, bytes], now: float
    ) -> None:
        super().__init__(sa, choice.suite.additional, now)
        self.choice = choice
        self.spi = spi
        self.secret = secret
        self.nonces = nonces

    def check(self, sa: IkeSa) -> None:
        """As at the beginning: nothing may be under way that the old IKE SA has to carry to its end."""
        outstanding = sa.requests.outstanding
        if outstanding is not None and isinstance(outstanding.task, CreateChild | DeleteChild | DeleteStillborn):
            raise PeerError("a CHILD_SA is being made or deleted", NotifyType.TEMPORARY_FAILURE)
        if sa is not sa.association.current:
            raise PeerError("the IKE SA is being replaced", NotifyType.TEMPORARY_FAILURE)

    def complete(self, sa: IkeSa, now: float) -> list[wire.Payload]:
        """P exists: it replaces the old IKE SA, unless a rekey of ours is under way as well. Its crash token goes with
        the answer (RFC 6290 section 4.3)."""
        choice = self.choice
        new = _successor(
            sa, False, choice.peer_spi, self.spi, choice.suite, self.secret, self.nonces, self.secrets, now
        )
        sa.association.add_ike_sa(new)
        new.establish(now)
        task = sa.rekey_task
        if task is None:
            _replace(sa, new, now)
        else:
            task.passive, task.passive_nonces = new, self.nonces
        return give_token(new)


def _successor(
    sa: IkeSa,
    is_initiator: bool,
    initiator_spi: bytes,
    responder_spi: bytes,
    suite: IkeSuite,
    secret: bytes,
    nonces: tuple[bytes, bytes],
    additional: bytes,
    now: float,
) -> IkeSa:
    """The IKE SA after `sa`; its initiator is who began this exchange, whoever began the old one."""
    assert sa.suite is not None
    new = type(sa)(sa.association, is_initiator, initiator_spi, responder_spi, now)
    keys = derive_rekeyed_ike_keys(
        suite, sa.suite.prf, sa.sk_d, secret, nonces[0], nonces[1], initiator_spi, responder_spi, additional
    )
    new.set_keys(suite, keys)
    # SK_d has the PPK in it, and so has everything that comes of it (RFC 8784 section 3).
    new.ppk = sa.ppk
    return new


def _replace(old: IkeSa, new: IkeSa, now: float) -> None:
    """The peer's `new` takes over, and `old` waits for the peer's delete."""
    old.drop_followup()
    old.state = IkeState.REKEYED
    old.rekey_at = inf
    old.drop_at = now + FAREWELL
    old.association.promote(new, now)
