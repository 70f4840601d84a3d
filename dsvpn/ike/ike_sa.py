"""One IKE SA: two SPIs, one set of keys, one window in each direction.

What happens on top of that is in tasks (our requests) and in the `respond_*` functions (the peer's).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from math import inf
from typing import TYPE_CHECKING, Final

from dsvpn.addresses import Path
from dsvpn.errors import DecodeError, PeerError
from dsvpn.ike import fragmentation, lost_spi, mobike, quick_crash, redirect
from dsvpn.ike.child_sa import ChildSa
from dsvpn.ike.create_child import CreateChild, respond_create_child
from dsvpn.ike.delete import DeleteIke
from dsvpn.ike.followup import Followup, respond_followup
from dsvpn.ike.fragmentation import Reassembly
from dsvpn.ike.informational import respond_informational
from dsvpn.ike.init import IkeSaInit
from dsvpn.ike.int_auth import IntAuth, received_octets, sent_octets
from dsvpn.ike.intermediate import respond_intermediate
from dsvpn.ike.keymat import IkeKeys
from dsvpn.ike.liveness import Liveness
from dsvpn.ike.profile import RetransmissionSchedule
from dsvpn.ike.rekey_ike import RekeyIke, respond_rekey_ike
from dsvpn.ike.respond_auth import respond_auth
from dsvpn.ike.sealing import SealingKey, decode_chain, make_sealing_key, open_chain
from dsvpn.ike.state import FAREWELL, IkeState
from dsvpn.ike.suites import Additional, IkeSuite
from dsvpn.ike.task import Forgotten, Task
from dsvpn.ike.window import Freshness, RequestWindow, ResponseWindow
from dsvpn.wire import ikev2 as wire
from dsvpn.wire.ikev2 import ExchangeType, Flag, NotifyType, ProtocolId

if TYPE_CHECKING:
    from dsvpn.ike.association import Association

#: Tasks that may wait: an owner that asks without end does not fill memory.
MAX_TASKS: Final = 64


class IkeSa:
    """One IKE SA of an association. `is_initiator`: we are its original initiator (the I flag of our messages)."""

    def __init__(
        self, association: Association, is_initiator: bool, initiator_spi: bytes, responder_spi: bytes, now: float
    ) -> None:
        self.association = association
        self.context = association.context
        self.is_initiator = is_initiator
        self.initiator_spi = initiator_spi
        self.responder_spi = responder_spi
        self.state = IkeState.CONNECTING if is_initiator else IkeState.HALF_OPEN
        self.created = now
        self.rekey_at = inf
        self.expires_at = inf
        self.drop_at = inf
        self.suite: IkeSuite | None = None
        self.sk_d = b""
        self.sk_pi = b""
        self.sk_pr = b""
        self._sealing: SealingKey | None = None
        self._opening: SealingKey | None = None
        self.requests = RequestWindow()
        self.responses = ResponseWindow()
        self.reassembly = Reassembly(self.context.fragments)
        self.tasks: deque[Task] = deque()
        #: What IKE_AUTH proves; emptied when it is done.
        self.init_request = b""
        self.init_response = b""
        self.nonce_i = b""
        self.nonce_r = b""
        #: What the peer's SIGNATURE_HASH_ALGORITHMS said; None without it.
        self.peer_hashes: frozenset[int] | None = None
        #: Additional key exchanges that IKE_INTERMEDIATE has still to carry, and what IKE_AUTH proves of them.
        self.additional: tuple[Additional, ...] = ()
        self.int_auth: IntAuth | None = None
        #: What the peer asked for and has still to bring additional key exchanges for.
        self.followup: Followup | None = None
        #: Both ends said USE_PPK; the identity of the PPK in the keys, if one is.
        self.use_ppk = False
        self.ppk: bytes | None = None
        #: The peer's crash token (RFC 6290); empty when it gave none.
        self.peer_token = b""

    @property
    def local_spi(self) -> bytes:
        """The SPI that we chose."""
        return self.initiator_spi if self.is_initiator else self.responder_spi

    @property
    def schedule(self) -> RetransmissionSchedule:
        """The retransmission schedule of the profile."""
        profile = self.association.profile
        return RetransmissionSchedule() if profile is None else profile.retransmission

    @property
    def rekey_task(self) -> RekeyIke | None:
        """Our rekey of this IKE SA whose answer is outstanding."""
        outstanding = self.requests.outstanding
        task = None if outstanding is None else outstanding.task
        return task if isinstance(task, RekeyIke) else None

    def set_keys(self, suite: IkeSuite, keys: IkeKeys) -> None:
        """The IKE SA can seal and open from here on."""
        self.suite = suite
        ours, theirs = (keys.ei, keys.er) if self.is_initiator else (keys.er, keys.ei)
        our_mac, their_mac = (keys.ai, keys.ar) if self.is_initiator else (keys.ar, keys.ai)
        self._sealing = make_sealing_key(suite, ours, our_mac, self.context.random)
        self._opening = make_sealing_key(suite, theirs, their_mac, self.context.random)
        self.sk_d, self.sk_pi, self.sk_pr = keys.d, keys.pi, keys.pr
        if self.context.key_log is not None:
            cipher = suite.cipher.wireshark
            line = f"{self.initiator_spi.hex()},{self.responder_spi.hex()},{keys.ei.hex()},{keys.er.hex()}"
            # Wireshark refuses a table with a cipher that it cannot name: such a line stands as a comment.
            integrity = "NONE [RFC4306]" if suite.integrity is None else suite.integrity.wireshark
            line = f'{line},"{cipher or suite.cipher.name}",{keys.ai.hex()},{keys.ar.hex()},"{integrity}"'
            self.context.key_log(line if cipher else f"# {line}")

    @property
    def int_auth_octets(self) -> bytes:
        """What IKE_AUTH proves of IKE_INTERMEDIATE (RFC 9242 section 3.3.2); empty without."""
        return b"" if self.int_auth is None else self.int_auth.octets()

    def expect_additional(self, suite: IkeSuite) -> None:
        """IKE_INTERMEDIATE is to carry the additional key exchanges of `suite` before IKE_AUTH."""
        self.additional = suite.additional
        self.int_auth = IntAuth() if suite.additional else None

    def set_additional_keys(self, keys: IkeKeys) -> None:
        """The first of the outstanding additional key exchanges gave these keys."""
        assert self.suite is not None
        self.additional = self.additional[1:]
        self.set_keys(self.suite, keys)

    def _note_intermediate(self, from_initiator: bool, octets: bytes) -> None:
        """IKE_AUTH is to prove this IKE_INTERMEDIATE message."""
        if self.int_auth is not None:
            assert self.suite is not None
            self.int_auth.add(self.suite.prf, self.sk_pi if from_initiator else self.sk_pr, from_initiator, octets)

    def establish(self, now: float) -> None:
        """The lifetime of an authenticated IKE SA begins."""
        profile = self.association.profile
        assert profile is not None
        self.state = IkeState.ESTABLISHED
        self.created = now
        self.drop_at = inf
        self.rekey_at = now + self.association.soft_lifetime(profile.ike_lifetime)
        self.expires_at = now + profile.ike_lifetime
        self.init_request = self.init_response = b""
        self.int_auth = None

    # -- requests of ours ------------------------------------------------------------------------------------

    def add_task(self, task: Task, now: float, urgent: bool = False) -> None:
        """Do `task` when the window is free, before the others if `urgent`."""
        if urgent:
            self.tasks.appendleft(task)
        else:
            self.tasks.append(task)
        self.start_next(now)

    def start_next(self, now: float) -> None:
        """Send the next request, if the window is free."""
        while self.requests.outstanding is None and self.tasks and self.state is not IkeState.DEAD:
            task = self.tasks.popleft()
            payloads = task.build(self, now)
            if payloads is not None:
                self._send_request(task, payloads, now)

    def send_last_request(self, task: Task, now: float) -> None:
        """Send a request beside one that is outstanding, because this process ends.

        It goes beyond the window: a peer that has answered the outstanding one takes it, another ignores it and
        finds us gone by itself.
        """
        payloads = task.build(self, now)
        if payloads is not None:
            self._send_request(task, payloads, now)

    def repeat_request(self, now: float) -> None:
        """Send the outstanding request again at once: the path is another."""
        outstanding = self.requests.outstanding
        if outstanding is not None:
            outstanding.sent = 1
            outstanding.deadline = now + self.schedule.wait(1)
            self.send(outstanding.datagrams, self.association.path)

    def _send_request(self, task: Task, payloads: list[wire.Payload], now: float) -> None:
        flags = Flag.INITIATOR if self.is_initiator else 0
        header = wire.Header(self.initiator_spi, self.responder_spi, task.exchange, flags, self.requests.next_id)
        if self._sealing is None:
            self.init_request = wire.Message(header, tuple(payloads)).encode()
            datagrams: tuple[bytes, ...] = (self.init_request,)
        else:
            datagrams = fragmentation.seal(self._sealing, header, payloads, self.association.message_limit)
            if task.exchange == ExchangeType.IKE_INTERMEDIATE:
                self._note_intermediate(self.is_initiator, sent_octets(header, payloads))
        self.requests.open(task, datagrams, self.schedule, now)
        self.send(datagrams, self.association.path)

    def send(self, datagrams: tuple[bytes, ...], path: Path) -> None:
        """Queue the datagrams of one message."""
        for datagram in datagrams:
            self.context.send(datagram, path)

    def restart_init(self, task: Task, now: float) -> None:
        """Send IKE_SA_INIT anew, with message id 0 again (RFC 7296 section 2.6, last paragraph)."""
        self.requests = RequestWindow()
        self.tasks.appendleft(task)
        self.start_next(now)

    def abandon_tasks(self, now: float) -> None:
        """Nothing that this IKE SA had to do will be done."""
        self.drop_followup()
        tasks = list(self.tasks)
        self.tasks.clear()
        if self.requests.outstanding is not None:
            tasks.append(self.requests.outstanding.task)
            self.requests.close()
        for task in tasks:
            task.abandon(self, now)

    def drop_followup(self) -> None:
        """Nothing comes of what the peer asked for."""
        followup, self.followup = self.followup, None
        if followup is not None:
            followup.drop(self)

    def rekey(self, now: float) -> None:
        """Rekey this IKE SA when the window is free. Nothing when that waits already."""
        if self.rekey_at != inf:
            self.rekey_at = inf
            self.add_task(RekeyIke(), now)

    def rekey_child(self, child: ChildSa | None, now: float) -> None:
        """Rekey a CHILD_SA, or make a further one for None. Nothing when that waits already."""
        if child is None:
            if len(self.tasks) < MAX_TASKS:
                self.add_task(CreateChild(None), now)
        elif child.rekey_at != inf:
            child.rekey_at = inf
            self.add_task(CreateChild(child), now)

    def add_per_resource(self, now: float) -> None:
        """Make one more CHILD_SA of the group (dsvpn/ike/per_resource.py)."""
        self.add_task(CreateChild(None, per_resource=True), now)

    def check_liveness(self, now: float) -> None:
        """Any answer to any request is a sign of life: ask only when none is under way."""
        if self.requests.outstanding is None:
            self.add_task(Liveness(), now)

    def say_goodbye(self, reason: str, now: float, notify: NotifyType | None = None) -> None:
        """End the association at once and tell the peer when the window is free."""
        self.association.end(reason, now)
        for sa in list(self.association.ike_sas):
            if sa is not self and sa.state is IkeState.ESTABLISHED:
                self.association.remove_ike_sa(sa, now)
        self.start_delete(now, notify)

    def start_delete(self, now: float, notify: NotifyType | None = None) -> None:
        """Delete this IKE SA alone."""
        self.drop_followup()
        outstanding = self.requests.outstanding
        for task in self.tasks:
            task.abandon(self, now)
        self.tasks.clear()
        if outstanding is not None:
            outstanding.task.abandon(self, now)
            outstanding.task = Forgotten(outstanding.task.exchange)
        self.state = IkeState.DELETING
        self.add_task(DeleteIke(notify), now)

    # -- datagrams -------------------------------------------------------------------------------------------

    def receive_init_response(self, message: wire.Message, data: bytes, path: Path, now: float) -> None:
        """An answer to IKE_SA_INIT; nothing protects it."""
        outstanding = self.requests.outstanding
        if outstanding is None or not isinstance(outstanding.task, IkeSaInit) or self.state is not IkeState.CONNECTING:
            return
        remote = self.association.path.remote
        if message.header.message_id != 0 or path.remote != remote:
            return
        outstanding.task.receive(self, message, data, path, now)
        self.start_next(now)

    def receive_own_init(self, now: float) -> None:
        """Our IKE_SA_INIT has come back: a NAT in front of us took the remote address for its own."""
        outstanding = self.requests.outstanding
        if outstanding is not None and isinstance(outstanding.task, IkeSaInit):
            outstanding.task.doubt(f"{self.association.path.remote.address} leads back to this gateway", now)

    def receive(self, message: wire.Message, data: bytes, path: Path, now: float) -> None:
        """A message of any other exchange."""
        header = message.header
        if self._opening is None or not message.payloads:
            return
        encrypted = message.payloads[-1]
        if not isinstance(encrypted, wire.Encrypted | wire.EncryptedFragment):
            lost_spi.receive_unprotected(self, message, now)
            return
        if header.is_response:
            outstanding = self.requests.outstanding
            if (
                outstanding is None
                or outstanding.message_id != header.message_id
                or outstanding.task.exchange != header.exchange_type
            ):
                return
            opened = self._open(header, encrypted, now)
            if opened is None:
                return
            encrypted, chain = opened
            payloads = decode_chain(self._opening, encrypted, chain) if isinstance(chain, bytes) else chain
            if header.exchange_type == ExchangeType.IKE_INTERMEDIATE and isinstance(chain, bytes):
                self._note_intermediate(not self.is_initiator, received_octets(encrypted, chain))
            self._authenticated(path, now)
            self.requests.close()
            # An answer that does not decode counts as one without payloads: each task misses what it needs.
            readable = () if isinstance(payloads, DecodeError) or wire.unsupported_critical(payloads) else payloads
            if self.state is IkeState.ESTABLISHED and wire.find_notify(readable, NotifyType.INVALID_SYNTAX):
                outstanding.task.abandon(self, now)
                self._end_for_syntax("peer could not read what was sent: INVALID_SYNTAX", now)
                return
            outstanding.task.process(self, readable, now)
            self.start_next(now)
            return
        if self.state is IkeState.CONNECTING:
            return
        freshness = self.responses.classify(header.message_id, data)
        if freshness is Freshness.DUPLICATE:
            self.send(self.responses.response, path)
        elif freshness is Freshness.FRESH and self.state is not IkeState.DEAD:
            if self.state is IkeState.HALF_OPEN and not self._is_awaited(header):
                return
            opened = self._open(header, encrypted, now)
            if opened is not None:
                encrypted, chain = opened
                payloads = decode_chain(self._opening, encrypted, chain) if isinstance(chain, bytes) else chain
                if header.exchange_type == ExchangeType.IKE_INTERMEDIATE and isinstance(chain, bytes):
                    self._note_intermediate(not self.is_initiator, received_octets(encrypted, chain))
                self._authenticated(path, now)
                # A request in fragments is known again by the first of them (RFC 7383 section 2.6.1).
                request = data if isinstance(encrypted, wire.Encrypted) else encrypted.associated_data + encrypted.data
                self._answer(header, payloads, request, path, now)
                self.start_next(now)

    def _open(
        self, header: wire.Header, encrypted: wire.Encrypted | wire.EncryptedFragment, now: float
    ) -> tuple[wire.Encrypted | wire.EncryptedFragment, bytes | DecodeError] | None:
        """The SK payload, or the first SKF payload, of a message that is here in whole, and its payload chain or why
        there is none. None when it is not authentic, or when fragments are missing."""
        assert self._opening is not None
        if isinstance(encrypted, wire.EncryptedFragment) and (
            not self.association.fragmentation or self.reassembly.has(header, encrypted)
        ):
            return None
        chain = open_chain(self._opening, encrypted)
        if chain is None:
            return None
        if isinstance(encrypted, wire.Encrypted) or not isinstance(chain, bytes):
            self.reassembly.drop(header.is_response)
            return encrypted, chain
        return self.reassembly.add(header, encrypted, chain, now)

    def _is_awaited(self, header: wire.Header) -> bool:
        """Whether a request is the next of those that lead to IKE_AUTH."""
        awaited = ExchangeType.IKE_INTERMEDIATE if self.additional else ExchangeType.IKE_AUTH
        return header.exchange_type == awaited

    def _authenticated(self, path: Path, now: float) -> None:
        self.association.heard(now)
        self.association.follow(path)

    def _answer(
        self,
        header: wire.Header,
        payloads: tuple[wire.Payload, ...] | DecodeError,
        request: bytes,
        path: Path,
        now: float,
    ) -> None:
        next_keys: IkeKeys | None = None
        try:
            if isinstance(payloads, DecodeError):
                raise PeerError(str(payloads), NotifyType.INVALID_SYNTAX)
            critical = wire.unsupported_critical(payloads)
            if critical is not None:
                raise PeerError(
                    f"payload type {critical.payload_type} is critical and unknown",
                    NotifyType.UNSUPPORTED_CRITICAL_PAYLOAD,
                    bytes((critical.payload_type,)),
                )
            if self.state is IkeState.HALF_OPEN and self.additional:
                answer, next_keys = respond_intermediate(self, payloads)
            else:
                answer = self._respond(header.exchange_type, payloads, path, now)
        except PeerError as error:
            answer = [] if error.code is None else [wire.Notify(error.code, error.data)]
            if self.state is IkeState.HALF_OPEN:
                # IKE_AUTH has one try: who failed starts anew.
                self.state = IkeState.DEAD
            elif error.code == NotifyType.INVALID_SYNTAX:
                self._end_for_syntax(f"peer sends what cannot be read: {error.reason}", now)
        assert self._sealing is not None
        flags = Flag.RESPONSE | (Flag.INITIATOR if self.is_initiator else 0)
        reply = wire.Header(self.initiator_spi, self.responder_spi, header.exchange_type, flags, header.message_id)
        datagrams = fragmentation.seal(self._sealing, reply, answer, self.association.message_limit)
        if next_keys is not None:
            # The answer goes under the old keys (RFC 9370 section 2.2.2).
            self._note_intermediate(self.is_initiator, sent_octets(reply, answer))
            self.set_additional_keys(next_keys)
        self.responses.answered(request, datagrams)
        # Answers go where the request came from (RFC 7296 section 2.11).
        self.send(datagrams, path)

    def _end_for_syntax(self, reason: str, now: float) -> None:
        """One end has answered INVALID_SYNTAX: that ends the IKE SA at both, and no delete follows (RFC 7296
        section 2.21.3). The answer is kept for retransmissions."""
        if self is self.association.current:
            self.association.end(reason, now)
            for other in list(self.association.ike_sas):
                if other is not self:
                    self.association.remove_ike_sa(other, now)
        self.abandon_tasks(now)
        self.state = IkeState.DEAD
        self.drop_at = now + FAREWELL

    def _respond(self, exchange: int, payloads: tuple[wire.Payload, ...], path: Path, now: float) -> list[wire.Payload]:
        if self.state is IkeState.HALF_OPEN:
            return respond_auth(self, payloads, path, now)
        if exchange == ExchangeType.INFORMATIONAL:
            lost_spi.respond(self, payloads, now)
            quick_crash.take_token(self, payloads)
            redirect.respond(self, payloads)
            return [*mobike.respond(self, payloads, path, now), *respond_informational(self, payloads, now)]
        if exchange == ExchangeType.IKE_FOLLOWUP_KE:
            if self.state is not IkeState.ESTABLISHED:
                raise PeerError(f"IKE SA is {self.state.value}", NotifyType.TEMPORARY_FAILURE)
            return respond_followup(self, payloads, now)
        if exchange == ExchangeType.CREATE_CHILD_SA:
            offer = wire.find(payloads, wire.SecurityAssociation)
            if offer is None:
                raise PeerError("CREATE_CHILD_SA without SA payload", NotifyType.INVALID_SYNTAX)
            if self.state is not IkeState.ESTABLISHED:
                # What is replaced or being closed takes no new SA (RFC 7296 section 2.25.2).
                raise PeerError(f"IKE SA is {self.state.value}", NotifyType.TEMPORARY_FAILURE)
            if offer.proposals[0].protocol == ProtocolId.IKE:
                return respond_rekey_ike(self, offer, payloads, now)
            return respond_create_child(self, offer, payloads, now)
        raise PeerError(f"exchange type {exchange} has no place here", NotifyType.INVALID_SYNTAX)

    # -- time ------------------------------------------------------------------------------------------------

    def deadlines(self) -> Iterator[float]:
        """The times of this IKE SA's own timers."""
        if self.drop_at != inf:
            yield self.drop_at
        incomplete = self.reassembly.deadline
        if incomplete != inf:
            yield incomplete
        if self.followup is not None:
            yield self.followup.expires_at
        outstanding = self.requests.outstanding
        if outstanding is not None:
            yield outstanding.deadline
            if isinstance(outstanding.task, IkeSaInit):
                yield from outstanding.task.deadlines()

    def handle_timer(self, now: float) -> None:
        """Retransmit, give up, or vanish."""
        if self.drop_at <= now:
            self.association.remove_ike_sa(self, now)
            return
        self.reassembly.expire(now)
        if self.followup is not None and self.followup.expires_at <= now:
            self.drop_followup()
        outstanding = self.requests.outstanding
        if outstanding is None:
            return
        if isinstance(outstanding.task, IkeSaInit) and outstanding.task.handle_timer(self, now):
            return
        if outstanding.deadline > now:
            return
        if outstanding.sent >= mobike.SILENT_TRIES and mobike.try_next_address(self, now):
            return
        datagrams = self.requests.retransmit(self.schedule, now)
        if datagrams is not None:
            # All of them: which ones were lost, nobody says (RFC 7383 section 2.6.1).
            self.send(datagrams, self.association.path)
        elif self is self.association.current and self.state is not IkeState.DELETING:
            # The peer is dead, and everything with it (RFC 7296 section 2.4).
            self.association.collapse(f"peer {self.association.path.remote.address} does not answer", now)
        else:
            self.association.remove_ike_sa(self, now)
