"""Cookies: under load, an IKE_SA_INIT gets nothing but a cookie until its sender has brought one back (RFC 7296
section 2.6).

    HDR(A,0), SAi1, KEi, Ni  -->
                                <--  HDR(A,0), N(COOKIE)
    HDR(A,0), N(COOKIE), SAi1, KEi, Ni  -->

A cookie says which secret made it and is a MAC over the sender's nonce, endpoint and SPI, so nothing is remembered for
it. The way to a cookie reads no more of a message than it needs: it is what a flood costs.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from dsvpn.addresses import Endpoint, Path
from dsvpn.wire import ikev2 as wire
from dsvpn.wire.ikev2 import HEADER_LENGTH, SPI_LENGTH, ZERO_SPI, ExchangeType, Flag, NotifyType, PayloadType

# Plain numbers: comparing with an enumeration costs as much as the rest of a look at a payload.
_IKE_SA_INIT: Final = int(ExchangeType.IKE_SA_INIT)
_DIRECTION: Final = int(Flag.INITIATOR | Flag.RESPONSE)
_REQUEST: Final = int(Flag.INITIATOR)
_NONCE: Final = int(PayloadType.NONCE)
_NOTIFY: Final = int(PayloadType.NOTIFY)
#: Message id 0.
_FIRST_ID: Final = bytes(4)

#: Seconds that a secret makes cookies; for as long again it still knows them.
ROTATION: Final = 60.0

_MAC_LENGTH: Final = 24
_SECRET_LENGTH: Final = 32
_GENERIC_HEADER_LENGTH: Final = 4
_NOTIFY_HEADER_LENGTH: Final = 4
#: Payloads of an IKE_SA_INIT that are looked at.
_MAX_PAYLOADS: Final = 64
#: Length of nonces (RFC 7296 section 3.9).
_NONCE_LENGTHS: Final = range(16, 257)
_COOKIE_LENGTH: Final = 1 + _MAC_LENGTH
_REPLY_LENGTH: Final = HEADER_LENGTH + _GENERIC_HEADER_LENGTH + _NOTIFY_HEADER_LENGTH + _COOKIE_LENGTH
#: What follows the initiator's SPI in every reply with a cookie: header, generic header, notification.
_REPLY_TAIL: Final = (
    wire.Header(ZERO_SPI, ZERO_SPI, ExchangeType.IKE_SA_INIT, Flag.RESPONSE, 0).encode(
        PayloadType.NOTIFY, _REPLY_LENGTH
    )[SPI_LENGTH:]
    + bytes((0, 0))
    + (_REPLY_LENGTH - HEADER_LENGTH).to_bytes(2, "big")
    + wire.Notify(NotifyType.COOKIE).encode()
)
_COOKIE_NOTIFY: Final = wire.Notify(NotifyType.COOKIE).encode()


@dataclass(frozen=True, slots=True)
class CookieSecrets:
    """`version` numbers `secret`; `previous` made the cookies before, and is empty if there was none."""

    version: int
    secret: bytes = field(repr=False)
    previous: bytes = field(repr=False)


class CookieJar:
    """Makes and checks cookies. `sent`, `accepted` and `refused` count them; a refused one is forged or too old."""

    def __init__(self, random: Callable[[int], bytes]) -> None:
        self.sent = 0
        self.accepted = 0
        self.refused = 0
        self._random = random
        self._version = 0
        self._made = 0.0
        self._secret: bytes | None = None
        self._previous: bytes | None = None

    def admit(self, data: bytes, path: Path, now: float) -> bytes | bool:
        """Whether an IKE_SA_INIT request brings a good cookie; otherwise the reply, or False if it deserves none."""
        scanned = _scan(data)
        if scanned is None:
            return False
        cookie, nonce = scanned
        self._rotate(now)
        spi = data[:SPI_LENGTH]
        if cookie is not None:
            if self._is_good(cookie, nonce, spi, path.remote):
                self.accepted += 1
                return True
            self.refused += 1
        assert self._secret is not None
        self.sent += 1
        mac = _mac(self._secret, nonce, spi, path.remote)
        return spi + _REPLY_TAIL + bytes((self._version,)) + mac

    def secrets(self, now: float) -> CookieSecrets:
        """What the data plane needs to make and check cookies in our place."""
        self._rotate(now)
        assert self._secret is not None
        return CookieSecrets(self._version, self._secret, self._previous or b"")

    def _is_good(self, cookie: bytes, nonce: bytes, spi: bytes, remote: Endpoint) -> bool:
        if len(cookie) != _COOKIE_LENGTH:
            return False
        if cookie[0] == self._version:
            secret = self._secret
        elif cookie[0] == (self._version - 1) & 0xFF:
            secret = self._previous
        else:
            return False
        return secret is not None and hmac.compare_digest(_mac(secret, nonce, spi, remote), cookie[1:])

    def _rotate(self, now: float) -> None:
        age = now - self._made
        if self._secret is None or age >= ROTATION:
            self._previous = self._secret if age < 2 * ROTATION else None
            self._secret = self._random(_SECRET_LENGTH)
            self._version = (self._version + 1) & 0xFF
            self._made = now


def is_request(data: bytes) -> bool:
    """Whether a datagram begins as an IKE_SA_INIT request does."""
    return (
        len(data) > HEADER_LENGTH
        and data[18] == _IKE_SA_INIT
        and data[17] >> 4 == 2
        and data[19] & _DIRECTION == _REQUEST
        and data[8:16] == ZERO_SPI
        and data[20:24] == _FIRST_ID
    )


def _mac(secret: bytes, nonce: bytes, spi: bytes, remote: Endpoint) -> bytes:
    # SPI and port have fixed lengths and the nonce stands last, so that no two inputs run into one. The data plane
    # makes and knows the same cookies (native/dataplane/src/cookie.rs).
    address = remote.address.packed
    who = spi + remote.port.to_bytes(2, "big") + bytes((len(address),)) + address
    return hmac.digest(secret, who + nonce, "sha256")[:_MAC_LENGTH]


def _scan(data: bytes) -> tuple[bytes | None, bytes] | None:
    """The cookie, if the first payload is one, and the nonce; None for what is no IKE_SA_INIT."""
    cookie: bytes | None = None
    kind, at, end = data[16], HEADER_LENGTH, len(data)
    if int.from_bytes(data[24:28], "big") != end or data[:SPI_LENGTH] == ZERO_SPI:
        return None
    for _ in range(_MAX_PAYLOADS):
        if not kind or at + _GENERIC_HEADER_LENGTH > end:
            return None
        length = data[at + 2] << 8 | data[at + 3]
        if length < _GENERIC_HEADER_LENGTH or at + length > end:
            return None
        if kind == _NONCE:
            nonce = data[at + _GENERIC_HEADER_LENGTH : at + length]
            return (cookie, nonce) if len(nonce) in _NONCE_LENGTHS else None
        if kind == _NOTIFY and at == HEADER_LENGTH:
            notify = data[at + _GENERIC_HEADER_LENGTH : at + length]
            if notify.startswith(_COOKIE_NOTIFY):
                cookie = notify[_NOTIFY_HEADER_LENGTH:]
        kind, at = data[at], at + length
    return None
