"""CREATE_CHILD_SA for CHILD_SAs: rekeying one, or making a further one (RFC 7296 sections 1.3.1, 1.3.3, 2.8).

    HDR, SK {[N(REKEY_SA)], N(USE_TRANSPORT_MODE), SA, Ni, [KEi], TSi, TSr}  -->
                                    <--  HDR, SK {N(USE_TRANSPORT_MODE), SA, Nr, [KEr], TSi, TSr}

Additional key exchanges follow in IKE_FOLLOWUP_KE (dsvpn/ike/followup.py), and the exchange ends with the last of them.

Both ends may rekey one CHILD_SA at once. Call it C, the new SA of our exchange A, that of the peer's exchange P.

1.  The peer's request comes while ours is outstanding: both exchanges run. When our answer comes, the four nonces are
    known, and the SA of the exchange with the lowest one is redundant: its initiator deletes it, the other initiator
    deletes C (section 2.8.1).
    a.  A wins: we delete C, nothing is sealed with P, and the peer deletes P.
    b.  P wins: we delete A, which was never sealed with, and the peer deletes C; that delete makes P ready.
    c.  The peer's delete of C or P comes before our answer, which was lost or late: it is obeyed, and the nonces,
        kept by our task, still tell what becomes of A.
2.  The peer's request comes when our exchange is done and C is being deleted: TEMPORARY_FAILURE, and when C is gone:
    CHILD_SA_NOT_FOUND (section 2.25.1). The peer has A already and forgets its own attempt.
3.  Our request meets case 2 at the peer: we have P already and forget our attempt. Only if C lives on without
    successor do we try again (TEMPORARY_FAILURE) or replace it by a fresh SA (CHILD_SA_NOT_FOUND).
4.  The peer deletes C while our rekey of it is outstanding and made no P: C goes; A stays, if the peer made it.
5.  Our rekey waits for the window when the peer's request comes: ours is dropped before it is sent.
6.  The peer rekeys C again although P succeeds it: TEMPORARY_FAILURE; it is to delete C.
7.  The peer deletes or rekeys an SA that is unknown here while our exchange is outstanding: it may be A, whose answer
    is late. A delete is remembered and makes A stillborn; a rekey gets TEMPORARY_FAILURE. An end whose P is deleted
    takes C for not rekeyed again.
8.  Case 1 with additional key exchanges, when the four nonces are known before the last of them: the end whose exchange
    has the lowest one does not go on with it, and no SA is there to delete. The other end drops what it kept for it.
9.  Our rekey waits for the window, and the peer's has begun but lacks additional key exchanges: ours is put off.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from dsvpn.errors import PeerError
from dsvpn.ike.child_exchange import Negotiated, accept_answer, answer_offer, offer_child, with_additional
from dsvpn.ike.child_sa import MAX_CHILDREN, ChildSa, ChildState
from dsvpn.ike.delete import DeleteStillborn
from dsvpn.ike.followup import Followup, take_link, take_public_value
from dsvpn.ike.key_exchange import KeyExchange, make_key_exchange
from dsvpn.ike.mode import mode_payloads
from dsvpn.ike.suites import EspSuite, Group
from dsvpn.ike.task import Payloads, Task, first_error
from dsvpn.wire import ikev2 as wire
from dsvpn.wire.ikev2 import ExchangeType, NotifyType, ProtocolId

if TYPE_CHECKING:
    from dsvpn.ike.ike_sa import IkeSa

#: Requests that one wish may take: another group, or another time.
MAX_TRIES = 4
#: Seconds after which a rekey that the peer put off is tried again, and up to as many more at random.
RETRY = 2.0


class CreateChild(Task):
    """Rekey the CHILD_SA `old`, or make a further one for None; `per_resource`: one more of the group."""

    exchange = ExchangeType.CREATE_CHILD_SA
    survives_ike_rekey = True

    def __init__(self, old: ChildSa | None, per_resource: bool = False) -> None:
        self.old = old
        self.per_resource = per_resource
        self.suites: tuple[EspSuite, ...] = ()
        self.inbound_spi: int | None = None
        self.nonce = b""
        self.group: Group | None = None
        self.key_exchange: KeyExchange | None = None
        self.tries = 0
        #: The peer's simultaneous rekey of the same SA (P above) and its nonces, which outlive it.
        self.passive: ChildSa | None = None
        self.passive_nonces: tuple[bytes, bytes] | None = None
        #: The CHILD_SA whose additional key exchanges are under way, their secrets, and the link of the next.
        self.negotiated: Negotiated | None = None
        self.secrets = b""
        self.link: wire.Notify | None = None
        #: What the peer deleted that is unknown here: it may be the SA whose answer is still on its way.
        self.deleted_early: set[int] = set()

    def build(self, sa: IkeSa, now: float) -> list[wire.Payload] | None:
        """The request, unless `old` has been replaced or deleted meanwhile."""
        context, old = sa.context, self.old
        profile = sa.association.profile
        assert profile is not None
        if self.negotiated is not None:
            return self._build_followup(sa)
        if old is not None and (old.state is not ChildState.INSTALLED or old not in sa.association.children):
            return None
        if old is not None and isinstance(sa.followup, ChildFollowup) and sa.followup.old is old:
            self._retry_later(sa, now)
            return None
        group = sa.association.per_resource
        if self.per_resource and not group.lacks:
            # The peer has asked meanwhile.
            group.asking = False
            return None
        self.inbound_spi = context.allocate_spi(old)
        if self.inbound_spi is None:
            self._retry_later(sa, now)
            return None
        self.suites = profile.esp if old is not None else group.suites()
        if self.group is None:
            self.group = next((suite.group for suite in self.suites if suite.group is not None), None)
        self.nonce = context.new_nonce()
        self.tries += 1
        *mode, offer, ts_i, ts_r = offer_child(sa, self.suites, self.inbound_spi, with_groups=True)
        payloads: list[wire.Payload] = []
        if old is not None:
            old.rekey = self
            spi = old.inbound_spi.to_bytes(4, "big")
            payloads.append(wire.Notify(NotifyType.REKEY_SA, b"", ProtocolId.ESP, spi))
        else:
            payloads += group.offer()
        payloads += (*mode, offer, wire.Nonce(self.nonce))
        if self.group is not None:
            self.key_exchange = make_key_exchange(self.group, context.random, context.kems)
            payloads.append(wire.KeyExchange(self.group.key_exchange_id, self.key_exchange.public))
        return [*payloads, ts_i, ts_r]

    def process(self, sa: IkeSa, payloads: Payloads, now: float) -> None:
        """The new CHILD_SA, or why there is none."""
        association, old = sa.association, self.old
        profile = association.profile
        assert profile is not None
        assert self.inbound_spi is not None
        if old is not None:
            old.rekey = None
        error = first_error(payloads)
        if error is not None:
            self._release(sa)
            self._refused(sa, error, now)
            return
        if self.negotiated is not None:
            self._process_followup(sa, self.negotiated, payloads, now)
            return
        nonce = wire.find(payloads, wire.Nonce)
        try:
            if nonce is None:
                raise PeerError("peer's CREATE_CHILD_SA answer lacks its nonce")
            nonces = (self.nonce, nonce.data)
            new = accept_answer(
                sa,
                payloads,
                self.suites,
                self.inbound_spi,
                nonces,
                with_groups=True,
                key_exchange=self.key_exchange,
            )
            if old is None:
                association.per_resource.take_answer(payloads)
            if new.additional:
                self.link = take_link(payloads)
                self._follow_up(sa, new, now)
                return
        except PeerError:
            # The peer has made an SA that this end cannot: take it back, then try again.
            sa.add_task(DeleteStillborn(self.inbound_spi), now, urgent=True)
            self.inbound_spi = None
            self._retry_later(sa, now)
            return
        self._install(sa, new, now)

    def _install(self, sa: IkeSa, new: Negotiated, now: float) -> None:
        """The exchange is over at both ends."""
        association, old = sa.association, self.old
        if new.outbound_spi in self.deleted_early:
            self._release(sa)
            self._retry_later(sa, now)
            return
        lost = self._has_lost(new)
        if not lost:
            self._drop_passive(sa)
        self.inbound_spi = None
        child = association.install_child(
            new.suite,
            new.esn,
            (new.inbound_spi, new.outbound_spi),
            (new.inbound_keymat, new.outbound_keymat),
            replaces=old,
            outbound_ready=not lost,
            now=now,
        )
        if lost:
            child.redundant = True
            association.delete_child(child, now)
            if self.passive is None:
                # The peer's exchange goes on, if nothing befalls it.
                self._retry_later(sa, now)
            return
        if self.per_resource:
            association.per_resource.answered(now)
        if self.passive is not None:
            self.passive.redundant = True
            self.passive.outbound_ready = False
        if old is not None and old in association.children:
            association.delete_child(old, now)

    # -- additional key exchanges ----------------------------------------------------------------------------

    def _follow_up(self, sa: IkeSa, new: Negotiated, now: float) -> None:
        """Go on with the next additional key exchange of `new`, unless the peer's rekey of the same SA wins."""
        if self._has_lost(new):
            # Only our half of it exists (RFC 9370 section 2.2.4): nothing to delete.
            self._release(sa)
            self._retry_later(sa, now)
            return
        self._drop_passive(sa)
        if self.old is not None:
            self.old.rekey = self
        self.negotiated = new
        self.exchange = ExchangeType.IKE_FOLLOWUP_KE
        sa.add_task(self, now, urgent=True)

    def _build_followup(self, sa: IkeSa) -> list[wire.Payload]:
        assert self.negotiated is not None
        assert self.link is not None
        group = self.negotiated.additional[0][1]
        self.key_exchange = make_key_exchange(group, sa.context.random, sa.context.kems)
        return [wire.KeyExchange(group.key_exchange_id, self.key_exchange.public), self.link]

    def _process_followup(self, sa: IkeSa, new: Negotiated, payloads: Payloads, now: float) -> None:
        assert self.key_exchange is not None
        assert self.inbound_spi is not None
        rest = new.additional[1:]
        try:
            public = take_public_value(payloads, self.key_exchange.group.key_exchange_id)
            self.secrets += self.key_exchange.shared_secret(public)
            if rest:
                self.link = take_link(payloads)
        except PeerError:
            if rest:
                self._release(sa)
            else:
                # The peer has the SA.
                sa.add_task(DeleteStillborn(self.inbound_spi), now, urgent=True)
                self.inbound_spi = None
            self._retry_later(sa, now)
            return
        if rest:
            self._follow_up(sa, replace(new, additional=rest), now)
        else:
            self._install(sa, with_additional(sa, new, self.secrets, True), now)

    def _has_lost(self, new: Negotiated) -> bool:
        """Whether our exchange has the lowest of the four nonces of a simultaneous rekey."""
        return self.passive_nonces is not None and min(new.nonces) < min(self.passive_nonces)

    def _drop_passive(self, sa: IkeSa) -> None:
        """Our exchange goes on: the peer's unfinished rekey of the same SA does not."""
        followup = sa.followup
        if self.old is not None and isinstance(followup, ChildFollowup) and followup.old is self.old:
            sa.drop_followup()

    def note_early_delete(self, outbound_spi: int) -> None:
        """The peer has deleted an SA that is unknown here."""
        if len(self.deleted_early) < MAX_CHILDREN:
            self.deleted_early.add(outbound_spi)

    def abandon(self, sa: IkeSa, now: float) -> None:
        """Nothing came of it."""
        self._release(sa)
        if self.old is not None:
            self.old.rekey = None
        elif self.per_resource:
            sa.association.per_resource.asking = False

    def _refused(self, sa: IkeSa, error: wire.Notify, now: float) -> None:
        profile = sa.association.profile
        assert profile is not None
        old = self.old
        if error.type == NotifyType.INVALID_KE_PAYLOAD and self.tries < MAX_TRIES and self.negotiated is None:
            wanted = int.from_bytes(error.data, "big") if len(error.data) == 2 else 0
            for suite in self.suites:
                if suite.group is not None and suite.group.key_exchange_id == wanted and suite.group != self.group:
                    self.group = suite.group
                    sa.add_task(self, now, urgent=True)
                    return
        if error.type == NotifyType.CHILD_SA_NOT_FOUND and old is not None:
            if old.state is ChildState.INSTALLED:
                # The peer lost it: what we send with it is dropped (RFC 7296 section 2.25.1).
                sa.association.child_deleted(old, now)
                sa.rekey_child(None, now)
            return
        if old is not None and old.expired and error.type != NotifyType.TEMPORARY_FAILURE:
            old.rekey = None
            sa.association.delete_child(old, now)
            return
        if self.per_resource:
            sa.association.per_resource.failed(now, error)
        self._retry_later(sa, now, f"peer refuses a CHILD_SA: {error.name}")

    def _retry_later(self, sa: IkeSa, now: float, reason: str = "no CHILD_SA could be made") -> None:
        at = now + RETRY * (1.0 + sa.context.uniform())
        if self.old is not None:
            self.old.rekey = None
            self.old.rekey_at = at
        else:
            if self.per_resource:
                sa.association.per_resource.failed(now, None)
            sa.association.miss_child(at, reason, now)

    def _release(self, sa: IkeSa) -> None:
        if self.inbound_spi is not None:
            sa.context.release_spi(self.inbound_spi)
            self.inbound_spi = None


def respond_create_child(
    sa: IkeSa, offer: wire.SecurityAssociation, payloads: Payloads, now: float
) -> list[wire.Payload]:
    """Answer the peer's rekey of a CHILD_SA, or its wish for a further one."""
    association = sa.association
    if sa.rekey_task is not None:
        raise PeerError("the IKE SA is being rekeyed", NotifyType.TEMPORARY_FAILURE)
    nonce = wire.find(payloads, wire.Nonce)
    if nonce is None:
        raise PeerError("CREATE_CHILD_SA lacks the nonce", NotifyType.INVALID_SYNTAX)
    old: ChildSa | None = None
    rekey = wire.find_notify(payloads, NotifyType.REKEY_SA)
    if rekey is not None:
        old = association.find_child(int.from_bytes(rekey.spi, "big"))
        outstanding = sa.requests.outstanding
        if old is None and outstanding is not None and isinstance(outstanding.task, CreateChild):
            # It may be the SA that this end asked for, with the answer still on its way.
            raise PeerError("a CHILD_SA is being made", NotifyType.TEMPORARY_FAILURE)
        if old is None or rekey.protocol != ProtocolId.ESP:
            return [wire.Notify(NotifyType.CHILD_SA_NOT_FOUND, b"", rekey.protocol, rekey.spi)]
        if old.state is not ChildState.INSTALLED:
            raise PeerError(f"the CHILD_SA is {old.state.value}", NotifyType.TEMPORARY_FAILURE)
    group = association.per_resource
    grouped = old is None and group.is_asked(payloads)
    outstanding = sa.requests.outstanding
    ours = outstanding is not None and isinstance(outstanding.task, CreateChild) and outstanding.task.old is None
    if grouped:
        group.check_room(ours)
    if len(association.children) >= association.max_children:
        raise PeerError("too many CHILD_SAs", NotifyType.NO_ADDITIONAL_SAS)
    nonces = (nonce.data, sa.context.new_nonce())
    suites = group.suites() if grouped else None
    new = answer_offer(sa, offer, payloads, nonces, with_groups=True, suites=suites, replaces=old)
    link: list[wire.Payload] = []
    info = group.answer() if grouped else []
    if new.additional:
        sa.drop_followup()
        sa.followup = ChildFollowup(sa, old, new, now)
        link.append(sa.followup.payload)
        if old is not None and old.rekey is not None:
            old.rekey.passive_nonces = nonces
    else:
        _install_answered(sa, old, new, now)
    assert new.sa is not None
    assert new.selectors is not None
    assert sa.association.profile is not None
    answer: list[wire.Payload] = [*info, *mode_payloads(sa.association.profile), new.sa, wire.Nonce(nonces[1])]
    if new.public:
        assert new.suite.group is not None
        answer.append(wire.KeyExchange(new.suite.group.key_exchange_id, new.public))
    return [
        *answer,
        wire.TrafficSelectorsInitiator((new.selectors[0],)),
        wire.TrafficSelectorsResponder((new.selectors[1],)),
        *link,
    ]


class ChildFollowup(Followup):
    """A CHILD_SA that the peer asked for, in place of `old` or as a further one, between its key exchanges."""

    def __init__(self, sa: IkeSa, old: ChildSa | None, negotiated: Negotiated, now: float) -> None:
        super().__init__(sa, negotiated.additional, now)
        self.old = old
        self.negotiated = negotiated

    def check(self, sa: IkeSa) -> None:
        """Not if `old` was rekeyed or deleted meanwhile."""
        old = self.old
        if old is not None and (old.state is not ChildState.INSTALLED or old not in sa.association.children):
            raise PeerError(f"the CHILD_SA is {old.state.value}", NotifyType.TEMPORARY_FAILURE)

    def complete(self, sa: IkeSa, now: float) -> list[wire.Payload]:
        """Install it."""
        _install_answered(sa, self.old, with_additional(sa, self.negotiated, self.secrets, False), now)
        return []

    def drop(self, sa: IkeSa) -> None:
        """Its inbound SPI is free."""
        sa.context.release_spi(self.negotiated.inbound_spi)


def _install_answered(sa: IkeSa, old: ChildSa | None, new: Negotiated, now: float) -> None:
    """A CHILD_SA that the peer asked for has keys: P above, when it rekeys `old`."""
    child = sa.association.install_child(
        new.suite,
        new.esn,
        (new.inbound_spi, new.outbound_spi),
        (new.inbound_keymat, new.outbound_keymat),
        replaces=old,
        # The initiator cannot open before it has our answer (RFC 7296 section 2.8): what seals goes on until there is a
        # sign of the new one, be it a rekey or a further one.
        outbound_ready=old is None and not sa.association.seals,
        now=now,
    )
    if old is not None:
        old.state = ChildState.REKEYED
        if old.rekey is not None:
            old.rekey.passive, old.rekey.passive_nonces = child, new.nonces
        if old.expired:
            # Nothing else seals: what overtakes our answer is lost, as it would be without this.
            sa.association.make_outbound_ready(child)
