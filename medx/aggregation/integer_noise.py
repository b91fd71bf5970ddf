"""Discrete Gaussian noise from a ChaCha20 stream, and what its sum is worth to the accountant.

The sampler is by rejection from a histogram (Devroye 1986, chapter VIII; Karney 2016, algorithm D, has blocks of a
whole standard deviation). The integers are cut into blocks of w = 2^b. A block is drawn with probability proportional
to the largest weight exp(-m^2 / (2 s^2)) in it, j uniformly from [0, w), and x = start + j is kept with probability
exp(-(x^2 - m^2) / (2 s^2)), which leaves exactly exp(-x^2 / (2 s^2)) (Canonne, Kamath, Steinke 2020, definition 1). One
word of 64 bits settles nearly every draw: its first bits the block where no boundary of blocks lies in their cell, its
last j, those between them the keeping where they are below the least keeping probability of the block. All other draws
are decided with further bits of the stream, floating point only bracketing a probability; the rare one inside the
bracket is decided with 256 bits more and 100-digit arithmetic. So the output is within 2^-200 of the ideal in total
variation for each coordinate, given a uniform stream: the tail beyond twenty standard deviations, left out, weighs
2^-288.
"""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Context, Decimal
from functools import lru_cache
from itertools import accumulate

import numpy as np

from medx.aggregation.ring import keystream
from medx.schema import ConfigError

MAX_STDDEV = 2**28
CHUNK = 1 << 15
_CELL_BITS = 15
_BLOCK_BITS = 5  # a standard deviation is 32 to 64 blocks, or as many as it has integers
_REACH = 20  # standard deviations that blocks cover
_EXTRA_BITS = 256
_BRACKET = 2.0**-44
_DECIMAL = Context(prec=100)
_ZEROS = memoryview(bytes(8 * CHUNK))


class NoiseStream:
    """Uniform words from ChaCha20 under one key of 32 bytes; never rewound, and its key is not kept.

    ``heard`` is told of the noise that was made of them and added, with the standard deviation that it was to have.
    """

    def __init__(self, key: bytes, heard: Callable[[np.ndarray, float], None] | None = None) -> None:
        self._stream = keystream(key)
        self._heard = heard

    def tell(self, noise: np.ndarray, stddev: float) -> None:
        """Whoever adds noise tells of it here."""
        if self._heard is not None:
            self._heard(noise, stddev)

    @classmethod
    def from_system(cls) -> "NoiseStream":
        """A stream keyed by the operating system: noise that nobody can make again."""
        return cls(os.urandom(32))

    def words(self, count: int, dtype: str) -> np.ndarray:
        """``count`` uniform little-endian integers of ``dtype``, "<u4" or "<u8"; the caller's own."""
        words = np.empty(count, dtype)
        target = words.data.cast("B")
        for start in range(0, words.nbytes, len(_ZEROS)):
            piece = target[start : start + len(_ZEROS)]
            self._stream.update_into(_ZEROS[: len(piece)], piece)
        return words

    def integer(self, bits: int) -> int:
        """One uniform integer below ``2 ** bits`` (a multiple of 8)."""
        return int.from_bytes(self._stream.update(bytes(bits // 8)), "little")


@dataclass(frozen=True)
class _Blocks:
    """The blocks of one standard deviation. ``starts`` is the first integer of each, in rising order.

    ``exact`` are their cumulative probabilities, ``cumulative`` the same times 2^64, rounded down. By cell, which is
    the first bits of a word: ``cell_start``, and ``cell_sure``, below which a word surely keeps the draw; the first
    word of the cell where a boundary lies in it.
    """

    width_bits: int
    starts: np.ndarray
    exact: tuple[Decimal, ...] = field(repr=False)
    cumulative: np.ndarray = field(repr=False)
    cell_start: np.ndarray = field(repr=False)
    cell_sure: np.ndarray = field(repr=False)


def discrete_gaussian(stream: NoiseStream, stddev: int, count: int) -> np.ndarray:
    """``int64 [count]`` independent discrete Gaussians with parameter ``stddev`` (an integer in 1..2^28, grid units).

    The variance is ``stddev ** 2`` up to a relative 1e-6 from stddev 1 on, and below it, never above.
    """
    if not 1 <= stddev <= MAX_STDDEV:
        raise ConfigError(f"noise of {stddev} grid units; accepted: an integer from 1 to 2^28 (change the scale)")
    noise = np.empty(count, np.int64)
    if count == 0:
        return noise
    _fill(stream, stddev, noise)
    return noise


def add_discrete_gaussian(words: np.ndarray, stream: NoiseStream, stddev: int) -> None:
    """Add discrete Gaussian noise to ``uint32 [d]`` ring words in place, modulo 2^32."""
    for start in range(0, words.size, CHUNK):
        block = words[start : start + CHUNK]
        noise = discrete_gaussian(stream, stddev, block.size)
        block += noise.astype(np.uint32)
        if start == 0:
            stream.tell(noise, stddev)


def _fill(stream: NoiseStream, stddev: int, out: np.ndarray) -> None:
    """Fill ``out``, ``int64 [n]``; a draw that is not kept is drawn anew in its place."""
    blocks = _blocks(stddev)
    unsettled = [_draw(stream, blocks, out[start : start + CHUNK], start) for start in range(0, out.size, CHUNK)]
    places, cells, rests = (np.concatenate(parts) for parts in zip(*unsettled, strict=True))
    if places.size == 0:
        return
    out[places], kept = _settle(stream, stddev, blocks, cells, rests)
    again = places[~kept]
    if again.size:
        anew = np.empty(again.size, np.int64)
        _fill(stream, stddev, anew)
        out[again] = anew


def _draw(stream: NoiseStream, blocks: _Blocks, out: np.ndarray, offset: int) -> tuple[np.ndarray, ...]:
    """Fill ``out`` by one word each; gives what that does not settle.

    These are places (counted from ``offset``), cells, and rests of words.
    """
    words = stream.words(out.size, "<u8")
    cells = (words >> np.uint64(64 - _CELL_BITS)).view(np.int64)
    places = np.flatnonzero(words >= blocks.cell_sure.take(cells, mode="clip"))
    unsettled = places + offset, cells[places], words[places] & np.uint64(2 ** (64 - _CELL_BITS) - 1)
    words &= np.uint64(2**blocks.width_bits - 1)
    np.add(blocks.cell_start.take(cells, mode="clip"), words.view(np.int64), out=out)
    return unsettled


def _settle(
    stream: NoiseStream, stddev: int, blocks: _Blocks, cells: np.ndarray, rests: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The values of draws with these cells and rests of words, and whether each is kept, with further bits."""
    width, head_bits = 2**blocks.width_bits, 64 - _CELL_BITS - blocks.width_bits
    start = blocks.starts[_draw_block(stream, blocks, cells)]
    value = start + (rests & np.uint64(width - 1)).view(np.int64)
    largest = np.where(start < 0, start + (width - 1), start)
    heads = rests >> np.uint64(blocks.width_bits)
    bits = heads << np.uint64(63 - head_bits) | stream.words(heads.size, "<u8") >> np.uint64(1 + head_bits)
    numerator = (np.abs(value) - np.abs(largest)) * (np.abs(value) + np.abs(largest))
    return value, bernoulli_exp(stream, bits, numerator, 2 * stddev * stddev)


def _draw_block(stream: NoiseStream, blocks: _Blocks, cells: np.ndarray) -> np.ndarray:
    """``int64``: a block for each of these cells, by inversion with further bits."""
    bits = cells.astype(np.uint64) << np.uint64(64 - _CELL_BITS) | stream.words(cells.size, "<u8") >> np.uint64(
        _CELL_BITS
    )
    last = len(blocks.exact) - 1
    chosen = np.minimum(np.searchsorted(blocks.cumulative, bits, side="left"), last)
    # Equal to a boundary word: the first 64 bits do not decide. Words of the tail, equal to 2^64 - 1, are among them.
    for index in np.flatnonzero(blocks.cumulative[chosen] == bits):
        total = (int(bits[index]) << _EXTRA_BITS) | stream.integer(_EXTRA_BITS)
        point = _DECIMAL.divide(Decimal(total), Decimal(2 ** (64 + _EXTRA_BITS)))
        chosen[index] = next((place for place, edge in enumerate(blocks.exact) if point < edge), last)
    return chosen


def bernoulli_exp(stream: NoiseStream, bits: np.ndarray, numerator: np.ndarray, denominator: int) -> np.ndarray:
    """True with probability ``exp(-numerator / denominator)``, from 63 uniform bits each; exact (see the module)."""
    uniform = bits.astype(np.float64) * 2.0**-63
    probability = np.exp(numerator / -float(denominator))
    accepted = uniform < probability
    # Relative errors of exp (4 ulp), of its argument (below 1 here) and of the conversions stay under 2^-45.
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


@lru_cache(maxsize=256)
def _blocks(stddev: int) -> _Blocks:
    """The blocks for this standard deviation: some milliseconds of 100-digit arithmetic, once a process."""
    width_bits = max(0, stddev.bit_length() - 1 - _BLOCK_BITS)
    width, count = 2**width_bits, math.ceil(_REACH * stddev / 2**width_bits)
    starts = np.arange(-count, count, dtype=np.int64) * width
    exact = _cumulative(stddev, width, count)
    whole = Decimal(2**64)
    cumulative = np.array([min(int(_DECIMAL.multiply(edge, whole)), 2**64 - 1) for edge in exact], np.uint64)
    # The words of a cell lie in one block where no boundary is among them, its first and last included.
    low = np.arange(2**_CELL_BITS, dtype=np.uint64) << np.uint64(64 - _CELL_BITS)
    high = low | np.uint64(2 ** (64 - _CELL_BITS) - 1)
    block = np.searchsorted(cumulative, low, side="left")
    settled = block == np.searchsorted(cumulative, high, side="right")
    block = np.minimum(block, len(starts) - 1)
    heads = np.where(settled, _surely_kept(stddev, starts, width)[block], np.uint64(0))
    # The last cell holds the boundaries of the tail, so that this never reaches 2^64.
    return _Blocks(width_bits, starts, exact, cumulative, starts[block], low + (heads << np.uint64(width_bits)))


def _cumulative(stddev: int, width: int, count: int) -> tuple[Decimal, ...]:
    """Cumulative probabilities of blocks -count to count - 1, by their largest weights.

    Block k >= 0 has exp(-(k w)^2 / (2 s^2)), block -(k + 1) has exp(-(k w + 1)^2 / (2 s^2)); each is a product of the
    one before and powers, whose rounding stays below 1e-90.
    """
    times = _DECIMAL.multiply

    def power(numerator: int) -> Decimal:
        return _DECIMAL.exp(_DECIMAL.divide(Decimal(-numerator), Decimal(2 * stddev * stddev)))

    growth, square, shift = power(width * width), power(2 * width * width), power(2 * width)
    upper, lower = [Decimal(1)], [power(1)]
    ratio, moved = growth, power(1)
    for _ in range(count - 1):
        upper.append(times(upper[-1], ratio))
        moved = times(moved, shift)
        lower.append(times(upper[-1], moved))
        ratio = times(ratio, square)
    weights = [*reversed(lower), *upper]
    # Not by sum() or +, which round to the 28 digits of Python's own context.
    totals = list(accumulate(weights, _DECIMAL.add))
    share = _DECIMAL.divide(Decimal(1), totals[-1])
    return tuple(times(total, share) for total in totals)


def _surely_kept(stddev: int, starts: np.ndarray, width: int) -> np.ndarray:
    """By block, how many heads of a word's rest are below its least keeping probability, ``uint64``; all at width 1."""
    heads = 2 ** (64 - _CELL_BITS) // width
    if width == 1:
        return np.full(len(starts), heads, np.uint64)
    ends = starts + (width - 1)
    nearest, farthest = (
        np.where(starts < 0, one, other).astype(np.float64) for one, other in ((ends, starts), (starts, ends))
    )
    least = np.exp((nearest**2 - farthest**2) / (2.0 * stddev**2)) - 2.0**-30  # far below: rounding is of no account
    kept: np.ndarray = np.floor(heads * np.maximum(least, 0)).astype(np.uint64)
    return kept


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
