"""Messages of another major version than ours (RFC 7296 section 2.5)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dsvpn.addresses import Path
from dsvpn.wire import ikev2 as wire
from dsvpn.wire.ikev2 import SPI_LENGTH, ZERO_SPI, Flag, NotifyType

if TYPE_CHECKING:
    from dsvpn.ike.context import Context

#: The major version that is spoken here.
MAJOR_VERSION: Final = 2


def receive_unreadable(context: Context, data: bytes, path: Path, now: float) -> None:
    """A datagram that is no IKEv2 message: what it is, if the octets where a header has its version tell. IKEv1 gets no
    answer; a request of a later version is answered with ours, at a limited rate."""
    if len(data) < wire.HEADER_LENGTH:
        return
    version, flags = data[17] >> 4, data[19]
    if version == 1:
        context.note_ikev1(path, now)
    length = int.from_bytes(data[24:28], "big")
    if version <= MAJOR_VERSION or flags & Flag.RESPONSE or length != len(data) or data[:SPI_LENGTH] == ZERO_SPI:
        return
    if not context.lost_spis.may_tell(NotifyType.INVALID_MAJOR_VERSION, path.remote.address, now):
        return
    context.later_versions += 1
    reply = wire.Header(
        data[:SPI_LENGTH],
        data[SPI_LENGTH : 2 * SPI_LENGTH],
        data[18],
        Flag.RESPONSE | (flags & Flag.INITIATOR ^ Flag.INITIATOR),
        int.from_bytes(data[20:24], "big"),
    )
    # The header of the reply names the version that is spoken here (RFC 7296 section 3.10.1).
    context.send(wire.Message(reply, (wire.Notify(NotifyType.INVALID_MAJOR_VERSION),)).encode(), path)
