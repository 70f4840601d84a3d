"""Registration with next hop servers, the client's side (RFC 2332 section 5.2.3)."""

from __future__ import annotations

from dataclasses import dataclass, replace

from dsvpn.addresses import Address
from dsvpn.nhrp.config import NhsConfig
from dsvpn.nhrp.context import ONE_HOP, NhrpContext, nat_nbma, request_extensions
from dsvpn.nhrp.events import NhsDown, NhsUp
from dsvpn.nhrp.snapshot import NhsState, NhsStatus
from dsvpn.wire.nhrp import FLAG_NAT, FLAG_REGISTRATION_UNIQUE, NhrpMessage, PacketType
from dsvpn.wire.nhrp_cie import UNIQUE_PREFIX_LENGTH, Cie, CieCode, protocol_type

#: First retry after this many seconds, doubled each time up to the configured limit.
FIRST_RETRY = 1.0
#: An NHS that leaves this many requests in a row unanswered is reported as silent.
SILENT_ATTEMPTS = 3

_CODES = {
    CieCode.ADMINISTRATIVELY_PROHIBITED: "administratively prohibited",
    CieCode.INSUFFICIENT_RESOURCES: "insufficient resources",
    CieCode.BINDING_NOT_UNIQUE: "binding not unique",
    CieCode.UNIQUE_ADDRESS_REGISTERED: "the address is registered as unique by another gateway",
}


@dataclass(slots=True)
class Registration:
    """The state of one NHS. `attempts` counts the requests sent since the last reply."""

    nhs: NhsConfig
    state: NhsState = "waiting"
    peer: int | None = None
    request_id: int | None = None
    attempts: int = 0
    up_since: float | None = None
    nat_address: Address | None = None
    last_error: str = ""
    #: The NHS said something, if only no, since the last request.
    heard: bool = False
    #: What the owner was told last, None for nothing yet.
    reported: str | None = None


class RegistrationClient:
    """Registers with every NHS that has a protected path, and again before the holding time is over."""

    def __init__(self, context: NhrpContext) -> None:
        self._context = context
        self._registrations = [Registration(nhs) for nhs in context.config.nhs]

    def peer_up(self, nbma: Address, peer: int, now: float) -> None:
        """A path to an NBMA address is there: register with the NHS that lives at it."""
        for registration in self._registrations:
            if registration.nhs.nbma != nbma or registration.peer == peer or not self._context.peers.is_server(peer):
                continue
            registration.peer = peer
            self._start(registration, now)

    def peer_down(self, peer: int, now: float) -> None:
        """A path is gone. Another path to the same address takes over where there is one."""
        for registration in self._registrations:
            if registration.peer != peer:
                continue
            nbma = registration.nhs.nbma
            registration.peer = None if nbma is None else self._context.peers.server_at(nbma)
            if registration.peer is not None:
                self._start(registration, now)
                continue
            self._context.timers.cancel(("registration", registration.nhs.protocol))
            self._set_state(registration, "waiting")
            registration.request_id, registration.up_since = None, None
            self._report_down(registration, f"no path to NHS {registration.nhs.protocol}", False)

    def restart(self, now: float, peer: int | None = None) -> None:
        """Register anew everywhere, or behind one peer: this gateway's own address has changed, or the operator wants
        it."""
        for registration in self._registrations:
            if registration.peer is not None and peer in (None, registration.peer):
                self._start(registration, now)

    def receive_reply(self, message: NhrpMessage, peer: int | None, now: float) -> None:
        """A Registration Reply for this gateway."""
        context = self._context
        registration = self._of(message.request_id)
        if registration is None or registration.peer != peer:
            context.count("drop.unexpected_reply")
            return
        codes = [cie.code for cie in message.cies if cie.code != CieCode.SUCCESS]
        if codes or not message.cies:
            code = codes[0] if codes else None
            text = _CODES.get(CieCode(code)) if code in _CODES else f"code {code}"
            self._refused(registration, text or "no entry in the reply")
            return
        own = message.source_protocol
        nat = nat_nbma(message.extensions, own) if own is not None else None
        registration.nat_address = nat if nat != context.nbma else None
        registration.request_id, registration.attempts, registration.last_error = None, 0, ""
        if registration.state != "up" or registration.up_since is None:
            registration.up_since = now
        changed = registration.state != "up" or registration.reported != f"up {registration.nat_address}"
        self._set_state(registration, "up")
        # An NHS on the near side of the NAT sees no translation; one beyond it does, and peers beyond need to know.
        context.nat_address = next((r.nat_address for r in self._registrations if r.nat_address), None)
        if changed:
            registration.reported = f"up {registration.nat_address}"
            context.emit(NhsUp(registration.nhs.protocol, registration.nat_address))
        interval = context.config.registration_interval
        if interval is None:
            interval = context.config.holding_time / 3
        self._schedule(registration, now + interval)

    def receive_error(self, request_id: int, reason: str) -> bool:
        """An Error Indication about a request with this id; False when it is none of ours. Retries go on."""
        registration = self._of(request_id)
        if registration is None:
            return False
        self._refused(registration, reason)
        return True

    def distrust(self, peer: int, reason: str) -> None:
        """What an NHS sends is not authentic: the operator wants to know, whoever has the wrong word."""
        for registration in self._registrations:
            if registration.peer == peer and registration.request_id is not None:
                self._refused(registration, reason)

    def moved(self, protocol: Address, nbma: Address, now: float) -> None:
        """An NHS has another NBMA address: register with it as soon as there is a path to that."""
        for registration in self._registrations:
            if registration.nhs.protocol != protocol or registration.nhs.nbma == nbma:
                continue
            known = registration.nhs.nbma is not None
            registration.nhs = replace(registration.nhs, nbma=nbma)
            registration.peer = self._context.peers.server_at(nbma)
            if registration.peer is not None:
                self._start(registration, now)
                continue
            self._context.timers.cancel(("registration", protocol))
            self._set_state(registration, "waiting")
            registration.request_id, registration.up_since = None, None
            if known:
                self._report_down(registration, f"NHS {protocol} has moved to {nbma}", False)

    def lost(self, protocol: Address, reason: str, now: float) -> None:
        """The owner has found an NHS to be silent: ask it until it answers."""
        for registration in self._registrations:
            if registration.nhs.protocol == protocol and registration.peer is not None:
                self._start(registration, now)
                self._report_down(registration, reason, False)

    def registered_with(self) -> list[tuple[NhsConfig, int]]:
        """The NHSs that hold a registration of this gateway, with their peers."""
        return [(r.nhs, r.peer) for r in self._registrations if r.peer is not None and r.up_since is not None]

    def status(self, now: float) -> tuple[NhsStatus, ...]:
        """All NHSs for people."""
        found = []
        for r in self._registrations:
            due = self._context.timers.deadline(("registration", r.nhs.protocol))
            found.append(
                NhsStatus(
                    r.nhs.protocol,
                    r.nhs.nbma,
                    r.nhs.priority,
                    r.state,
                    r.nat_address,
                    r.last_error,
                    now - r.up_since if r.up_since is not None else None,
                    max(due - now, 0.0) if due is not None else None,
                )
            )
        return tuple(found)

    def _of(self, request_id: int) -> Registration | None:
        for registration in self._registrations:
            if registration.request_id == request_id:
                return registration
        return None

    def _start(self, registration: Registration, now: float) -> None:
        self._set_state(registration, "registering")
        registration.request_id, registration.attempts, registration.up_since = None, 0, None
        self._attempt(registration, now)

    def _schedule(self, registration: Registration, deadline: float) -> None:
        self._context.timers.set(
            ("registration", registration.nhs.protocol), deadline, lambda now: self._attempt(registration, now)
        )

    def _attempt(self, registration: Registration, now: float) -> None:
        """Send the request, the first time with a new id and then with the same (RFC 2332 section 5.2.3)."""
        if registration.peer is None:
            return
        limit = self._context.config.registration_retry_limit
        delay = min(FIRST_RETRY * 2.0**registration.attempts, limit)
        if registration.attempts >= SILENT_ATTEMPTS and not registration.heard:
            self._set_state(registration, "silent")
            reason = f"no answer ({registration.attempts} requests)"
            self._report_down(registration, reason, delay >= limit)
        if registration.request_id is None:
            registration.request_id = self._context.request_id()
        registration.attempts += 1
        registration.heard = False
        self._schedule(registration, now + delay)
        message = self._request(registration.nhs, registration.request_id)
        if message is None:
            registration.last_error = f"no own address of the family of {registration.nhs.protocol}"
            return
        self._context.send(message, registration.peer)

    def _request(self, nhs: NhsConfig, request_id: int) -> NhrpMessage | None:
        context = self._context
        own = context.own_address(nhs.protocol)
        if own is None:
            return None
        unique = context.config.unique
        nbma = nhs.nbma
        family = context.family(nbma)
        length = UNIQUE_PREFIX_LENGTH if unique else own.max_prefixlen
        nat = []
        if nbma is not None and nbma.version == (context.nbma or nbma).version:
            nat.append(Cie(prefix_length=own.max_prefixlen, nbma=nbma, protocol=nhs.protocol))
        return NhrpMessage(
            PacketType.REGISTRATION_REQUEST,
            family,
            protocol_type(own),
            ONE_HOP,
            FLAG_NAT | (FLAG_REGISTRATION_UNIQUE if unique else 0),
            request_id,
            context.own_nbma(family),
            own,
            nhs.protocol,
            [Cie(prefix_length=length, holding_time=context.config.holding_time)],
            request_extensions(nat),
        )

    def _set_state(self, registration: Registration, state: NhsState) -> None:
        registration.state = state
        if state == "up":
            self._context.nhs_up.add(registration.nhs.protocol)
        else:
            self._context.nhs_up.discard(registration.nhs.protocol)

    def _refused(self, registration: Registration, why: str) -> None:
        self._set_state(registration, "refused")
        registration.up_since, registration.heard = None, True
        self._report_down(registration, f"NHS {registration.nhs.protocol} refuses: {why}", False)

    def _report_down(self, registration: Registration, reason: str, restart_peer: bool) -> None:
        registration.last_error = reason
        # One report for one state of affairs: the number of requests in the text is no news.
        key = reason.partition(" (")[0]
        if registration.reported == key and not restart_peer:
            return
        registration.reported = key
        self._context.emit(NhsDown(registration.nhs.protocol, reason, restart_peer))
