"""Which 32 bytes are a key: points of Curve25519 that no honest party would publish, and encodings that no one writes.

OpenSSL takes any of them. With an Ed25519 key of small order one signature fits a share of all messages, whoever makes
it; an X25519 key of small order makes a shared secret that everybody knows.
"""

from functools import lru_cache

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

PRIME = 2**255 - 19
EDWARDS_D = -121665 * pow(121666, -1, PRIME) % PRIME
ROOT_OF_MINUS_ONE = pow(2, (PRIME - 1) // 4, PRIME)
KEY_BYTES = 32

Point = tuple[int, int, int, int]  # extended coordinates X, Y, Z, T with x = X/Z, y = Y/Z, xy = T/Z
_PROBE = X25519PrivateKey.from_private_bytes(bytes(KEY_BYTES))


@lru_cache(maxsize=4096)
def is_identity(key: bytes) -> bool:
    """Whether these bytes are the one encoding of a point of the curve, and not of one of small order (RFC 8032)."""
    point = _decompress(key) if len(key) == KEY_BYTES else None
    return point is not None and not _is_neutral(_times(8, point))


def is_exchange_key(key: bytes) -> bool:
    """Whether these bytes are the one encoding of an X25519 public key, and not of a point of small order (RFC 7748).

    A private key is a multiple of 8 once clamped, so a point of small order gives zero with any of them.
    """
    if len(key) != KEY_BYTES or int.from_bytes(key, "little") >= PRIME:
        return False
    try:
        _PROBE.exchange(X25519PublicKey.from_public_bytes(key))
    except ValueError:
        return False
    return True


def _decompress(key: bytes) -> Point | None:
    """The point, or None where the bytes are no canonical encoding of one (RFC 8032, section 5.1.3)."""
    number = int.from_bytes(key, "little")
    y, sign = number & (2**255 - 1), number >> 255
    if y >= PRIME:
        return None
    square = (y * y - 1) * pow(EDWARDS_D * y * y + 1, -1, PRIME) % PRIME  # d y^2 = -1 has no solution
    x = pow(square, (PRIME + 3) // 8, PRIME)
    if x * x % PRIME != square:
        x = x * ROOT_OF_MINUS_ONE % PRIME
    if x * x % PRIME != square or (x == 0 and sign):
        return None
    x = PRIME - x if x % 2 != sign else x
    return x, y, 1, x * y % PRIME


def _add(one: Point, other: Point) -> Point:
    """The sum of two points, also of equal ones (RFC 8032, section 5.1.4)."""
    x1, y1, z1, t1 = one
    x2, y2, z2, t2 = other
    a, b = (y1 - x1) * (y2 - x2) % PRIME, (y1 + x1) * (y2 + x2) % PRIME
    c, d = 2 * t1 * t2 * EDWARDS_D % PRIME, 2 * z1 * z2 % PRIME
    e, f, g, h = b - a, d - c, d + c, b + a
    return e * f % PRIME, g * h % PRIME, f * g % PRIME, e * h % PRIME


def _times(scalar: int, point: Point) -> Point:
    total: Point = (0, 1, 1, 0)
    while scalar:
        total = _add(total, point) if scalar & 1 else total
        point, scalar = _add(point, point), scalar >> 1
    return total


def _is_neutral(point: Point) -> bool:
    x, y, z, _ = point
    return x % PRIME == 0 and (y - z) % PRIME == 0
