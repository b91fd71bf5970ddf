"""Spread over seeds, paired differences between modes, and their correction for several tests."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class Summary:
    """Mean over ``n`` seeds, sample standard deviation and 95 % t interval; the last three NaN for one seed."""

    n: int
    mean: float
    sd: float
    low: float
    high: float


@dataclass(frozen=True)
class Paired:
    """Mean of the differences of ``n`` pairs, its 95 % t interval and the two-sided p of the paired t test."""

    n: int
    difference: float
    low: float
    high: float
    p: float


def summarise(values: Sequence[float]) -> Summary:
    """Mean and spread of one metric over seeds; undefined (NaN) values are left out (Student 1908)."""
    known = np.asarray([value for value in values if not np.isnan(value)], dtype=float)
    if len(known) == 0:
        return Summary(0, np.nan, np.nan, np.nan, np.nan)
    mean = float(known.mean())
    if len(known) == 1:
        return Summary(1, mean, np.nan, np.nan, np.nan)
    sd = float(known.std(ddof=1))
    half = float(stats.t.ppf(0.975, len(known) - 1)) * sd / len(known) ** 0.5
    return Summary(len(known), mean, sd, mean - half, mean + half)


def paired(first: Sequence[float], second: Sequence[float]) -> Paired:
    """Second minus first, pair by pair (the same seed); p is NaN below two pairs and where all differ alike."""
    pairs = [(a, b) for a, b in zip(first, second, strict=True) if not (np.isnan(a) or np.isnan(b))]
    summary = summarise([b - a for a, b in pairs])
    p = np.nan
    if summary.n >= 2 and summary.sd > 1e-12 * max(1.0, abs(summary.mean)):
        p = float(2 * stats.t.sf(abs(summary.mean) / (summary.sd / summary.n**0.5), summary.n - 1))
    return Paired(summary.n, summary.mean, summary.low, summary.high, p)


def holm(p_values: Sequence[float]) -> list[float]:
    """Family-wise adjusted p values (Holm 1979); NaN stays NaN and does not count as a test."""
    known = [index for index, p in enumerate(p_values) if not np.isnan(p)]
    adjusted = [float("nan")] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(known, key=lambda index: p_values[index])):
        largest = max(largest, min(1.0, (len(known) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted
