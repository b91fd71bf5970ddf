"""What a guarantee for one record becomes for several that belong together, and for one that is replaced.

Unit: ``k`` records of one hospital (a patient's images, copies of one image), all taken out; the counts stay public.
"""

import math
from collections.abc import Iterable, Sequence

import numpy as np
from scipy.stats import binom

from medx.privacy import accountants
from medx.privacy.accountants import Event, Release, gaussian_epsilon, merge_events
from medx.privacy.cache import cached

SIZES = (1, 2, 3, 5, 10)
GRID = {"part": 0.3, "widest": 0.025}  # coarser than one record's: larger epsilons need fewer digits; adds up to 1 %
POINTS = 4000


def epsilon_by_group(histories: Iterable[Sequence[Event]], delta: float, single: float) -> dict[str, float]:
    """Upper bounds for ``k`` records by ``k`` as text: the largest over hospitals with these ``histories``.

    ``single`` is what is reported for one record.
    """
    hospitals = [merge_events(history) for history in histories]
    bounds = {
        str(size): max((_group(merged, size, delta) for merged in hospitals if merged), default=0.0)
        for size in SIZES[1:]
    }
    return {str(SIZES[0]): single} | {size: max(single, bound) for size, bound in bounds.items()}


def epsilon_replace(histories: Iterable[Sequence[Event]], delta: float, single: float) -> float:
    """An upper bound for one record whose content is replaced by any other, likewise."""
    hospitals = [merge_events(history) for history in histories]
    return max([single, *(_replaced(merged, delta) for merged in hospitals if merged)])


def _replaced(releases: tuple[Release, ...], delta: float) -> float:
    if all(release.sampling_probability == 1 for release in releases):
        return gaussian_epsilon(2 * _mu(releases), delta)
    question = {"releases": releases, "delta": delta}
    return float(cached("replace", question, lambda: replacing(releases, delta)))


def _group(releases: tuple[Release, ...], size: int, delta: float) -> float:
    if all(release.sampling_probability == 1 for release in releases):
        return gaussian_epsilon(size * _mu(releases), delta)
    question = {"releases": releases, "size": size, "delta": delta}
    return float(cached("group", question, lambda: mixture(releases, size, delta)))


def _mu(releases: tuple[Release, ...]) -> float:
    """Full batches are one Gaussian of sensitivity over standard deviation ``mu``."""
    return math.sqrt(sum(release.steps / release.noise_multiplier**2 for release in releases))


def mixture(releases: tuple[Release, ...], size: int, delta: float) -> float:
    """Epsilon for ``size`` records, each drawn by itself: their number in a batch is binomial.

    A step is dominated by a mixture of Gaussians with these numbers as means (Ganesh 2024, theorem 3.1: tight for
    Poisson sampling); the pessimistic privacy loss distributions of the steps compose.
    """
    from dp_accounting.pld import privacy_loss_distribution

    interval = size * accountants.loss_interval(releases, **GRID)
    drawn = list(range(size + 1))
    total = None
    for release in releases:
        loss = privacy_loss_distribution.from_mixture_gaussian_mechanism(
            release.noise_multiplier,
            drawn,
            [float(binom.pmf(count, size, release.sampling_probability)) for count in drawn],
            value_discretization_interval=interval,
        ).self_compose(release.steps)
        total = loss if total is None else total.compose(loss)
    assert total is not None
    return float(total.get_epsilon_for_delta(delta))


def replacing(releases: tuple[Release, ...], delta: float) -> float:
    """The smallest epsilon at which taking a record out and putting another in, one after the other, spend ``delta``.

    ``delta(a + b) <= delta(a) + exp(a) delta(b)`` over the whole run (Dong, Roth and Su 2022, theorem 3: group privacy
    of a trade-off function); at full batches this is exact, with sampling an upper bound.
    """
    interval = accountants.loss_interval(releases, **GRID)
    total = None
    for release in releases:
        loss = accountants.single_loss(release, interval).self_compose(release.steps)
        total = loss if total is None else total.compose(loss)
    assert total is not None
    reach = 4.0 * float(total.get_epsilon_for_delta(delta)) + 1.0
    epsilons = np.linspace(0.0, reach, POINTS)
    deltas = np.asarray(total.get_delta_for_epsilon(epsilons))
    low, high = 0, POINTS - 1
    while low < high:
        middle = (low + high) // 2
        spent = deltas[: middle + 1] + np.exp(epsilons[: middle + 1]) * deltas[middle::-1]
        low, high = (low, middle) if spent.min() <= delta else (middle + 1, high)
    return float(epsilons[low]) if low < POINTS - 1 else math.inf
