"""Three accountants for compositions of Poisson-subsampled Gaussians, and the closed form for full batches.

Unit: a record, added or removed; and what that becomes for several that belong together (a patient's images, copies of
one image; all taken out, the counts stay public), and for one that is replaced. Every function returns an upper bound.
Nothing here is cached.
"""

import logging
import math
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from scipy.optimize import brentq
from scipy.special import log_ndtr
from scipy.stats import binom

from medx.privacy.base import SampledGaussian
from medx.schema import PrivacyError

if TYPE_CHECKING:
    from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution

Event = tuple[SampledGaussian, int]
GRID = {"part": 0.3, "widest": 0.025}  # for several: coarser, as larger epsilons need fewer digits; adds up to 1 %
POINTS = 4000


class Release(NamedTuple):
    """``steps`` equal subsampled Gaussian releases; the clip norm cancels out."""

    sampling_probability: float
    noise_multiplier: float
    steps: int


def merge_events(events: Sequence[Event]) -> tuple[Release, ...]:
    """Equal events as one, in a canonical order; raises PrivacyError on an event without a guarantee."""
    steps_of: dict[tuple[float, float], int] = {}
    for step, steps in events:
        q, sigma = float(step.sampling_probability), float(step.noise_multiplier)
        if not 0 < q <= 1:
            raise PrivacyError(f"sampling_probability={q}: must be in (0, 1]")
        if not (0 < sigma < math.inf and 0 < step.clip_norm < math.inf):
            raise PrivacyError(
                f"noise_multiplier={sigma}, clip_norm={step.clip_norm}: both must be positive and finite"
            )
        if steps < 0:
            raise PrivacyError(f"steps={steps}: must be 0 or more")
        if steps:
            steps_of[q, sigma] = steps_of.get((q, sigma), 0) + steps
    return tuple(Release(q, sigma, steps) for (q, sigma), steps in sorted(steps_of.items()))


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Exact epsilon of a Gaussian mechanism with sensitivity / stddev = ``mu`` (Balle and Wang 2018, theorem 8).

    With q = 1, ``steps`` releases are one Gaussian with ``mu = sqrt(steps) / noise_multiplier``.
    """

    def excess(epsilon: float) -> float:
        high = log_ndtr(mu / 2 - epsilon / mu)
        low = epsilon + log_ndtr(-mu / 2 - epsilon / mu)
        return float(high + math.log(max(-math.expm1(min(low - high, 0.0)), 1e-300)) - math.log(delta))

    if excess(0.0) <= 0:
        return 0.0
    upper = 1.0
    while excess(upper) > 0:
        upper *= 2
    return float(brentq(excess, 0.0, upper, xtol=1e-12, rtol=1e-12))


def gaussian_mu(epsilon: float, delta: float) -> float:
    """The largest ``mu`` whose Gaussian mechanism is (epsilon, delta)-private: inverse of gaussian_epsilon."""
    return math.exp(float(brentq(lambda log_mu: gaussian_epsilon(math.exp(log_mu), delta) - epsilon, -16, 8)))


def prv_error(epsilon: float) -> float:
    """PRV's own error for an epsilon of this size: .01, Opacus's default, but no more than 1 % below 1."""
    return float(np.clip(0.01 * epsilon, 5e-4, 0.01))


def prv(releases: tuple[Release, ...], delta: float) -> float:
    """Upper bound of Opacus's PRV accountant (Gopi, Lee and Wutschitz 2021).

    Raises PrivacyError where its numerics give up, e.g. at a very large epsilon.
    """
    from opacus.accountants.prv import PRVAccountant

    if not releases:
        return 0.0
    accountant = PRVAccountant()
    accountant.history = [(r.noise_multiplier, r.sampling_probability, r.steps) for r in releases]
    # RDP only sizes PRV's grid here, so its warnings on loose orders do not concern the bound,
    # nor does log(0) at q = 1.
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            bound = float(accountant.get_epsilon(delta, eps_error=0.01))
            if (error := prv_error(bound - 0.01)) < 0.01:
                bound = float(accountant.get_epsilon(delta, eps_error=error))
        except (RuntimeError, ValueError, ArithmeticError, IndexError) as error:
            raise PrivacyError(f"the PRV accountant fails on {releases} at delta={delta}: {error}") from error
    if not 0 < bound < math.inf:
        raise PrivacyError(f"the PRV accountant gives {bound} on {releases} at delta={delta}")
    return bound


def loss_interval(releases: Sequence[Release], part: float = 0.1, widest: float = 1e-3) -> float:
    """Grid of a privacy loss distribution that adds about .1 % to its standard deviation, from 1e-6 to ``widest``.

    It is ``part`` of a step's standard deviation. The connect-the-dots grid of width h adds a variance of about
    h^2 / 6 to every composed step. Little noise, whose losses are of the order of 1 / sigma^2, gets a wider grid: the
    bound stays an upper one.
    """
    variance = sum(r.steps * r.sampling_probability**2 * math.expm1(min(r.noise_multiplier**-2, 99)) for r in releases)
    largest = widest * max(1.0, 0.1 / max(r.noise_multiplier for r in releases) ** 2)
    return float(np.clip(part * math.sqrt(variance / sum(r.steps for r in releases)), 1e-6, largest))


def single_loss(release: Release, interval: float) -> "PrivacyLossDistribution":
    """Pessimistic privacy loss distribution of one of these steps, for adding and for removing a record."""
    from dp_accounting.pld import privacy_loss_distribution

    return privacy_loss_distribution.from_gaussian_mechanism(
        release.noise_multiplier,
        value_discretization_interval=interval,
        sampling_prob=release.sampling_probability,
    )


def pld(releases: tuple[Release, ...], delta: float) -> float:
    """Pessimistic epsilon of dp-accounting's privacy loss distributions (Doroshenko et al. 2022)."""
    return float(composed_loss(releases).get_epsilon_for_delta(delta)) if releases else 0.0


def composed_loss(releases: tuple[Release, ...]) -> "PrivacyLossDistribution":
    """Pessimistic privacy loss distribution of all of these together, at least one."""
    releases = _join_full_batches(releases)
    interval = loss_interval(releases)
    total: Any = None
    for release in releases:
        loss = single_loss(release, interval)
        loss = loss.self_compose(release.steps) if release.steps > 1 else loss
        total = loss if total is None else total.compose(loss)
    return total  # type: ignore[no-any-return]


def rdp(releases: tuple[Release, ...], delta: float) -> float:
    """Epsilon by Renyi composition (Mironov, Talwar and Zhang 2019); looser than the other two."""
    if not releases:
        return 0.0
    import dp_accounting

    accountant = dp_accounting.rdp.RdpAccountant()
    absl = logging.getLogger("absl")
    level = absl.level
    absl.setLevel(logging.ERROR)  # a warning for every order left out: the bound is a minimum over the others
    try:
        for release in releases:
            gaussian = dp_accounting.GaussianDpEvent(release.noise_multiplier)
            accountant.compose(
                dp_accounting.PoissonSampledDpEvent(release.sampling_probability, gaussian), release.steps
            )
        return float(accountant.get_epsilon(delta))
    finally:
        absl.setLevel(level)


def full_batches_mu(releases: Sequence[Release]) -> float:
    """Sensitivity over standard deviation of the one Gaussian that releases at q = 1 are together."""
    return math.sqrt(sum(release.steps / release.noise_multiplier**2 for release in releases))


def _join_full_batches(releases: tuple[Release, ...]) -> tuple[Release, ...]:
    """All releases at q = 1 as the single Gaussian that they are."""
    precision = sum(r.steps / r.noise_multiplier**2 for r in releases if r.sampling_probability == 1)
    sampled = tuple(r for r in releases if r.sampling_probability < 1)
    return sampled if precision == 0 else (*sampled, Release(1.0, precision**-0.5, 1))


def mixture(parts: Sequence[tuple[tuple[Release, ...], int]]) -> "PrivacyLossDistribution":
    """The loss for several records, each drawn by itself: ``parts`` has releases and how many of the records meet them.

    Their number in a batch is binomial. A step is dominated by a mixture of Gaussians with these numbers as means
    (Ganesh 2024, theorem 3.1: tight for Poisson sampling); the steps' pessimistic privacy loss distributions compose.
    """
    from dp_accounting.pld import privacy_loss_distribution

    interval = max(size * loss_interval(releases, **GRID) for releases, size in parts)
    total = None
    for release, size in ((release, size) for releases, size in parts for release in releases):
        drawn = list(range(size + 1))
        loss = privacy_loss_distribution.from_mixture_gaussian_mechanism(
            release.noise_multiplier,
            drawn,
            [float(binom.pmf(count, size, release.sampling_probability)) for count in drawn],
            value_discretization_interval=interval,
        ).self_compose(release.steps)
        total = loss if total is None else total.compose(loss)
    assert total is not None
    return total


def replacing(releases: tuple[Release, ...], delta: float) -> float:
    """The smallest epsilon at which taking a record out and putting another in, one after the other, spend ``delta``.

    ``delta(a + b) <= delta(a) + exp(a) delta(b)`` over the whole run (Dong, Roth and Su 2022, theorem 3: group privacy
    of a trade-off function); at full batches this is exact, with sampling an upper bound.
    """
    interval = loss_interval(releases, **GRID)
    total = None
    for release in releases:
        loss = single_loss(release, interval).self_compose(release.steps)
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
