"""How well a test can tell whether a record was there: the trade-off between its two errors that a bound leaves.

A *profile* is the smallest delta at every epsilon of ``LEVELS``, for adding and for removing a record, whichever is
worse; each step on the way errs upwards. So what is found here holds for every test, whatever it knows or computes.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import log_ndtr

from medx.privacy import accountants
from medx.privacy.accountants import Event, Release, full_batches_mu, merge_events
from medx.privacy.accounting import MOST_MIXED, cached

if TYPE_CHECKING:
    from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution

TOP, STEPS = 10.0, 1000
LEVELS = np.linspace(0.0, TOP, STEPS + 1)  # exp(-10): what is left below it is nobody's protection
Profile = np.ndarray
NOTHING: Profile = np.zeros(STEPS + 1)  # of data that were not touched
EVERYTHING: Profile = np.ones(STEPS + 1)  # without a guarantee


def detected(profile: Profile, false_positive_rate: float) -> float:
    """The largest true-positive rate of a test with this false-positive rate.

    It is ``1 - f`` of the trade-off function ``f`` that every pair of epsilon and delta bounds from below (Wasserman
    and Zhou 2010; Dong, Roth and Su 2022, section 2).
    """
    kept = 1 - profile
    missed = np.maximum(kept - np.exp(LEVELS) * false_positive_rate, np.exp(-LEVELS) * (kept - false_positive_rate))
    return float(1 - max(0.0, missed.max()))


def advantage(profile: Profile) -> float:
    """The largest difference between a test's true- and false-positive rates: the total variation."""
    return float(profile[0])


def worst(profiles: Iterable[Profile]) -> Profile:
    """What holds for all of these."""
    return np.maximum.reduce([NOTHING, *profiles])


def profile_of(events: Sequence[Event]) -> Profile:
    """The profile of all of these together: exact for full batches, else by PLD's pessimistic bound."""
    releases = merge_events(events)
    if not releases:
        return NOTHING
    if all(release.sampling_probability == 1 for release in releases):
        return gaussian(full_batches_mu(releases))
    return _kept("profile", {"releases": releases}, lambda: accountants.composed_loss(releases))


def group_profile(parts: Sequence[tuple[tuple[Release, ...], int]]) -> Profile:
    """The same for several records together, ``epsilon_group``'s bound: at most that of full batches."""
    sizes = [size for _, size in parts]
    full = gaussian(float(np.hypot.reduce([size * full_batches_mu(releases) for releases, size in parts])))
    whole = all(release.sampling_probability == 1 for releases, _ in parts for release in releases)
    if whole or max(sizes) > MOST_MIXED:
        return full
    question = {"parts": [[list(releases), size] for releases, size in parts]}
    return np.minimum(full, _kept("group_profile", question, lambda: accountants.mixture(parts)))


def gaussian(mu: float) -> Profile:
    """The profile of a Gaussian with sensitivity / stddev = ``mu`` (Balle and Wang 2018, theorem 8)."""
    low = np.exp(LEVELS + log_ndtr(-mu / 2 - LEVELS / mu))
    return np.maximum(0.0, np.exp(log_ndtr(mu / 2 - LEVELS / mu)) - low)


def of_epsilon(epsilon: float, delta: float) -> Profile:
    """What one pair alone leaves possible (Kairouz, Oh and Viswanath 2015): no Gaussian gives away so much."""
    below = np.exp(np.minimum(LEVELS - epsilon, 0.0))
    return delta + (1 - delta) * (1 - below) / (1 + np.exp(-epsilon))


def replaced(profile: Profile) -> Profile:
    """The profile where a record is taken out and another put in, one after the other: group privacy.

    ``delta(a + b) <= delta(a) + exp(a) delta(b)``, at the best ``a`` for each sum; below 0 it is
    ``delta(-a) = 1 - exp(-a) (1 - delta(a))``, for tests that say the opposite.
    """
    both = np.concatenate([(1 - np.exp(-LEVELS) * (1 - profile))[:0:-1], profile])
    levels = np.concatenate([-LEVELS[:0:-1], LEVELS])
    found = [(both[first:] + np.exp(levels[first:]) * both[first:][::-1]).min() for first in range(STEPS + 1)]
    return np.minimum(1.0, found)


def _kept(name: str, question: dict[str, Any], compose: Callable[[], "PrivacyLossDistribution"]) -> Profile:
    def deltas() -> list[float]:
        return [float(delta) for delta in np.asarray(compose().get_delta_for_epsilon(LEVELS))]

    return np.array(cached(name, question, deltas))
