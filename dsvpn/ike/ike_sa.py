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
from dsvpn.ike.child_sa import ChildSa
from dsvpn.ike.create_child import CreateChild, respond_create_child
from dsvpn.ike.delete import DeleteIke
from dsvpn.ike.informational import respond_informational
from dsvpn.ike.init import IkeSaInit
from dsvpn.ike.keymat import IkeKeys
from dsvpn.ike.liveness import Liveness
from dsvpn.ike.profile import RetransmissionSchedule
from dsvpn.ike.rekey_ike import RekeyIke, respond_rekey_ike
from dsvpn.ike.respond_auth import respond_auth
from dsvpn.ike.sealing import SealingKey, open_payloads
from dsvpn.ike.state import IkeState
from dsvpn.ike.suites import IkeSuite
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
        self.tasks: deque[Task] = deque()
        #: What IKE_AUTH proves; emptied when it is done.
        self.init_request = b""
        self.init_response = b""
        self.nonce_i = b""
        self.nonce_r = b""

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
        self._sealing = SealingKey(suite.cipher, ours)
        self._opening = SealingKey(suite.cipher, theirs)
        self.sk_d, self.sk_pi, self.sk_pr = keys.d, keys.pi, keys.pr
        if self.context.key_log is not None:
            cipher = suite.cipher.wireshark
            line = f"{self.initiator_spi.hex()},{self.responder_spi.hex()},{keys.ei.hex()},{keys.er.hex()}"
            # Wireshark refuses a table with a cipher that it cannot name: such a line stands as a comment.
            line = f'{line},"{cipher or suite.cipher.name}",,,"NONE [RFC4306]"'
            self.context.key_log(line if cipher else f"# {line}")

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

    def _send_request(self, task: Task, payloads: list[wire.Payload], now: float) -> None:
        flags = Flag.INITIATOR if self.is_initiator else 0
        header = wire.Header(self.initiator_spi, self.responder_spi, task.exchange, flags, self.requests.next_id)
        if self._sealing is None:
            datagram = wire.Message(header, tuple(payloads)).encode()
            self.init_request = datagram
        else:
            datagram = self._sealing.seal(header, payloads)
        self.requests.open(task, datagram, self.schedule, now)
        self.context.send(datagram, self.association.path)

    def restart_init(self, task: Task, now: float) -> None:
        """Send IKE_SA_INIT anew, with message id 0 again (RFC 7296 section 2.6, last paragraph)."""
        self.requests = RequestWindow()
        self.tasks.appendleft(task)
        self.start_next(now)

    def abandon_tasks(self, now: float) -> None:
        """Nothing that this IKE SA had to do will be done."""
        tasks = list(self.tasks)
        self.tasks.clear()
        if self.requests.outstanding is not None:
            tasks.append(self.requests.outstanding.task)
            self.requests.close()
        for task in tasks:
            task.abandon(self, now)

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
        if not isinstance(encrypted, wire.Encrypted):
            return
        if header.is_response:
            outstanding = self.requests.outstanding
            if (
                outstanding is None
                or outstanding.message_id != header.message_id
                or outstanding.task.exchange != header.exchange_type
            ):
                return
            payloads = open_payloads(self._opening, encrypted)
            if payloads is None:
                return
            self._authenticated(path, now)
            self.requests.close()
            # An answer that does not decode counts as one without payloads: each task misses what it needs.
            readable = () if isinstance(payloads, DecodeError) or wire.unsupported_critical(payloads) else payloads
            outstanding.task.process(self, readable, now)
            self.start_next(now)
            return
        if self.state is IkeState.CONNECTING:
            return
        freshness = self.responses.classify(header.message_id, data)
        if freshness is Freshness.DUPLICATE:
            self.context.send(self.responses.response, path)
        elif freshness is Freshness.FRESH and self.state is not IkeState.DEAD:
            payloads = open_payloads(self._opening, encrypted)
            if payloads is not None and (self.state is not IkeState.HALF_OPEN or _is_auth(header)):
                self._authenticated(path, now)
                self._answer(header, payloads, data, path, now)
                self.start_next(now)

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
            answer = self._respond(header.exchange_type, payloads, path, now)
        except PeerError as error:
            answer = [] if error.code is None else [wire.Notify(error.code, error.data)]
            if self.state is IkeState.HALF_OPEN:
                # IKE_AUTH has one try: who failed starts anew.
                self.state = IkeState.DEAD
        assert self._sealing is not None
        flags = Flag.RESPONSE | (Flag.INITIATOR if self.is_initiator else 0)
        reply = wire.Header(self.initiator_spi, self.responder_spi, header.exchange_type, flags, header.message_id)
        datagram = self._sealing.seal(reply, answer)
        self.responses.answered(request, datagram)
        # Answers go where the request came from (RFC 7296 section 2.11).
        self.context.send(datagram, path)

    def _respond(self, exchange: int, payloads: tuple[wire.Payload, ...], path: Path, now: float) -> list[wire.Payload]:
        if self.state is IkeState.HALF_OPEN:
            return respond_auth(self, payloads, path, now)
        if exchange == ExchangeType.INFORMATIONAL:
            return respond_informational(self, payloads, now)
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
        outstanding = self.requests.outstanding
        if outstanding is None:
            return
        if isinstance(outstanding.task, IkeSaInit) and outstanding.task.handle_timer(self, now):
            return
        if outstanding.deadline > now:
            return
        datagram = self.requests.retransmit(self.schedule, now)
        if datagram is not None:
            self.context.send(datagram, self.association.path)
        elif self is self.association.current and self.state is not IkeState.DELETING:
            # The peer is dead, and everything with it (RFC 7296 section 2.4).
            self.association.collapse(f"peer {self.association.path.remote.address} does not answer", now)
        else:
            self.association.remove_ike_sa(self, now)


def _is_auth(header: wire.Header) -> bool:
    return header.exchange_type == ExchangeType.IKE_AUTH
