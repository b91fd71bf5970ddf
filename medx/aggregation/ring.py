"""Words modulo 2^32: real vectors to words and back, with the ring bound proved beforehand, and masks over words.

Masks are ChaCha20 keystreams under keys that belong to one pair of participants in one attempt.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms

from medx.schema import ConfigError, MedxError

HALF_RING = 2**31
NOISE_TAIL = 8
BLOCK = 1 << 15
_NONCE = bytes(16)


class EncodingError(MedxError):
    """A vector that cannot be put on the grid."""


def ring_load(scale: float, num_clients: int, bound: float, total_noise: float) -> float:
    """Largest magnitude the sum can reach, in grid units: ``scale * num_clients * bound + 8 * total_noise``.

    ``bound`` is the public bound A on one client's coordinate (in units of the update); ``total_noise`` is the
    standard deviation of the noise in the sum over all clients, in grid units. Noise beyond eight standard
    deviations has probability 1.2e-15 a coordinate, and wrapping then costs utility, never privacy.
    """
    return scale * num_clients * bound + NOISE_TAIL * total_noise


def check_ring_bound(scale: float, num_clients: int, bound: float, total_noise: float) -> None:
    """Refuse, with ConfigError, a run whose sum could wrap around modulo 2^32 (see ``ring_load`` for units)."""
    load = ring_load(scale, num_clients, bound, total_noise)
    if not (scale > 0 and math.isfinite(load) and load < HALF_RING):
        raise ConfigError(
            f"aggregation.scale = {scale:g}: scale * {num_clients} clients * bound {bound:g} + {NOISE_TAIL} * noise "
            f"{total_noise:g} = {load:.4g}; accepted: a scale > 0 with which this stays below 2^31 = {HALF_RING}"
        )


def largest_scale(num_clients: int, bound: float, total_noise: float) -> float:
    """The largest power of two that satisfies the ring bound; ``total_noise`` here in units of the update."""
    load = num_clients * bound + NOISE_TAIL * total_noise
    if not (math.isfinite(load) and load > 0):
        raise ConfigError(f"aggregation.scale: per-coordinate bound {bound:g} and noise {total_noise:g} give no scale")
    exponent = math.floor(math.log2(HALF_RING / load))
    return 2.0 ** (exponent - 1 if load * 2.0**exponent >= HALF_RING else exponent)


def encode(values: np.ndarray, scale: float, bound: float) -> tuple[np.ndarray, int]:
    """Round ``values [d]`` to the nearest multiple of ``1 / scale`` as ``uint32 [d]`` (two's complement).

    Deterministic (ties to even). Coordinates beyond ``bound`` saturate; their number is the second result.
    Raises EncodingError on NaN or infinity: such a client abstains.
    """
    flat = np.ascontiguousarray(values).reshape(-1)
    words = np.empty(flat.size, np.int32)
    limit = math.floor(scale * bound)
    saturated = 0
    for start in range(0, flat.size, BLOCK):
        block = np.multiply(flat[start : start + BLOCK], scale, dtype=np.float64)
        np.rint(block, out=block)
        low, high = block.min(), block.max()
        if not (math.isfinite(low) and math.isfinite(high)):
            raise EncodingError("update: a coordinate is NaN or infinite; accepted: finite values")
        if low < -limit or high > limit:
            saturated += int(np.count_nonzero(np.abs(block) > limit))
            np.clip(block, -limit, limit, out=block)
        words[start : start + BLOCK] = block
    return words.view(np.uint32), saturated


def decode(total: np.ndarray, scale: float) -> np.ndarray:
    """The sum as ``float64 [d]`` in units of the update, from ``uint32 [d]`` words."""
    return total.view(np.int32) / scale


@dataclass(frozen=True)
class ScalarField:
    """A named number that travels behind the vector, e.g. a weight or a metric, with its own scale and bound."""

    name: str
    scale: float
    bound: float


@dataclass(frozen=True)
class Layout:
    """A masked vector: ``dimension`` coordinates of one scale and bound, then one word for each scalar field.

    A weighted average is the decoded sum of weighted updates over the decoded sum of a weight field.
    """

    dimension: int
    scale: float
    bound: float
    fields: tuple[ScalarField, ...] = ()

    @property
    def size(self) -> int:
        """Words in all, ``dimension`` plus one a field."""
        return self.dimension + len(self.fields)

    def check(self, num_clients: int, total_noise: float) -> None:
        """Prove the ring bound for every part; ``total_noise`` (grid units) is on every word."""
        for scale, bound in [(self.scale, self.bound), *((field.scale, field.bound) for field in self.fields)]:
            check_ring_bound(scale, num_clients, bound, total_noise)

    def encode(self, vector: np.ndarray, scalars: Mapping[str, float]) -> tuple[np.ndarray, int]:
        """Words ``uint32 [size]`` and how many coordinates saturated; every field must be given, and no other."""
        names = [field.name for field in self.fields]
        if vector.size != self.dimension or set(scalars) != set(names):
            raise EncodingError(
                f"update of {vector.size} coordinates with fields {sorted(scalars)}; "
                f"accepted: {self.dimension} coordinates with fields {sorted(names)}"
            )
        parts = [encode(vector, self.scale, self.bound)]
        parts += [encode(np.array([scalars[f.name]]), f.scale, f.bound) for f in self.fields]
        return np.concatenate([words for words, _ in parts]), sum(count for _, count in parts)

    def decode(self, total: np.ndarray) -> tuple[np.ndarray, dict[str, float]]:
        """The summed vector ``float64 [dimension]`` and the summed fields."""
        tail = total[self.dimension :]
        scalars = {f.name: float(decode(tail[i : i + 1], f.scale)[0]) for i, f in enumerate(self.fields)}
        return decode(total[: self.dimension], self.scale), scalars


def keystream(key: bytes) -> CipherContext:
    """ChaCha20 (RFC 8439) from block 0 with a zero nonce: sound because every key is used once."""
    return Cipher(algorithms.ChaCha20(key, _NONCE), mode=None).encryptor()


def is_positive(client: int, peer: int) -> bool:
    """Whether ``client`` adds (else subtracts) the mask that it shares with ``peer``: the smaller number adds."""
    return client < peer


def apply_masks(words: np.ndarray, added: Iterable[bytes], subtracted: Iterable[bytes]) -> None:
    """Add and subtract keystreams to ``uint32 [d]`` words in place, block by block so that all stays in cache."""
    streams: list[tuple[CipherContext, np.ufunc]] = [(keystream(key), np.add) for key in added]
    streams += [(keystream(key), np.subtract) for key in subtracted]
    width = min(BLOCK, words.size)
    zeros = memoryview(bytes(4 * width))
    buffer = np.empty(width, np.dtype("<u4"))
    target = buffer.data.cast("B")
    for start in range(0, words.size, max(width, 1)):
        block = words[start : start + width]
        length = 4 * block.size
        for stream, operation in streams:
            stream.update_into(zeros[:length], target[:length])
            operation(block, buffer[: block.size], out=block)
