"""IntAuth: what IKE_AUTH proves of the IKE_INTERMEDIATE exchanges before it (RFC 9242 section 3.3.2)."""

from __future__ import annotations

from collections.abc import Sequence

from dsvpn.ike.keymat import prf
from dsvpn.ike.suites import Prf
from dsvpn.wire import ikev2 as wire
from dsvpn.wire.ikev2 import HEADER_LENGTH, PayloadType

_NEXT_PAYLOAD_OFFSET = 16
_LENGTH = slice(24, 28)
_GENERIC_HEADER_LENGTH = 4
_FRAGMENT_HEADER_LENGTH = 4


class IntAuth:
    """The running prf over the IKE_INTERMEDIATE messages of each direction."""

    def __init__(self) -> None:
        self._initiator = b""
        self._responder = b""
        self._exchanges = 0

    def add(self, function: Prf, sk_p: bytes, from_initiator: bool, octets: bytes) -> None:
        """Take in one message. `sk_p` is its sender's SK_pi or SK_pr of the keys that sealed it: those that the
        exchange makes come into use behind it."""
        if from_initiator:
            self._exchanges += 1
            self._initiator = prf(function, sk_p, self._initiator + octets)
        else:
            self._responder = prf(function, sk_p, self._responder + octets)

    def octets(self) -> bytes:
        """IntAuth_iN | IntAuth_rN | IKE_AUTH_MID; the last is the message id of the first IKE_AUTH request, which
        follows IKE_SA_INIT's 0 and one for each IKE_INTERMEDIATE exchange."""
        return self._initiator + self._responder + (self._exchanges + 1).to_bytes(4, "big")


def sent_octets(header: wire.Header, payloads: Sequence[wire.Payload]) -> bytes:
    """A message of ours as IntAuth has it: in the clear, in one piece, its lengths without IV, padding and ICV."""
    first_payload, chain = wire.encode_payloads(payloads)
    return wire.encode_associated_data(header, first_payload, len(chain)) + chain


def received_octets(payload: wire.Encrypted | wire.EncryptedFragment, chain: bytes) -> bytes:
    """A message of the peer's as IntAuth has it. `payload` is its SK payload, or the SKF payload with number 1;
    `chain` is the opened payload chain of the whole message."""
    front = bytearray(payload.associated_data)
    if isinstance(payload, wire.EncryptedFragment):
        del front[-_FRAGMENT_HEADER_LENGTH:]
        # As if it had come in one piece: the chain in front of it leads to SK.
        at, offset = _NEXT_PAYLOAD_OFFSET, HEADER_LENGTH
        while front[at] != PayloadType.SKF:
            at, offset = offset, offset + int.from_bytes(front[offset + 2 : offset + 4], "big")
        front[at] = PayloadType.SK
    front[_LENGTH] = (len(front) + len(chain)).to_bytes(4, "big")
    front[-2:] = (_GENERIC_HEADER_LENGTH + len(chain)).to_bytes(2, "big")
    return bytes(front) + chain
