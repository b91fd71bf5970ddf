"""Shamir's secret sharing (Shamir 1979) of 32-byte secrets over the prime field of 2^256 + 297.

pycryptodome's Shamir (GF(2^128), pure Python) needs 1.2 ms for one 16-byte half at n = 5 and 129 ms at n = 100; here
a whole secret takes microseconds, because Python's integers multiply 256 bits in one step. Not constant-time: who
can time this process is already inside the hospital.
"""

import secrets
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from itertools import combinations, islice

PRIME = 2**256 + 297
SECRET_BYTES = 32
SHARE_BYTES = 33
MOST_WORK = 2_000_000  # multiplications in a search for right shares: seconds


def split(secret: bytes, threshold: int, points: Sequence[int]) -> dict[int, bytes]:
    """Shares of ``secret`` (32 bytes) at ``points`` (distinct, >= 1); any ``threshold`` of them give it back."""
    coefficients = [secrets.randbelow(PRIME) for _ in range(threshold - 1)]
    return evaluate([int.from_bytes(secret, "big"), *coefficients], points)


def evaluate(coefficients: Sequence[int], points: Sequence[int]) -> dict[int, bytes]:
    """The polynomial (constant term first) at ``points``, each value in 33 big-endian bytes."""
    return {point: _value(coefficients, point).to_bytes(SHARE_BYTES, "big") for point in points}


def combine(shares: Mapping[int, bytes]) -> bytes:
    """The secret from exactly ``threshold`` shares by point; wrong shares give a wrong secret or ValueError."""
    points = tuple(sorted(shares))
    weights = lagrange_at_zero(points)
    total = sum(w * int.from_bytes(shares[p], "big") for w, p in zip(weights, points, strict=True)) % PRIME
    if total >= 2**256:
        raise ValueError("shares do not belong to one 32-byte secret")
    return total.to_bytes(SECRET_BYTES, "big")


def recover(
    shares: Mapping[int, bytes], threshold: int, fits: Callable[[bytes], bool], suspects: Sequence[int] = ()
) -> tuple[bytes, tuple[int, ...]] | None:
    """The secret that ``fits``, and the points whose shares are not on its polynomial; None where none was found.

    ``threshold`` right shares and any number of wrong ones by point. Up to (shares - threshold) / 2 wrong ones are
    always found (Gao 2003), and more where trying sets of shares takes less than ``MOST_WORK``. Points that are not
    suspects go first. Who is named lied, unless several who lied agreed to make others look like it.
    """
    order = sorted(shares, key=lambda point: (point in suspects, point))
    first = _tried(shares, order[:threshold], fits)
    if first is not None and not first[1]:
        return first
    decoded = agreeing(shares, threshold)
    second = _tried(shares, decoded[:threshold], fits) if len(decoded) >= threshold else None
    found = [attempt for attempt in (first, second) if attempt is not None]
    if found:
        return min(found, key=lambda attempt: len(attempt[1]))
    sets = islice(combinations(order, threshold), MOST_WORK // threshold**2)
    return next((attempt for chosen in sets if (attempt := _tried(shares, chosen, fits)) is not None), None)


def _tried(
    shares: Mapping[int, bytes], chosen: Sequence[int], fits: Callable[[bytes], bool]
) -> tuple[bytes, tuple[int, ...]] | None:
    """The secret of the chosen shares if it fits, and who is not on their polynomial."""
    try:
        secret = combine({point: shares[point] for point in chosen})
    except ValueError:
        return None
    return (secret, off_polynomial(shares, chosen)) if fits(secret) else None


def off_polynomial(shares: Mapping[int, bytes], right: Sequence[int]) -> tuple[int, ...]:
    """Points whose shares are not on the polynomial through those at ``right``."""
    known = tuple(sorted(right))
    values = [int.from_bytes(shares[point], "big") for point in known]
    wrong = []
    for point in sorted(set(shares) - set(right)):
        value = sum(w * y for w, y in zip(lagrange_at(known, point), values, strict=True)) % PRIME
        if value != int.from_bytes(shares[point], "big"):
            wrong.append(point)
    return tuple(wrong)


def agreeing(shares: Mapping[int, bytes], threshold: int) -> tuple[int, ...]:
    """Points of the shares on the polynomial that all but at most (shares - threshold) / 2 of them lie on.

    Some other points, or none, where there is no such polynomial.

    The extended Euclidean algorithm on the product of (x - point) and the interpolation of all shares, stopped at half
    of its way (Gao 2003): remainder over cofactor is the polynomial.
    """
    points = sorted(shares)
    product, interpolation = [1], [0]
    for point in points:
        difference = (int.from_bytes(shares[point], "big") - _value(interpolation, point)) % PRIME
        factor = difference * pow(_value(product, point), -1, PRIME) % PRIME
        interpolation = _subtracted(interpolation, product, PRIME - factor, 0)
        product = _subtracted([0, *product], product, point, 0)
    before, remainder, older, cofactor = product, interpolation, [0], [1]
    while 2 * (len(remainder) - 1) >= len(points) + threshold and any(remainder):
        inverse = pow(remainder[-1], -1, PRIME)
        while len(before) >= len(remainder) and any(before):
            factor, shift = before[-1] * inverse % PRIME, len(before) - len(remainder)
            before = _subtracted(before, remainder, factor, shift)
            older = _subtracted(older, cofactor, factor, shift)
        before, remainder, older, cofactor = remainder, before, cofactor, older
    # Where the polynomial exists, the cofactor is zero at the wrong points and nowhere else.
    return tuple(point for point in points if _value(cofactor, point))


def _value(coefficients: Sequence[int], point: int) -> int:
    value = 0
    for coefficient in reversed(coefficients):
        value = (value * point + coefficient) % PRIME
    return value


def _subtracted(one: Sequence[int], other: Sequence[int], factor: int, shift: int) -> list[int]:
    """``one - factor * x^shift * other`` without leading zeros; the constant term comes first."""
    result = [*one, *[0] * (len(other) + shift - len(one))]
    for place, coefficient in enumerate(other):
        result[place + shift] = (result[place + shift] - factor * coefficient) % PRIME
    while len(result) > 1 and not result[-1]:
        result.pop()
    return result


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


@lru_cache(maxsize=256)
def lagrange_at(points: tuple[int, ...], at: int) -> tuple[int, ...]:
    """The same at another point: those at 0 times the product of (at - p) / (-p) over all but the weight's own p."""
    ratio = 1
    for point in points:
        ratio = ratio * (at - point) * _inverse(-point) % PRIME
    weights = zip(points, lagrange_at_zero(points), strict=True)
    return tuple(weight * ratio * -point * _inverse(at - point) % PRIME for point, weight in weights)


@lru_cache(maxsize=1 << 14)
def _inverse(number: int) -> int:
    return pow(number, -1, PRIME)
