"""Transport or tunnel mode of CHILD_SAs (RFC 7296 section 1.3.1): who asks for which, and where tunnel mode cannot be.

N(USE_TRANSPORT_MODE) in a request asks for transport mode and in an answer grants it; without it, it is tunnel mode.
"""

from __future__ import annotations

from dsvpn.errors import PeerError
from dsvpn.ike.profile import IkeProfile
from dsvpn.ike.task import Payloads
from dsvpn.wire import ikev2 as wire
from dsvpn.wire.ikev2 import NotifyType


def mode_payloads(profile: IkeProfile) -> list[wire.Payload]:
    """What a request or an answer says of the mode."""
    return [] if profile.tunnel_mode else [wire.Notify(NotifyType.USE_TRANSPORT_MODE)]


def check_answered_mode(profile: IkeProfile, payloads: Payloads) -> None:
    """PeerError when an answer makes another mode than we asked for."""
    transport = wire.find_notify(payloads, NotifyType.USE_TRANSPORT_MODE) is not None
    if profile.tunnel_mode and transport:
        raise PeerError("peer grants transport mode, which nobody asked for; configure tunnel mode there")
    if not profile.tunnel_mode and not transport:
        raise PeerError("peer insists on tunnel mode; configure transport mode there")


def check_requested_mode(profile: IkeProfile, payloads: Payloads, *, local_nat: bool, remote_nat: bool) -> None:
    """PeerError, with the notification to answer, when a request cannot have the mode of our profile.

    A request for transport mode is answered by tunnel mode where the profile has that; the peer decides whether it
    takes it.
    """
    transport = wire.find_notify(payloads, NotifyType.USE_TRANSPORT_MODE) is not None
    if not profile.tunnel_mode and not transport:
        raise PeerError("peer asks for tunnel mode; configure transport mode there", NotifyType.NO_PROPOSAL_CHOSEN)
    refuse_nat(profile, local_nat=local_nat, remote_nat=remote_nat)


def refuse_nat(profile: IkeProfile, *, local_nat: bool, remote_nat: bool) -> None:
    """PeerError when a profile of tunnel mode meets a NAT.

    The selectors of tunnel mode are addresses inside ESP, and NHRP tells no others than those before a NAT: what the
    peer sends would come from addresses that nobody has agreed on.
    """
    if not profile.tunnel_mode or not (local_nat or remote_nat):
        return
    where = " and ".join(side for side, behind in (("us", local_nat), ("the peer", remote_nat)) if behind)
    raise PeerError(
        f"tunnel mode cannot pass NAT, because NHRP does not learn post-NAT addresses in it, and there is one in front "
        f'of {where} (or UDP encapsulation is forced at the other end); write mode = "transport" at both ends',
        NotifyType.NO_PROPOSAL_CHOSEN,
    )
