"""The IKEv2 engine: every IKE SA of a gateway, found by SPI and by handle."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from itertools import count

from dsvpn.addresses import Address, Path
from dsvpn.errors import DecodeError, MisuseError
from dsvpn.ike import cookies, lost_spi, mobike, redirect
from dsvpn.ike.association import Association
from dsvpn.ike.authentication import proof as proofs
from dsvpn.ike.child_sa import ChildSa, ChildState
from dsvpn.ike.context import Context
from dsvpn.ike.delete import DeleteIke
from dsvpn.ike.events import Event
from dsvpn.ike.half_open import HalfOpenLimits
from dsvpn.ike.ike_sa import IkeSa
from dsvpn.ike.init import IkeSaInit
from dsvpn.ike.kem import LIBRARY_KEMS, Kem
from dsvpn.ike.profile import IkeProfile
from dsvpn.ike.respond_init import respond_init
from dsvpn.ike.snapshot import association_status
from dsvpn.ike.status import IkeSaStatus
from dsvpn.ike.version import receive_unreadable
from dsvpn.ike.volume import Carried
from dsvpn.wire import ikev2 as wire
from dsvpn.wire.ikev2 import SPI_LENGTH, ZERO_SPI, ExchangeType


class IkeEngine:
    """All IKE SAs of one gateway, initiated or answered (RFC 7296), without input, output, clock or randomness.

    `random(n)` gives n random octets. `allocate_spi(replaces)` gives an inbound ESP SPI, or raises HostError when
    there is none; `replaces` is the one of the CHILD_SA that is rekeyed, 0 without. `release_spi(spi)` takes back one
    that no ChildSaEstablished has named; once that event has named it, the SPI belongs to the owner, who frees it at
    ChildSaDeleted. `key_log` receives lines of Wireshark's
    ikev2_decryption_table. `wall_clock()` is the time of day in seconds since 1970, UTC; profiles with
    certificates need it. `token_secret` makes crash tokens (RFC 6290) and is to outlive the engine; empty makes none.
    `kems` are key encapsulation mechanisms besides those of the cryptographic library, by the names of `suites.KEMS`;
    MisuseError when a profile names one that there is not.

    The engine never deletes an IKE SA because a peer sent INITIAL_CONTACT: the event tells the owner, who knows which
    peers share an identity or an address.
    """

    def __init__(
        self,
        profiles: Iterable[IkeProfile],
        *,
        random: Callable[[int], bytes],
        allocate_spi: Callable[[int], int],
        release_spi: Callable[[int], None],
        key_log: Callable[[str], None] | None = None,
        wall_clock: Callable[[], float] | None = None,
        half_open: HalfOpenLimits | None = None,
        token_secret: bytes = b"",
        kems: Mapping[str, Kem] = LIBRARY_KEMS,
    ) -> None:
        by_name = {profile.name: profile for profile in profiles}
        kems = {**LIBRARY_KEMS, **kems}
        for profile in by_name.values():
            profile.require(kems)
        self._context = Context(
            by_name, random, allocate_spi, release_spi, key_log, wall_clock, half_open, token_secret, kems
        )
        self._require_wall_clock()
        self._timers: list[tuple[float, int, Association]] = []
        self._order = count()

    # -- datagrams, time and events --------------------------------------------------------------------------

    def initiate(self, profile: str, path: Path, now: float, redirected_from: Address | None = None) -> int:
        """Start an IKE SA with its first CHILD_SA towards `path.remote` and give its handle.

        Ends in IkeSaEstablished + ChildSaEstablished or in IkeSaFailed. With an unspecified `path.local` address the
        peer sees a NAT, and ESP goes in UDP: give the source address where it is known. `redirected_from` is the
        gateway that sent us to this one (RFC 5685).
        """
        found = self._context.profiles.get(profile)
        if found is None:
            known = ", ".join(sorted(self._context.profiles))
            raise MisuseError(f"no profile is called {profile!r}; known are {known or 'none'}")
        association = Association(self._context, found, path, now)
        association.redirected_from = redirected_from
        association.handle = self._context.new_handle()
        self._context.associations[association.handle] = association
        sa = IkeSa(association, True, self._context.new_ike_spi(), ZERO_SPI, now)
        association.add_ike_sa(sa)
        association.current = sa
        sa.add_task(IkeSaInit(found, found.force_udp_encapsulation or path.local.address.is_unspecified), now)
        self._schedule(association)
        return association.handle

    def receive_datagram(self, data: bytes, path: Path, now: float) -> None:
        """Take an IKE message (without non-ESP marker). Never raises for any bytes."""
        if cookies.is_request(data) and not self._admit(data, path, now):
            return
        try:
            message = wire.Message.decode(data)
        except DecodeError:
            receive_unreadable(self._context, data, path, now)
            return
        header = message.header
        if header.exchange_type == ExchangeType.IKE_SA_INIT and not header.is_response:
            own = self._context.ike_sas.get(header.initiator_spi)
            if own is not None and own.is_initiator:
                own.receive_own_init(now)
                self._schedule(own.association)
            elif header.from_initiator and header.responder_spi == ZERO_SPI and header.message_id == 0:
                association = respond_init(self._context, message, data, path, now)
                if association is not None:
                    self._schedule(association)
            return
        sa = self._context.ike_sas.get(header.responder_spi if header.from_initiator else header.initiator_spi)
        # The I flag is of the sender: what we initiated, the peer answers without it.
        if sa is None:
            self._receive_stray(message, path, now)
            return
        if sa.is_initiator == header.from_initiator:
            return
        if header.exchange_type == ExchangeType.IKE_SA_INIT:
            sa.receive_init_response(message, data, path, now)
        elif (header.initiator_spi, header.responder_spi) == (sa.initiator_spi, sa.responder_spi):
            sa.receive(message, data, path, now)
        self._schedule(sa.association)

    def datagrams_to_send(self, now: float) -> list[tuple[bytes, Path]]:
        """Datagrams that are due; port 4500 in `path.local` asks for the non-ESP marker."""
        outbox, self._context.outbox = self._context.outbox, []
        return outbox

    def get_timer(self) -> float | None:
        """When to call `handle_timer` next, in the clock of `now`."""
        while self._timers:
            deadline, _, association = self._timers[0]
            if association.scheduled == deadline:
                return deadline
            heapq.heappop(self._timers)
        return None

    def handle_timer(self, now: float) -> None:
        """Do what is due: retransmit, rekey, ask for life, expire."""
        due: list[Association] = []
        while (deadline := self.get_timer()) is not None and deadline <= now:
            association = heapq.heappop(self._timers)[2]
            association.scheduled = None
            due.append(association)
        for association in due:
            association.handle_timer(now)
            self._schedule(association)

    def next_event(self) -> Event | None:
        """The oldest event not yet taken, or None."""
        return self._context.events.popleft() if self._context.events else None

    # -- what the owner asks for -----------------------------------------------------------------------------

    def rekey_child(self, ike_sa: int, inbound_spi: int, now: float) -> None:
        """Rekey a CHILD_SA. MisuseError for an unknown one; nothing when a rekey or delete is under way."""
        sa, child = self._living_child(ike_sa, inbound_spi)
        if child.state is ChildState.INSTALLED and child.rekey is None:
            sa.rekey_child(child, now)
            self._schedule(sa.association)

    def create_child(self, ike_sa: int, now: float) -> None:
        """Make a further CHILD_SA, for when the only one was deleted."""
        sa = self._established(ike_sa)
        sa.rekey_child(None, now)
        self._schedule(sa.association)

    def rekey_ike(self, ike_sa: int, now: float) -> None:
        """Rekey an IKE SA; its CHILD_SAs and its handle go on. Nothing when a rekey is under way."""
        sa = self._established(ike_sa)
        if sa.rekey_task is None:
            sa.rekey(now)
            self._schedule(sa.association)

    def reauthenticate(self, ike_sa: int, now: float) -> None:
        """Authenticate anew, by an IKE SA and CHILD_SA that take over before the old ones go: IkeReauthentication names
        the new handle. Where the peer initiated the IKE SA, it is asked to do so. Nothing when that is under way."""
        sa = self._established(ike_sa)
        sa.association.reauthentication.ask(now)
        self._schedule(sa.association)

    def delete_child(self, ike_sa: int, inbound_spi: int, now: float) -> None:
        """Delete a CHILD_SA at both ends; ChildSaDeleted follows when the peer has answered or is given up."""
        sa, child = self._living_child(ike_sa, inbound_spi)
        sa.association.delete_child(child, now)
        self._schedule(sa.association)

    def delete(self, ike_sa: int, now: float, reason: str) -> None:
        """Delete an IKE SA and its CHILD_SAs. The events come at once (IkeSaFailed for one that was not established
        yet), the peer is told in the background. Nothing for a handle that is gone."""
        association = self._context.associations.get(ike_sa)
        if association is None:
            return
        sa = association.current
        assert sa is not None
        successor = association.reauthentication.successor
        if successor is not None and not successor.established:
            successor.collapse(reason, now)
        if sa.suite is None:
            association.collapse(reason, now)
        else:
            sa.say_goodbye(reason, now)
        self._schedule(association)

    def replace_credentials(self, profiles: Iterable[IkeProfile], now: float) -> None:
        """Authenticate with the keys, certificates and authorities of these profiles from here on, and give what is
        made from here on their lifetimes. Signs of life and retransmissions go by them at once.

        Each must have the name of a known one; what else it says is not taken over. Established IKE SAs stay, except
        those whose peer's certificate is revoked or has no trusted authority any more.
        """
        changed = {}
        for profile in profiles:
            known = self._context.profiles.get(profile.name)
            if known is None:
                raise MisuseError(f"no profile is called {profile.name!r}")
            changed[profile.name] = replace(
                known,
                psk=profile.psk,
                psks=profile.psks,
                credentials=profile.credentials,
                trust=profile.trust,
                local_identity=profile.local_identity,
                remote_identity=profile.remote_identity,
                ike_lifetime=profile.ike_lifetime,
                child_lifetime=profile.child_lifetime,
                child_bytes=profile.child_bytes,
                child_packets=profile.child_packets,
                reauthentication=profile.reauthentication,
                dpd_interval=profile.dpd_interval,
                retransmission=profile.retransmission,
            )
        self._context.profiles.update(changed)
        self._require_wall_clock()
        for association in list(self._context.associations.values()):
            assert association.profile is not None
            association.profile = self._context.profiles[association.profile.name]
            if association.established and association.current is not None:
                reason = proofs.withdrawn(association.proved, association.profile)
                if reason:
                    association.current.say_goodbye(reason, now)
            self._schedule(association)

    def note_inbound(self, inbound_spi: int, now: float) -> None:
        """Authenticated ESP arrived on this SPI: the peer has the CHILD_SA, so sealing may move to it."""
        found = self._context.children.get(inbound_spi)
        if found is not None:
            association, child = found
            association.heard(now)
            association.make_outbound_ready(child)
            if association.per_resource.agreed:
                association.per_resource.carried(now)
                self._schedule(association)

    def note_carried(self, inbound_spi: int, carried: Carried, now: float) -> None:
        """The data plane's counters of a CHILD_SA, every few seconds while it is in use. What comes in is a sign of
        life, and what is near its limits is rekeyed. Nothing for a CHILD_SA that is gone."""
        found = self._context.children.get(inbound_spi)
        if found is not None:
            association, child = found
            if association.note_carried(child, carried, now):
                self._schedule(association)

    def is_established(self, ike_sa: int) -> bool:
        """Whether the handle is of an established IKE SA that is not being deleted."""
        association = self._context.associations.get(ike_sa)
        return association is not None and association.established

    def is_unanswered(self, ike_sa: int) -> bool:
        """Whether the handle is of an IKE SA that this end initiates, and the peer has given no keys for it yet."""
        association = self._context.associations.get(ike_sa)
        return association is not None and association.current is not None and association.current.suite is None

    def redirect(self, ike_sa: int, target: Address, now: float) -> bool:
        """Ask the peer of an established IKE SA to go to the gateway at `target` (RFC 5685). It deletes the IKE SA
        when it is there. False when it cannot be asked: it did not call us, or has no redirects."""
        sa = self._established(ike_sa)
        if sa.association.initiator or not sa.association.redirectable:
            return False
        sa.add_task(redirect.Redirect(target), now)
        self._schedule(sa.association)
        return True

    def report_unknown_spi(self, spi: int, path: Path, now: float) -> None:
        """ESP with an SPI that the data plane does not have came by `path` (ports 0 for protocol 50): its sender is
        told, at a limited rate."""
        association = lost_spi.report_unknown_spi(self._context, spi, path, now)
        if association is not None:
            self._schedule(association)

    def check_liveness(self, ike_sa: int, now: float) -> None:
        """Ask the peer for a sign of life now."""
        sa = self._established(ike_sa)
        sa.check_liveness(now)
        self._schedule(sa.association)

    def update_remote(self, ike_sa: int, path: Path, now: float) -> None:
        """The owner learnt from authenticated ESP that the peer moved: IKE follows, and IkePathChanged tells so.

        Nothing unless the peer is behind a NAT, where alone this may happen (RFC 7296 section 2.23).
        """
        association = self._context.associations.get(ike_sa)
        if association is not None and association.established and association.remote_nat:
            local = association.path.local if path.local.address.is_unspecified else path.local
            moved = Path(local, path.remote)
            if moved != association.path:
                association.path = moved
                association.path_changed(confirmed=True)

    def can_move(self, ike_sa: int) -> bool:
        """Whether an established IKE SA can go on from another address."""
        association = self._context.associations.get(ike_sa)
        return association is not None and association.established and association.mobike is not None

    def move(self, ike_sa: int, local: Address, now: float) -> bool:
        """This gateway's address towards the peer is `local` from here on: IKE and ESP go on from there (RFC 4555).

        IkePathChanged follows at once, and once more, confirmed, when the peer knows. False when the IKE SA cannot be
        moved, and the owner has to make it anew: the peer has no MOBIKE, or the address is of another family.
        """
        association = self._context.associations.get(ike_sa)
        if association is None or not association.established:
            return False
        moved = mobike.move(association, local, now)
        self._schedule(association)
        return moved

    def close(self, now: float) -> None:
        """Delete everything, telling every peer once. Send `datagrams_to_send` afterwards."""
        for association in list(self._context.associations.values()):
            sa = association.current
            assert sa is not None
            association.end("this gateway stops", now)
            if sa.suite is not None:
                outstanding = sa.requests.outstanding
                if outstanding is not None:
                    sa.send(outstanding.datagrams, association.path)
                sa.abandon_tasks(now)
                sa.send_last_request(DeleteIke(), now)
        for sa in list(self._context.ike_sas.values()):
            sa.association.remove_ike_sa(sa, now)
            self._schedule(sa.association)

    def cookie_gate(self, now: float) -> cookies.CookieSecrets | None:
        """While every IKE_SA_INIT must bring a cookie: what whoever stands before this engine needs to send and check
        them in its place. Ask again after anything happened; the engine itself checks them all the same."""
        return self._context.cookies.secrets(now) if self._context.half_open.is_pressed() else None

    def counters(self) -> dict[str, int]:
        """What strangers did: half-open IKE SAs there are, and cookies and refusals so far."""
        context = self._context
        return {
            "cookies_accepted": context.cookies.accepted,
            "cookies_refused": context.cookies.refused,
            "cookies_sent": context.cookies.sent,
            "half_open": len(context.half_open),
            "half_open_evicted": context.half_open.evicted,
            "half_open_refused": context.half_open_refused,
            "ikev1": context.ikev1,
            "later_versions": context.later_versions,
            **context.lost_spis.counters(),
            **context.redirects.counters(),
        }

    def snapshot(self, now: float) -> list[IkeSaStatus]:
        """Every IKE SA with its CHILD_SAs, oldest first. Those that strangers left half-open are not shown."""
        return [association_status(association, now) for association in self._context.associations.values()]

    # -- inside ----------------------------------------------------------------------------------------------

    def _require_wall_clock(self) -> None:
        if any(profile.trust is not None for profile in self._context.profiles.values()):
            self._context.time_of_day()

    def _admit(self, data: bytes, path: Path, now: float) -> bool:
        """Whether an IKE_SA_INIT request may be looked at: under load, only with a cookie (RFC 7296 section 2.6)."""
        context = self._context
        address = path.remote.address
        if not context.half_open.demands_cookie(address) or data[:SPI_LENGTH] in context.ike_sas:
            return True
        if context.half_open.has_from(address) and context.half_open.find(path.remote, data) is not None:
            # Known already: it is answered as before.
            return True
        admitted = context.cookies.admit(data, path, now)
        if isinstance(admitted, bytes):
            context.send(admitted, path)
            return False
        if admitted and context.half_open.is_full_for(address):
            context.half_open_refused += 1
            return False
        return admitted

    def _receive_stray(self, message: wire.Message, path: Path, now: float) -> None:
        """A message of no IKE SA that is here."""
        association = lost_spi.receive_hint(self._context, message, path, now)
        if association is not None:
            self._schedule(association)
        else:
            lost_spi.answer_unknown_ike_sa(self._context, message, path, now)

    def _established(self, ike_sa: int) -> IkeSa:
        association = self._context.associations.get(ike_sa)
        if association is None or association.current is None or not association.established:
            raise MisuseError(f"no established IKE SA has the handle {ike_sa}")
        return association.current

    def _living_child(self, ike_sa: int, inbound_spi: int) -> tuple[IkeSa, ChildSa]:
        sa = self._established(ike_sa)
        association, child = self._context.children.get(inbound_spi, (None, None))
        if child is None or association is not sa.association:
            raise MisuseError(f"IKE SA {ike_sa} has no CHILD_SA with inbound SPI {inbound_spi:#010x}")
        return sa, child

    def _schedule(self, association: Association) -> None:
        deadline = association.deadline()
        if deadline is not None and deadline != association.scheduled:
            heapq.heappush(self._timers, (deadline, next(self._order), association))
        association.scheduled = deadline
        while self._context.touched:
            self._schedule(self._context.touched.pop())
