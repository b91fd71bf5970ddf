import numpy as np
import pytest

from medx.aggregation.ring import (
    HALF_RING,
    EncodingError,
    Layout,
    ScalarField,
    check_ring_bound,
    decode,
    encode,
    largest_scale,
    ring_load,
)
from medx.schema import ConfigError


def test_golden_words_and_exact_sums_on_the_grid() -> None:
    words, saturated = encode(np.array([0.0, 0.25, -0.25, 1.125, -1.0]), 4.0, 10.0)
    assert words.tolist() == [0, 1, 2**32 - 1, 4, 2**32 - 4]
    assert saturated == 0
    generator = np.random.default_rng(0)
    grids = generator.integers(-(2**20), 2**20, (5, 70_001))
    total = np.zeros(70_001, np.uint32)
    for grid in grids:
        total += encode((grid / 1024).astype(np.float64), 1024.0, 2.0**10)[0]
    assert np.array_equal(decode(total, 1024.0) * 1024, grids.sum(axis=0))


def test_saturation_is_counted_and_rounding_is_within_half() -> None:
    values = np.array([3.0, -3.0, 2.0, -2.0, 0.1], np.float32)
    words, saturated = encode(values, 100.0, 2.0)
    assert saturated == 2
    assert decode(words, 100.0).tolist() == [2.0, -2.0, 2.0, -2.0, 0.1]
    noise = np.random.default_rng(1).normal(size=100_000)
    error = np.abs(decode(encode(noise, 1000.0, 10.0)[0], 1000.0) - noise) * 1000
    assert 0.49 < error.max() <= 0.5 + 1e-9


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_finite_is_refused(bad: float) -> None:
    values = np.zeros(100_000)
    values[77_777] = bad
    with pytest.raises(EncodingError, match="finite"):
        encode(values, 1.0, 1.0)


def test_ring_bound() -> None:
    check_ring_bound(2.0**20, 5, 400.0, 1e6)
    with pytest.raises(ConfigError, match=r"aggregation.scale = .* 5 clients .*2\^31"):
        check_ring_bound(2.0**20, 5, 410.0, 1e6)
    with pytest.raises(ConfigError):
        check_ring_bound(2.0**20, 5, 400.0, 2e7)
    with pytest.raises(ConfigError):
        check_ring_bound(float("nan"), 5, 400.0, 0)
    for n, bound, noise in [(5, 90.0, 6.0), (20, 1.0, 0.0), (3, 2.0**10 / 3, 0.0)]:
        scale = largest_scale(n, bound, noise)
        check_ring_bound(scale, n, bound, noise * scale)
        assert ring_load(2 * scale, n, bound, 2 * scale * noise) >= HALF_RING
    with pytest.raises(ConfigError):
        largest_scale(5, 0.0, 0.0)


def test_weighted_average_and_metrics_in_one_vector() -> None:
    fields = (ScalarField("weight", 1.0, 1e4), ScalarField("correct", 256.0, 1e4))
    layout = Layout(3, 2.0**12, 1e4, fields)
    layout.check(3, 0.0)
    updates = [np.array([1.0, -2.0, 0.5]), np.array([3.0, 0.0, -0.5]), np.array([0.0, 1.0, 1.0])]
    weights = [100.0, 300.0, 50.0]
    total = np.zeros(layout.size, np.uint32)
    for update, weight in zip(updates, weights, strict=True):
        total += layout.encode(update * weight, {"weight": weight, "correct": weight / 2})[0]
    vector, scalars = layout.decode(total)
    assert scalars == {"weight": 450.0, "correct": 225.0}
    assert np.array_equal(vector / scalars["weight"], np.average(updates, axis=0, weights=weights))
    with pytest.raises(EncodingError, match="fields"):
        layout.encode(updates[0], {"weight": 1.0})
    with pytest.raises(ConfigError):
        Layout(3, 1.0, 1.0, (ScalarField("weight", 2.0**20, 1e4),)).check(3, 0.0)
