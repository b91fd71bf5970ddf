"""Shamir's secret sharing (Shamir 1979) of 32-byte secrets over the prime field of 2^256 + 297.

pycryptodome's Shamir (GF(2^128), pure Python) needs 1.2 ms for one 16-byte half at n = 5 and 129 ms at n = 100; here
a whole secret takes microseconds, because Python's integers multiply 256 bits in one step. Not constant-time: who
can time this process is already inside the hospital.
"""

import secrets
from collections.abc import Mapping, Sequence
from functools import lru_cache

PRIME = 2**256 + 297
SECRET_BYTES = 32
SHARE_BYTES = 33


def split(secret: bytes, threshold: int, points: Sequence[int]) -> dict[int, bytes]:
    """Shares of ``secret`` (32 bytes) at ``points`` (distinct, >= 1); any ``threshold`` of them give it back."""
    coefficients = [secrets.randbelow(PRIME) for _ in range(threshold - 1)]
    return evaluate([int.from_bytes(secret, "big"), *coefficients], points)


def evaluate(coefficients: Sequence[int], points: Sequence[int]) -> dict[int, bytes]:
    """The polynomial (constant term first) at ``points``, each value in 33 big-endian bytes."""
    shares = {}
    for point in points:
        value = 0
        for coefficient in reversed(coefficients):
            value = (value * point + coefficient) % PRIME
        shares[point] = value.to_bytes(SHARE_BYTES, "big")
    return shares


def combine(shares: Mapping[int, bytes]) -> bytes:
    """The secret from exactly ``threshold`` shares by point; wrong shares give a wrong secret or ValueError."""
    points = tuple(sorted(shares))
    weights = lagrange_at_zero(points)
    total = sum(w * int.from_bytes(shares[p], "big") for w, p in zip(weights, points, strict=True)) % PRIME
    if total >= 2**256:
        raise ValueError("shares do not belong to one 32-byte secret")
    return total.to_bytes(SECRET_BYTES, "big")


@lru_cache(maxsize=64)
def lagrange_at_zero(points: tuple[int, ...]) -> tuple[int, ...]:
    """Lagrange's weights at 0 for these points; cached, because a round uses one set for all its secrets."""
    weights = []
    for point in points:
        numerator = denominator = 1
        for other in points:
            if other != point:
                numerator = numerator * other % PRIME
                denominator = denominator * (other - point) % PRIME
        weights.append(numerator * pow(denominator, -1, PRIME) % PRIME)
    return tuple(weights)
