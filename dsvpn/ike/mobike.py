"""MOBIKE: an IKE SA and its CHILD_SAs move to other addresses (RFC 4555).

Only the end that initiated the first IKE SA, called the initiator below, decides about addresses:

    HDR, SK {N(UPDATE_SA_ADDRESSES), N(NAT_DETECTION_*), N(COOKIE2), [N(NO_NATS_ALLOWED)]}  -->
                                    <--  HDR, SK {N(NAT_DETECTION_*), N(COOKIE2)}

The other end, when its own address changes, tells its addresses from the one that it has, and the initiator updates:

                                    <--  HDR, SK {N(NO_ADDITIONAL_ADDRESSES) or N(ADDITIONAL_*_ADDRESS)+}
    HDR, SK {}  -->

RFC 4555 specifies tunnel mode. In transport mode the traffic selectors are the outer addresses themselves, so they move
with the SA: both ends use a CHILD_SA of the IKE SA between the new addresses at once, and then the end that moved
rekeys it, so that its successor is negotiated for the new addresses also with a peer that does not move CHILD_SAs of
transport mode.

An address that the peer vouches for (NAT_DETECTION_SOURCE_IP agrees with the IP header) is used at once and checked
afterwards; one that anybody on the way may have written gets no ESP before it has answered COOKIE2 (section 3.7).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING, Final

from dsvpn.addresses import Address, Endpoint, Path
from dsvpn.errors import PeerError
from dsvpn.ike import nat
from dsvpn.ike.child_sa import ChildState
from dsvpn.ike.state import IkeState
from dsvpn.ike.task import Payloads, Task, first_error
from dsvpn.wire import ikev2 as wire
from dsvpn.wire.ikev2 import ExchangeType, NotifyType

if TYPE_CHECKING:
    from dsvpn.ike.association import Association
    from dsvpn.ike.ike_sa import IkeSa
    from dsvpn.ike.profile import IkeProfile

#: Addresses of a peer that are remembered.
MAX_PEER_ADDRESSES: Final = 8
#: Unanswered transmissions after which another address of the peer is tried: early, for the peer gives up too.
SILENT_TRIES: Final = 3
#: Octets of COOKIE2; 8 to 64 are allowed (RFC 4555 section 4.2.5).
_COOKIE2_LENGTH: Final = 16
_ADDITIONAL: Final = {4: NotifyType.ADDITIONAL_IP4_ADDRESS, 6: NotifyType.ADDITIONAL_IP6_ADDRESS}


@dataclass(slots=True)
class Mobike:
    """What an association remembers when both ends have MOBIKE. `pending`: the peer is still to be told of our path."""

    peer_addresses: tuple[Address, ...] = ()
    pending: bool = False
    #: Addresses of the peer that have not been tried since the last one that answered.
    untried: list[Address] = field(default_factory=list)
    #: How the peer saw us when it was last asked: the IKE SA's SPI and NAT_DETECTION_DESTINATION_IP.
    seen_as: tuple[bytes, bytes] = (b"", b"")


# -- negotiation ---------------------------------------------------------------------------------------------------


def announce(profile: IkeProfile) -> list[wire.Payload]:
    """MOBIKE_SUPPORTED and our further addresses, for IKE_AUTH."""
    if not profile.mobike:
        return []
    return [wire.Notify(NotifyType.MOBIKE_SUPPORTED), *_additional(profile.additional_addresses)]


def take_announcement(association: Association, payloads: Payloads) -> None:
    """What the peer's IKE_AUTH says of MOBIKE."""
    profile = association.profile
    if profile is not None and profile.mobike and wire.find_notify(payloads, NotifyType.MOBIKE_SUPPORTED) is not None:
        addresses = _peer_addresses(payloads) or ()
        association.mobike = Mobike(addresses, untried=list(addresses))


def prohibition(profile: IkeProfile, path: Path) -> list[wire.Payload]:
    """NO_NATS_ALLOWED with the addresses and ports that the message has when it leaves, where the profile says so."""
    if not profile.prohibit_nat or path.local.address.is_unspecified:
        return []
    return [wire.Notify(NotifyType.NO_NATS_ALLOWED, _both(path.local, path.remote))]


def check_prohibition(payloads: Payloads, path: Path) -> None:
    """PeerError with UNEXPECTED_NAT_DETECTED when the peer allows no NAT and there is one (RFC 4555 section 3.9)."""
    allowed = wire.find_notify(payloads, NotifyType.NO_NATS_ALLOWED)
    if allowed is not None and allowed.data != _both(path.remote, path.local):
        raise PeerError("there is a NAT, which the peer does not allow", NotifyType.UNEXPECTED_NAT_DETECTED)


# -- moving --------------------------------------------------------------------------------------------------------


def move(association: Association, local: Address, now: float) -> bool:
    """Our address is `local` from here on. False when the IKE SA cannot go there and has to be made anew."""
    sa, path = association.current, association.path
    if local.version != path.remote.address.version:
        return False
    # Nobody but the peer opens its NAT for another address of ours, and it does not know that address.
    unreachable = not association.initiator and association.remote_nat
    if association.mobike is None or unreachable or sa is None or sa.state is not IkeState.ESTABLISHED:
        # What is left to say, the goodbye, has to leave from an address that there is.
        association.path = Path(Endpoint(local, path.local.port), path.remote)
        return False
    if path.local.address != local:
        association.path = Path(Endpoint(local, path.local.port), path.remote)
        association.path_changed(confirmed=False)
        # What is under way was sent from the address that is gone.
        sa.repeat_request(now)
        if association.initiator:
            start_update(association, now)
        else:
            sa.add_task(AnnounceAddresses(), now, urgent=True)
    return True


def start_update(association: Association, now: float) -> None:
    """Tell the peer of the path that this end, the initiator, uses."""
    sa, mobike = association.current, association.mobike
    if sa is None or mobike is None:
        return
    mobike.pending = True
    if not any(isinstance(task, UpdateAddresses) for task in sa.tasks):
        sa.add_task(UpdateAddresses(), now, urgent=True)


def try_next_address(sa: IkeSa, now: float) -> bool:
    """The peer's address does not answer: go on with another that it told us. False when there is none."""
    association = sa.association
    mobike = association.mobike
    if mobike is None or not association.initiator or sa is not association.current:
        return False
    path = association.path
    while mobike.untried:
        address = mobike.untried.pop(0)
        if address != path.remote.address and address.version == path.local.address.version:
            association.path = Path(path.local, Endpoint(address, path.remote.port))
            association.path_changed(confirmed=False)
            sa.repeat_request(now)
            start_update(association, now)
            return True
    return False


class UpdateAddresses(Task):
    """UPDATE_SA_ADDRESSES (RFC 4555 section 3.5)."""

    exchange = ExchangeType.INFORMATIONAL
    survives_ike_rekey = True

    def __init__(self) -> None:
        self.path: Path | None = None
        self.cookie = b""

    def build(self, sa: IkeSa, now: float) -> list[wire.Payload] | None:
        """The notification, with the path as this end sees it."""
        association = sa.association
        if association.mobike is None or not association.mobike.pending:
            return None
        profile = association.profile
        assert profile is not None
        self.path = association.path
        self.cookie = sa.context.random(_COOKIE2_LENGTH)
        return [
            wire.Notify(NotifyType.UPDATE_SA_ADDRESSES),
            *_detection(sa),
            wire.Notify(NotifyType.COOKIE2, self.cookie),
            *prohibition(profile, self.path),
        ]

    def process(self, sa: IkeSa, payloads: Payloads, now: float) -> None:
        """The peer uses the new path too, unless it says no."""
        association = sa.association
        mobike = association.mobike
        if mobike is None or association.current is None:
            return
        error = first_error(payloads)
        if error is not None:
            if not try_next_address(sa, now):
                sa.say_goodbye(f"peer refuses the new address: {error.name}", now)
            return
        if not _returns(payloads, self.cookie):
            sa.say_goodbye("peer's answer from the new address lacks its COOKIE2", now)
            return
        if self.path != association.path:
            # It changed again meanwhile (RFC 4555 section 3.5).
            start_update(association, now)
            return
        mobike.pending = False
        mobike.untried = list(mobike.peer_addresses)
        _note_seen(sa, payloads)
        association.take_nat_findings(_detect(sa, payloads, association.path))
        association.path_changed(confirmed=True)
        _rekey_children(association, now)

    def abandon(self, sa: IkeSa, now: float) -> None:
        """The IKE SA was replaced while this was under way: its successor tells."""
        association = sa.association
        if association.mobike is not None and association.mobike.pending and association.current not in (None, sa):
            start_update(association, now)


class AnnounceAddresses(Task):
    """Our addresses, sent from the one that we have (RFC 4555 section 3.6)."""

    exchange = ExchangeType.INFORMATIONAL
    survives_ike_rekey = True

    def build(self, sa: IkeSa, now: float) -> list[wire.Payload] | None:
        """ADDITIONAL_*_ADDRESS, or that there is none."""
        profile = sa.association.profile
        assert profile is not None
        return _additional(profile.additional_addresses) or [wire.Notify(NotifyType.NO_ADDITIONAL_ADDRESSES)]

    def process(self, sa: IkeSa, payloads: Payloads, now: float) -> None:
        """The peer answers with an update of its own."""


class CheckRoute(Task):
    """Whether the peer is where it seems to be (RFC 4555 section 3.7). `then_move`: ESP waits for the answer.

    Without an answer the retransmission schedule ends the IKE SA, as for any request."""

    exchange = ExchangeType.INFORMATIONAL

    def __init__(self, then_move: nat.NatFindings | None) -> None:
        self.then_move = then_move
        self.path: Path | None = None
        self.cookie = b""

    def build(self, sa: IkeSa, now: float) -> list[wire.Payload] | None:
        """COOKIE2, which nobody can guess."""
        self.path = sa.association.path
        self.cookie = sa.context.random(_COOKIE2_LENGTH)
        return [wire.Notify(NotifyType.COOKIE2, self.cookie)]

    def process(self, sa: IkeSa, payloads: Payloads, now: float) -> None:
        """The peer, and nobody else, is there."""
        association = sa.association
        if not _returns(payloads, self.cookie):
            sa.say_goodbye("peer's answer from the new address lacks its COOKIE2", now)
        elif self.then_move is not None and self.path == association.path:
            association.take_nat_findings(self.then_move)
            association.path_changed(confirmed=True)


# -- answering -----------------------------------------------------------------------------------------------------


def respond(sa: IkeSa, payloads: Payloads, path: Path, now: float) -> list[wire.Payload]:
    """What an INFORMATIONAL request that came by `path` says of addresses, and what the answer says of it."""
    association = sa.association
    mobike = association.mobike
    answer: list[wire.Payload] = []
    asked = wire.find_notify(payloads, NotifyType.NAT_DETECTION_DESTINATION_IP) is not None
    if mobike is not None and sa is association.current and sa.state is IkeState.ESTABLISHED:
        addresses = _peer_addresses(payloads)
        if addresses is not None:
            mobike.peer_addresses, mobike.untried = addresses, list(addresses)
            if association.initiator and path.remote != association.path.remote:
                # The responder tells it from where it is now: what becomes of that is the initiator's to say.
                association.path = Path(association.path.local, path.remote)
                association.path_changed(confirmed=False)
                start_update(association, now)
        if not association.initiator and wire.find_notify(payloads, NotifyType.UPDATE_SA_ADDRESSES) is not None:
            _update(sa, payloads, path, now)
    if asked and mobike is not None:
        answer += _detection(sa, path)
    cookie = wire.find_notify(payloads, NotifyType.COOKIE2)
    if cookie is not None:
        answer.append(wire.Notify(NotifyType.COOKIE2, cookie.data))
    return answer


def _update(sa: IkeSa, payloads: Payloads, path: Path, now: float) -> None:
    """The initiator says that `path` is the one."""
    association = sa.association
    check_prohibition(payloads, path)
    remote = path.remote.address
    if (
        remote.is_unspecified
        or remote.is_multicast
        or remote.is_loopback != association.path.remote.address.is_loopback
    ):
        raise PeerError(f"{remote} is no address to move to", NotifyType.UNACCEPTABLE_ADDRESSES)
    findings = _detect(sa, payloads, path)
    vouched = findings.supported and not findings.remote_nat
    # A peer behind NAT is followed wherever its authenticated messages come from (RFC 7296 section 2.23).
    if vouched or association.remote_nat or association.path == path:
        moved = association.path != path
        association.path = path
        association.take_nat_findings(findings)
        association.path_changed(confirmed=True)
        if moved:
            sa.repeat_request(now)
            # Begun when the answer is out.
            sa.tasks.append(CheckRoute(None))
    else:
        association.path = path
        sa.repeat_request(now)
        sa.tasks.appendleft(CheckRoute(findings))


# -- NAT mappings --------------------------------------------------------------------------------------------------


def probe(sa: IkeSa) -> list[wire.Payload]:
    """What an initiator behind NAT asks with a sign of life: whether its mapping is the old one."""
    association = sa.association
    if association.mobike is None or not association.initiator or not association.local_nat:
        return []
    return _detection(sa)


def take_probe(sa: IkeSa, payloads: Payloads, now: float) -> None:
    """The answer to `probe`: a mapping that changed is told by an update."""
    mobike = sa.association.mobike
    if mobike is not None and _note_seen(sa, payloads):
        start_update(sa.association, now)


def _note_seen(sa: IkeSa, payloads: Payloads) -> bool:
    """Remember how the peer sees us; whether it saw us otherwise before."""
    mobike = sa.association.mobike
    seen = wire.find_notify(payloads, NotifyType.NAT_DETECTION_DESTINATION_IP)
    if mobike is None or seen is None:
        return False
    before, mobike.seen_as = mobike.seen_as, (sa.local_spi, seen.data)
    return before[0] == sa.local_spi and before[1] != seen.data


# -- inside --------------------------------------------------------------------------------------------------------


def _detection(sa: IkeSa, path: Path | None = None) -> list[wire.Payload]:
    profile = sa.association.profile
    assert profile is not None
    return nat.detection_payloads(
        sa.initiator_spi,
        sa.responder_spi,
        sa.association.path if path is None else path,
        profile.force_udp_encapsulation,
        sa.context.random,
    )


def _detect(sa: IkeSa, payloads: Payloads, path: Path) -> nat.NatFindings:
    return nat.detect(payloads, sa.initiator_spi, sa.responder_spi, path)


def _returns(payloads: Payloads, cookie: bytes) -> bool:
    returned = wire.find_notify(payloads, NotifyType.COOKIE2)
    return returned is not None and returned.data == cookie


def _rekey_children(association: Association, now: float) -> None:
    """Have the CHILD_SAs negotiated for the addresses that they run between."""
    for child in association.children:
        if child.state is ChildState.INSTALLED and child.rekey is None:
            child.rekey_at = min(child.rekey_at, now)


def _additional(addresses: Sequence[Address]) -> list[wire.Payload]:
    return [wire.Notify(_ADDITIONAL[address.version], address.packed) for address in addresses]


def _peer_addresses(payloads: Payloads) -> tuple[Address, ...] | None:
    """The addresses that the peer tells of; None when it tells nothing."""
    found: list[Address] = []
    told = wire.find_notify(payloads, NotifyType.NO_ADDITIONAL_ADDRESSES) is not None
    for payload in payloads:
        if not isinstance(payload, wire.Notify):
            continue
        if payload.type == NotifyType.ADDITIONAL_IP4_ADDRESS and len(payload.data) == 4:
            found.append(IPv4Address(payload.data))
        elif payload.type == NotifyType.ADDITIONAL_IP6_ADDRESS and len(payload.data) == 16:
            found.append(IPv6Address(payload.data))
    return tuple(found[:MAX_PEER_ADDRESSES]) if found or told else None


def _both(source: Endpoint, destination: Endpoint) -> bytes:
    """Addresses and ports as NO_NATS_ALLOWED has them (RFC 4555 section 4.2.6)."""
    ports = source.port.to_bytes(2, "big") + destination.port.to_bytes(2, "big")
    return source.address.packed + destination.address.packed + ports
