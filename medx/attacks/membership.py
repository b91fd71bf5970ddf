"""Was this record among the training records? Likelihood ratios over shadow runs, beside the epsilon that is claimed.

The attacker gets a run's final model, and knows everything of the run but which half of the records it had: it has
shadow runs of the same configuration on halves of the same records. That is more than any outsider has.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from medx.attacks.rates import Counts, Curve, Guesses, decades, threshold_for
from medx.attacks.shadows import Observed
from medx.randomness import numpy_generator
from medx.released import Record

PRIOR = 64  # runs from which on records' own variances count as much as that of all (Carlini et al. 2022, section VI)
RATIO = 2.0  # RMIA's gamma: by how much a record must be likelier than another
EXPOSED = 0.01  # of all records
MOST_EXPOSED = "most exposed"
STUDY_FILE = "membership.json"
SMALLEST = 1e-4  # false positive rate that is drawn
DELTA = 1e-5  # of bounds where the runs have none of their own


class Bound(Record):
    """A lower bound for epsilon, at 95 %, and the ``ceiling``: what it would be had every trial gone right.

    ``right`` of ``tried`` and ``wrong`` of ``others``: true and false alarms. Of guesses about pairs there are no
    ``others``, and ``wrong`` are the guesses that are not right.
    """

    epsilon: float
    ceiling: float
    right: int
    tried: int
    wrong: int
    others: int


class Found(Record):
    """What one ``attack`` finds of the records of ``whose``: a hospital, the most exposed, or all.

    ``roc`` has [false, true positive rate], evenly on a logarithmic scale; the rates at 0.1 % and 1 % are told apart.
    ``by_rates`` has a threshold that was fixed on the first half of the runs and alarms counted on the second. Its
    interval takes trials for independent, and those of one run share a model: its 95 % are nominal. ``by_pairs``
    needs no such thing: right guesses of which one of two records is in (Steinke, Nasr and Jagielski 2023).
    """

    attack: str
    whose: str
    records: int
    auc: float
    true_at_0_1: float
    true_at_1: float
    roc: list[list[float]]
    by_rates: Bound
    by_pairs: Bound


class Exposed(Record):
    """A record by its ``row`` in the training split: how far apart its signals are in and out, in their deviation."""

    row: int
    hospital: int
    exposure: float


class Membership(Record):
    """Attacks beside a claim: the owner's view, exact functions of training records that nothing covers.

    Runs have as many records each, so a record that is out has another in its place: what bounds are of is
    ``replaced``, the epsilon of a replaced record at ``delta``, and not ``claimed``, that of one which is there or not.
    Every bound holds by itself; among many rows one in twenty may be too high.
    """

    runs: int
    records: int
    claimed: float | None
    replaced: float | None
    delta: float
    test_auc: float | None
    found: list[Found]
    exposed: list[Exposed]

    @property
    def refutes(self) -> bool:
        """Whether anything was found that exceeds what is claimed."""
        bounds = [bound.epsilon for each in self.found for bound in (each.by_rates, each.by_pairs)]
        return self.replaced is not None and max(bounds) > self.replaced

    def of(self, attack: str, whose: str = "all") -> Found:
        """One row."""
        (row,) = [each for each in self.found if (each.attack, each.whose) == (attack, whose)]
        return row


class MembershipStudy(Record):
    """What ``medx membership`` leaves in ``STUDY_FILE``: its settings, side by side."""

    title: str
    settings: dict[str, Membership]


@dataclass(frozen=True)
class Gaussians:
    """Signals of every record in runs that had it and in runs that had not: means and deviations ``[n]``."""

    means: tuple[np.ndarray, np.ndarray]
    deviations: tuple[np.ndarray, np.ndarray]

    @classmethod
    def of(cls, signals: np.ndarray, inside: np.ndarray) -> "Gaussians":
        """Fitted to ``[runs, n]``. A record's own variance is drawn to that of all, which few runs must rely on."""
        fitted = []
        for mask in (inside, ~inside):
            count = mask.sum(0)
            mean = np.where(mask, signals, 0.0).sum(0) / np.maximum(count, 1)
            squares = np.where(mask, (signals - mean) ** 2, 0.0).sum(0)
            free = np.maximum(count - 1, 0)
            shared = squares.sum() / max(1, free.sum())
            variance = (squares + PRIOR * shared) / (free + PRIOR)
            # A mean of few runs is off by itself.
            fitted.append((mean, np.sqrt(variance * (1 + 1 / np.maximum(count, 1)))))
        (mean_in, deviation_in), (mean_out, deviation_out) = fitted
        return cls((mean_in, mean_out), (deviation_in, deviation_out))

    def ratio(self, signals: np.ndarray) -> np.ndarray:
        """The logarithm of the likelihood ratio in : out of signals ``[runs, n]``."""
        pairs = zip(self.means, self.deviations, strict=True)
        inside, outside = (stats.norm.logpdf(signals, mean, deviation) for mean, deviation in pairs)
        return np.asarray(inside - outside)

    @property
    def exposure(self) -> np.ndarray:
        """How far apart the means are, in root mean square deviations ``[n]``."""
        spread = np.sqrt((self.deviations[0] ** 2 + self.deviations[1] ** 2) / 2)
        return np.asarray((self.means[0] - self.means[1]) / spread)


def lira(known: Observed, told: Observed) -> np.ndarray:
    """Online LiRA (Carlini et al. 2022): scores of the runs ``told`` by Gaussians of the runs ``known``."""
    return Gaussians.of(known.signals, known.inside).ratio(told.signals)


def rmia(known: Observed, told: Observed) -> np.ndarray:
    """RMIA (Zarifzadeh et al. 2024): which share of records of no run are less likely than this one by ``RATIO``.

    Likelier is a probability's ratio to its mean over the runs ``known``. Among equal shares the ratio itself decides.
    """
    own = np.log(probability(told.signals)) - np.log(probability(known.signals).mean(0))
    others = np.sort(np.log(probability(told.others)) - np.log(probability(known.others).mean(0)), axis=1)
    below = [np.searchsorted(row, ratio - np.log(RATIO), side="right") for row, ratio in zip(others, own, strict=True)]
    return np.stack(below) + 0.5 * probability(own)


def probability(logits: np.ndarray) -> np.ndarray:
    """The probability of a logit, never nought."""
    return np.asarray(np.maximum(1 / (1 + np.exp(-np.clip(logits, -700, 700))), np.finfo(np.float64).tiny))


ATTACKS = {"lira": lira, "rmia": rmia}


Score = Callable[[Observed, Observed], np.ndarray]


def attack(observed: Observed, *, delta: float = DELTA, seed: int = 0) -> Membership:
    """All attacks on all records, those of each hospital, and the most exposed; ``delta`` where the runs have none.

    The most exposed are found on the first half of the runs and attacked in the second. ``seed`` is of the matching of
    records to pairs.
    """
    delta = observed.claims.delta or delta
    first = some(observed, np.arange(len(observed.inside) // 2))
    exposure = Gaussians.of(first.signals, first.inside).exposure
    top = np.argsort(-exposure, kind="stable")[: max(1, round(EXPOSED * len(exposure)))]
    found = []
    for name, score in ATTACKS.items():
        scores = Scores.of(score, observed, delta, seed)
        found += [scores.found(name, whose, rows) for whose, rows in groups(observed)]
        found.append(scores.found(name, MOST_EXPOSED, top, later=True))
    return Membership(
        runs=len(observed.inside),
        records=len(observed.rows),
        claimed=observed.claims.epsilon,
        replaced=observed.claims.replaced,
        delta=delta,
        test_auc=observed.claims.test_auc,
        found=found,
        exposed=[
            Exposed(row=int(observed.rows[each]), hospital=int(observed.hospitals[each]), exposure=exposure[each])
            for each in top
        ],
    )


def groups(observed: Observed) -> Iterator[tuple[str, np.ndarray]]:
    """Whose records, and their places among those observed."""
    yield "all", np.arange(len(observed.rows))
    for hospital in np.unique(observed.hospitals):
        yield f"hospital {hospital}", np.flatnonzero(observed.hospitals == hospital)


def some(observed: Observed, runs: np.ndarray) -> Observed:
    """The same of some of the runs."""
    names = ("inside", "signals", "others")
    return replace(observed, **{name: getattr(observed, name)[runs] for name in names})


def left_out(score: Score, observed: Observed) -> np.ndarray:
    """Scores ``[runs, n]`` of every run by all others but its twin, which had the other half of the records.

    With the twin among the others a record would be known by how many of them had it.
    """
    scores = np.zeros(observed.signals.shape)
    every = np.arange(len(scores))
    for twins in every.reshape(-1, 2):
        scores[twins] = score(some(observed, np.setdiff1d(every, twins)), some(observed, twins))
    return scores


@dataclass(frozen=True)
class Scores:
    """One attack's scores: of ``every`` run by all others, and for bounds of each half of the runs.

    Those of the ``first`` are by itself, those of the ``second`` by the first alone, so that what is counted there is
    of runs that nothing was fitted to.
    """

    every: np.ndarray
    first: np.ndarray
    second: np.ndarray
    observed: Observed
    delta: float
    seed: int

    @classmethod
    def of(cls, score: Score, observed: Observed, delta: float, seed: int) -> "Scores":
        """Of all runs."""
        half = len(observed.inside) // 2
        first, second = (some(observed, np.arange(start, start + half)) for start in (0, half))
        return cls(left_out(score, observed), left_out(score, first), score(first, second), observed, delta, seed)

    def found(self, name: str, whose: str, rows: np.ndarray, *, later: bool = False) -> Found:
        """What they tell of some records; with ``later`` all of it from the second half of the runs."""
        inside = self.observed.inside[:, rows]
        half = len(inside) // 2
        curve = Curve.of(self.second[:, rows], inside[half:]) if later else Curve.of(self.every[:, rows], inside)
        return Found(
            attack=name,
            whose=whose,
            records=len(rows),
            auc=curve.auc,
            true_at_0_1=curve.true_at(0.001),
            true_at_1=curve.true_at(0.01),
            roc=[[float(rate), curve.true_at(rate)] for rate in decades(SMALLEST)],
            by_rates=self._by_rates(rows, inside[:half], inside[half:]),
            by_pairs=self._by_pairs(rows, inside[:half], inside[half:]),
        )

    def _by_rates(self, rows: np.ndarray, before: np.ndarray, after: np.ndarray) -> Bound:
        threshold = threshold_for(self.first[:, rows], before, self.delta)
        counts = Counts.at(threshold, self.second[:, rows], after)
        return Bound(
            epsilon=counts.epsilon(self.delta),
            ceiling=counts.ceiling(self.delta),
            right=counts.true,
            tried=counts.members,
            wrong=counts.false,
            others=counts.others,
        )

    def _by_pairs(self, rows: np.ndarray, before: np.ndarray, after: np.ndarray) -> Bound:
        """Of every other run: its twin's coins are the same."""
        generator, hospitals = numpy_generator(self.seed), self.observed.hospitals[rows]
        chosen, counted = (
            Guesses.of(scores[::2, rows], inside[::2], hospitals, generator)
            for scores, inside in ((self.first, before), (self.second, after))
        )
        share = chosen.best_share(self.delta)
        right, guessed = counted.clearest(share)
        return Bound(
            epsilon=counted.epsilon(share, self.delta),
            ceiling=counted.ceiling(share, self.delta),
            right=right,
            tried=guessed,
            wrong=guessed - right,
            others=0,
        )
