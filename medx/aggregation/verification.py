"""What both sides verify: signatures, and whether keys belong to this attempt."""

from functools import lru_cache

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from medx.aggregation.curve import is_exchange_key
from medx.aggregation.errors import ProtocolError, Reason
from medx.aggregation.messages import Context, Keys
from medx.aggregation.roster import Roster

SIGNATURE_BYTES = 64
REMEMBERED_BYTES = 8192  # of a message: so that what is remembered stays below 40 MB, whatever is sent


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


def associated_data(context: bytes, sender: int, receiver: int) -> bytes:
    """What AES-GCM authenticates beside the shares: the attempt, from and to."""
    return b"medx shares v1" + context + sender.to_bytes(4, "big") + receiver.to_bytes(4, "big")


def checked_keys(data: bytes, number: int, context: Context, roster: Roster) -> Keys:
    """Parse and verify the keys of client ``number`` for this attempt; raises ProtocolError that names it.

    A key that is no point, or of small order, is refused here, before anybody has to compute with it.
    """
    if not 0 <= number < roster.num_clients:
        raise ProtocolError(Reason.SENDER, number, f"it is not among the roster's {roster.num_clients} clients")
    keys = _authentic_keys(data, number, roster.run_id, roster.identities[number])
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
