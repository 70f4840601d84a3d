"""ML-KEM's encapsulation (FIPS 203) with the message given from outside: slow, for tests alone."""

from __future__ import annotations

import hashlib

Q = 3329
N = 256


class Shake128:
    """SHAKE128 of nothing, read piece by piece."""

    def __init__(self) -> None:
        self._offset = 0

    def read(self, length: int) -> bytes:
        self._offset += length
        return hashlib.shake_128().digest(self._offset)[-length:]


def _reversed_bits(value: int) -> int:
    return int(f"{value:07b}"[::-1], 2)


ZETAS = [pow(17, _reversed_bits(i), Q) for i in range(128)]
GAMMAS = [pow(17, 2 * _reversed_bits(i) + 1, Q) for i in range(128)]


def _ntt(f: list[int]) -> list[int]:
    """Algorithm 9."""
    f = f[:]
    i, length = 1, 128
    while length >= 2:
        for start in range(0, N, 2 * length):
            zeta = ZETAS[i]
            i += 1
            for j in range(start, start + length):
                t = zeta * f[j + length] % Q
                f[j + length] = (f[j] - t) % Q
                f[j] = (f[j] + t) % Q
        length //= 2
    return f


def _inverse_ntt(f: list[int]) -> list[int]:
    """Algorithm 10."""
    f = f[:]
    i, length = 127, 2
    while length <= 128:
        for start in range(0, N, 2 * length):
            zeta = ZETAS[i]
            i -= 1
            for j in range(start, start + length):
                t = f[j]
                f[j] = (t + f[j + length]) % Q
                f[j + length] = zeta * (f[j + length] - t) % Q
        length *= 2
    return [value * 3303 % Q for value in f]


def _multiply(f: list[int], g: list[int]) -> list[int]:
    """Algorithm 11."""
    h = []
    for i in range(128):
        a0, a1, b0, b1 = f[2 * i], f[2 * i + 1], g[2 * i], g[2 * i + 1]
        h += [(a0 * b0 + a1 * b1 * GAMMAS[i]) % Q, (a0 * b1 + a1 * b0) % Q]
    return h


def _sample_ntt(seed: bytes) -> list[int]:
    """Algorithm 7."""
    data = hashlib.shake_128(seed).digest(168 * 8)
    values: list[int] = []
    for at in range(0, len(data), 3):
        c0, c1, c2 = data[at : at + 3]
        for d in (c0 + 256 * (c1 % 16), c1 // 16 + 16 * c2):
            if d < Q and len(values) < N:
                values.append(d)
    assert len(values) == N
    return values


def _noise(seed: bytes, number: int, eta: int) -> list[int]:
    """PRF and algorithm 8."""
    data = hashlib.shake_256(seed + bytes((number,))).digest(64 * eta)
    bits = [byte >> i & 1 for byte in data for i in range(8)]
    chunks = [bits[2 * eta * i : 2 * eta * (i + 1)] for i in range(N)]
    return [(sum(chunk[:eta]) - sum(chunk[eta:])) % Q for chunk in chunks]


def _decode(data: bytes, width: int) -> list[int]:
    """Algorithm 6."""
    value = int.from_bytes(data, "little")
    return [value >> (width * i) & ((1 << width) - 1) for i in range(N)]


def _encode(values: list[int], width: int) -> bytes:
    """Algorithm 5."""
    return sum(value << (width * i) for i, value in enumerate(values)).to_bytes(32 * width, "little")


def _compress(values: list[int], width: int) -> list[int]:
    return [((value << width) + Q // 2) // Q % (1 << width) for value in values]


def encapsulate(rank: int, public_key: bytes, message: bytes) -> tuple[bytes, bytes]:
    """Ciphertext and secret: algorithms 17 and 14. `rank` is k: 2 for ML-KEM-512, 3 for -768, 4 for -1024."""
    du, dv, eta1 = {2: (10, 4, 3), 3: (10, 4, 2), 4: (11, 5, 2)}[rank]
    both = hashlib.sha3_512(message + hashlib.sha3_256(public_key).digest()).digest()
    secret, r = both[:32], both[32:]
    t = [_decode(public_key[384 * i : 384 * (i + 1)], 12) for i in range(rank)]
    rho = public_key[384 * rank :]
    noise = [_noise(r, i, eta1 if i < rank else 2) for i in range(2 * rank + 1)]
    y = [_ntt(one) for one in noise[:rank]]
    ciphertext = b""
    for i in range(rank):
        total = [0] * N
        for j in range(rank):
            # The transpose of A: row j, column i.
            product = _multiply(_sample_ntt(rho + bytes((i, j))), y[j])
            total = [(a + b) % Q for a, b in zip(total, product, strict=True)]
        u = [(a + b) % Q for a, b in zip(_inverse_ntt(total), noise[rank + i], strict=True)]
        ciphertext += _encode(_compress(u, du), du)
    total = [0] * N
    for j in range(rank):
        total = [(a + b) % Q for a, b in zip(total, _multiply(t[j], y[j]), strict=True)]
    mu = [(bit * Q + 1) // 2 for bit in _decode(message, 1)]
    v = [(a + b + c) % Q for a, b, c in zip(_inverse_ntt(total), noise[2 * rank], mu, strict=True)]
    return ciphertext + _encode(_compress(v, dv), dv), secret
