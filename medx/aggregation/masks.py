"""Masks modulo 2^32: ChaCha20 keystreams under keys that belong to one pair of clients in one attempt."""

from collections.abc import Iterable

import numpy as np
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

KEY_BYTES = 32
BLOCK_WORDS = 1 << 15
_NONCE = bytes(16)


def keystream(key: bytes) -> CipherContext:
    """ChaCha20 (RFC 8439) from block 0 with a zero nonce: sound because every key is used once."""
    return Cipher(algorithms.ChaCha20(key, _NONCE), mode=None).encryptor()


def keystream_words(key: bytes, count: int) -> np.ndarray:
    """The first ``count`` little-endian words of the keystream, ``uint32 [count]``."""
    return np.frombuffer(keystream(key).update(bytes(4 * count)), dtype="<u4")


def derive_key(secret: bytes, purpose: str, context: bytes, first: int, second: int) -> bytes:
    """HKDF-SHA256 (RFC 5869) of a shared secret, bound to the purpose, the attempt's context and two clients."""
    info = b"\x00".join((b"medx secure aggregation v1", purpose.encode())) + context
    info += first.to_bytes(4, "big") + second.to_bytes(4, "big")
    return HKDF(hashes.SHA256(), KEY_BYTES, salt=None, info=info).derive(secret)


def pair_key(private: X25519PrivateKey, public: bytes, context: bytes, one: int, other: int) -> bytes:
    """The mask key of a pair of clients; both get the same one. Raises ValueError on a degenerate public key."""
    secret = private.exchange(X25519PublicKey.from_public_bytes(public))
    return derive_key(secret, "mask", context, min(one, other), max(one, other))


def is_positive(client: int, peer: int) -> bool:
    """Whether ``client`` adds (else subtracts) the mask that it shares with ``peer``: the smaller number adds."""
    return client < peer


def apply_masks(words: np.ndarray, added: Iterable[bytes], subtracted: Iterable[bytes]) -> None:
    """Add and subtract keystreams to ``uint32 [d]`` words in place, block by block so that all stays in cache."""
    streams: list[tuple[CipherContext, np.ufunc]] = [(keystream(key), np.add) for key in added]
    streams += [(keystream(key), np.subtract) for key in subtracted]
    width = min(BLOCK_WORDS, words.size)
    zeros = memoryview(bytes(4 * width))
    buffer = np.empty(width, np.dtype("<u4"))
    target = buffer.data.cast("B")
    for start in range(0, words.size, max(width, 1)):
        block = words[start : start + width]
        length = 4 * block.size
        for stream, operation in streams:
            stream.update_into(zeros[:length], target[:length])
            operation(block, buffer[: block.size], out=block)
