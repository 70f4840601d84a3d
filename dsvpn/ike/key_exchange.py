"""Key exchange methods: an ephemeral private value, its public value, and the secret that both ends share.

The initiator of an exchange has a `KeyExchange` from its request to the answer; its responder needs none, because
`answer_key_exchange` gives public value and secret at once. So a KEM (FIPS 203) fits, whose responder encapsulates.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric import ec, x448, x25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from dsvpn.errors import PeerError
from dsvpn.ike.kem import SEED_LENGTH, Kem, Random
from dsvpn.ike.suites import Group

#: RFC 3526 section 3, generator 2.
MODP_2048: Final = int(
    "FFFFFFFFFFFFFFFFC90FDAA22168C234C4C6628B80DC1CD129024E088A67CC74020BBEA63B139B22514A08798E3404DD"
    "EF9519B3CD3A431B302B0A6DF25F14374FE1356D6D51C245E485B576625E7EC6F44C42E9A637ED6B0BFF5CB6F406B7ED"
    "EE386BFB5A899FA5AE9F24117C4B1FE649286651ECE45B3DC2007CB8A163BF0598DA48361C55D39A69163FA8FD24CF5F"
    "83655D23DCA3AD961C62F356208552BB9ED529077096966D670C354E4ABC9804F1746C08CA18217C32905E462E36CE3B"
    "E39E772C180E86039B2783A2EC07A28FB5C55DF06F4C52C9DE2BCBF6955817183995497CEA956AE515D2261898FA0510"
    "15728E5A8AACAA68FFFFFFFFFFFFFFFF",
    16,
)

#: RFC 3526 section 4, generator 2.
MODP_3072: Final = int(
    "FFFFFFFFFFFFFFFFC90FDAA22168C234C4C6628B80DC1CD129024E088A67CC74020BBEA63B139B22514A08798E3404DD"
    "EF9519B3CD3A431B302B0A6DF25F14374FE1356D6D51C245E485B576625E7EC6F44C42E9A637ED6B0BFF5CB6F406B7ED"
    "EE386BFB5A899FA5AE9F24117C4B1FE649286651ECE45B3DC2007CB8A163BF0598DA48361C55D39A69163FA8FD24CF5F"
    "83655D23DCA3AD961C62F356208552BB9ED529077096966D670C354E4ABC9804F1746C08CA18217C32905E462E36CE3B"
    "E39E772C180E86039B2783A2EC07A28FB5C55DF06F4C52C9DE2BCBF6955817183995497CEA956AE515D2261898FA0510"
    "15728E5A8AAAC42DAD33170D04507A33A85521ABDF1CBA64ECFB850458DBEF0A8AEA71575D060C7DB3970F85A6E1E4C7"
    "ABF5AE8CDB0933D71E8C94E04A25619DCEE3D2261AD2EE6BF12FFA06D98A0864D87602733EC86A64521F2B18177B200C"
    "BBE117577A615D6C770988C0BAD946E208E24FA074E5AB3143DB5BFCE0FD108E4B82D120A93AD2CAFFFFFFFFFFFFFFFF",
    16,
)

#: RFC 3526 section 5, generator 2.
MODP_4096: Final = int(
    "FFFFFFFFFFFFFFFFC90FDAA22168C234C4C6628B80DC1CD129024E088A67CC74020BBEA63B139B22514A08798E3404DD"
    "EF9519B3CD3A431B302B0A6DF25F14374FE1356D6D51C245E485B576625E7EC6F44C42E9A637ED6B0BFF5CB6F406B7ED"
    "EE386BFB5A899FA5AE9F24117C4B1FE649286651ECE45B3DC2007CB8A163BF0598DA48361C55D39A69163FA8FD24CF5F"
    "83655D23DCA3AD961C62F356208552BB9ED529077096966D670C354E4ABC9804F1746C08CA18217C32905E462E36CE3B"
    "E39E772C180E86039B2783A2EC07A28FB5C55DF06F4C52C9DE2BCBF6955817183995497CEA956AE515D2261898FA0510"
    "15728E5A8AAAC42DAD33170D04507A33A85521ABDF1CBA64ECFB850458DBEF0A8AEA71575D060C7DB3970F85A6E1E4C7"
    "ABF5AE8CDB0933D71E8C94E04A25619DCEE3D2261AD2EE6BF12FFA06D98A0864D87602733EC86A64521F2B18177B200C"
    "BBE117577A615D6C770988C0BAD946E208E24FA074E5AB3143DB5BFCE0FD108E4B82D120A92108011A723C12A787E6D7"
    "88719A10BDBA5B2699C327186AF4E23C1A946834B6150BDA2583E9CA2AD44CE8DBBBC2DB04DE8EF92E8EFC141FBECAA6"
    "287C59474E6BC05D99B2964FA090C3A2233BA186515BE7ED1F612970CEE2D7AFB81BDD762170481CD0069127D5B05AA9"
    "93B4EA988D8FDDC186FFB7DC90A6C08F4DF435C934063199FFFFFFFFFFFFFFFF",
    16,
)

_PRIMES: Final = {"modp2048": MODP_2048, "modp3072": MODP_3072, "modp4096": MODP_4096}

#: Orders of the base points (FIPS 186-4 appendix D.1.2), to bring a random scalar into range.
_ORDERS: Final = {
    "ecp256": 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551,
    "ecp384": 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFC7634D81F4372DDF581A0DB248B0A77AECEC196ACCC52973,
    "ecp521": int(
        "01FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF"
        "FA51868783BF2F966B7FCC0148F709A5D03BB5C9B8899C47AEBB6FB71E91386409",
        16,
    ),
}
_CURVES: Final[dict[str, ec.EllipticCurve]] = {
    "ecp256": ec.SECP256R1(),
    "ecp384": ec.SECP384R1(),
    "ecp521": ec.SECP521R1(),
}
_MONTGOMERY_PRIVATE: Final[dict[str, type[x25519.X25519PrivateKey | x448.X448PrivateKey]]] = {
    "x25519": x25519.X25519PrivateKey,
    "x448": x448.X448PrivateKey,
}
_MONTGOMERY_PUBLIC: Final[dict[str, type[x25519.X25519PublicKey | x448.X448PublicKey]]] = {
    "x25519": x25519.X25519PublicKey,
    "x448": x448.X448PublicKey,
}


class KeyExchange:
    """One use of a group: the private value lives here and nowhere else.

    `public` is the octets of the KE payload (RFC 7296 section 3.4, RFC 5903 section 7, RFC 8031 section 2).
    """

    public: bytes

    def __init__(self, group: Group) -> None:
        self.group = group

    def shared_secret(self, peer_public: bytes) -> bytes:
        """The secret shared with the owner of `peer_public`. PeerError for a value that is no member of the group."""
        raise NotImplementedError

    def _check_length(self, peer_public: bytes) -> None:
        if len(peer_public) != self.group.public_length:
            raise PeerError(
                f"{self.group.name} public value has {len(peer_public)} octets, not {self.group.public_length}"
            )


class MontgomeryKeyExchange(KeyExchange):
    """Curve25519 and Curve448 (RFC 8031, RFC 7748)."""

    def __init__(self, group: Group, private_value: bytes) -> None:
        super().__init__(group)
        self._private = _MONTGOMERY_PRIVATE[group.name].from_private_bytes(private_value)
        self.public = self._private.public_key().public_bytes_raw()

    def shared_secret(self, peer_public: bytes) -> bytes:
        """The X25519 or X448 function of both."""
        self._check_length(peer_public)
        try:
            peer: Any = _MONTGOMERY_PUBLIC[self.group.name].from_public_bytes(peer_public)
            return self._private.exchange(peer)
        except ValueError:
            # A point of small order gives the all-zero secret that anyone knows (RFC 8031 section 3).
            raise PeerError(f"{self.group.name} public value has small order") from None


class EcpKeyExchange(KeyExchange):
    """The NIST curves over a prime field (RFC 5903)."""

    def __init__(self, group: Group, scalar: int) -> None:
        super().__init__(group)
        self._curve = _CURVES[group.name]
        self._private = ec.derive_private_key(scalar, self._curve)
        point = self._private.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
        self.public = point[1:]  # The KE payload has the coordinates alone, without X9.62's form octet.

    def shared_secret(self, peer_public: bytes) -> bytes:
        """The x coordinate of the common point (RFC 5903 section 9)."""
        self._check_length(peer_public)
        try:
            # Refuses coordinates that are not on the curve (RFC 6989 section 2.3).
            peer = ec.EllipticCurvePublicKey.from_encoded_point(self._curve, b"\x04" + peer_public)
        except ValueError:
            raise PeerError(f"{self.group.name} public value is not on the curve") from None
        return self._private.exchange(ec.ECDH(), peer)


class ModpKeyExchange(KeyExchange):
    """Diffie-Hellman over MODP-2048, -3072 and -4096 (RFC 3526).

    Plain integer arithmetic, because `cryptography` is removing finite fields: it is not constant-time, which the
    single use of each exponent makes hard to exploit. Prefer a curve.
    """

    def __init__(self, group: Group, exponent: int) -> None:
        super().__init__(group)
        self._prime = _PRIMES[group.name]
        self._exponent = exponent
        self.public = pow(2, exponent, self._prime).to_bytes(group.public_length, "big")

    def shared_secret(self, peer_public: bytes) -> bytes:
        """g^ir (RFC 7296 section 2.14)."""
        self._check_length(peer_public)
        value = int.from_bytes(peer_public, "big")
        # For a safe prime the range check keeps out every small subgroup (RFC 6989 section 2.1).
        if not 2 <= value <= self._prime - 2:
            raise PeerError(f"{self.group.name} public value is out of range")
        # Padded to the length of the modulus (RFC 7296 section 2.14).
        return pow(value, self._exponent, self._prime).to_bytes(self.group.public_length, "big")


class MlKemKeyExchange(KeyExchange):
    """ML-KEM (FIPS 203; draft-ietf-ipsecme-ikev2-mlkem): the initiator's half, which has the decapsulation key."""

    def __init__(self, group: Group, kem: Kem, seed: bytes) -> None:
        super().__init__(group)
        self._private = kem.key_pair(seed)
        self.public = self._private.public_key

    def shared_secret(self, peer_public: bytes) -> bytes:
        """Decapsulate the responder's ciphertext. One that was altered gives another secret, and no error: what is
        sealed with it does not open (FIPS 203 section 6.3, implicit rejection)."""
        if len(peer_public) != self.group.response_length:
            raise PeerError(
                f"{self.group.name} ciphertext has {len(peer_public)} octets, not {self.group.response_length}"
            )
        try:
            return self._private.decapsulate(peer_public)
        except ValueError:
            raise PeerError(f"{self.group.name} ciphertext is invalid") from None


def make_key_exchange(group: Group, random: Random, kems: Mapping[str, Kem]) -> KeyExchange:
    """A fresh private value for `group`, for the initiator of an exchange. `kems` are those that there are, by name."""
    if group.is_kem:
        return MlKemKeyExchange(group, kems[group.name], random(SEED_LENGTH))
    if group.name in _MONTGOMERY_PRIVATE:
        return MontgomeryKeyExchange(group, random(group.public_length))
    if group.name in _PRIMES:
        # 512 bits are beyond twice the strength of each of the groups (RFC 3526 section 8).
        return ModpKeyExchange(group, int.from_bytes(random(64), "big") | 1 << 511)
    order = _ORDERS[group.name]
    # 64 bits more than the order make the bias of the reduction negligible (FIPS 186-4 appendix B.4.1).
    scalar = int.from_bytes(random((order.bit_length() + 71) // 8), "big") % (order - 1) + 1
    return EcpKeyExchange(group, scalar)


def answer_key_exchange(
    group: Group, peer_public: bytes, random: Random, kems: Mapping[str, Kem]
) -> tuple[bytes, bytes]:
    """As the responder of an exchange: our public value, and the secret shared with the owner of `peer_public`.

    PeerError for a value that is no member of the group.
    """
    if not group.is_kem:
        exchange = make_key_exchange(group, random, kems)
        secret = exchange.shared_secret(peer_public)
        return exchange.public, secret
    if len(peer_public) != group.public_length:
        raise PeerError(f"{group.name} public key has {len(peer_public)} octets, not {group.public_length}")
    try:
        # Checks that each coefficient is below the modulus (FIPS 203 section 7.2).
        return kems[group.name].encapsulate(peer_public, random)
    except ValueError:
        raise PeerError(f"{group.name} public key is malformed") from None
