"""One canonical byte form for the protocol's messages: a frozen dataclass to bytes and strictly back."""

import dataclasses
import struct
from functools import cache
from typing import Any, ClassVar, Self, cast, get_type_hints

import numpy as np

from medx.aggregation.errors import ProtocolError, Reason

Ids = tuple[int, ...]
ByClient = dict[int, bytes]

_INTEGER = struct.Struct("<q")
_SIZE = struct.Struct("<I")


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
def _fields(cls: Any) -> tuple[tuple[str, Any], ...]:
    hints = get_type_hints(cls)
    return tuple((field.name, hints[field.name]) for field in dataclasses.fields(cls))


class Message:
    """Base of the messages. Fields are int, bytes, Ids, ByClient or a uint32 array; ``KIND`` tells types apart."""

    KIND: ClassVar[bytes]

    def to_bytes(self) -> bytes:
        """Four bytes of kind, then the fields in order; equal messages give equal bytes."""
        parts: list[bytes | memoryview] = [self.KIND]
        for name, _ in _fields(cast(Any, type(self))):
            parts += _pack(getattr(self, name))
        return b"".join(parts)

    @classmethod
    def from_bytes(cls, data: bytes | memoryview, sender: int | str) -> Self:
        """Read it back; anything but the exact form is a ProtocolError (malformed) that names ``sender``."""
        view, at = memoryview(data), 4
        values: dict[str, Any] = {}
        try:
            if view[:4] != cls.KIND:
                raise ValueError("another kind of message")
            for name, kind in _fields(cast(Any, cls)):
                values[name], at = _unpack(kind, view, at)
            if at != len(view):
                raise ValueError("bytes left over")
        except (ValueError, struct.error) as error:
            raise ProtocolError(Reason.MALFORMED, sender, f"{cls.__name__}: {error}") from None
        return cls(**values)
