"""An association: what one handle of the engine stands for.

It is the relation with one peer from IKE_SA_INIT to the end, through all rekeys of its IKE SA. It owns the CHILD_SAs,
which therefore need not move when the IKE SA is rekeyed (RFC 7296 section 2.18), and the IKE SAs: `current`, and others
that are on their way out or have not yet won a simultaneous rekey.
"""

from __future__ import annotations

from math import inf
from typing import Final

from dsvpn.addresses import Address, Path
from dsvpn.ike.authentication.proof import Proved
from dsvpn.ike.child_sa import LINGER, MAX_CHILDREN, SUCCESSOR_WAIT, ChildSa, ChildState
from dsvpn.ike.context import Context
from dsvpn.ike.create_child import MAX_TRIES, RETRY
from dsvpn.ike.delete import DeleteChild
from dsvpn.ike.events import (
    ChildSaDeleted,
    ChildSaEstablished,
    ChildSaOutboundReady,
    ChildSaOutboundStopped,
    IkePathChanged,
    IkeSaDeleted,
    IkeSaEstablished,
    IkeSaFailed,
    IkeSaRekeyed,
)
from dsvpn.ike.fragmentation import DEFAULT_FRAGMENT_SIZE, message_limit
from dsvpn.ike.identity import Identity
from dsvpn.ike.ike_sa import IkeSa
from dsvpn.ike.mobike import Mobike
from dsvpn.ike.nat import NatFindings
from dsvpn.ike.per_resource import BELIEF, PER_PLACE, PerResource
from dsvpn.ike.profile import IkeProfile
from dsvpn.ike.reauthentication import Reauthentication
from dsvpn.ike.state import IkeState
from dsvpn.ike.suites import EspSuite
from dsvpn.ike.volume import Carried, Volume

#: The part of the DPD interval that packets may go to the peer without any from there.
UNANSWERED: Final = 0.5


class Association:
    """One peer's IKE SAs and CHILD_SAs. `profile` is None until IKE_AUTH tells a responder which it is."""

    def __init__(self, context: Context, profile: IkeProfile | None, path: Path, now: float) -> None:
        self.context = context
        self.profile = profile
        self._path = path
        self.handle = 0
        self.initiator = profile is not None
        self.established = False
        self.local_identity: Identity | None = None
        self.remote_identity: Identity | None = None
        self.proved: Proved | None = None
        self.local_nat = False
        self.remote_nat = False
        self.udp_encapsulation = False
        #: Whether both ends send long messages in fragments (RFC 7383).
        self.fragmentation = False
        #: As responder: whether the initiator can be handed on, and who sent it here; as initiator the latter alone
        #: (RFC 5685).
        self.redirectable = False
        self.redirected_from: Address | None = None
        #: Set when both ends can move (RFC 4555).
        self.mobike: Mobike | None = None
        self.begun = self.last_heard = now
        #: Since when ESP goes to the peer and nothing comes from there.
        self.unanswered_since = inf
        #: When this end last reacted to a lost SPI (dsvpn/ike/lost_spi.py).
        self.reacted_at = -inf
        self.current: IkeSa | None = None
        self.ike_sas: list[IkeSa] = []
        self.children: list[ChildSa] = []
        #: The CHILD_SA that the owner seals with, by its place: the one last said to be ready.
        self.sealing: dict[int, ChildSa] = {}
        self.per_resource = PerResource(self)
        #: When to try again for a CHILD_SA where there is none, and how often that failed.
        self.child_wanted_at = inf
        self.child_failures = 0
        self.reauthentication = Reauthentication(self)
        #: The deadline under which the engine's timer heap knows this association.
        self.scheduled: float | None = None

    @property
    def path(self) -> Path:
        """Where IKE goes, and ESP with it."""
        return self._path

    @path.setter
    def path(self, path: Path) -> None:
        moved = path.remote.address != self._path.remote.address
        if moved:
            self.context.unindex(self, self._path.remote.address)
        self._path = path
        if moved and self.ike_sas:
            self.context.index(self, path.remote.address)

    @property
    def message_limit(self) -> int | None:
        """Octets of a message that goes in one piece; None when all do."""
        if not self.fragmentation:
            return None
        # Until IKE_AUTH tells which profile it is, whatever suits all of them.
        profiles = self.context.profiles.values() if self.profile is None else (self.profile,)
        size = min((profile.fragment_size for profile in profiles), default=DEFAULT_FRAGMENT_SIZE)
        return message_limit(size, self.path)

    # -- IKE SAs ---------------------------------------------------------------------------------------------

    def add_ike_sa(self, sa: IkeSa) -> None:
        """Make an IKE SA known, so that messages find it."""
        self.ike_sas.append(sa)
        self.context.ike_sas[sa.local_spi] = sa
        self.context.index(self, self._path.remote.address)

    def remove_ike_sa(self, sa: IkeSa, now: float) -> None:
        """Forget an IKE SA at once."""
        sa.abandon_tasks(now)
        sa.state = IkeState.DEAD
        sa.reassembly.clear()
        self.context.half_open.discard(sa)
        if sa in self.ike_sas:
            self.ike_sas.remove(sa)
            del self.context.ike_sas[sa.local_spi]
            if not self.ike_sas:
                self.context.unindex(self, self._path.remote.address)
        if self.current is sa:
            self.current = None

    def promote(self, sa: IkeSa, now: float) -> None:
        """`sa` replaces the current IKE SA and takes over what that had still to do."""
        old = self.current
        if old is sa:
            return
        self.current = sa
        if old is not None:
            sa.tasks.extend(task for task in old.tasks if task.survives_ike_rekey)
            old.tasks.clear()
        self.per_resource.start_anew()
        self.context.emit(IkeSaRekeyed(self.handle))
        sa.start_next(now)

    def heard(self, now: float) -> None:
        """A sign of life: an authenticated message or ESP packet."""
        self.last_heard = now
        self.unanswered_since = inf

    @property
    def liveness_at(self) -> float:
        """When to ask the peer for a sign of life: after a silence of the interval, and after half of it where packets
        go to the peer and none comes back (RFC 7296 section 2.4: a peer that nobody needs is not asked for its own
        sake more often than that)."""
        assert self.profile is not None
        interval = self.profile.dpd_interval
        if not interval:
            return inf
        return min(self.last_heard + interval, self.unanswered_since + interval * UNANSWERED)

    def follow(self, path: Path) -> None:
        """An authenticated message came by `path`. Only a peer behind a NAT may move so: its mapping changed
        (RFC 7296 section 2.23)."""
        if self.established and self.remote_nat and path.remote != self.path.remote:
            self.path = path
            self.path_changed(confirmed=True)

    def path_changed(self, *, confirmed: bool) -> None:
        """Tell the owner by which path IKE and ESP go."""
        self.context.emit(
            IkePathChanged(self.handle, self.path, self.udp_encapsulation, self.local_nat, self.remote_nat, confirmed)
        )

    def take_nat_findings(self, findings: NatFindings) -> None:
        """NAT detection on a new path decides about UDP encapsulation anew (RFC 4555 section 3.5)."""
        if not findings.supported:
            return
        assert self.profile is not None
        self.local_nat, self.remote_nat = findings.local_nat, findings.remote_nat
        self.udp_encapsulation = findings.local_nat or findings.remote_nat or self.profile.force_udp_encapsulation
        for child in self.children:
            child.udp_encapsulation = self.udp_encapsulation

    # -- life and death --------------------------------------------------------------------------------------

    def establish(self, initial_contact: bool, remote_claimed: Address | None, now: float) -> None:
        """IKE_AUTH succeeded."""
        assert self.profile is not None
        self.established = True
        if not self.handle:
            self.handle = self.context.new_handle()
            self.context.associations[self.handle] = self
        self.heard(now)
        self.reauthentication.established(now)
        self.context.emit(
            IkeSaEstablished(
                self.handle,
                self.profile.name,
                self.initiator,
                self.path,
                str(self.remote_identity),
                self.local_nat,
                self.remote_nat,
                initial_contact,
                self.begun,
                remote_claimed,
                self.remote_identity,
                () if self.proved is None else self.proved.addresses,
                None if self.proved is None else self.proved.delegated,
            )
        )

    def end(self, reason: str, now: float) -> None:
        """Tell the owner that this association is over, and take it from the tables of the living.

        Its IKE SAs stay until the caller removes them: one may have to say goodbye, or to repeat its last answer.
        """
        # The fallback goes last: it seals for the workers that have lost theirs.
        for child in sorted(self.children, key=lambda child: -child.resource):
            self._forget_child(child)
        if self.context.associations.pop(self.handle, None) is None:
            return
        if self.established:
            self.context.emit(IkeSaDeleted(self.handle, reason))
        else:
            assert self.profile is not None
            self.context.emit(IkeSaFailed(self.handle, self.profile.name, self.path, reason))
        self.reauthentication.over(now)

    def collapse(self, reason: str, now: float) -> None:
        """End, and forget every IKE SA at once."""
        self.end(reason, now)
        for sa in list(self.ike_sas):
            self.remove_ike_sa(sa, now)

    # -- CHILD_SAs -------------------------------------------------------------------------------------------

    def install_child(
        self,
        suite: EspSuite,
        esn: bool,
        spis: tuple[int, int],
        keymat: tuple[bytes, bytes],
        *,
        replaces: ChildSa | None,
        outbound_ready: bool,
        now: float,
    ) -> ChildSa:
        """A CHILD_SA has keys. `spis` and `keymat` are (inbound, outbound)."""
        assert self.profile is not None
        profile = self.profile
        child = ChildSa(
            spis[0],
            spis[1],
            suite,
            esn,
            self.udp_encapsulation,
            created=now,
            rekey_at=now + self.soft_lifetime(profile.child_lifetime),
            expires_at=now + profile.child_lifetime,
            volume=Volume(profile.child_bytes, profile.child_packets, esn, self.soft_lifetime(1.0)),
            replaces=None if replaces is None else replaces.inbound_spi,
            outbound_ready=outbound_ready,
            resource=self.per_resource.take_place() if replaces is None else replaces.resource,
        )
        if self.per_resource.agreed and not outbound_ready and replaces is None:
            child.ready_at = now + BELIEF
        self.children.append(child)
        self.child_wanted_at = inf
        self.child_failures = 0
        self.reauthentication.carries(now)
        if outbound_ready:
            self.sealing[child.resource] = child
        self.context.children[child.inbound_spi] = (self, child)
        self.context.emit(
            ChildSaEstablished(
                self.handle,
                profile.name,
                suite.transform,
                esn,
                child.inbound_spi,
                keymat[0],
                child.outbound_spi,
                keymat[1],
                self.udp_encapsulation,
                self.path,
                outbound_ready,
                child.replaces,
                child.resource,
            )
        )
        if replaces is None:
            self.per_resource.grown(now)
        return child

    @property
    def seals(self) -> bool:
        """Whether the owner has a CHILD_SA to seal with."""
        return any(child in self.children for child in self.sealing.values())

    @property
    def max_children(self) -> int:
        """CHILD_SAs that the peer may have, those on their way out among them."""
        group = self.per_resource
        return max(MAX_CHILDREN, PER_PLACE * group.limit) if group.agreed else MAX_CHILDREN

    def miss_child(self, retry_at: float, reason: str, now: float) -> None:
        """A CHILD_SA that was to be made was not. Without any, the IKE SA is of no use for long."""
        current = self.current
        carrying = any(child.state is not ChildState.LINGERING for child in self.children)
        if carrying or current is None or current.state is not IkeState.ESTABLISHED:
            return
        self.child_failures += 1
        if self.child_failures < MAX_TRIES:
            self.child_wanted_at = retry_at
        else:
            current.say_goodbye(reason, now)

    def soft_lifetime(self, lifetime: float) -> float:
        """When to rekey: early enough before the end, at random so that neither both ends nor all peers start at
        once (RFC 7296 section 2.8)."""
        assert self.profile is not None
        return lifetime * (1.0 - self.profile.rekey_margin * (1.0 + self.context.uniform()))

    def note_carried(self, child: ChildSa, carried: Carried, now: float) -> bool:
        """The data plane's counters of a CHILD_SA: they show life, and make it rekeyed or deleted in time. Gives
        whether a deadline may have come nearer; one that moved away finds out when it fires."""
        came, went = child.volume.note(carried)
        nearer = False
        if came:
            self.heard(now)
            self.make_outbound_ready(child)
        elif went and self.unanswered_since == inf:
            self.unanswered_since = now
            nearer = True
        if (came or went) and self.per_resource.agreed:
            self.per_resource.carried(now)
            nearer = True
        current = self.current
        if child.volume.used < child.volume.soft or current is None or current.state is not IkeState.ESTABLISHED:
            return nearer
        if child.volume.is_over and not child.expired:
            self._expire_child(child, now)
        elif child.state is ChildState.INSTALLED and child.rekey_at > now and child.volume.claim_rekey():
            current.rekey_child(child, now)
        return True

    def find_child(self, outbound_spi: int) -> ChildSa | None:
        """The CHILD_SA that the peer calls by `outbound_spi`."""
        for child in self.children:
            if child.outbound_spi == outbound_spi and child.state is not ChildState.LINGERING:
                return child
        return None

    def child_deleted(self, child: ChildSa, now: float) -> None:
        """A CHILD_SA is deleted at both ends. One that others succeed still takes what is on its way."""
        if child not in self.children or child.state is ChildState.LINGERING:
            return
        succeeded = (
            child.redundant
            or child.replaces is not None
            or any(other.replaces == child.inbound_spi for other in self.children)
        )
        if succeeded and any(c is not child and c.state is not ChildState.LINGERING for c in self.children):
            child.state = ChildState.LINGERING
            child.gone_at = now + LINGER
            child.outbound_ready = False
        else:
            self._forget_child(child)
        self._restore_rekeyed(child, now)
        self._settle_outbound(child)
        self.per_resource.lost(child, now)

    def _restore_rekeyed(self, gone: ChildSa, now: float) -> None:
        """An SA whose last successor is deleted before it has not been rekeyed after all."""
        for old in self.children:
            if old.inbound_spi == gone.replaces and old.state is ChildState.REKEYED:
                successors = [c for c in self.children if c.replaces == old.inbound_spi and c is not gone]
                if all(c.state is ChildState.LINGERING for c in successors):
                    old.state = ChildState.INSTALLED
                    old.rekey_at = min(old.rekey_at, now + RETRY)

    def make_outbound_ready(self, child: ChildSa) -> None:
        """The peer is known to have this CHILD_SA."""
        usable = child.state is ChildState.INSTALLED and not child.redundant and not child.expired
        if usable and not child.outbound_ready:
            child.outbound_ready = True
            child.ready_at = inf
            self._seal_with(child)

    def _seal_with(self, child: ChildSa) -> None:
        self.sealing[child.resource] = child
        self.context.emit(ChildSaOutboundReady(self.handle, child.inbound_spi))

    def _move_sealing(self, gone: ChildSa) -> None:
        """If the owner seals with `gone`, name another CHILD_SA in its place that the peer has. A rekeyed one
        is as good: it goes on until its delete shows that the peer has the successor."""
        if self.sealing.get(gone.resource) is gone:
            del self.sealing[gone.resource]
            carrying = (ChildState.INSTALLED, ChildState.REKEYED)
            others = [c for c in self.children if c is not gone and c.resource == gone.resource]
            ready = [c for c in others if c.outbound_ready and c.state in carrying]
            if ready:
                self._seal_with(ready[-1])

    def _stop_sealing(self, child: ChildSa) -> None:
        """Seal with another CHILD_SA in its place, if there is one, or with none."""
        place = child.resource
        if self.sealing.get(place) is not child:
            return
        self._move_sealing(child)
        for other in reversed(self.children):
            # The peer has most likely installed what it asked for; a packet that comes too early is lost either way.
            if place not in self.sealing and (other.resource == place or not self.sealing):
                self.make_outbound_ready(other)
        if place not in self.sealing:
            self.context.emit(ChildSaOutboundStopped(self.handle, child.inbound_spi))

    def _settle_outbound(self, gone: ChildSa) -> None:
        """Something must seal when `gone` is deleted: its successor, or whatever is left."""
        for child in self.children:
            if child.replaces == gone.inbound_spi:
                self.make_outbound_ready(child)
        self._move_sealing(gone)
        if gone.resource not in self.sealing:
            living = [child for child in self.children if child.state is ChildState.INSTALLED]
            if self.sealing:
                living = [child for child in living if child.resource == gone.resource]
            if living:
                living[-1].redundant = False
                self.make_outbound_ready(living[-1])

    def _forget_child(self, child: ChildSa) -> None:
        self.children.remove(child)
        del self.context.children[child.inbound_spi]
        self.context.emit(ChildSaDeleted(self.handle, child.inbound_spi, child.outbound_spi))

    # -- time ------------------------------------------------------------------------------------------------

    def deadline(self) -> float | None:
        """When `handle_timer` has something to do."""
        times = [time for sa in self.ike_sas for time in sa.deadlines()]
        if self.established and (current := self.current) is not None and current.state is IkeState.ESTABLISHED:
            assert self.profile is not None
            times += (current.rekey_at, current.expires_at, self.child_wanted_at, self.reauthentication.deadline)
            if current.requests.outstanding is None:
                times.append(self.liveness_at)
            for child in self.children:
                if child.state is ChildState.LINGERING:
                    times.append(child.gone_at)
                elif child.state is ChildState.INSTALLED:
                    times += (child.rekey_at, child.expires_at, child.ready_at)
                elif child.state is ChildState.REKEYED:
                    times.append(child.expires_at)
        return min(times, default=None)

    def handle_timer(self, now: float) -> None:
        """Do what is due."""
        for sa in list(self.ike_sas):
            sa.handle_timer(now)
        current = self.current
        if not self.established or current is None or current.state is not IkeState.ESTABLISHED:
            return
        assert self.profile is not None
        if current.expires_at <= now:
            current.say_goodbye("the lifetime of the IKE SA is over", now)
            return
        if self.reauthentication.handle_timer(now):
            return
        for child in list(self.children):
            if child.state is ChildState.LINGERING:
                if child.gone_at <= now:
                    self._forget_child(child)
            elif child.expires_at <= now and child.state is not ChildState.DELETING:
                self._expire_child(child, now)
            elif child.state is ChildState.INSTALLED and child.rekey_at <= now:
                current.rekey_child(child, now)
            if child.ready_at <= now:
                child.ready_at = inf
                self.make_outbound_ready(child)
        if self.child_wanted_at <= now:
            self.child_wanted_at = inf
            current.rekey_child(None, now)
        if current.rekey_at <= now:
            current.rekey(now)
        if current.requests.outstanding is None and self.liveness_at <= now:
            current.check_liveness(now)

    def _expire_child(self, child: ChildSa, now: float) -> None:
        """The hard lifetime of a CHILD_SA is over: it seals nothing from here on (RFC 4301 section 4.4.2.1), whenever
        the peer answers. Traffic waits for a successor: the rekey, if none is under way, comes before the delete."""
        current = self.current
        assert current is not None
        if child.expired or child.state is not ChildState.INSTALLED:
            self.delete_child(child, now)
            return
        child.expired, child.outbound_ready = True, False
        child.expires_at = now + SUCCESSOR_WAIT
        self._stop_sealing(child)
        current.rekey_child(child, now)

    def delete_child(self, child: ChildSa, now: float) -> None:
        """Delete a CHILD_SA at both ends. Nothing is sealed with it any more."""
        if child.state in (ChildState.INSTALLED, ChildState.REKEYED) and self.current is not None:
            child.state = ChildState.DELETING
            self._stop_sealing(child)
            self.per_resource.lost(child, now)
            self.current.add_task(DeleteChild(child), now, urgent=True)
