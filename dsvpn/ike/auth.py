"""Authentication by pre-shared key (RFC 7296 section 2.15)."""

from __future__ import annotations

import hmac
from typing import Final

from dsvpn.ike.keymat import prf
from dsvpn.ike.suites import Prf

_KEY_PAD: Final = b"Key Pad for IKEv2"


def signed_octets(
    function: Prf, message: bytes, peer_nonce: bytes, sk_p: bytes, identity: bytes, int_auth: bytes = b""
) -> bytes:
    """What an end proves: its IKE_SA_INIT message, the other's nonce, its own identity (the ID payload's body), and
    what came between IKE_SA_INIT and IKE_AUTH (RFC 9242 section 3.3.2), which is empty without IKE_INTERMEDIATE."""
    return message + peer_nonce + prf(function, sk_p, identity) + int_auth


def shared_key_mic(function: Prf, psk: bytes, octets: bytes) -> bytes:
    """The AUTH payload's data for a pre-shared key."""
    return prf(function, prf(function, psk, _KEY_PAD), octets)


def verify_shared_key_mic(function: Prf, psk: bytes, octets: bytes, mic: bytes) -> bool:
    """Whether the owner of `psk` made `mic`; in constant time."""
    return hmac.compare_digest(shared_key_mic(function, psk, octets), mic)
