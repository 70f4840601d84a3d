"""Signatures of the AUTH payload: which algorithms there are, how each is written, making and checking them.

Digital Signature (RFC 7427, method 14) names its algorithm in the payload and is used with every peer that has said
which hashes it takes. Without that word the classic methods are left: ECDSA (RFC 4754) and RSA (RFC 7296 section 3.8),
the latter with SHA-256: no signature here is made or taken with SHA-1 (RFC 8247 section 4.2).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, cast

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, mldsa, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

from dsvpn.errors import MisuseError, PeerError
from dsvpn.wire.ikev2 import AuthMethod, HashId, name_of

PrivateKey = (
    rsa.RSAPrivateKey
    | ec.EllipticCurvePrivateKey
    | ed25519.Ed25519PrivateKey
    | ed448.Ed448PrivateKey
    | mldsa.MLDSA44PrivateKey
    | mldsa.MLDSA65PrivateKey
    | mldsa.MLDSA87PrivateKey
)
PublicKey = (
    rsa.RSAPublicKey
    | ec.EllipticCurvePublicKey
    | ed25519.Ed25519PublicKey
    | ed448.Ed448PublicKey
    | mldsa.MLDSA44PublicKey
    | mldsa.MLDSA65PublicKey
    | mldsa.MLDSA87PublicKey
)

#: RSA moduli, bits: below is breakable, above costs a responder too much.
MIN_RSA: Final = 2048
MAX_RSA: Final = 8192
_MAX_SIGNATURE: Final = 8192

_HASHES: Final[dict[int, hashes.HashAlgorithm]] = {
    HashId.SHA2_256: hashes.SHA256(),
    HashId.SHA2_384: hashes.SHA384(),
    HashId.SHA2_512: hashes.SHA512(),
}
#: What SIGNATURE_HASH_ALGORITHMS says of us: all that we check. IDENTITY: the algorithm hashes itself (RFC 8420).
SUPPORTED_HASHES: Final = (HashId.SHA2_256, HashId.SHA2_384, HashId.SHA2_512, HashId.IDENTITY)

#: Curve by name: classic method, hash, octets of a coordinate (RFC 4754 section 3).
_CURVES: Final = {
    "secp256r1": ("P-256", AuthMethod.ECDSA_256, HashId.SHA2_256, 32),
    "secp384r1": ("P-384", AuthMethod.ECDSA_384, HashId.SHA2_384, 48),
    "secp521r1": ("P-521", AuthMethod.ECDSA_521, HashId.SHA2_512, 66),
}


@dataclass(frozen=True, slots=True)
class Scheme:
    """A signature algorithm of RFC 7427. `kind` is of the key: "rsa" (PKCS#1 v1.5), "pss", "ecdsa", "ed25519", … ."""

    kind: str
    hash_id: HashId

    def __str__(self) -> str:
        kind = {"rsa": "RSA", "pss": "RSA-PSS", "ecdsa": "ECDSA"}.get(self.kind, self.kind)
        return kind if self.hash_id == HashId.IDENTITY else f"{kind} with {self.hash_id.name.replace('_', '-')}"


def _hex(text: str) -> bytes:
    return bytes.fromhex(text)


def _tlv(tag: int, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return bytes((tag, len(body))) + body


_NULL: Final = _hex("0500")
_OID_HASH: Final = {
    HashId.SHA2_256: _hex("0609608648016503040201"),
    HashId.SHA2_384: _hex("0609608648016503040202"),
    HashId.SHA2_512: _hex("0609608648016503040203"),
}
_OID_RSA: Final = {
    HashId.SHA2_256: _hex("06092a864886f70d01010b"),
    HashId.SHA2_384: _hex("06092a864886f70d01010c"),
    HashId.SHA2_512: _hex("06092a864886f70d01010d"),
}
_OID_ECDSA: Final = {
    HashId.SHA2_256: _hex("06082a8648ce3d040302"),
    HashId.SHA2_384: _hex("06082a8648ce3d040303"),
    HashId.SHA2_512: _hex("06082a8648ce3d040304"),
}
_OID_PSS: Final = _hex("06092a864886f70d01010a")
_OID_MGF1: Final = _hex("06092a864886f70d010108")
#: These hash the message themselves: RFC 8410 section 3, RFC 9881 section 2.
_OID_OWN_HASH: Final = {
    "Ed25519": _hex("06032b6570"),
    "Ed448": _hex("06032b6571"),
    "ML-DSA-44": _hex("0609608648016503040311"),
    "ML-DSA-65": _hex("0609608648016503040312"),
    "ML-DSA-87": _hex("0609608648016503040313"),
}
_SHA1_ALGORITHMS: Final = (_hex("06092a864886f70d010105"), _hex("06072a8648ce3d0401"), _hex("06072a8648ce380403"))


def _pss(hash_id: HashId, null: bytes) -> bytes:
    """RSASSA-PSS parameters with MGF1 over the same hash and a salt as long as it (RFC 7427 appendix A.4)."""
    algorithm = _tlv(0x30, _OID_HASH[hash_id], null)
    salt = _HASHES[hash_id].digest_size
    parameters = (
        _tlv(0xA0, algorithm) + _tlv(0xA1, _tlv(0x30, _OID_MGF1, algorithm)) + _tlv(0xA2, _tlv(2, bytes((salt,))))
    )
    return _tlv(0x30, _OID_PSS, _tlv(0x30, parameters))


def _schemes() -> Iterator[tuple[bytes, Scheme]]:
    """AlgorithmIdentifiers as DER, the ones that we write before the variants that others write."""
    for hash_id in _HASHES:
        known = HashId(hash_id)
        yield _tlv(0x30, _OID_RSA[known], _NULL), Scheme("rsa", known)
        yield _tlv(0x30, _OID_ECDSA[known]), Scheme("ecdsa", known)
        yield _pss(known, _NULL), Scheme("pss", known)
        # Parameters of a hash may be absent (RFC 4055 section 2.1).
        yield _pss(known, b""), Scheme("pss", known)
        yield _tlv(0x30, _OID_RSA[known]), Scheme("rsa", known)
    for name, oid in _OID_OWN_HASH.items():
        yield _tlv(0x30, oid), Scheme(name, HashId.IDENTITY)


SCHEMES: Final[dict[bytes, Scheme]] = dict(_schemes())


def _algorithm(scheme: Scheme) -> bytes:
    return next(der for der, known in SCHEMES.items() if known == scheme)


def key_kind(key: object) -> str:
    """What sort of public or private key this is, for people and for matching schemes. MisuseError for one that IKE
    has no use for."""
    match key:
        case rsa.RSAPublicKey() | rsa.RSAPrivateKey():
            if not MIN_RSA <= key.key_size <= MAX_RSA:
                raise MisuseError(f"RSA key of {key.key_size} bits; RSA keys here have {MIN_RSA} to {MAX_RSA}")
            return "RSA"
        case ec.EllipticCurvePublicKey() | ec.EllipticCurvePrivateKey():
            if key.curve.name not in _CURVES:
                raise MisuseError(f"ECDSA key on {key.curve.name}; the curves are P-256, P-384 and P-521")
            return f"ECDSA {_CURVES[key.curve.name][0]}"
        case ed25519.Ed25519PublicKey() | ed25519.Ed25519PrivateKey():
            return "Ed25519"
        case ed448.Ed448PublicKey() | ed448.Ed448PrivateKey():
            return "Ed448"
        case mldsa.MLDSA44PublicKey() | mldsa.MLDSA44PrivateKey():
            return "ML-DSA-44"
        case mldsa.MLDSA65PublicKey() | mldsa.MLDSA65PrivateKey():
            return "ML-DSA-65"
        case mldsa.MLDSA87PublicKey() | mldsa.MLDSA87PrivateKey():
            return "ML-DSA-87"
    raise MisuseError(f"a key of type {type(key).__name__} signs nothing here; use ECDSA, Ed25519, RSA or ML-DSA")


# -- making ------------------------------------------------------------------------------------------------


def sign(key: PrivateKey, octets: bytes, peer_hashes: frozenset[int] | None, pss: bool = True) -> tuple[int, bytes]:
    """Method and data of an AUTH payload over `octets`.

    `peer_hashes` is what the peer's SIGNATURE_HASH_ALGORITHMS said, None without it. PeerError when the peer takes no
    signature that `key` can make.
    """
    if peer_hashes is None:
        return _sign_classic(key, octets)
    scheme = _choose(key, peer_hashes, pss)
    algorithm = _algorithm(scheme)
    return AuthMethod.DIGITAL_SIGNATURE, bytes((len(algorithm),)) + algorithm + _sign(key, scheme, octets)


def _choose(key: PrivateKey, peer_hashes: frozenset[int], pss: bool) -> Scheme:
    if isinstance(key, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey):
        kind = "ecdsa" if isinstance(key, ec.EllipticCurvePrivateKey) else "pss" if pss else "rsa"
        own = _CURVES[key.curve.name][2] if isinstance(key, ec.EllipticCurvePrivateKey) else HashId.SHA2_256
        # The hash that is as strong as the curve, else the strongest that the peer has.
        for hash_id in (own, HashId.SHA2_512, HashId.SHA2_384, HashId.SHA2_256):
            if hash_id in peer_hashes:
                return Scheme(kind, hash_id)
    elif HashId.IDENTITY in peer_hashes:
        return Scheme(key_kind(key), HashId.IDENTITY)
    named = ", ".join(name_of(HashId, number) for number in sorted(peer_hashes)) or "none"
    raise PeerError(f"peer takes no signature of our {key_kind(key)} key: its hash algorithms are {named}")


def _sign(key: PrivateKey, scheme: Scheme, octets: bytes) -> bytes:
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return key.sign(octets, ec.ECDSA(_HASHES[scheme.hash_id]))
    if isinstance(key, rsa.RSAPrivateKey):
        return key.sign(octets, _padding(scheme), _HASHES[scheme.hash_id])
    return key.sign(octets)


def _sign_classic(key: PrivateKey, octets: bytes) -> tuple[int, bytes]:
    if isinstance(key, ec.EllipticCurvePrivateKey):
        _, method, hash_id, size = _CURVES[key.curve.name]
        r, s = decode_dss_signature(key.sign(octets, ec.ECDSA(_HASHES[hash_id])))
        return method, r.to_bytes(size, "big") + s.to_bytes(size, "big")
    if isinstance(key, rsa.RSAPrivateKey):
        return AuthMethod.RSA_SIGNATURE, key.sign(octets, padding.PKCS1v15(), hashes.SHA256())
    raise PeerError(f"peer does not know RFC 7427, without which a {key_kind(key)} key cannot sign")


def _padding(scheme: Scheme) -> padding.AsymmetricPadding:
    if scheme.kind == "pss":
        algorithm = _HASHES[scheme.hash_id]
        return padding.PSS(padding.MGF1(algorithm), algorithm.digest_size)
    return padding.PKCS1v15()


# -- checking ----------------------------------------------------------------------------------------------


def verify(key: PublicKey, method: int, data: bytes, octets: bytes) -> str:
    """Check the AUTH payload (`method`, `data`) over `octets` and give the algorithm's name. PeerError if the owner of
    `key` did not make it, or made it in a way that is not taken."""
    if len(data) > _MAX_SIGNATURE:
        raise PeerError(f"peer's signature has {len(data)} octets")
    try:
        if method == AuthMethod.DIGITAL_SIGNATURE:
            return _verify_digital(key, data, octets)
        if method == AuthMethod.RSA_SIGNATURE:
            return _verify_rsa(key, data, octets)
        return _verify_ecdsa(key, method, data, octets)
    except InvalidSignature:
        raise PeerError("peer's signature is not by the key of its certificate") from None
    except (UnsupportedAlgorithm, ValueError) as error:
        raise PeerError(f"peer's signature: {error}") from None


def _verify_digital(key: PublicKey, data: bytes, octets: bytes) -> str:
    length = data[0] if data else 0
    algorithm, signature = data[1 : 1 + length], data[1 + length :]
    if not length or len(algorithm) < length or not signature:
        raise PeerError("peer's signature payload is cut short")
    scheme = SCHEMES.get(algorithm)
    if scheme is None:
        if any(known in algorithm for known in _SHA1_ALGORITHMS):
            raise PeerError("peer signs with SHA-1, which is broken; let it sign with SHA-256 (RFC 8247)")
        raise PeerError(f"peer signs with an unknown algorithm (AlgorithmIdentifier {algorithm[:40].hex()})")
    if isinstance(key, rsa.RSAPublicKey) and scheme.kind in ("rsa", "pss"):
        key.verify(signature, octets, _padding(scheme), _HASHES[scheme.hash_id])
    elif isinstance(key, ec.EllipticCurvePublicKey) and scheme.kind == "ecdsa":
        key.verify(signature, octets, ec.ECDSA(_HASHES[scheme.hash_id]))
    elif scheme.kind == key_kind(key):
        cast(ed25519.Ed25519PublicKey, key).verify(signature, octets)
    else:
        raise PeerError(f"peer signs with {scheme}, but its certificate has a key for {key_kind(key)}")
    return str(scheme)


def _verify_rsa(key: PublicKey, data: bytes, octets: bytes) -> str:
    if not isinstance(key, rsa.RSAPublicKey):
        raise PeerError(f"peer signs with RSA, but its certificate has a key for {key_kind(key)}")
    for hash_id, algorithm in _HASHES.items():
        try:
            key.verify(data, octets, padding.PKCS1v15(), algorithm)
        except InvalidSignature:
            continue
        return str(Scheme("rsa", HashId(hash_id)))
    try:
        # Only to tell an old peer from a false one: refused either way.
        key.verify(data, octets, padding.PKCS1v15(), hashes.SHA1())
    except (InvalidSignature, UnsupportedAlgorithm):
        raise InvalidSignature from None
    raise PeerError("peer signs with SHA-1, which is broken; let it support RFC 7427 or sign with SHA-256 (RFC 8247)")


def _verify_ecdsa(key: PublicKey, method: int, data: bytes, octets: bytes) -> str:
    for name, curve_method, hash_id, size in _CURVES.values():
        if method != curve_method:
            continue
        if not isinstance(key, ec.EllipticCurvePublicKey) or key_kind(key) != f"ECDSA {name}":
            raise PeerError(f"peer signs with ECDSA {name}, but its certificate has a key for {key_kind(key)}")
        if len(data) != 2 * size:
            raise PeerError(f"peer's ECDSA {name} signature has {len(data)} octets, not {2 * size}")
        r, s = int.from_bytes(data[:size], "big"), int.from_bytes(data[size:], "big")
        key.verify(encode_dss_signature(r, s), octets, ec.ECDSA(_HASHES[hash_id]))
        return str(Scheme("ecdsa", hash_id))
    raise PeerError(f"peer proves itself by {name_of(AuthMethod, method)}, which is not spoken here")
