"""ML-KEM-512 by the native module, for the cryptographic library does not have it."""

from __future__ import annotations

import dsvpn_native
from dsvpn.ike.kem import MESSAGE_LENGTH, Kem, Random


def native_kems() -> dict[str, Kem]:
    """The parameter sets of ML-KEM that the native module adds: none where it is older than this program."""
    if not hasattr(dsvpn_native, "MlKem512"):
        return {}
    return {"mlkem512": Kem(dsvpn_native.MlKem512, _encapsulate)}


def _encapsulate(public_key: bytes, random: Random) -> tuple[bytes, bytes]:
    return dsvpn_native.MlKem512.encapsulate(public_key, random(MESSAGE_LENGTH))
