"""Discrete Gaussian noise from a ChaCha20 stream, and what its sum is worth to the accountant.

The sampler is Karney (2016, algorithm D) for an integer standard deviation s, vectorised: k >= 0 is drawn with
probability proportional to exp(-k^2 / 2), j uniformly from [0, s), and ``+-(k s + j)`` is kept with probability
exp(-j (2 k s + j) / (2 s^2)), which leaves exactly exp(-x^2 / (2 s^2)) (Canonne, Kamath, Steinke 2020, definition 1).
Floating point only brackets each acceptance probability; the rare draw inside the bracket is decided with 256 bits
more from the stream and 100-digit arithmetic. So the output is within 2^-200 of the ideal in total variation for each
coordinate, given a uniform stream.
"""

import hashlib
import math
import os
from decimal import Context, Decimal
from functools import lru_cache

import numpy as np

from medx.aggregation.masks import keystream
from medx.schema import ConfigError

MAX_STDDEV = 2**28
CHUNK = 1 << 15
_MAX_K = 40
_EXTRA_BITS = 256
_BRACKET = 2.0**-44
_DECIMAL = Context(prec=100)


class NoiseStream:
    """Uniform words from ChaCha20 under one key of 32 bytes; never rewound."""

    def __init__(self, key: bytes) -> None:
        self._stream = keystream(key)

    @classmethod
    def from_system(cls) -> "NoiseStream":
        """A stream keyed by the operating system: noise that nobody can make again."""
        return cls(os.urandom(32))

    @classmethod
    def from_seed(cls, seed: int) -> "NoiseStream":
        """A reproducible stream, for studies only: who knows ``seed`` can take the noise off again."""
        return cls(hashlib.sha256(b"medx integer noise\x00" + seed.to_bytes(16, "big")).digest())

    def words(self, count: int, dtype: str) -> np.ndarray:
        """``count`` uniform little-endian integers of ``dtype``, "<u4" or "<u8"."""
        return np.frombuffer(self._stream.update(bytes(count * np.dtype(dtype).itemsize)), dtype)

    def integer(self, bits: int) -> int:
        """One uniform integer below ``2 ** bits`` (a multiple of 8)."""
        return int.from_bytes(self._stream.update(bytes(bits // 8)), "little")


def discrete_gaussian(stream: NoiseStream, stddev: int, count: int) -> np.ndarray:
    """``int64 [count]`` independent discrete Gaussians with parameter ``stddev`` (an integer in 1..2^28, grid units).

    The variance is ``stddev ** 2`` up to a relative 1e-6 from stddev 1 on, and below it, never above.
    """
    if not 1 <= stddev <= MAX_STDDEV:
        raise ConfigError(f"noise of {stddev} grid units; accepted: an integer from 1 to 2^28 (change the scale)")
    noise = np.empty(count, np.int64)
    filled = 0
    while filled < count:
        missing = count - filled
        accepted = _candidates(stream, stddev, min(CHUNK, int(1.45 * missing) + 32))[:missing]
        noise[filled : filled + accepted.size] = accepted
        filled += accepted.size
    return noise


def add_discrete_gaussian(words: np.ndarray, stream: NoiseStream, stddev: int) -> None:
    """Add discrete Gaussian noise to ``uint32 [d]`` ring words in place, modulo 2^32."""
    for start in range(0, words.size, CHUNK):
        block = words[start : start + CHUNK]
        block += discrete_gaussian(stream, stddev, block.size).astype(np.uint32)


def _candidates(stream: NoiseStream, stddev: int, count: int) -> np.ndarray:
    """Draw ``count`` candidates and return the accepted ones."""
    k = _draw_k(stream, count)
    product = stream.words(count, "<u4").astype(np.uint64) * np.uint64(stddev)
    j = (product >> np.uint64(32)).astype(np.int64)
    # Lemire (2019): without these rejections j would not be exactly uniform.
    uniform = (product & np.uint64(0xFFFFFFFF)) >= np.uint64(2**32 % stddev)
    bits = stream.words(count, "<u8")
    numerator = j * (2 * k * stddev + j)
    accepted = bernoulli_exp(stream, bits >> np.uint64(1), numerator, 2 * stddev * stddev)
    value = k * stddev + j
    negative = (bits & np.uint64(1)).astype(bool)
    # Zero has one representation, so that it is not drawn twice as often.
    keep = uniform & accepted & ~(negative & (value == 0))
    signed: np.ndarray = np.where(negative, -value, value)
    return signed[keep]


def bernoulli_exp(stream: NoiseStream, bits: np.ndarray, numerator: np.ndarray, denominator: int) -> np.ndarray:
    """True with probability ``exp(-numerator / denominator)``, from 63 uniform bits each; exact (see the module)."""
    uniform = bits.astype(np.float64) * 2.0**-63
    probability = np.exp(numerator / -float(denominator))
    accepted = uniform < probability
    # Relative errors of exp (4 ulp), of its argument (below 41 here) and of the conversions stay under 2^-45.
    near = np.flatnonzero(np.abs(uniform - probability) <= probability * _BRACKET + 2.0**-62)
    for index in near:
        exponent = _DECIMAL.divide(Decimal(-int(numerator[index])), Decimal(denominator))
        accepted[index] = _below(stream, int(bits[index]), 63, _DECIMAL.exp(exponent))
    return accepted


def _below(stream: NoiseStream, head: int, head_bits: int, threshold: Decimal) -> bool:
    """Whether the uniform number that begins with ``head`` is below ``threshold``, with 256 further bits."""
    total = (head << _EXTRA_BITS) | stream.integer(_EXTRA_BITS)
    scaled = _DECIMAL.multiply(threshold, Decimal(2 ** (head_bits + _EXTRA_BITS)))
    return Decimal(total) < scaled


@lru_cache(maxsize=1)
def _k_table() -> tuple[tuple[Decimal, ...], np.ndarray]:
    """Cumulative probabilities of k = 0..40 under weights exp(-k^2 / 2), exactly and times 2^64, rounded down."""
    weights = [_DECIMAL.exp(Decimal(-k * k) / 2) for k in range(_MAX_K + 1)]
    total = sum(weights, Decimal(0))
    cumulative: list[Decimal] = []
    for weight in weights:
        share = _DECIMAL.divide(weight, total)
        cumulative.append(_DECIMAL.add(cumulative[-1], share) if cumulative else share)
    words = [min(int(_DECIMAL.multiply(c, Decimal(2**64))), 2**64 - 1) for c in cumulative]
    return tuple(cumulative), np.array(words, np.uint64)


def _draw_k(stream: NoiseStream, count: int) -> np.ndarray:
    """``int64 [count]`` draws of k by inversion; a word on a boundary is decided with further bits."""
    exact, table = _k_table()
    bits = stream.words(count, "<u8")
    k = np.searchsorted(table, bits, side="left").astype(np.int64)
    # Equal to a boundary word: the first 64 bits do not decide. Tail words, equal to 2^64 - 1, are among them.
    for index in np.flatnonzero(table[np.minimum(k, _MAX_K)] == bits):
        total = (int(bits[index]) << _EXTRA_BITS) | stream.integer(_EXTRA_BITS)
        point = _DECIMAL.divide(Decimal(total), Decimal(2 ** (64 + _EXTRA_BITS)))
        k[index] = next((value for value, edge in enumerate(exact) if point < edge), _MAX_K)
    return k


def grid_sensitivity(scale: float, clip_norm: float, dimension: int) -> float:
    """l2 sensitivity in grid units after rounding to the nearest: ``scale * clip_norm + sqrt(dimension)``.

    Each of two neighbouring vectors is moved by at most 1/2 a coordinate, so their difference by at most 1.
    """
    return scale * clip_norm + math.sqrt(dimension)


def client_noise_stddev(
    noise_multiplier: float, clip_norm: float, scale: float, dimension: int, contributors: int
) -> int:
    """One client's noise in grid units: the sensitivity times sigma over sqrt(contributors), rounded up.

    ``contributors`` is h = minimum survivors - assumed colluders, so that any h shares already sum to the planned
    ``noise_multiplier * grid_sensitivity``.
    """
    return math.ceil(noise_multiplier * grid_sensitivity(scale, clip_norm, dimension) / math.sqrt(contributors))


def sum_divergence(stddev: float, contributors: int) -> float:
    """Bound on the log-ratio, a coordinate, of a sum of discrete Gaussians and one of the summed variance.

    tau = 10 * sum_{k=1}^{h-1} exp(-2 pi^2 stddev^2 k / (k + 1)) (Kairouz, Liu, Steinke 2021, theorem 1 and lemma).
    """
    return 10 * sum(math.exp(-2 * (math.pi * stddev) ** 2 * k / (k + 1)) for k in range(1, contributors))


def accounting_gap(stddev: int, contributors: int, dimension: int, num_rounds: int, tail: float = 1e-30) -> float:
    """Bound on how much epsilon grows over the run because the noise is a sum of discrete Gaussians.

    Accounted is a continuous Gaussian of the same variance v = h stddev^2. Chain: the sum is within tau a coordinate
    of a discrete Gaussian (``sum_divergence``); that is within (1 + x_i^2 / v) / (8 v) a coordinate of the rounded
    continuous one (cosh(y) <= exp(y^2 / 2) under the rounding integral); and rounding a sum of integers and a
    Gaussian is post-processing. sum x_i^2 / v exceeds d + 2 sqrt(d t) + 2 t with probability below exp(-t) = ``tail``
    (Laurent, Massart 2000), which adds to delta. Both neighbours count, hence twice; rounds add up.
    """
    t = -math.log(tail)
    variance = contributors * float(stddev) ** 2
    squares = dimension + 2 * math.sqrt(dimension * t) + 2 * t
    rounding = (dimension + squares) / (8 * variance) + dimension * 3 * math.exp(-2 * math.pi**2 * variance)
    return 2 * num_rounds * (dimension * sum_divergence(stddev, contributors) + rounding)
