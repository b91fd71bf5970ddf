"""Means, intervals and tests against values worked out elsewhere, and verdicts that noise must not sway."""

import math

import numpy as np
import pytest
from scipy import stats

from medx.report.cells import holm, paired, summarise


def test_summary_is_students() -> None:
    summary = summarise([1.0, 2.0, 3.0, math.nan])
    assert (summary.n, summary.mean, summary.sd) == (3, 2.0, 1.0)
    assert (summary.low, summary.high) == pytest.approx((2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5), rel=1e-6)
    one = summarise([0.9])
    assert one.mean == 0.9
    assert math.isnan(one.sd)
    assert math.isnan(one.low)


def test_the_interval_covers_and_a_normal_one_does_not() -> None:
    generator = np.random.default_rng(0)
    draws = generator.normal(size=(4000, 3))
    summaries = [summarise(row.tolist()) for row in draws]
    assert np.mean([s.low <= 0 <= s.high for s in summaries]) == pytest.approx(0.95, abs=0.012)
    normal = [abs(s.mean) <= 1.96 * s.sd / 3**0.5 for s in summaries]
    assert np.mean(normal) < 0.85, "three seeds and 1.96 standard errors would claim too much"


def test_pairs_cancel_what_seeds_share() -> None:
    generator = np.random.default_rng(1)
    seeds = generator.normal(0.8, 0.1, 6)
    better = seeds + 0.02 + generator.normal(0, 0.002, 6)
    test, p = paired(seeds.tolist(), better.tolist())
    assert p == pytest.approx(stats.ttest_rel(better, seeds).pvalue)
    assert p < 0.001
    assert stats.ttest_ind(better, seeds).pvalue > 0.5, "the unpaired test could not see it"
    assert test.low < 0.02 < test.high


def test_no_verdict_without_spread() -> None:
    assert math.isnan(paired([0.95, 0.96], [0.97, 0.98])[1])
    assert math.isnan(paired([0.95], [0.97])[1])
    assert paired([0.9, math.nan, 0.8], [0.9, 0.7, 0.9])[0].n == 2


def test_holm_steps_down() -> None:
    assert holm([0.01, 0.04, 0.03, math.nan])[:3] == pytest.approx([0.03, 0.06, 0.06])
    assert math.isnan(holm([math.nan])[0])
    generator = np.random.default_rng(2)
    wrong = [min(holm(row.tolist())) < 0.05 for row in generator.random((2000, 10))]
    assert np.mean(wrong) < 0.065, "ten true hypotheses, hardly ever one rejected"
