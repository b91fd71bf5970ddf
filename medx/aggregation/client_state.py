"""What a client remembers between two messages of an attempt."""

from dataclasses import dataclass, field
from enum import IntEnum
from typing import ClassVar

from medx.aggregation.codec import ByClient, Ids, Message


class Stage(IntEnum):
    """What the client did last in the running attempt."""

    IDLE = 0
    KEYS = 1
    SHARES = 2
    MASKED = 3
    CONFIRMED = 4
    UNMASKED = 5
    REFUSED = 6


@dataclass
class ClientState(Message):
    """All that a client remembers between messages, secrets included; ``to_bytes`` for a node that restarts.

    Never restore a state older than the last message sent: it would allow a second unmask. Wiping drops the only
    references to the secrets; Python cannot overwrite the memory itself. Its ``repr`` shows none of them.
    """

    KIND: ClassVar[bytes] = b"CLST"
    stage: int
    round: int
    attempt: int
    model_hash: bytes
    keys_message: bytes
    cipher_private: bytes = field(repr=False)
    mask_private: bytes = field(repr=False)
    seed: bytes = field(repr=False)
    mask_keys: ByClient = field(repr=False)
    receive_keys: ByClient = field(repr=False)
    shares: ByClient = field(repr=False)
    survivors: Ids
    dropped: Ids

    @classmethod
    def fresh(cls, stage: Stage, round: int, attempt: int) -> "ClientState":
        """A state without secrets at this position."""
        return cls(stage, round, attempt, b"", b"", b"", b"", b"", {}, {}, {}, (), ())
