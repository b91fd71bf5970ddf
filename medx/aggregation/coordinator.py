"""The coordinator of a secure sum, one object for one attempt, which ends with a sum or without one.

It is the server of Bonawitz et al. 2017.
"""

import hashlib
from collections.abc import Callable, Container
from typing import TypeVar

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from medx.aggregation import shamir
from medx.aggregation.keys import checked_keys, pair_key, verified
from medx.aggregation.messages import (
    STAGES,
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
from medx.aggregation.ring import apply_masks, is_positive
from medx.aggregation.roster import Roster
from medx.aggregation.wire import ByClient, Ids, ProtocolError, Reason, SumAborted

AnyMessage = TypeVar("AnyMessage", Shares, Masked, Confirm, Unmask)
UNKNOWN = "a client that is not known"


class Coordinator:
    """One attempt at one round: ``receive_*`` takes a client's message, ``close_*`` ends a stage.

    A message that is wrong, late or doubled raises ProtocolError naming its sender and changes nothing: treat that
    client as dropped. Too few clients at the end of a stage raise SumAborted; start a new attempt, with a new object.
    """

    def __init__(self, roster: Roster, round: int, attempt: int, model_hash: bytes) -> None:
        self.roster = roster
        self.context = Context(roster.run_id, round, attempt, roster.digest, model_hash)
        self.stage = Stage.KEYS
        self._digest = self.context.digest
        self._keys_messages: ByClient = {}
        self._keys: dict[int, Keys] = {}
        self._ciphertexts: dict[int, ByClient] = {}
        self._total: np.ndarray | None = None
        self._masked: set[int] = set()
        self._signatures: ByClient = {}
        self._unmasked: dict[int, Unmask] = {}
        self._public: set[bytes] = set()
        self.false_shares: dict[int, list[int]] = {}  # who handed out a wrong share of whose secrets

    def begin(self) -> bytes:
        """The message that starts the attempt, for every client."""
        c = self.context
        return Begin(c.round, c.attempt, c.roster_hash, c.model_hash).to_bytes()

    def receive_keys(self, client: int, data: bytes) -> None:
        """Stage 1. ``client`` is who delivered the message, as the transport knows it."""
        self._check_stage(Stage.KEYS, client)
        self._check_new(client, self._keys)
        keys = checked_keys(data, client, self.context, self.roster.identities)
        public = {keys.cipher_key, keys.mask_key}
        if len(public) < 2 or public & self._public:  # every client would refuse the whole list
            raise ProtocolError(Reason.REUSED_KEY, client, "one public key twice")
        self._public |= public
        self._keys[client], self._keys_messages[client] = keys, data

    def close_keys(self) -> bytes:
        """End stage 1: the key list, the same for every client in ``participants``."""
        self._close(Stage.KEYS, len(self._keys), self.roster.minimum_survivors)
        return KeyList(self._keys_messages).to_bytes()

    def receive_shares(self, client: int, data: bytes) -> None:
        """Stage 2."""
        message = self._parse(Shares, Stage.SHARES, client, data)
        self._check_new(client, self._ciphertexts)
        if set(message.ciphertexts) != set(self._keys) - {client}:
            raise ProtocolError(Reason.LENGTH, client, "its shares are not one for every other client")
        self._ciphertexts[client] = message.ciphertexts

    def close_shares(self) -> dict[int, bytes]:
        """End stage 2: an inbox for each client that sent shares."""
        self._close(Stage.SHARES, len(self._ciphertexts), self.roster.minimum_survivors)
        return {receiver: self._inbox(receiver).to_bytes() for receiver in sorted(self._ciphertexts)}

    def receive_masked(self, client: int, data: bytes) -> None:
        """Stage 3: added to the running sum at once, so that one vector is held however many clients there are."""
        message = self._parse(Masked, Stage.MASKED, client, data)
        if client not in self._ciphertexts:
            raise ProtocolError(Reason.SENDER, client, "a masked vector without shares")
        self._check_new(client, self._masked)
        if message.words.size != self.roster.dimension:
            raise ProtocolError(Reason.LENGTH, client, f"{message.words.size} words of {self.roster.dimension}")
        if self._total is None:
            self._total = message.words.copy()
        else:
            self._total += message.words
        self._masked.add(client)

    def close_masked(self) -> bytes:
        """End stage 3: the survivor set, for the survivors."""
        self._close(Stage.MASKED, len(self._masked), self.roster.minimum_survivors)
        return self._survivors().to_bytes()

    def receive_confirm(self, client: int, data: bytes) -> None:
        """Stage 4."""
        message = self._parse(Confirm, Stage.CONFIRMED, client, data)
        self._check_survivor(client)
        self._check_new(client, self._signatures)
        if not verified(self.roster.identities[client], self._survivors().signed_part(), message.signature):
            raise ProtocolError(Reason.SIGNATURE, client, "its signature is not over this survivor set")
        self._signatures[client] = message.signature

    def close_confirm(self) -> bytes:
        """End stage 4: the request to unmask, for the survivors."""
        self._close(Stage.CONFIRMED, len(self._signatures), self.roster.threshold)
        enough = {number: self._signatures[number] for number in sorted(self._signatures)[: self.roster.threshold]}
        return UnmaskRequest(self._digest, self.survivors, self.dropped, enough).to_bytes()

    def receive_unmask(self, client: int, data: bytes) -> None:
        """Stage 5."""
        message = self._parse(Unmask, Stage.UNMASKED, client, data)
        self._check_survivor(client)
        self._check_new(client, self._unmasked)
        if tuple(message.seed_shares) != self.survivors or tuple(message.key_shares) != self.dropped:
            raise ProtocolError(Reason.LENGTH, client, "its shares are not one for every other client")
        self._unmasked[client] = message

    def finish(self) -> np.ndarray:
        """End stage 5: the exact sum of the survivors' words, ``uint32 [dimension]``.

        Every opened secret is checked against what its owner published. Wrong shares are left out while enough right
        ones are there, and ``false_shares`` says whose they were; else ProtocolError (share).
        """
        self._close(Stage.UNMASKED, len(self._unmasked), self.roster.threshold)
        subtracted = [self._seed(owner) for owner in self.survivors]
        added: list[bytes] = []
        for gone in self.dropped:
            private = self._mask_private(gone)
            for client in self.survivors:
                key = pair_key(private, self._keys[client].mask_key, self._digest, gone, client)
                (subtracted if is_positive(client, gone) else added).append(key)
        if self._total is None:
            raise SumAborted("masked", 0, self.roster.minimum_survivors)
        total, self._total = self._total, None
        apply_masks(total, added, subtracted)
        self._unmasked = {}
        return total

    @property
    def participants(self) -> Ids:
        """Who is in the running stage: the clients that the last ``close_*`` message goes to."""
        present = {Stage.KEYS: range(self.roster.num_clients), Stage.SHARES: self._keys}
        if self.stage in present:
            return tuple(sorted(present[self.stage]))
        return tuple(sorted(self._ciphertexts)) if self.stage == Stage.MASKED else self.survivors

    @property
    def survivors(self) -> Ids:
        """Who sent a masked vector: those in the sum."""
        return tuple(sorted(self._masked))

    @property
    def dropped(self) -> Ids:
        """Who sent shares and no masked vector."""
        return tuple(sorted(set(self._ciphertexts) - self._masked))

    def _inbox(self, receiver: int) -> Inbox:
        senders = (sender for sender in self._ciphertexts if sender != receiver)
        return Inbox(self._digest, {sender: self._ciphertexts[sender][receiver] for sender in senders})

    def _survivors(self) -> Survivors:
        return Survivors(self._digest, self.survivors, self.dropped)

    def _seed(self, owner: int) -> bytes:
        shares = {helper + 1: message.seed_shares[owner] for helper, message in self._unmasked.items()}
        commitment = self._keys[owner].seed_commitment
        return self._recovered(owner, "seed", shares, lambda seed: hashlib.sha256(seed).digest() == commitment)

    def _mask_private(self, owner: int) -> X25519PrivateKey:
        shares = {helper + 1: message.key_shares[owner] for helper, message in self._unmasked.items()}
        published = self._keys[owner].mask_key
        secret = self._recovered(owner, "mask key", shares, lambda secret: _public_of(secret) == published)
        return X25519PrivateKey.from_private_bytes(secret)

    def _recovered(self, owner: int, what: str, shares: dict[int, bytes], fits: Callable[[bytes], bool]) -> bytes:
        threshold, suspects = self.roster.threshold, [helper + 1 for helper in self.false_shares]
        found = shamir.recover(shares, threshold, fits, suspects)
        if found is None:
            # With more shares than needed a single helper cannot do this: the owner dealt them so. Else it is open who.
            named = owner if len(shares) > threshold else UNKNOWN
            raise ProtocolError(Reason.SHARE, named, f"no {threshold} shares give the {what} of client {owner}")
        secret, wrong = found
        for point in wrong:
            self.false_shares.setdefault(point - 1, []).append(owner)
        return secret

    def _parse(self, kind: type[AnyMessage], stage: Stage, client: int, data: bytes) -> AnyMessage:
        self._check_stage(stage, client)
        message = kind.from_bytes(data, client, kind.largest(self.roster.num_clients, self.roster.dimension))
        if message.sender != client or client not in self._keys:
            raise ProtocolError(Reason.SENDER, client, f"a message of client {message.sender}")
        if message.context != self._digest:
            raise ProtocolError(Reason.REPLAY, client, "a message of another run, round, attempt or model")
        return message

    def _check_stage(self, stage: Stage, client: int) -> None:
        if self.stage != stage:
            raise ProtocolError(Reason.STAGE, client, f"a message of stage {STAGES[stage - 1]} comes too late or early")

    def _check_new(self, client: int, seen: Container[int]) -> None:
        if client in seen:
            raise ProtocolError(Reason.DUPLICATE, client, "a second answer to one stage")

    def _check_survivor(self, client: int) -> None:
        if client not in self._masked:
            raise ProtocolError(Reason.SENDER, client, "it is not among the survivors")

    def _close(self, stage: Stage, left: int, needed: int) -> None:
        if self.stage != stage:
            raise ProtocolError(Reason.STAGE, "server", f"stage {STAGES[stage - 1]} is not the one that is open")
        if left < needed:
            self.stage = Stage.ENDED
            raise SumAborted(STAGES[stage - 1], left, needed)
        self.stage = Stage(stage + 1)


def _public_of(secret: bytes) -> bytes:
    return X25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw()
