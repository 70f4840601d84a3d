"""Childless start: IKE_AUTH that proves identities and makes no CHILD_SA (RFC 6023).

    HDR, SAi1, KEi, Ni …   -->
                           <--  HDR, SAr1, KEr, Nr, … N(CHILDLESS_IKEV2_SUPPORTED)
    HDR, SK {IDi, AUTH}    -->
                           <--  HDR, SK {IDr, AUTH}

The CHILD_SA follows in CREATE_CHILD_SA, and its keys come of a key exchange of their own where the ESP suite has one.
"""

from __future__ import annotations

from collections.abc import Iterable

from dsvpn.ike.profile import IkeProfile
from dsvpn.ike.task import Payloads
from dsvpn.wire import ikev2 as wire
from dsvpn.wire.ikev2 import NotifyType


def supported(profiles: Iterable[IkeProfile]) -> list[wire.Payload]:
    """What a responder says in IKE_SA_INIT, where one of its profiles takes it."""
    if all(profile.childless == "never" for profile in profiles):
        return []
    return [wire.Notify(NotifyType.CHILDLESS_IKEV2_SUPPORTED)]


def is_wanted(profile: IkeProfile, payloads: Payloads) -> bool:
    """As initiator: whether to do so, by our profile and the peer's IKE_SA_INIT."""
    notify = wire.find_notify(payloads, NotifyType.CHILDLESS_IKEV2_SUPPORTED)
    return profile.childless == "prefer" and notify is not None


def is_asked(profile: IkeProfile, payloads: Payloads) -> bool:
    """As responder: whether IKE_AUTH asks for no CHILD_SA, and may (RFC 6023 section 3)."""
    kinds = (wire.SecurityAssociation, wire.TrafficSelectorsInitiator, wire.TrafficSelectorsResponder)
    return profile.childless != "never" and not any(isinstance(payload, kinds) for payload in payloads)
