"""Post-quantum preshared keys (RFC 8784): a secret that both ends have, mixed into SK_d, SK_pi and SK_pr.

    HDR, SAi1, KEi, Ni, N(USE_PPK)  -->
                                    <--  HDR, SAr1, KEr, Nr, N(USE_PPK)
    HDR, SK {IDi, AUTH, SAi2, TSi, TSr, N(PPK_IDENTITY, id), [N(NO_PPK_AUTH)]}  -->
                                    <--  HDR, SK {IDr, AUTH, SAr2, TSi, TSr, N(PPK_IDENTITY)}

AUTH proves with the PPK. NO_PPK_AUTH proves without it, for a responder that does not have this PPK; an initiator that
must not do without leaves it out.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from dsvpn.errors import MisuseError, PeerError
from dsvpn.ike.keymat import mix_ppk
from dsvpn.ike.task import Payloads
from dsvpn.wire import ikev2 as wire
from dsvpn.wire.ikev2 import NotifyType

if TYPE_CHECKING:
    from dsvpn.ike.ike_sa import IkeSa
    from dsvpn.ike.profile import IkeProfile

#: A PPK_ID that stands for one static key, as an administrator gives it (RFC 8784 section 5.1.1).
_PPK_ID_FIXED: Final = 2


@dataclass(frozen=True, slots=True)
class Ppk:
    """A PPK and the identity both ends know it by. `required`: rather no IKE SA than one without it."""

    identity: bytes
    key: bytes = field(repr=False)
    required: bool = False

    def __post_init__(self) -> None:
        if not self.identity or not self.key:
            raise MisuseError("a PPK needs an identity and a key; name both")

    @property
    def payload(self) -> wire.Notify:
        """PPK_IDENTITY of a request."""
        return wire.Notify(NotifyType.PPK_IDENTITY, bytes((_PPK_ID_FIXED,)) + self.identity)


@dataclass(frozen=True, slots=True)
class PpkKeys:
    """The keys of an IKE SA that a PPK changes."""

    d: bytes = field(repr=False)
    pi: bytes = field(repr=False)
    pr: bytes = field(repr=False)


def plain_keys(sa: IkeSa) -> PpkKeys:
    """The keys as they are."""
    return PpkKeys(sa.sk_d, sa.sk_pi, sa.sk_pr)


def mixed_keys(sa: IkeSa, ppk: Ppk) -> PpkKeys:
    """The keys with `ppk` in them."""
    assert sa.suite is not None
    function = sa.suite.prf
    return PpkKeys(*(mix_ppk(function, ppk.key, key) for key in (sa.sk_d, sa.sk_pi, sa.sk_pr)))


def take_keys(sa: IkeSa, keys: PpkKeys) -> None:
    """Go over to `keys`."""
    sa.sk_d, sa.sk_pi, sa.sk_pr = keys.d, keys.pi, keys.pr


def is_required(ppks: Iterable[Ppk]) -> bool:
    """Whether a profile with these PPKs may not do without."""
    return any(ppk.required for ppk in ppks)


def answers_with_ppk(payloads: Payloads) -> bool:
    """Whether a responder's IKE_AUTH answer says that it uses the PPK."""
    return wire.find_notify(payloads, NotifyType.PPK_IDENTITY) is not None


def choose_ppk(sa: IkeSa, profile: IkeProfile, payloads: Payloads) -> Ppk | None:
    """As responder: the PPK that the peer's IKE_AUTH request names; None when the IKE SA is to do without. PeerError
    when one of the two may not (RFC 8784 section 3, table 1)."""
    named = wire.find_notify(payloads, NotifyType.PPK_IDENTITY) if sa.use_ppk else None
    if named is not None:
        for ppk in profile.ppks:
            if named.data == ppk.payload.data:
                return ppk
    if is_required(profile.ppks):
        reason = "another PPK than ours" if named is not None else "no PPK, which is required"
        raise PeerError(f"peer has {reason}")
    if named is not None and wire.find_notify(payloads, NotifyType.NO_PPK_AUTH) is None:
        raise PeerError("peer requires a PPK that is not ours")
    return None


def proof_data(sa: IkeSa, ppk: Ppk | None, payloads: Payloads, proof: bytes) -> bytes:
    """The authentication data that fits `ppk`: `proof`, AUTH's, or NO_PPK_AUTH's where the peer offered one in vain."""
    without = wire.find_notify(payloads, NotifyType.NO_PPK_AUTH)
    named = wire.find_notify(payloads, NotifyType.PPK_IDENTITY)
    if sa.use_ppk and ppk is None and named is not None and without is not None:
        return without.data
    return proof
