"""ML-KEM by the native module: faster than the cryptographic library, which lacks ML-KEM-512."""

from __future__ import annotations

from typing import Protocol, cast

import dsvpn_native
from dsvpn.ike.kem import MESSAGE_LENGTH, DecapsulationKey, Kem, Random


class _ParameterSet(Protocol):
    """A class of the native module."""

    def __call__(self, seed: bytes, /) -> DecapsulationKey: ...

    def encapsulate(self, public_key: bytes, message: bytes, /) -> tuple[bytes, bytes]: ...


def native_kems() -> dict[str, Kem]:
    """The parameter sets of ML-KEM that the native module has: fewer where it is older than this program."""
    classes = {"mlkem512": "MlKem512", "mlkem768": "MlKem768", "mlkem1024": "MlKem1024"}
    return {
        name: _kem(cast("_ParameterSet", getattr(dsvpn_native, its)))
        for name, its in classes.items()
        if hasattr(dsvpn_native, its)
    }


def _kem(parameter_set: _ParameterSet) -> Kem:
    def encapsulate(public_key: bytes, random: Random) -> tuple[bytes, bytes]:
        return parameter_set.encapsulate(public_key, random(MESSAGE_LENGTH))

    return Kem(parameter_set, encapsulate)
