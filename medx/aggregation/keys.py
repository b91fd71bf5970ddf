"""The keys of an attempt: which bytes are one, whose signature they bear, and what two participants derive from theirs.

OpenSSL takes points of Curve25519 that no honest party would publish, and encodings that no one writes. With an Ed25519
key of small order one signature fits a share of all messages, whoever makes it; an X25519 key of small order makes a
shared secret that everybody knows.
"""

from collections.abc import Sequence
from functools import lru_cache

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from medx.aggregation.messages import Context, Keys
from medx.aggregation.wire import ProtocolError, Reason

PRIME = 2**255 - 19
EDWARDS_D = -121665 * pow(121666, -1, PRIME) % PRIME
ROOT_OF_MINUS_ONE = pow(2, (PRIME - 1) // 4, PRIME)
KEY_BYTES = 32
SIGNATURE_BYTES = 64
REMEMBERED_BYTES = 8192  # of a message: so that what is remembered stays below 40 MB, whatever is sent

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


def verified(public_key: bytes, message: bytes, signature: bytes) -> bool:
    """Whether an Ed25519 signature holds; remembered, since in one process n clients check the same n signatures."""
    short = len(message) <= REMEMBERED_BYTES and len(signature) == SIGNATURE_BYTES
    return (_verified if short else _verified.__wrapped__)(public_key, message, signature)


@lru_cache(maxsize=4096)
def _verified(public_key: bytes, message: bytes, signature: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def checked_keys(data: bytes, number: int, context: Context, identities: Sequence[bytes]) -> Keys:
    """Parse and verify the keys of client ``number`` for this attempt; raises ProtocolError that names it.

    ``identities`` are the roster's. A key that is no point, or of small order, is refused here, before anybody has to
    compute with it.
    """
    if not 0 <= number < len(identities):
        raise ProtocolError(Reason.SENDER, number, f"it is not among the roster's {len(identities)} clients")
    keys = _authentic_keys(data, number, context.run_id, identities[number])
    if keys.roster_hash != context.roster_hash:
        raise ProtocolError(Reason.ROSTER, number, "it holds another roster")
    if (keys.round, keys.attempt) != (context.round, context.attempt):
        raise ProtocolError(Reason.REPLAY, number, f"keys of round {keys.round}, attempt {keys.attempt}")
    if keys.model_hash != context.model_hash:
        raise ProtocolError(Reason.MODEL, number, "it was given another global model")
    return keys


@lru_cache(maxsize=1024)
def _authentic_keys(data: bytes, number: int, run_id: str, identity: bytes) -> Keys:
    # All fields have their length, so what is remembered is bounded; what is refused is not remembered.
    keys = Keys.from_bytes(data, number)
    if keys.sender != number:
        raise ProtocolError(Reason.SENDER, number, f"keys signed as client {keys.sender}")
    if not verified(identity, keys.signed_part(run_id), keys.signature):
        raise ProtocolError(Reason.SIGNATURE, number, "its keys are not signed by its identity in the roster")
    if not (is_exchange_key(keys.cipher_key) and is_exchange_key(keys.mask_key)):
        raise ProtocolError(Reason.SUBSTITUTED_KEY, number, "a degenerate public key")
    return keys


def exchanged(private: X25519PrivateKey, public: bytes, owner: int) -> bytes:
    """The secret shared with the owner of ``public`` (RFC 7748); raises ProtocolError for a degenerate key."""
    try:
        return private.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError:
        raise ProtocolError(Reason.SUBSTITUTED_KEY, owner, "a degenerate public key") from None


def derive_key(secret: bytes, purpose: str, context: bytes, first: int, second: int) -> bytes:
    """HKDF-SHA256 (RFC 5869) of a shared secret, bound to the purpose, the attempt's context and two clients."""
    info = b"\x00".join((b"medx secure aggregation v1", purpose.encode())) + context
    info += first.to_bytes(4, "big") + second.to_bytes(4, "big")
    return HKDF(hashes.SHA256(), KEY_BYTES, salt=None, info=info).derive(secret)


def pair_key(private: X25519PrivateKey, public: bytes, context: bytes, one: int, other: int) -> bytes:
    """The mask key of ``one`` and the owner of ``public``, which both get. Raises ProtocolError as ``exchanged``."""
    return derive_key(exchanged(private, public, other), "mask", context, min(one, other), max(one, other))


def associated_data(context: bytes, sender: int, receiver: int) -> bytes:
    """What AES-GCM authenticates beside the shares: the attempt, from and to."""
    return b"medx shares v1" + context + sender.to_bytes(4, "big") + receiver.to_bytes(4, "big")


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
