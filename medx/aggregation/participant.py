"""A participant in a secure sum: five stages, one step each, and every refusal ends the attempt.

It is the user of Bonawitz et al. 2017.
"""

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TypeVar

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from medx.aggregation import shamir
from medx.aggregation.journal import Journal, ParticipantState, Party
from medx.aggregation.keys import associated_data, checked_keys, derive_key, exchanged, pair_key, verified
from medx.aggregation.messages import (
    Begin,
    Confirm,
    Context,
    Inbox,
    KeyList,
    Keys,
    Masked,
    Shares,
    Stage,
    Survivors,
    Unmask,
    UnmaskRequest,
)
from medx.aggregation.ring import EncodingError, apply_masks, is_positive
from medx.aggregation.roster import Roster
from medx.aggregation.wire import ByClient, Ids, ProtocolError, Reason

NONCE_BYTES = 12
SERVER = "server"
AnyMessage = TypeVar("AnyMessage", Begin, KeyList, Inbox, Survivors, UnmaskRequest)
UnmaskHook = Callable[[int, int], None]
WordsOf = Callable[[int, int], np.ndarray]


class Participant:
    """Client ``number`` of ``roster``. Drive it with begin, share, mask, confirm, unmask: bytes in, bytes out.

    ``on_first_unmask(round, attempt)`` runs just before the first share leaves, so that the ledger is charged first;
    what it raises stops the share. A wrong message raises ProtocolError, and the attempt's secrets are gone with it.
    ``journal`` says what was answered before; without one it is kept in memory. ``state`` is what this client
    remembered after its last answer: the journal knows it by its hash, and refuses any other.
    """

    def __init__(
        self,
        roster: Roster,
        number: int,
        identity: Ed25519PrivateKey,
        *,
        on_first_unmask: UnmaskHook | None = None,
        journal: Journal | None = None,
        state: ParticipantState | None = None,
    ) -> None:
        if identity.public_key().public_bytes_raw() != roster.identities[number]:
            raise ProtocolError(Reason.ROSTER, number, "its identity is not the one in the roster")
        self.roster = roster
        self.number = number
        self.state = state or ParticipantState.fresh(Stage.IDLE, -1, 0)
        self._identity = identity
        self._context: Context | None = None
        self._on_first_unmask = on_first_unmask
        self._journal = Journal() if journal is None else journal
        self._party = Party(roster.digest, number)

    def begin(self, begin: bytes, model_hash: bytes) -> bytes:
        """Stage 1: fresh keys, signed. ``model_hash`` is over all that this client itself received to start from."""
        message = self._read(Begin, begin)
        position = (message.round, message.attempt)
        rounds, attempts = self.roster.num_rounds, self.roster.max_attempts
        if not (0 <= message.round < rounds and 0 <= message.attempt < attempts):
            text = f"round, attempt {position} of {rounds} rounds with {attempts} attempts"
            raise ProtocolError(Reason.POSITION, SERVER, text)
        self._journal.enter(self._party, position, Stage.KEYS, self.state, once=self.roster.opened_once)
        self.state = ParticipantState.fresh(Stage.IDLE, *position)
        with self._answering(Stage.KEYS):
            if message.roster_hash != self.roster.digest:
                raise ProtocolError(Reason.ROSTER, SERVER, "its roster is not the one pinned here")
            if message.model_hash != model_hash:
                raise ProtocolError(Reason.MODEL, SERVER, "the model received is not the one it announces")
            self.state.model_hash = model_hash
            self.state.keys_message = self._fresh_keys().to_bytes()
        return self.state.keys_message

    def share(self, key_list: bytes) -> bytes:
        """Stage 2: check everybody's keys, then a share of both secrets for each peer, encrypted to it."""
        with self._step(Stage.SHARES):
            peers = self._checked_keys(self._read(KeyList, key_list))
            points = [number + 1 for number in peers]
            seed_shares = shamir.split(self.state.seed, self.roster.threshold, points)
            key_shares = shamir.split(self.state.mask_private, self.roster.threshold, points)
            private = X25519PrivateKey.from_private_bytes(self.state.cipher_private)
            ciphertexts, context = {}, self.context.digest
            for number, keys in peers.items():
                plain = seed_shares[number + 1] + key_shares[number + 1]
                if number == self.number:
                    self.state.shares[number] = plain
                    continue
                secret = exchanged(private, keys.cipher_key, number)
                self.state.mask_keys[number] = keys.mask_key
                self.state.receive_keys[number] = derive_key(secret, "share", context, number, self.number)
                key = derive_key(secret, "share", context, self.number, number)
                nonce = os.urandom(NONCE_BYTES)
                sealed = AESGCM(key).encrypt(nonce, plain, associated_data(context, self.number, number))
                ciphertexts[number] = nonce + sealed
            self.state.cipher_private = b""
        return Shares(self.number, context, ciphertexts).to_bytes()

    def mask(self, inbox: bytes, words: np.ndarray | WordsOf) -> bytes:
        """Stage 3: ``uint32 [dimension]`` words (update plus noise share, on the grid) under all masks.

        ``words`` may be a function of (round, attempt), called once the inbox is verified: then no data is read and no
        budget is charged for a message that is refused. Words are masked in place: a retry needs new noise anyway.
        """
        with self._step(Stage.MASKED):
            message = self._read(Inbox, inbox)
            self._check_context(message.context)
            self._open(message.ciphertexts)
            if not isinstance(words, np.ndarray):
                words = words(self.state.round, self.state.attempt)
            if words.shape != (self.roster.dimension,) or words.dtype != np.uint32 or not words.flags.writeable:
                raise EncodingError(
                    f"words {words.dtype} {words.shape}; accepted: a writeable uint32 ({self.roster.dimension},)"
                )
            private = X25519PrivateKey.from_private_bytes(self.state.mask_private)
            context = self.context.digest
            added: list[bytes] = [self.state.seed]
            subtracted: list[bytes] = []
            for number in message.ciphertexts:
                key = pair_key(private, self.state.mask_keys[number], context, self.number, number)
                (added if is_positive(self.number, number) else subtracted).append(key)
            apply_masks(words, added, subtracted)
            self.state.seed = self.state.mask_private = b""
            self.state.mask_keys, self.state.receive_keys = {}, {}
        return Masked(self.number, context, words).to_bytes()

    def confirm(self, survivors: bytes) -> bytes:
        """Stage 4: sign one survivor set, the only one of this attempt."""
        with self._step(Stage.CONFIRMED):
            message = self._read(Survivors, survivors)
            self._check_context(message.context)
            self._check_sets(message.survivors, message.dropped)
            self.state.survivors, self.state.dropped = message.survivors, message.dropped
            signature = self._identity.sign(message.signed_part())
        return Confirm(self.number, self.context.digest, signature).to_bytes()

    def unmask(self, request: bytes) -> bytes:
        """Stage 5: once, for each peer the share of its seed if it survived, else of its mask key; then wiped."""
        with self._step(Stage.UNMASKED):
            message = self._read(UnmaskRequest, request)
            self._check_context(message.context)
            self._check_sets(message.survivors, message.dropped)
            if (message.survivors, message.dropped) != (self.state.survivors, self.state.dropped):
                raise ProtocolError(Reason.SURVIVOR_SETS, SERVER, "the set to unmask is not the confirmed one")
            self._check_signatures(message)
            if self._on_first_unmask is not None:
                self._on_first_unmask(self.state.round, self.state.attempt)
            seeds = {n: self.state.shares[n][: shamir.SHARE_BYTES] for n in message.survivors}
            keys = {n: self.state.shares[n][shamir.SHARE_BYTES :] for n in message.dropped}
            answer = Unmask(self.number, message.context, seeds, keys)
            self.state = ParticipantState.fresh(Stage.UNMASKED, self.state.round, self.state.attempt)
        return answer.to_bytes()

    @property
    def context(self) -> Context:
        """What this attempt is bound to."""
        s = self.state
        if self._context is None or (self._context.round, self._context.attempt) != (s.round, s.attempt):
            self._context = Context(self.roster.run_id, s.round, s.attempt, self.roster.digest, s.model_hash)
        return self._context

    @contextmanager
    def _step(self, stage: Stage) -> Iterator[None]:
        """Answer ``stage`` if it is the next one of the running attempt."""
        position = (self.state.round, self.state.attempt)
        try:
            self._journal.enter(self._party, position, stage, self.state, once=self.roster.opened_once)
        except ProtocolError:
            if self.state.stage != Stage.UNMASKED:  # then nothing is left to wipe
                self.state = ParticipantState.fresh(Stage.ENDED, *position)
            raise
        with self._answering(stage):
            yield

    @contextmanager
    def _answering(self, stage: Stage) -> Iterator[None]:
        """Work on an entered stage; what goes wrong ends the attempt, and no reply leaves."""
        position = (self.state.round, self.state.attempt)
        try:
            yield
            self.state.stage = stage
            self._journal.leave(self._party, position, stage, self.state)
        except BaseException:
            self.state = ParticipantState.fresh(Stage.ENDED, *position)
            self._journal.end(self._party, position, stage)
            raise

    def _fresh_keys(self) -> Keys:
        cipher, mask = X25519PrivateKey.generate(), X25519PrivateKey.generate()
        s = self.state
        s.cipher_private, s.mask_private = cipher.private_bytes_raw(), mask.private_bytes_raw()
        s.seed = os.urandom(32)
        keys = Keys(
            self.number,
            s.round,
            s.attempt,
            self.roster.digest,
            s.model_hash,
            cipher.public_key().public_bytes_raw(),
            mask.public_key().public_bytes_raw(),
            hashlib.sha256(s.seed).digest(),
            b"",
        )
        signature = self._identity.sign(keys.signed_part(self.roster.run_id))
        return replace(keys, signature=signature)

    def _checked_keys(self, message: KeyList) -> dict[int, Keys]:
        if message.keys.get(self.number) != self.state.keys_message:
            raise ProtocolError(Reason.SUBSTITUTED_KEY, SERVER, f"the keys of client {self.number} itself are changed")
        own = {self.number: Keys.from_bytes(self.state.keys_message, self.number)}
        others = [(number, data) for number, data in message.keys.items() if number != self.number]
        peers = own | {
            number: checked_keys(data, number, self.context, self.roster.identities) for number, data in others
        }
        public = [key for keys in peers.values() for key in (keys.cipher_key, keys.mask_key)]
        if len(set(public)) != len(public):
            raise ProtocolError(Reason.REUSED_KEY, SERVER, "one public key twice in the list")
        self._check_count(len(peers), "keys")
        return peers

    def _open(self, ciphertexts: ByClient) -> None:
        for number, sealed in ciphertexts.items():
            if number not in self.state.receive_keys:
                raise ProtocolError(Reason.SENDER, SERVER, f"shares of client {number}, who sent no keys")
            cipher = AESGCM(self.state.receive_keys[number])
            bound_to = associated_data(self.context.digest, number, self.number)
            try:
                plain = cipher.decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], bound_to)
            except (InvalidTag, ValueError):
                raise ProtocolError(
                    Reason.CIPHERTEXT, number, "its shares do not decrypt for this attempt and pair"
                ) from None
            if len(plain) != 2 * shamir.SHARE_BYTES:
                raise ProtocolError(Reason.LENGTH, number, f"shares of {len(plain)} bytes")
            self.state.shares[number] = plain
        self._check_count(len(ciphertexts) + 1, "shares")

    def _read(self, kind: type[AnyMessage], data: bytes) -> AnyMessage:
        """A message of the server, no longer than one can be among twice as many: who is too many is named below."""
        n, dimension = self.roster.num_clients, self.roster.dimension
        return kind.from_bytes(data, SERVER, kind.largest(2 * n, dimension, Keys.largest(n, dimension)))

    def _check_context(self, context: bytes) -> None:
        if context != self.context.digest:
            raise ProtocolError(Reason.REPLAY, SERVER, "a message of another run, round, attempt or model")

    def _check_count(self, left: int, stage: str) -> None:
        if left < self.roster.minimum_survivors:
            needed = self.roster.minimum_survivors
            raise ProtocolError(Reason.TOO_FEW, SERVER, f"{left} clients at stage {stage}, {needed} needed")

    def _check_sets(self, survivors: Ids, dropped: Ids) -> None:
        both = set(survivors) & set(dropped)
        if both:
            raise ProtocolError(Reason.ALIVE_AND_DROPPED, SERVER, f"client {min(both)} is both alive and dropped")
        everyone = tuple(sorted(survivors + dropped))
        ordered = survivors == tuple(sorted(set(survivors))) and dropped == tuple(sorted(set(dropped)))
        if not ordered or everyone != tuple(sorted(self.state.shares)) or self.number not in survivors:
            raise ProtocolError(Reason.SURVIVOR_SETS, SERVER, "the sets are not those who sent shares, each once")
        self._check_count(len(survivors), "survivors")

    def _check_signatures(self, message: UnmaskRequest) -> None:
        signed = Survivors(message.context, message.survivors, message.dropped).signed_part()
        for number, signature in message.signatures.items():
            if number not in message.survivors:
                raise ProtocolError(Reason.SENDER, SERVER, f"a signature of client {number}, who did not survive")
            if not verified(self.roster.identities[number], signed, signature):
                raise ProtocolError(Reason.SIGNATURE, number, "its signature is not over this survivor set")
        if len(message.signatures) < self.roster.threshold:
            found, needed = len(message.signatures), self.roster.threshold
            raise ProtocolError(Reason.MISSING_SIGNATURES, SERVER, f"{found} signatures, {needed} needed")
