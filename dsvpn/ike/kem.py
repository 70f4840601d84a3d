"""Key encapsulation mechanisms: ML-KEM (FIPS 203; draft-ietf-ipsecme-ikev2-mlkem).

The cryptographic library has two of its three parameter sets. The owner of the engine may have the third, and others in
their place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Protocol

from cryptography.hazmat.primitives.asymmetric import mlkem
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

Random = Callable[[int], bytes]

#: Octets of the seed d || z that a key pair is made of (FIPS 203 section 7.1).
SEED_LENGTH: Final = 64
#: Octets of the message m that a ciphertext is made of (FIPS 203 section 7.2).
MESSAGE_LENGTH: Final = 32


class DecapsulationKey(Protocol):
    """What the initiator of an exchange keeps."""

    @property
    def public_key(self) -> bytes:
        """The encapsulation key."""

    def decapsulate(self, ciphertext: bytes, /) -> bytes:
        """The shared secret. ValueError for a ciphertext of another length."""


@dataclass(frozen=True, slots=True)
class Kem:
    """One parameter set.

    `key_pair(seed)` makes the key pair of SEED_LENGTH octets. `encapsulate(public_key, random)` gives ciphertext and
    shared secret; ValueError for a key with a coefficient that is not below the modulus (FIPS 203 section 7.2).
    """

    key_pair: Callable[[bytes], DecapsulationKey]
    encapsulate: Callable[[bytes, Random], tuple[bytes, bytes]]


class _LibraryKeyPair:
    """A key pair of the cryptographic library."""

    __slots__ = ("_private", "public_key")

    def __init__(self, private: mlkem.MLKEM768PrivateKey | mlkem.MLKEM1024PrivateKey) -> None:
        self._private = private
        self.public_key = private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)

    def decapsulate(self, ciphertext: bytes) -> bytes:
        return self._private.decapsulate(ciphertext)


def _library(
    private: type[mlkem.MLKEM768PrivateKey | mlkem.MLKEM1024PrivateKey],
    public: type[mlkem.MLKEM768PublicKey | mlkem.MLKEM1024PublicKey],
) -> Kem:
    def encapsulate(public_key: bytes, _random: Random) -> tuple[bytes, bytes]:
        # The randomness of an encapsulation is the library's own: it takes none from outside.
        secret, ciphertext = public.from_public_bytes(public_key).encapsulate()
        return ciphertext, secret

    return Kem(lambda seed: _LibraryKeyPair(private.from_seed_bytes(seed)), encapsulate)


#: What the cryptographic library has, by the names of `suites.KEMS`.
LIBRARY_KEMS: Final[Mapping[str, Kem]] = MappingProxyType(
    {
        "mlkem768": _library(mlkem.MLKEM768PrivateKey, mlkem.MLKEM768PublicKey),
        "mlkem1024": _library(mlkem.MLKEM1024PrivateKey, mlkem.MLKEM1024PublicKey),
    }
)
