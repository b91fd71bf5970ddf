"""Honest inputs, changed in a few places: bytes, messages of the protocol, tensors, and Flower's records."""

import dataclasses
import math
import random
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict

from medx.aggregation.wire import ByClient
from medx.federation.replies import Code

WHOLE = (0, 1, -1, 2, 255, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**62, 2**63 - 1, -(2**63), 10**9)
TEXTS = (
    "",
    "x",
    "-1",
    "nan",
    "\x00",
    "\x1b[2J",
    "é" * 50,
    "LedgerError: budget=1",
    "AbstainedError: x",
    "[" * 3000,
    "x" * 9999,
)
KINDS = ("float32", "float64", "int64", "object", "S99999999", "f4,f4", "O", "<f4", "", "complex64", "datetime64[ns]")


class Damage:
    """Draws of one generator: what an input is changed to."""

    def __init__(self, seed: str) -> None:
        self.random = random.Random(seed)

    def often(self, chance: float) -> bool:
        return self.random.random() < chance

    def one(self, choices: Any) -> Any:
        return self.random.choice(list(choices))

    def raw(self, most: int = 200) -> bytes:
        return self.random.randbytes(self.random.randrange(most))

    def data(self, old: bytes) -> bytes:
        """Other bytes: flipped, cut, longer, with numbers that mean something written over them, or none like them."""
        new = bytearray(old)
        for _ in range(self.random.choice((1, 1, 1, 2, 5))):
            at, how = self.random.randrange(len(new) + 1), self.random.randrange(7)
            if how == 0 and new:
                new[at % len(new)] ^= 1 << self.random.randrange(8)
            elif how == 1:
                del new[at:]
            elif how == 2:
                new[at:at] = self.raw(40)
            elif how in (3, 4):
                size = self.one((4, 8))
                at -= at % 4
                new[at : at + size] = (self.one(WHOLE) % 2 ** (8 * size)).to_bytes(size, "little")
            elif how == 5:
                new += new[at:]
            else:
                del new[at : at + self.random.randrange(40)]
        return bytes(new) if self.often(0.97) else self.raw()

    def message(self, message: Any) -> bytes:
        """A protocol's message with other values in one or two fields, or other bytes."""
        if self.often(0.4):
            return self.data(message.to_bytes())
        changes: dict[str, Any] = {}
        for field in self.random.sample(dataclasses.fields(message), min(2, len(dataclasses.fields(message)))):
            changes[field.name] = self.field(getattr(message, field.name))
        return bytes(dataclasses.replace(message, **changes).to_bytes())

    def field(self, old: Any) -> Any:
        """Another value of the same type."""
        if isinstance(old, int):
            return self.one(WHOLE)
        if isinstance(old, bytes):
            return self.one((b"", bytes(len(old)), b"\xff" * len(old), self.data(old), self.raw()))
        if isinstance(old, np.ndarray):
            return self.one((old[:-1], np.concatenate([old, old]), old + np.uint32(1), np.zeros(0, np.uint32)))
        if isinstance(old, tuple):
            ids = [*old, self.random.randrange(9), 2**32 - 1]
            return tuple(self.random.sample(ids, self.random.randrange(len(ids))))
        damaged: ByClient = {key: self.data(value) if self.often(0.3) else value for key, value in old.items()}
        for key in self.random.sample(sorted(damaged), min(len(damaged), self.random.randrange(3))):
            damaged[self.one((key + 1, 2**32 - 1, 77))] = damaged.pop(key)
        return damaged

    def value(self, old: Any = None) -> Any:
        """Anything that a record of settings can hold."""
        if isinstance(old, bytes) and self.often(0.7):
            return self.data(old)
        scalar = self.one((self.one(WHOLE), math.nan, math.inf, -0.5, 1e308, True, self.one(TEXTS), self.raw()))
        return [scalar] * self.random.randrange(4) if self.often(0.3) else scalar

    def array(self, old: Array) -> Array:
        """An array that lies about its type, shape, form or bytes."""
        parts = [old.dtype, tuple(old.shape), old.stype, old.data]
        which = self.random.randrange(4)
        shape = tuple(self.one(WHOLE) for _ in range(self.random.randrange(5))) if self.often(0.9) else (1,) * 99
        header = old.data.replace(b"'<f4'", self.one((b"'<f4'(", b"'O'", b"9**99", b"'<f8'")))
        infinite = old.data[:-4] + b"\x00\x00\x80\x7f"
        bits = self.one((header, self.data(old.data), infinite, old.data.replace(b"(", b"((", 1)))
        parts[which] = (self.one(KINDS), shape, self.one(TEXTS), bits)[which]
        return Array(*parts)

    def arrays(self, old: ArrayRecord) -> ArrayRecord:
        new = ArrayRecord()
        for name, array in old.items():
            if self.often(0.1):
                continue
            other = self.one(
                (name, name, name + "x", self.one(TEXTS), '{"a":[2]}', name.replace("[", "[-"), "[" * 9999)
            )
            new[other] = self.array(array) if self.often(0.7) else array
        return new

    def content(self, old: RecordDict) -> RecordDict:
        """A content with other, fewer or more records."""
        new = RecordDict()
        for name, record in old.items():
            if self.often(0.07):
                continue
            new[name if self.often(0.95) else self.one(TEXTS)] = self.record(record) if self.often(0.7) else record
        if self.often(0.1):
            new["more"] = self.one((ConfigRecord({"x": 1}), MetricRecord({"x": 1.0}), ArrayRecord()))
        return new

    def record(self, old: Any) -> Any:
        if self.often(0.05):
            return self.one((ConfigRecord(), MetricRecord(), ArrayRecord()))
        if isinstance(old, ArrayRecord):
            return self.arrays(old)
        values = dict(old)
        for key in self.random.sample(sorted(values), min(len(values), 1 + self.random.randrange(2))):
            if self.often(0.2):
                del values[key]
            else:
                values[key] = self.value(values[key])
        if isinstance(old, ConfigRecord):
            return ConfigRecord(values)
        numbers = {k: v for k, v in values.items() if isinstance(v, int | float) and not isinstance(v, bool)}
        lists = {k: v for k, v in values.items() if isinstance(v, list) and all(type(x) in (int, float) for x in v)}
        return MetricRecord(numbers | lists)

    def reply(self, old: Message) -> list[Message]:
        """What a liar sends in place of its answer."""
        how = self.random.randrange(10)
        if how == 0:
            return []
        if how == 1:
            code = self.one((*WHOLE, *Code, Code.ACCUSES + 1))
            return [answered(old, Error(code if code != Code.ABSTAINED else 0, self.one((None, *TEXTS))))]
        if how == 2:
            return [answered(old, self.content(old.content)), old]
        return [answered(old, self.content(old.content))]


def answered(old: Message, content: RecordDict | Error) -> Message:
    """The same reply with another content."""
    reply = Message(content, reply_to=Message(RecordDict(), 1, old.metadata.message_type))
    reply.metadata.__dict__["_src_node_id"] = old.metadata.src_node_id
    return reply
