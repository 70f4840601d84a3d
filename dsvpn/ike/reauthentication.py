"""Reauthentication: a new IKE SA with a CHILD_SA of its own before the old ones go (RFC 7296 section 2.8.3, RFC 4478).

    initiator of the IKE SA                              responder
    HDR, SAi1, KEi, Ni …        -->                      a new IKE SA from IKE_SA_INIT on, beside the old one
    HDR, SK {IDi, AUTH, SAi2 …} -->  <-- HDR, SK {IDr, AUTH, SAr2 … [N(AUTH_LIFETIME)]}
    both seal with the new CHILD_SA
    HDR, SK {D}                 -->                      OVERLAP later: the old IKE SA goes with its CHILD_SAs

What has been proved holds as long as the profile says, and never longer than the certificates that proved it. The
initiator of an IKE SA alone makes the new one: both doing so at once would make two. A responder tells it in
AUTH_LIFETIME how long it has; whoever lets the time pass loses the IKE SA.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Final

from dsvpn.errors import PeerError
from dsvpn.ike.events import IkeReauthentication
from dsvpn.ike.ike_sa import IkeSa
from dsvpn.ike.init import IkeSaInit
from dsvpn.ike.task import Payloads, Task
from dsvpn.wire import ikev2 as wire
from dsvpn.wire.ikev2 import ZERO_SPI, ExchangeType, NotifyType

if TYPE_CHECKING:
    from dsvpn.ike.association import Association
    from dsvpn.ike.identity import Identity

#: Seconds that the old IKE SA goes on beside the new one: the peer's traffic moves within this, and what is on its way
#: arrives.
OVERLAP: Final = 5.0
#: Seconds, and up to as many more at random, that are left for it at most: a certificate is given time to be renewed.
LONGEST_MARGIN: Final = 3600.0
#: With less than this to go, seconds, nothing is begun any more: the end is near enough.
SHORTEST_SPAN: Final = 5.0
#: Seconds after which an attempt that failed is repeated, at least, and up to as many more at random.
RETRY: Final = 10.0
#: Seconds that the initiator is given when the responder's owner asks.
ASKED_WITHIN: Final = 60

_LONGEST: Final = 2**32 - 1


class Reauthentication:
    """When one association has to be authenticated anew, and how far that is.

    `begins_at`: when to make the successor. `ends_at`: when what was proved holds no more. `delete_at`: when the old
    IKE SA goes, because the successor stands.
    """

    __slots__ = ("_association", "_reason", "begins_at", "delete_at", "ends_at", "predecessor", "successor")

    def __init__(self, association: Association) -> None:
        self._association = association
        self._reason = ""
        self.begins_at = inf
        self.ends_at = inf
        self.delete_at = inf
        self.successor: Association | None = None
        self.predecessor: Association | None = None

    @property
    def deadline(self) -> float:
        """When `handle_timer` has something to do."""
        return self.delete_at if self.delete_at != inf else min(self.begins_at, self.ends_at)

    def check(self, remote: Identity) -> None:
        """PeerError if a successor would be with somebody else."""
        if self.predecessor is not None and self.predecessor.remote_identity != remote:
            raise PeerError(f"peer is {remote}, and was {self.predecessor.remote_identity} before")

    def established(self, now: float) -> None:
        """The association is authenticated: its time runs, and its predecessor's is over."""
        association = self._association
        profile, proved = association.profile, association.proved
        assert profile is not None
        if profile.reauthentication:
            self._limit(profile.reauthentication, "its proof of identity is too old", now)
        if proved is not None and proved.path:
            first = min(proved.path, key=lambda certificate: certificate.not_after)
            left = (first.not_after - association.context.time_of_day()).total_seconds()
            self._limit(left, f"certificate {first.name} has expired", now)

    def carries(self, now: float) -> None:
        """The association has a CHILD_SA: its predecessor's time is over."""
        predecessor = self.predecessor
        if predecessor is not None and predecessor.reauthentication.delete_at == inf:
            predecessor.reauthentication.superseded(now)

    def note_lifetime(self, payloads: Payloads, now: float, *, at_once: bool = False) -> None:
        """What a responder says in AUTH_LIFETIME (RFC 4478 section 3), in IKE_AUTH or later: `at_once`."""
        notify = wire.find_notify(payloads, NotifyType.AUTH_LIFETIME)
        if notify is not None and len(notify.data) == 4 and self._association.initiator:
            lifetime = float(int.from_bytes(notify.data, "big"))
            self._limit(lifetime, "our proof of identity is too old for the peer", now)
            if at_once and self.successor is None:
                self.begins_at = min(self.begins_at, now + self._association.context.uniform())

    def lifetime_payloads(self, now: float) -> list[wire.Payload]:
        """As responder: AUTH_LIFETIME, where there is an end."""
        if self.ends_at == inf:
            return []
        return [_lifetime(self.ends_at - now)]

    def begin(self, now: float) -> None:
        """Make the successor. Nothing when that is under way."""
        association = self._association
        self.begins_at = inf
        if self.successor is not None or association.profile is None:
            return
        context = association.context
        path = association.path
        new = type(association)(context, association.profile, path, now)
        new.handle = context.new_handle()
        new.reauthentication.predecessor = association
        self.successor = new
        context.associations[new.handle] = new
        sa = IkeSa(new, True, context.new_ike_spi(), ZERO_SPI, now)
        new.add_ike_sa(sa)
        new.current = sa
        context.emit(IkeReauthentication(association.handle, new.handle))
        forced = association.profile.force_udp_encapsulation or path.local.address.is_unspecified
        sa.add_task(IkeSaInit(association.profile, forced), now)
        context.touched.append(new)

    def ask(self, now: float) -> None:
        """The owner wants it now: begin, or as responder ask the initiator to."""
        association = self._association
        if association.initiator:
            self.begin(now)
        elif association.current is not None:
            association.current.add_task(AskForReauthentication(), now)

    def superseded(self, now: float) -> None:
        """The successor stands."""
        self.begins_at = inf
        self.delete_at = now + OVERLAP
        self._association.context.touched.append(self._association)

    def over(self, now: float) -> None:
        """The association has ended, as successor perhaps before it could take over."""
        if self.successor is not None:
            self.successor.reauthentication.predecessor = None
            self.successor = None
        predecessor, self.predecessor = self.predecessor, None
        if predecessor is not None:
            predecessor.reauthentication.failed(now)

    def failed(self, now: float) -> None:
        """Nothing came of the successor: another try, as long as there is time."""
        self.successor = None
        self.delete_at = inf
        left = self.ends_at - now
        if left > SHORTEST_SPAN and self.ends_at != inf:
            jitter = 1.0 + self._association.context.uniform()
            self.begins_at = now + min(max(RETRY * jitter, left / 10.0), left / 2.0)
        self._association.context.touched.append(self._association)

    def handle_timer(self, now: float) -> bool:
        """Do what is due; True when the association has ended."""
        current = self._association.current
        assert current is not None
        if self.delete_at <= now:
            current.say_goodbye("it was authenticated anew", now)
            return True
        if self.delete_at == inf and self.ends_at <= now:
            current.say_goodbye(self._reason, now)
            return True
        if self.begins_at <= now:
            self.begin(now)
        return False

    def _limit(self, seconds: float, reason: str, now: float) -> None:
        """What was proved holds for `seconds` at most."""
        if now + seconds >= self.ends_at:
            return
        self.ends_at, self._reason = now + seconds, reason
        association = self._association
        if association.initiator and self.successor is None:
            jitter = 1.0 + association.context.uniform()
            assert association.profile is not None
            margin = min(association.profile.rekey_margin * seconds, LONGEST_MARGIN) * jitter
            self.begins_at = now + seconds - margin if seconds > SHORTEST_SPAN else inf


class AskForReauthentication(Task):
    """As responder: AUTH_LIFETIME with little time (RFC 4478 section 3)."""

    exchange = ExchangeType.INFORMATIONAL

    def build(self, sa: IkeSa, now: float) -> list[wire.Payload] | None:
        """How long the initiator has."""
        return [_lifetime(ASKED_WITHIN)]

    def process(self, sa: IkeSa, payloads: Payloads, now: float) -> None:
        """The initiator knows."""


def _lifetime(seconds: float) -> wire.Notify:
    return wire.Notify(NotifyType.AUTH_LIFETIME, max(0, min(int(seconds), _LONGEST)).to_bytes(4, "big"))
