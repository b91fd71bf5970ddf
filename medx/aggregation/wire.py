"""One canonical byte form for the protocol's messages, strictly read, and why a party refuses one."""

import dataclasses
import struct
from enum import StrEnum
from functools import cache
from typing import Annotated, Any, ClassVar, Self, cast, get_type_hints

import numpy as np

from medx.schema import MedxError

Ids = tuple[int, ...]
ByClient = dict[int, bytes]
Hash = Annotated[bytes, 32]  # bytes of exactly this length, and so with each below
PublicKey = Annotated[bytes, 32]
Signature = Annotated[bytes, 64]
Signatures = Annotated[ByClient, 64]
Shared = Annotated[ByClient, 33]
Sealed = Annotated[ByClient, 94]  # a nonce, two shares, AES-GCM's tag
Natural = Annotated[int, 0]  # not negative

_INTEGER = struct.Struct("<q")
_SIZE = struct.Struct("<I")


class Reason(StrEnum):
    """One code for each way in which a message can be wrong."""

    MALFORMED = "malformed"
    STAGE = "stage"
    ROSTER = "roster"
    POSITION = "position"
    REPLAY = "replay"
    MODEL = "model"
    SENDER = "sender"
    DUPLICATE = "duplicate"
    SIGNATURE = "signature"
    MISSING_SIGNATURES = "missing_signatures"
    SUBSTITUTED_KEY = "substituted_key"
    REUSED_KEY = "reused_key"
    CIPHERTEXT = "ciphertext"
    LENGTH = "length"
    ALIVE_AND_DROPPED = "alive_and_dropped"
    SURVIVOR_SETS = "survivor_sets"
    SECOND_UNMASK = "second_unmask"
    SHARE = "share"
    TOO_FEW = "too_few"


class ProtocolError(MedxError):
    """A message that is refused: ``sender`` is a client's number or "server", ``reason`` the code of the fault."""

    def __init__(self, reason: Reason, sender: int | str, what: str) -> None:
        name = sender if isinstance(sender, str) else f"client {sender}"
        super().__init__(f"secure aggregation refused {name} ({reason}): {what}")
        self.reason = reason
        self.sender = sender


class SumAborted(ProtocolError):
    """Too few clients are left: no sum was opened and the model stays as it was."""

    def __init__(self, stage: str, left: int, needed: int) -> None:
        super().__init__(Reason.TOO_FEW, "server", f"{left} clients left after stage {stage}, {needed} needed")
        self.stage = stage


class Message:
    """Base of the messages. Fields are int, bytes, Ids, ByClient or a uint32 array; ``KIND`` tells types apart.

    A type with a length, such as ``Hash``, is refused at any other.
    """

    KIND: ClassVar[bytes]

    def to_bytes(self) -> bytes:
        """Four bytes of kind, then the fields in order; equal messages give equal bytes."""
        parts: list[bytes | memoryview] = [self.KIND]
        for name, *_ in _fields(cast(Any, type(self))):
            parts += _pack(getattr(self, name))
        return b"".join(parts)

    @classmethod
    def from_bytes(cls, data: bytes | memoryview, sender: int | str, most: int | None = None) -> Self:
        """Read it back; anything but the exact form is a ProtocolError (malformed) that names ``sender``.

        More than ``most`` bytes, see ``largest``, are not looked at.
        """
        if most is not None and len(data) > most:
            raise ProtocolError(Reason.LENGTH, sender, f"{len(data)} bytes, at most {most} are a {cls.__name__}")
        view, at = memoryview(data), 4
        values: dict[str, Any] = {}
        try:
            if view[:4] != cls.KIND:
                raise ValueError("another kind of message")
            for name, kind, limit in _fields(cast(Any, cls)):
                value, at = _unpack(kind, view, at)
                values[name] = _checked(name, value, limit)
            if at != len(view):
                raise ValueError("bytes left over")
        except (ValueError, struct.error) as error:
            raise ProtocolError(Reason.MALFORMED, sender, f"{cls.__name__}: {error}") from None
        return cls(**values)

    @classmethod
    def largest(cls, num_clients: int, dimension: int, content: int = 0) -> int:
        """Bytes of the largest message of this kind among so many clients; ``content`` where a field has no length."""
        total = 4
        for _, kind, limit in _fields(cast(Any, cls)):
            one = content if limit is None else limit
            sizes = {int: 8, bytes: 4 + one, np.ndarray: 4 + 4 * dimension, Ids: 4 + 4 * num_clients}
            total += 4 + num_clients * (8 + one) if kind == ByClient else sizes[kind]
        return total


def _pack(value: Any) -> list[bytes | memoryview]:
    if isinstance(value, int):
        return [_INTEGER.pack(value)]
    if isinstance(value, bytes):
        return [_SIZE.pack(len(value)), value]
    if isinstance(value, np.ndarray):
        words = np.ascontiguousarray(value, dtype="<u4")
        return [_SIZE.pack(words.size), words.data.cast("B")]
    parts: list[bytes | memoryview] = [_SIZE.pack(len(value))]
    if isinstance(value, tuple):
        parts.append(struct.pack(f"<{len(value)}I", *value))
    else:
        for key in sorted(value):
            parts += [_SIZE.pack(key), *_pack(value[key])]
    return parts


def _unpack(kind: Any, data: memoryview, at: int) -> tuple[Any, int]:
    """The value at ``at`` and where the next one starts; ValueError or struct.error where there is too little."""
    if kind is int:
        return _INTEGER.unpack_from(data, at)[0], at + 8
    (count,) = _SIZE.unpack_from(data, at)
    if kind == ByClient:
        return _unpack_by_client(count, data, at + 4)
    end = at + 4 + (count if kind is bytes else 4 * count)
    if end > len(data):
        raise ValueError("too short")
    content = data[at + 4 : end]
    if kind is bytes:
        return bytes(content), end
    if kind is np.ndarray:
        return np.frombuffer(content, dtype="<u4"), end
    return struct.unpack(f"<{count}I", content), end


def _checked(name: str, value: Any, limit: int | None) -> Any:
    """The value, if it is as long as its field says; a number, if it is at least that."""
    if limit is None:
        return value
    if isinstance(value, int):
        if value < limit:
            raise ValueError(f"{name} = {value}")
        return value
    for part in value.values() if isinstance(value, dict) else (value,):
        if len(part) != limit:
            raise ValueError(f"{len(part)} bytes of {name}, not {limit}")
    return value


def _unpack_by_client(count: int, data: memoryview, at: int) -> tuple[ByClient, int]:
    items: ByClient = {}
    last = -1
    for _ in range(count):
        (key,) = _SIZE.unpack_from(data, at)
        if key <= last:
            raise ValueError(f"client {key} twice or out of order")
        last = key
        items[key], at = _unpack(bytes, data, at + 4)
    return items, at


@cache
def _fields(cls: Any) -> tuple[tuple[str, Any, int | None], ...]:
    """Name, type, and the exact length (of a number the least value) of each field."""
    hints, full = get_type_hints(cls), get_type_hints(cls, include_extras=True)
    limits = {name: getattr(hint, "__metadata__", (None,))[0] for name, hint in full.items()}
    return tuple((field.name, hints[field.name], limits[field.name]) for field in dataclasses.fields(cls))
