"""The messages of the five stages, and the context that every one of them is bound to.

To bytes and back with ``to_bytes`` and ``from_bytes`` (wire.py). Lists from the server repeat what clients signed, so
that a lying server can only leave messages out.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cached_property
from typing import ClassVar

import numpy as np

from medx.aggregation.wire import (
    ByClient,
    Hash,
    Ids,
    Message,
    Natural,
    PublicKey,
    Sealed,
    Shared,
    Signature,
    Signatures,
)

STAGES = ("keys", "shares", "masked", "confirm", "unmask")


class Stage(IntEnum):
    """The five stages of an attempt: the last that a participant answered, or the one that the coordinator collects."""

    IDLE = 0
    KEYS = 1
    SHARES = 2
    MASKED = 3
    CONFIRMED = 4
    UNMASKED = 5
    ENDED = 6


@dataclass(frozen=True)
class Context:
    """What every key, signature and ciphertext is bound to."""

    run_id: str
    round: int
    attempt: int
    roster_hash: bytes
    model_hash: bytes

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 over all five fields, 32 bytes."""
        run = self.run_id.encode()
        numbers = b"".join(value.to_bytes(8, "big") for value in (len(run), self.round, self.attempt))
        text = b"medx context v1" + numbers + run + self.roster_hash + self.model_hash
        return hashlib.sha256(text).digest()


@dataclass(frozen=True)
class Begin(Message):
    """Server to clients: a new attempt."""

    KIND: ClassVar[bytes] = b"BEGN"
    round: Natural
    attempt: Natural
    roster_hash: Hash
    model_hash: Hash


@dataclass(frozen=True)
class Keys(Message):
    """Stage 1, client to server: fresh X25519 keys and SHA-256 of the self-mask seed, signed."""

    KIND: ClassVar[bytes] = b"KEYS"
    sender: Natural
    round: Natural
    attempt: Natural
    roster_hash: Hash
    model_hash: Hash
    cipher_key: PublicKey
    mask_key: PublicKey
    seed_commitment: Hash
    signature: Signature

    def signed_part(self, run_id: str) -> bytes:
        """The bytes under the signature."""
        context = Context(run_id, self.round, self.attempt, self.roster_hash, self.model_hash).digest
        return b"medx keys v1" + context + self.sender.to_bytes(4, "big") + self._keys

    @property
    def _keys(self) -> bytes:
        return b"".join(len(k).to_bytes(2, "big") + k for k in (self.cipher_key, self.mask_key, self.seed_commitment))


@dataclass(frozen=True)
class KeyList(Message):
    """Server to clients: every ``Keys`` message, as its sender wrote it."""

    KIND: ClassVar[bytes] = b"KLST"
    keys: ByClient


@dataclass(frozen=True)
class Shares(Message):
    """Stage 2, client to server: one AES-256-GCM ciphertext (nonce first) for each peer."""

    KIND: ClassVar[bytes] = b"SHAR"
    sender: Natural
    context: Hash
    ciphertexts: Sealed


@dataclass(frozen=True)
class Inbox(Message):
    """Server to one client: the ciphertexts for it, by sender."""

    KIND: ClassVar[bytes] = b"INBX"
    context: Hash
    ciphertexts: Sealed


@dataclass(frozen=True)
class Masked(Message):
    """Stage 3, client to server: ``uint32 [d]`` masked words, four bytes each."""

    KIND: ClassVar[bytes] = b"MASK"
    sender: Natural
    context: Hash
    words: np.ndarray


@dataclass(frozen=True)
class Survivors(Message):
    """Server to the survivors: who sent a masked vector and who dropped out after sharing."""

    KIND: ClassVar[bytes] = b"SURV"
    context: Hash
    survivors: Ids
    dropped: Ids

    def signed_part(self) -> bytes:
        """The bytes that a client signs to confirm this set."""
        return b"medx survivors v1" + self.to_bytes()


@dataclass(frozen=True)
class Confirm(Message):
    """Stage 4, client to server: a signature over the survivor set."""

    KIND: ClassVar[bytes] = b"CONF"
    sender: Natural
    context: Hash
    signature: Signature


@dataclass(frozen=True)
class UnmaskRequest(Message):
    """Server to the survivors: the same set again, with the signatures on it."""

    KIND: ClassVar[bytes] = b"UREQ"
    context: Hash
    survivors: Ids
    dropped: Ids
    signatures: Signatures


@dataclass(frozen=True)
class Unmask(Message):
    """Stage 5, client to server: one share for every peer, of its seed or of its mask key, never of both."""

    KIND: ClassVar[bytes] = b"UNMK"
    sender: Natural
    context: Hash
    seed_shares: Shared = field(repr=False)
    key_shares: Shared = field(repr=False)


def model_hash(arrays: Iterable[tuple[str, np.ndarray]]) -> bytes:
    """BLAKE2b-256 over names, types, shapes and contents of the global model as *this* party received it."""
    digest = hashlib.blake2b(digest_size=32)
    for name, array in arrays:
        header = f"{name}\x1f{array.dtype.str}\x1f{array.shape}".encode()
        digest.update(len(header).to_bytes(4, "big") + header)
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.digest()
