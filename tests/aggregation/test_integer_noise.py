import math
from decimal import Decimal
from itertools import pairwise

import numpy as np
import pytest
from scipy import stats

from medx.aggregation import integer_noise
from medx.aggregation.integer_noise import (
    NoiseStream,
    accounting_gap,
    add_discrete_gaussian,
    bernoulli_exp,
    client_noise_stddev,
    discrete_gaussian,
    grid_sensitivity,
    sum_divergence,
)
from medx.randomness import derive_key
from medx.schema import ConfigError


def stream_of(number: int) -> NoiseStream:
    return NoiseStream(derive_key(number))


def pmf(stddev: float, reach: int) -> np.ndarray:
    x = np.arange(-reach, reach + 1)
    weights = np.exp(-(x**2) / (2 * stddev**2))
    return weights / weights.sum()


def variance_is(noise: np.ndarray, stddev: float) -> bool:
    """Two-sided chi-square test of the variance at 1e-6."""
    statistic = float((noise.astype(np.float64) ** 2).sum()) / stddev**2
    return 5e-7 < stats.chi2.cdf(statistic, noise.size) < 1 - 5e-7


@pytest.mark.parametrize("stddev", [1000, 3_456_789])
def test_variance_accepts_sigma_and_rejects_two_thirds_and_three_halves(stddev: int) -> None:
    noise = discrete_gaussian(stream_of(stddev), stddev, 200_000)
    assert variance_is(noise, stddev)
    assert not variance_is(noise, stddev * 2 / 3)
    assert not variance_is(noise, stddev * 3 / 2)
    assert stats.kstest(noise / stddev, "norm").pvalue > 1e-4
    assert abs(np.corrcoef(noise[1:], noise[:-1])[0, 1]) < 0.012


def chi_square_p(noise: np.ndarray, stddev: int, reach: int) -> float:
    expected = pmf(stddev, 60 * stddev)[60 * stddev - reach : 60 * stddev + reach + 1]
    counts = np.bincount(np.clip(noise, -reach - 1, reach + 1) + reach + 1, minlength=2 * reach + 3)
    tail = (1 - expected.sum()) / 2
    return float(stats.chisquare(counts, np.concatenate([[tail], expected, [tail]]) * noise.size).pvalue)


@pytest.mark.parametrize(("stddev", "reach"), [(1, 4), (2, 8)])
def test_distribution_is_the_discrete_gaussian(stddev: int, reach: int) -> None:
    noise = discrete_gaussian(stream_of(11), stddev, 1_000_000)
    assert chi_square_p(noise, stddev, reach) > 1e-4
    rounded = np.rint(np.random.default_rng(0).normal(0, stddev, 1_000_000)).astype(np.int64)
    assert chi_square_p(rounded, stddev, reach) < 1e-4


def test_the_exact_path_decides_like_the_fast_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a bracket of one half most draws take 100-digit arithmetic; the distribution must not change."""
    monkeypatch.setattr(integer_noise, "_BRACKET", 0.5)
    noise = discrete_gaussian(stream_of(5), 2, 20_000)
    assert chi_square_p(noise, 2, 7) > 1e-4


def test_bernoulli_exp_at_the_boundary() -> None:
    stream = stream_of(1)
    edge = int(Decimal(-1).exp(integer_noise._DECIMAL) * 2**63)
    bits = np.array([edge - 1, edge + 1] + [edge] * 400, np.uint64)
    drawn = bernoulli_exp(stream, bits, np.full(bits.size, 3, np.int64), 3)
    assert drawn[0]
    assert not drawn[1]
    share = float(Decimal(-1).exp(integer_noise._DECIMAL) * 2**63 % 1)
    assert abs(drawn[2:].mean() - share) < 5 * math.sqrt(share * (1 - share) / 400)


def test_a_word_on_a_boundary_is_decided_by_further_bits() -> None:
    blocks = integer_noise._blocks(1)
    place = int(np.searchsorted(blocks.starts, 0))
    edge = int(blocks.cumulative[place])

    class Fixed(NoiseStream):
        def words(self, count: int, dtype: str) -> np.ndarray:
            return np.full(count, (edge << integer_noise._CELL_BITS) % 2**64, np.uint64)

    cell = np.full(500, edge >> (64 - integer_noise._CELL_BITS))
    chosen = integer_noise._draw_block(Fixed(b"k" * 32), blocks, cell)
    share = float(blocks.exact[place] * 2**64 % 1)
    assert set(chosen.tolist()) == {place, place + 1}
    assert abs((chosen == place).mean() - share) < 5 * math.sqrt(share * (1 - share) / 500)


@pytest.mark.parametrize("stddev", [1, 33, 100, 2**20 + 1, 2**28])
def test_blocks_are_those_of_the_definition(stddev: int) -> None:
    """Probabilities against direct 100-digit exponentials; every word of a settled cell against a search."""
    blocks = integer_noise._blocks(stddev)
    width = 2**blocks.width_bits
    largest = [int(start) + width - 1 if start < 0 else int(start) for start in blocks.starts]
    weights = [(Decimal(-x * x) / (2 * stddev**2)).exp(integer_noise._DECIMAL) for x in largest]
    share = 1 / sum(weights)
    edges = [Decimal(0), *blocks.exact]
    gaps = [float(integer_noise._DECIMAL.subtract(high, low)) for low, high in pairwise(edges)]
    np.testing.assert_allclose(gaps, [float(weight * share) for weight in weights], rtol=1e-9)
    assert abs(integer_noise._DECIMAL.subtract(blocks.exact[-1], Decimal(1))) < Decimal("1e-90")
    first = np.arange(2**integer_noise._CELL_BITS, dtype=np.uint64) << np.uint64(64 - integer_noise._CELL_BITS)
    settled = np.flatnonzero(blocks.cell_sure - first)
    assert settled[-1] < first.size - 1  # the tail's boundaries lie in the last cell, so nothing wraps there
    assert settled.size > 0.9 * blocks.cell_sure.size
    for word in (0, 2 ** (64 - integer_noise._CELL_BITS) - 1):
        bits = (settled.astype(np.uint64) << np.uint64(64 - integer_noise._CELL_BITS)) | np.uint64(word)
        found = np.searchsorted(blocks.cumulative, bits, side="right")
        assert np.array_equal(blocks.starts[found], blocks.cell_start[settled])
    heads = (blocks.cell_sure - first)[settled] >> np.uint64(blocks.width_bits)
    start = blocks.cell_start[settled].astype(float)
    near, far = np.where(start < 0, (start + width - 1, start), (start, start + width - 1))
    least = np.exp((near**2 - far**2) / (2 * float(stddev) ** 2))
    possible = 2.0 ** (64 - integer_noise._CELL_BITS - blocks.width_bits)
    assert np.all(heads / possible <= least)  # what is surely kept is no more than what is kept
    assert np.all(heads / possible > least - 1e-6)


@pytest.mark.parametrize("stddev", [100, 5000])
def test_distribution_across_blocks_is_the_discrete_gaussian(stddev: int) -> None:
    noise = discrete_gaussian(stream_of(stddev), stddev, 2_000_000)
    expected = pmf(stddev, 8 * stddev)
    edges = np.append(np.arange(-3 * stddev, 3 * stddev, max(1, stddev // 40)), 3 * stddev)  # not the blocks' own
    counts = np.histogram(noise, edges)[0]
    shares = np.add.reduceat(expected, edges[:-1] + 8 * stddev)
    shares[-1] = expected[edges[-2] + 8 * stddev : edges[-1] + 8 * stddev + 1].sum()
    inside = counts.sum()
    assert stats.chisquare(counts, shares / shares.sum() * inside).pvalue > 1e-4
    wider = np.rint(noise * 1.01)
    counts = np.histogram(wider, edges)[0]
    assert stats.chisquare(counts, shares / shares.sum() * counts.sum()).pvalue < 1e-4


def test_streams_are_reproducible_or_not() -> None:
    first, again = (discrete_gaussian(stream_of(3), 1000, 70_000) for _ in range(2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, discrete_gaussian(stream_of(4), 1000, 70_000))
    one, two = (discrete_gaussian(NoiseStream.from_system(), 1000, 50) for _ in range(2))
    assert not np.array_equal(one, two)
    words = np.full(1000, 2**32 - 1, np.uint32)
    add_discrete_gaussian(words, stream_of(9), 500)
    expected = discrete_gaussian(stream_of(9), 500, 1000) - 1
    assert np.array_equal(words.view(np.int32), expected)


@pytest.mark.parametrize("stddev", [0, -1, 2**28 + 1])
def test_noise_off_the_range_is_refused(stddev: int) -> None:
    with pytest.raises(ConfigError, match="grid units"):
        discrete_gaussian(stream_of(0), stddev, 1)


def test_sensitivity_after_rounding_covers_neighbours() -> None:
    generator = np.random.default_rng(2)
    scale, clip, dimension = 3.0, 1.0, 400
    worst = 0.0
    for _ in range(300):
        vector = generator.normal(size=dimension)
        step = generator.normal(size=dimension)
        step *= clip / np.linalg.norm(step)
        change = np.rint(scale * (vector + step)) - np.rint(scale * vector)
        worst = max(worst, float(np.linalg.norm(change)))
    assert scale * clip < worst <= grid_sensitivity(scale, clip, dimension) == 23.0


def test_planned_noise_after_every_allowed_drop_out() -> None:
    """h shares sum to at least the planned noise, and one share fewer would not."""
    scale, clip, dimension, sigma = 2.0**16, 0.1, 1001, 8.66
    planned = sigma * grid_sensitivity(scale, clip, dimension)
    for h in (1, 3, 4, 10):
        stddev = client_noise_stddev(sigma, clip, scale, dimension, h)
        assert stddev * math.sqrt(h) >= planned
        assert (stddev - 1) * math.sqrt(h) < planned
    stddev = client_noise_stddev(sigma, clip, scale, dimension, 3)
    streams = [stream_of(i) for i in range(5)]
    for survivors in (3, 4, 5):
        total = sum(discrete_gaussian(s, stddev, 100_000) for s in streams[:survivors])
        assert variance_is(total, planned * math.sqrt(survivors / 3))
        assert not variance_is(total, planned * math.sqrt(survivors / 3) * 1.02)


def convolved(stddev: float, times: int, reach: int) -> np.ndarray:
    result = single = pmf(stddev, reach)
    for _ in range(times - 1):
        result = np.convolve(result, single)
    return result


@pytest.mark.parametrize("stddev", [0.5, 0.6, 0.8, 1.0])
def test_sum_divergence_bounds_the_true_one_and_vanishes(stddev: float) -> None:
    for times in (2, 3, 5):
        total = convolved(stddev, times, 12)
        reach = (total.size - 1) // 2
        ideal = pmf(stddev * math.sqrt(times), reach)
        inner = slice(reach - 4, reach + 5)
        true = np.abs(np.log(total[inner] / ideal[inner])).max()
        assert true <= sum_divergence(stddev, times) + 1e-12
        assert stddev > 0.8 or true > sum_divergence(stddev, times) * 1e-2
    assert sum_divergence(1e3, 100) == 0.0


def test_accounting_gap_is_negligible_at_our_scales_and_bounds_delta() -> None:
    assert accounting_gap(10**6, 3, 1001, 300) < 1e-6
    assert accounting_gap(10**6, 5, 11_000_000, 300) < 1e-3
    assert accounting_gap(1000, 3, 1001, 300) > 0.01
    stddev, times, q, shift = 12, 3, 0.2, 21
    noise = convolved(stddev, times, 12 * stddev)
    support = np.arange(noise.size) - noise.size // 2
    with_record = np.zeros(noise.size + shift)
    with_record[shift:] = noise
    without = np.append(noise, np.zeros(shift))
    mixture = q * with_record + (1 - q) * without
    sigma = stddev * math.sqrt(times) / shift
    grid = np.linspace(-60, 60, 2_000_001)
    base, moved = stats.norm.pdf(grid, 0, sigma), stats.norm.pdf(grid, 1, sigma)
    gap = accounting_gap(stddev, times, 1, 1)
    assert gap < 0.2
    assert support.size == noise.size
    for epsilon in (0.05, 0.2, 0.5):
        discrete = np.maximum(mixture - math.exp(epsilon + gap) * without, 0).sum()
        density = np.maximum(q * moved + (1 - q) * base - math.exp(epsilon) * base, 0)
        assert discrete <= math.exp(gap) * np.trapezoid(density, grid) + 1e-12


def test_no_draws_are_an_empty_array():
    assert discrete_gaussian(NoiseStream(bytes(32)), 3, 0).shape == (0,)
