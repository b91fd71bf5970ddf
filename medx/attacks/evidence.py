"""From what an observer has to a lower bound: how strongly a record that is there shows, and what that proves.

The observer knows everything but the coins: the data, the canaries, the model. What it has is a sum of releases, in
which a record that is there is seen along its own gradient, under noise. Nothing here knows the noise that was planned:
it is measured where no record is.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy import optimize, stats

CONFIDENCE = 0.95
RANK = 1e-9  # of the largest singular value: below it a direction is rounding
GUESSED = 3  # one in so many canaries is guessed about, the clearest ones


@dataclass(frozen=True)
class Knowledge:
    """What is known beside the release. Rows of the arrays are clipped gradients in clip norms ``[n, dimension]``.

    ``canaries`` may be there, ``others`` surely are, ``blanks`` are what is there in place of a canary. ``sampling`` is
    the chance of each record to be in a release, of which there are ``releases``.
    """

    canaries: np.ndarray
    others: np.ndarray
    blanks: np.ndarray
    sampling: float
    releases: int


@dataclass(frozen=True)
class Evidence:
    """The shift of a canary that is there, in standard deviations of the noise on it, and its standard error.

    For Gaussian noise and no sampling ``shift`` is the mu of Gaussian differential privacy (Dong, Roth and Su 2022).
    ``weight`` is how much this evidence knows. ``right`` of ``guessed`` coins were told by the clearest scores.
    """

    shift: float
    error: float
    weight: float
    canaries: int
    right: int
    guessed: int

    def at_least(self, confidence: float = CONFIDENCE) -> float:
        """A shift that is exceeded with this confidence."""
        return max(0.0, self.shift - stats.norm.ppf(confidence) * self.error)


def weigh(release: np.ndarray, coins: np.ndarray, known: Knowledge, expected: float) -> Evidence:
    """The evidence of one sum of releases ``[dimension]``, in any unit, for these coins ``[m]``.

    Directions that everybody knows to be there are taken out: the others' sum, the blanks', the canaries' mean. The
    rest is compared with ``sum (coin - 1/2) gradient``, which no other choice of coins resembles (the fairness of the
    coins makes all else uncorrelated with it). ``expected`` is the shift that is claimed: what weighs noise against
    shift in the single guesses, which must not know the coins.
    """
    known_sum = known.others.sum(0, keepdims=True)
    aside = basis(np.concatenate([known_sum, known.blanks, known.canaries.mean(0, keepdims=True)]))
    rest, canaries = _without(aside, release[None])[0], _without(aside, known.canaries)
    pattern = (coins - 0.5) @ canaries
    power = float(pattern @ pattern)
    strength = float(rest @ pattern) / power
    there = _without(aside, np.concatenate([canaries[coins], known.others]))
    # A record's part varies with its sampling, by Poisson: (1 - q) / (q n) of the mean part, squared.
    varies = strength**2 * (1 - known.sampling) / (known.sampling * known.releases)
    left = rest - strength * pattern
    free = max(1, len(release) - len(aside) - 1)
    variance = (float(left @ left) - varies * float((there**2).sum())) / free
    noise = math.sqrt(max(variance, np.finfo(np.float64).tiny))
    along = float(((there @ pattern) ** 2).sum()) / power * varies
    error = math.sqrt((noise**2 + along) / power) / noise
    shift = strength / noise
    error = math.hypot(error, shift / math.sqrt(2 * free))
    right, guessed = _guesses(rest, canaries, coins, expected)
    return Evidence(shift, error, 1 / error**2, len(coins), right, guessed)


def together(evidence: Iterable[Evidence]) -> Evidence:
    """Independent evidence of one shift, weighted by what each knows."""
    parts = list(evidence)
    weight = sum(part.weight for part in parts)
    shift = sum(part.shift * part.weight for part in parts) / weight
    counts = (sum(getattr(part, name) for part in parts) for name in ("canaries", "right", "guessed"))
    return Evidence(shift, 1 / math.sqrt(weight), weight, *counts)


def _guesses(rest: np.ndarray, canaries: np.ndarray, coins: np.ndarray, expected: float) -> tuple[int, int]:
    """How many of the clearest guesses are right: the coins' best linear estimate, unit noise against ``expected``."""
    gram = canaries @ canaries.T
    scale = np.linalg.norm(rest) / math.sqrt(len(rest))
    scores = np.linalg.solve(gram + 4 / max(expected, 0.1) ** 2 * np.eye(len(gram)), canaries @ rest / scale)
    clearest = np.argsort(-np.abs(scores))[: max(1, len(coins) // GUESSED)]
    return int(((scores[clearest] > 0) == coins[clearest]).sum()), len(clearest)


def basis(rows: np.ndarray) -> np.ndarray:
    """Orthonormal rows that span these."""
    _, sizes, right = np.linalg.svd(rows, full_matrices=False)
    return right[sizes > RANK * max(sizes.max(initial=0.0), np.finfo(np.float64).tiny)]


def _without(basis: np.ndarray, rows: np.ndarray) -> np.ndarray:
    return rows - (rows @ basis.T) @ basis


def gaussian_epsilon(shift: float, delta: float) -> float:
    """The epsilon of Gaussian differential privacy with ``shift`` at ``delta`` (Balle and Wang 2018, theorem 8)."""
    if shift <= 0:
        return 0.0

    def excess(epsilon: float) -> float:
        kept = stats.norm.cdf(shift / 2 - epsilon / shift)
        lost = math.exp(epsilon + stats.norm.logcdf(-shift / 2 - epsilon / shift))
        return float(kept - lost - delta)

    if excess(0.0) <= 0:
        return 0.0
    top = shift * (shift / 2 + 40)
    return float(optimize.brentq(excess, 0.0, top))


def one_run_epsilon(right: int, guessed: int, canaries: int, delta: float, confidence: float = CONFIDENCE) -> float:
    """The largest epsilon that so many right guesses of one run refute (Steinke, Nasr and Jagielski 2023, theorem 5.2).

    It assumes nothing of the noise; even with all guesses right it has a ceiling.
    """

    def refuted(epsilon: float) -> float:
        return 1 - confidence - _chance(right, guessed, canaries, epsilon=epsilon, delta=delta)

    if refuted(0.0) < 0:
        return 0.0
    low, high = 0.0, 1.0
    while refuted(high) >= 0:
        low, high = high, 2 * high
    return float(optimize.brentq(refuted, low, high, xtol=1e-4))


def _chance(right: int, guessed: int, canaries: int, *, epsilon: float, delta: float) -> float:
    """An upper bound for the probability of at least so many right guesses under (epsilon, delta)."""
    each = 1 / (1 + math.exp(-epsilon))
    counts = np.arange(right - 1, -1, -1)
    masses = np.cumsum(stats.binom.pmf(counts, guessed, each))
    worst = float((masses / np.arange(1, len(masses) + 1)).max(initial=0.0))
    return float(min(1.0, stats.binom.sf(right - 1, guessed, each) + worst * 2 * canaries * delta))
