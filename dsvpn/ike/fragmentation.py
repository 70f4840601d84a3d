"""IKE fragmentation: a long message goes as several SKF payloads, each sealed alone (RFC 7383).

Certificates and ML-KEM make messages longer than a path takes, and many NATs and firewalls drop IP fragments. Whether
an IKE SA fragments is agreed on in IKE_SA_INIT, which itself cannot be fragmented.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Final

from dsvpn.addresses import Path
from dsvpn.ike.nat import NAT_TRAVERSAL_PORT
from dsvpn.ike.sealing import SealingKey
from dsvpn.wire import ikev2 as wire

#: Octets of the largest IP datagram of a fragmented message: every IPv6 path takes these (RFC 8200 section 5), and
#: hardly an IPv4 path less.
DEFAULT_FRAGMENT_SIZE: Final = 1280
MIN_FRAGMENT_SIZE: Final = 576
#: What a peer may have us keep of one message. A chain of ML-DSA-87 certificates is some 30 kB.
MAX_FRAGMENTS: Final = 128
MAX_MESSAGE: Final = 65536
#: Seconds that a message may take to come in whole, longer than a peer goes on to retransmit it.
REASSEMBLY_LIFETIME: Final = 30.0
#: Octets in incomplete messages of all peers together: whoever completes a key exchange can have some kept.
MAX_KEPT: Final = 16 << 20

_IP_HEADER: Final = {4: 20, 6: 40}
_UDP_HEADER: Final = 8
_NON_ESP_MARKER: Final = 4
_GENERIC_HEADER: Final = 4
_FRAGMENT_HEADER: Final = 4


def supported() -> wire.Notify:
    """The notification of IKE_SA_INIT that offers or accepts fragmentation (RFC 7383 section 2.3)."""
    return wire.Notify(wire.NotifyType.IKEV2_FRAGMENTATION_SUPPORTED)


def is_supported(payloads: Sequence[wire.Payload]) -> bool:
    """Whether the sender of this IKE_SA_INIT message has it."""
    return wire.find_notify(payloads, wire.NotifyType.IKEV2_FRAGMENTATION_SUPPORTED) is not None


def message_limit(fragment_size: int, path: Path) -> int:
    """Octets of an IKE message whose IP datagram on `path` has `fragment_size` octets."""
    marker = _NON_ESP_MARKER if path.local.port == NAT_TRAVERSAL_PORT else 0
    return fragment_size - _IP_HEADER[path.remote.address.version] - _UDP_HEADER - marker


def seal(
    key: SealingKey, header: wire.Header, payloads: Sequence[wire.Payload], limit: int | None
) -> tuple[bytes, ...]:
    """The datagrams of a message: one if it is no longer than `limit` octets (None: however long it is), else its
    fragments in order."""
    first_payload, chain = wire.encode_payloads(payloads)
    sealed = key.sealed_length(len(chain))
    if limit is None or wire.HEADER_LENGTH + _GENERIC_HEADER + sealed <= limit:
        front = wire.encode_associated_data(header, first_payload, sealed)
        return (front + key.seal_octets(front, chain),)
    room = _room(key, limit - wire.HEADER_LENGTH - _GENERIC_HEADER - _FRAGMENT_HEADER)
    pieces = [chain[at : at + room] for at in range(0, len(chain), room)]
    datagrams = []
    for number, piece in enumerate(pieces, 1):
        length = key.sealed_length(len(piece))
        front = wire.encode_fragment_associated_data(header, first_payload, number, len(pieces), length)
        datagrams.append(front + key.seal_octets(front, piece))
    return tuple(datagrams)


def _room(key: SealingKey, sealed: int) -> int:
    """The most payload octets that seal into `sealed` octets: a cipher in blocks does not take every length."""
    room = sealed - key.sealed_length(0) + 1
    while key.sealed_length(room) > sealed:
        room -= 1
    return room


@dataclass(slots=True)
class FragmentBudget:
    """The octets that all IKE SAs of an engine keep of incomplete messages."""

    kept: int = 0


@dataclass(slots=True)
class _Partial:
    """A message of which some fragments are here."""

    message_id: int
    total: int
    expires_at: float
    pieces: dict[int, bytes] = field(default_factory=dict)
    first: wire.EncryptedFragment | None = None
    octets: int = 0


class Reassembly:
    """The incomplete messages of one IKE SA: with a window of one, at most a request and an answer at a time."""

    __slots__ = ("_budget", "_partials")

    def __init__(self, budget: FragmentBudget) -> None:
        self._budget = budget
        self._partials: dict[bool, _Partial] = {}

    @property
    def deadline(self) -> float:
        """When the oldest incomplete message is given up."""
        # Asked for after every message, when there is hardly ever one.
        return min(partial.expires_at for partial in self._partials.values()) if self._partials else inf

    def has(self, header: wire.Header, fragment: wire.EncryptedFragment) -> bool:
        """Whether this fragment is here already, so that it need not be opened."""
        partial = self._partials.get(header.is_response)
        return (
            partial is not None
            and (partial.message_id, partial.total) == (header.message_id, fragment.total)
            and fragment.number in partial.pieces
        )

    def add(
        self, header: wire.Header, fragment: wire.EncryptedFragment, piece: bytes, now: float
    ) -> tuple[wire.EncryptedFragment, bytes] | None:
        """Take an authentic fragment with its opened `piece` of the payload chain. Gives the fragment with number 1 and
        the whole chain once nothing is missing."""
        if fragment.total > MAX_FRAGMENTS:
            return None
        partial = self._partials.get(header.is_response)
        if partial is not None and partial.message_id == header.message_id and fragment.total < partial.total:
            # A sender goes over to smaller fragments, never back: this is an old one (RFC 7383 section 2.6).
            return None
        if partial is None or (partial.message_id, partial.total) != (header.message_id, fragment.total):
            self.drop(header.is_response)
            partial = _Partial(header.message_id, fragment.total, now + REASSEMBLY_LIFETIME)
        if fragment.number in partial.pieces:
            return None
        if partial.octets + len(piece) > MAX_MESSAGE or self._budget.kept + len(piece) > MAX_KEPT:
            return None
        self._partials[header.is_response] = partial
        partial.pieces[fragment.number] = piece
        partial.octets += len(piece)
        self._budget.kept += len(piece)
        if fragment.number == 1:
            partial.first = fragment
        if len(partial.pieces) < partial.total:
            return None
        self.drop(header.is_response)
        assert partial.first is not None
        return partial.first, b"".join(partial.pieces[number] for number in range(1, partial.total + 1))

    def drop(self, is_response: bool) -> None:
        """Forget an incomplete request or answer."""
        partial = self._partials.pop(is_response, None)
        if partial is not None:
            self._budget.kept -= partial.octets

    def clear(self) -> None:
        """Forget everything."""
        for kind in tuple(self._partials):
            self.drop(kind)

    def expire(self, now: float) -> None:
        """Forget what has been incomplete for too long."""
        for kind, partial in tuple(self._partials.items()):
            if partial.expires_at <= now:
                self.drop(kind)
