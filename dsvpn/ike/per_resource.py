"""Per-resource CHILD_SAs: several with the same traffic selectors, one for each worker that seals (RFC 9611).

    HDR, SK {…, N(SA_RESOURCE_INFO), SAi2, TSi, TSr}  -->        the first, in IKE_AUTH or CREATE_CHILD_SA
                            <--  HDR, SK {…, N(SA_RESOURCE_INFO), SAr2, TSi, TSr}
    HDR, SK {N(SA_RESOURCE_INFO), SA, Ni, [KEi], TSi, TSr}  -->  a further one, as often as wanted
                            <--  HDR, SK {N(SA_RESOURCE_INFO), SA, Nr, [KEr], TSi, TSr}   or N(TS_MAX_QUEUE)

The notification in both messages of the first makes a group of them; without it there is one CHILD_SA, as ever. Each
has a place in the group, a number of this end alone: 0 is the fallback, which serves whoever has none of its own. A
rekey keeps the place (section 4: the new one is bound to what the old one was bound to), and an empty place is taken by
whichever comes next.

Further ones are asked for when the first carries traffic, one after the other: by the initiator of the IKE SA at once,
by its responder when the group has not grown for a while, so that two ends that want the same number do not make it
twice. TS_MAX_QUEUE ends the asking until the IKE SA is rekeyed or replaced. A CHILD_SA of the group that is deleted
without a successor is not replaced for a while: the end that deleted it may have meant it.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Final

from dsvpn.errors import PeerError
from dsvpn.ike.child_sa import ChildState
from dsvpn.ike.suites import EspSuite
from dsvpn.ike.task import Payloads
from dsvpn.wire import ikev2 as wire
from dsvpn.wire.ikev2 import NotifyType

if TYPE_CHECKING:
    from dsvpn.ike.association import Association
    from dsvpn.ike.child_sa import ChildSa

#: CHILD_SAs in a group at most, the fallback among them.
MAX_PLACES: Final = 16
#: CHILD_SAs of each place at a time: the one that seals, one that it has replaced, and one that is to come.
PER_PLACE: Final = 3
#: Seconds without growth after which the responder of the IKE SA asks, too.
PATIENCE: Final = 3.0
#: Seconds after which an end that could not have a further one asks again, and up to as many more at random.
RETRY: Final = 10.0
#: Seconds for which the place of one that was deleted stays empty, and up to as many more at random.
VACANCY: Final = 60.0
#: Seconds after which the peer is believed to have what it asked for, without a packet that shows it: by then it has
#: our answer even if that was lost and asked for again three times.
BELIEF: Final = 3.0

_LIVING: Final = (ChildState.INSTALLED, ChildState.REKEYED)


class PerResource:
    """The group of one association. `agreed`: both ends take part. `asking`: a request of ours waits or is
    outstanding."""

    __slots__ = ("_association", "_calm_until", "_refused", "agreed", "asking")

    def __init__(self, association: Association) -> None:
        self._association = association
        self.agreed = False
        self.asking = False
        self._refused = False
        self._calm_until = -inf

    @property
    def wanted(self) -> int:
        """How many CHILD_SAs this end wants there to be."""
        profile = self._association.profile
        return 1 if profile is None else 1 + min(profile.per_resource_sas, self.limit - 1)

    @property
    def limit(self) -> int:
        """How many it takes part in."""
        profile = self._association.profile
        return 1 if profile is None else profile.per_resource_limit

    @property
    def places(self) -> set[int]:
        """The places that are taken."""
        return {child.resource for child in self._association.children if child.state in _LIVING}

    def take_place(self) -> int:
        """The place of a new CHILD_SA: the lowest that is free; the fallback's, beside what is there, for one
        without a group."""
        if not self.agreed:
            return 0
        places = self.places
        return next((place for place in range(MAX_PLACES) if place not in places), 0)

    def suites(self) -> tuple[EspSuite, ...]:
        """The ESP suites for a further one: what the group has (RFC 9611 section 3: identical properties)."""
        profile = self._association.profile
        assert profile is not None
        transforms = {child.suite.transform for child in self._association.children if child.state in _LIVING}
        if not self.agreed or not transforms:
            return profile.esp
        return tuple(suite for suite in profile.esp if suite.transform in transforms) or profile.esp

    # -- messages ----------------------------------------------------------------------------------------------

    def offer(self) -> list[wire.Payload]:
        """What a request for a new CHILD_SA says: the wish for several, or that it belongs to the group."""
        if not self.agreed and self.wanted < 2:
            return []
        return [self._info()]

    def is_asked(self, payloads: Payloads) -> bool:
        """Whether a request asks for a CHILD_SA of the group, or for a group, and may have it."""
        return self.limit > 1 and wire.find_notify(payloads, NotifyType.SA_RESOURCE_INFO) is not None

    def answer(self) -> list[wire.Payload]:
        """What the answer to such a request says."""
        self.agreed = True
        return [self._info()]

    def take_answer(self, payloads: Payloads) -> None:
        """The peer has answered an `offer`."""
        if self.limit > 1 and wire.find_notify(payloads, NotifyType.SA_RESOURCE_INFO) is not None:
            self.agreed = True

    def _info(self) -> wire.Notify:
        # For people who debug, and nothing else (RFC 9611 section 3). The fallback is bound to no resource.
        places = self.places
        place = next((place for place in range(MAX_PLACES) if place not in places), 0)
        return wire.Notify(NotifyType.SA_RESOURCE_INFO, place.to_bytes(4, "big") if place else b"")

    # -- growing -----------------------------------------------------------------------------------------------

    @property
    def lacks(self) -> bool:
        """Whether to ask for one more."""
        return self.agreed and not self._refused and len(self.places) < self.wanted

    def check_room(self, asked_ourselves: bool) -> None:
        """PeerError, with the notification to answer, when the peer's wish for one more goes too far."""
        if len(self.places) >= self.limit:
            raise PeerError("as many CHILD_SAs as this end takes", NotifyType.TS_MAX_QUEUE)
        if len(self.places) + asked_ourselves >= self.limit:
            # Ours may be the last, and if not, there is room for the peer's another time.
            raise PeerError("the last CHILD_SA that this end takes is being made", NotifyType.TEMPORARY_FAILURE)

    def carried(self, now: float) -> None:
        """The group carries traffic: ask for one more, if it is time."""
        if not self.asking and self.lacks and now >= self._calm_until:
            self._ask(now)

    def grown(self, now: float) -> None:
        """One more CHILD_SA is there, whoever asked for it."""
        if not self._association.initiator:
            self._calm_until = max(self._calm_until, now + PATIENCE)

    def answered(self, now: float) -> None:
        """The one that we asked for is there: ask for the next."""
        self.asking = False
        if self.lacks:
            self._ask(now)

    def failed(self, now: float, error: wire.Notify | None) -> None:
        """What we asked for did not come."""
        if not self.asking:
            return
        self.asking = False
        self._calm_until = now + RETRY * (1.0 + self._association.context.uniform())
        # RFC 9611 section 5.2 for TS_MAX_QUEUE; of what else the peer says, only this one means "another time".
        self._refused = error is not None and error.type != NotifyType.TEMPORARY_FAILURE

    def lost(self, child: ChildSa, now: float) -> None:
        """`child` is no more; it may have left its place empty."""
        if not self.agreed or child.resource in self.places:
            return
        self._calm_until = now + VACANCY * (1.0 + self._association.context.uniform())

    def start_anew(self) -> None:
        """The IKE SA was rekeyed: what the peer refused it may grant."""
        self._refused = False

    def _ask(self, now: float) -> None:
        current = self._association.current
        if current is not None:
            self.asking = True
            current.add_per_resource(now)
