"""Key exchange methods: an ephemeral private value, its public value, and the secret that both ends share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec, x25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from dsvpn.errors import PeerError
from dsvpn.ike.suites import Group

Random = Callable[[int], bytes]

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

#: Orders of the base points (FIPS 186-4 appendix D.1.2), to bring a random scalar into range.
_ORDERS: Final = {
    "ecp256": 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551,
    "ecp384": 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFC7634D81F4372DDF581A0DB248B0A77AECEC196ACCC52973,
}
_CURVES: Final[dict[str, ec.EllipticCurve]] = {"ecp256": ec.SECP256R1(), "ecp384": ec.SECP384R1()}


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


class X25519KeyExchange(KeyExchange):
    """Curve25519 (RFC 8031, RFC 7748)."""

    def __init__(self, group: Group, private_value: bytes) -> None:
        super().__init__(group)
        self._private = x25519.X25519PrivateKey.from_private_bytes(private_value)
        self.public = self._private.public_key().public_bytes_raw()

    def shared_secret(self, peer_public: bytes) -> bytes:
        """The X25519 function of both."""
        self._check_length(peer_public)
        try:
            return self._private.exchange(x25519.X25519PublicKey.from_public_bytes(peer_public))
        except ValueError:
            # A point of small order gives the all-zero secret that anyone knows (RFC 8031 section 3).
            raise PeerError("x25519 public value has small order") from None


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
    """Diffie-Hellman over MODP-2048 (RFC 3526).

    Plain integer arithmetic, because `cryptography` is removing finite fields: it is not constant-time, which the
    single use of each exponent makes hard to exploit. Prefer a curve.
    """

    def __init__(self, group: Group, exponent: int) -> None:
        super().__init__(group)
        self._exponent = exponent
        self.public = pow(2, exponent, MODP_2048).to_bytes(group.public_length, "big")

    def shared_secret(self, peer_public: bytes) -> bytes:
        """g^ir (RFC 7296 section 2.14)."""
        self._check_length(peer_public)
        value = int.from_bytes(peer_public, "big")
        # For a safe prime the range check keeps out every small subgroup (RFC 6989 section 2.1).
        if not 2 <= value <= MODP_2048 - 2:
            raise PeerError(f"{self.group.name} public value is out of range")
        # Padded to the length of the modulus (RFC 7296 section 2.14).
        return pow(value, self._exponent, MODP_2048).to_bytes(self.group.public_length, "big")


def make_key_exchange(group: Group, random: Random) -> KeyExchange:
    """A fresh private value for `group`."""
    if group.name == "x25519":
        return X25519KeyExchange(group, random(32))
    if group.name == "modp2048":
        # 512 bits are beyond twice the strength of the group (RFC 3526 section 8).
        return ModpKeyExchange(group, int.from_bytes(random(64), "big") | 1 << 511)
    order = _ORDERS[group.name]
    # 64 bits more than the order make the bias of the reduction negligible (FIPS 186-4 appendix B.4.1).
    scalar = int.from_bytes(random((order.bit_length() + 64) // 8), "big") % (order - 1) + 1
    return EcpKeyExchange(group, scalar)
