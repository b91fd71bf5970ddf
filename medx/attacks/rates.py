"""How well a score tells members from others, on a scale where few false alarms count, and what that proves."""

import math
from dataclasses import dataclass

import numpy as np
from scipy import stats

from medx.attacks.evidence import CONFIDENCE, one_run_epsilon

CANDIDATES = 400  # thresholds that are looked at
SHARES = 2.0 ** -np.arange(12)  # of all pairs: how many guesses are looked at


@dataclass(frozen=True)
class Curve:
    """The whole ROC: at every threshold the share of others and of members with a higher score, from (0, 0) on."""

    false: np.ndarray
    true: np.ndarray

    @classmethod
    def of(cls, scores: np.ndarray, inside: np.ndarray) -> "Curve":
        """Scores and membership of any one shape. Equal scores are one step: no order among them is made up."""
        ordered, members = ranked(scores, inside)
        ends = steps(ordered)
        true, false = (np.append(0, np.cumsum(mask)[ends]) / max(1, mask.sum()) for mask in (members, ~members))
        return cls(false, true)

    @property
    def auc(self) -> float:
        """The area: how often a member's score is above another's."""
        return float(np.trapezoid(self.true, self.false))

    def true_at(self, false: float) -> float:
        """The true positive rate at the highest false positive rate that is at most this."""
        return float(self.true[np.searchsorted(self.false, false, side="right") - 1])


def ranked(scores: np.ndarray, inside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scores from the highest on, and whether each is a member's."""
    order = np.argsort(-scores, axis=None, kind="stable")
    return scores.ravel()[order], inside.ravel()[order]


def steps(ordered: np.ndarray) -> np.ndarray:
    """The last place of every run of equal scores."""
    return np.append(np.flatnonzero(np.diff(ordered)), len(ordered) - 1)


@dataclass(frozen=True)
class Counts:
    """Alarms at one threshold, fixed before: true ones of ``members``, false ones of ``others``."""

    true: int
    members: int
    false: int
    others: int

    @classmethod
    def at(cls, threshold: float, scores: np.ndarray, inside: np.ndarray) -> "Counts":
        """Of scores from the threshold on."""
        alarms = scores >= threshold
        return cls(int((alarms & inside).sum()), int(inside.sum()), int((alarms & ~inside).sum()), int((~inside).sum()))

    def epsilon(self, delta: float) -> float:
        """The lower bound for epsilon by both rates' intervals."""
        true, members, false, others = (np.array(each) for each in (self.true, self.members, self.false, self.others))
        return float(epsilons(true, members, false, others, delta))

    def ceiling(self, delta: float) -> float:
        """The same were all alarms right: no attack can prove more with so many trials."""
        return Counts(self.members, self.members, 0, self.others).epsilon(delta)


def epsilons(true: np.ndarray, members: np.ndarray, false: np.ndarray, others: np.ndarray, delta: float) -> np.ndarray:
    """Lower bounds from counts: Clopper and Pearson's for both rates, each at half of what confidence leaves.

    Both of ``TPR <= e^epsilon FPR + delta`` and ``TNR <= e^epsilon FNR + delta`` are asked of the same two intervals
    (Jagielski et al. 2020; Nasr et al. 2021).
    """
    error = (1 - CONFIDENCE) / 2
    least = np.where(true > 0, stats.beta.ppf(error, np.maximum(true, 1), members - true + 1), 0.0)
    most = np.where(false < others, stats.beta.ppf(1 - error, false + 1, np.maximum(others - false, 1)), 1.0)
    tiny = np.finfo(np.float64).tiny
    alarmed = np.log(np.maximum(least - delta, tiny) / np.maximum(most, tiny))
    quiet = np.log(np.maximum(1 - most - delta, tiny) / np.maximum(1 - least, tiny))
    return np.maximum(0.0, np.maximum(alarmed, quiet))


def threshold_for(scores: np.ndarray, inside: np.ndarray, delta: float) -> float:
    """The threshold with the highest bound here; counted elsewhere, it is one that was fixed before."""
    ordered, members = ranked(scores, inside)
    ends = steps(ordered)
    ends = ends[np.unique(np.geomspace(1, len(ends), CANDIDATES).astype(int)) - 1]
    true, false = np.cumsum(members)[ends], np.cumsum(~members)[ends]
    found = epsilons(true, members.sum(), false, (~members).sum(), delta)
    return float(ordered[ends[int(np.argmax(found))]])


@dataclass(frozen=True)
class Guesses:
    """Of pairs of a member and another, in one run each, how clear it is which one is in, and whether that is right."""

    clearness: np.ndarray
    right: np.ndarray

    @classmethod
    def of(
        cls, scores: np.ndarray, inside: np.ndarray, hospitals: np.ndarray, generator: np.random.Generator
    ) -> "Guesses":
        """Of runs ``[runs, n]`` whose halves were drawn independently; equal scores are a wrong guess.

        A uniform half, matched at random with the other half, is as well a random matching in which a fair coin for
        each pair says which of the two is in: those coins are what is guessed.
        """
        ahead = []
        for own, members in zip(scores, inside, strict=True):
            for hospital in np.unique(hospitals):
                here = hospitals == hospital
                there, away = (generator.permutation(np.flatnonzero(here & mask)) for mask in (members, ~members))
                pairs = min(len(there), len(away))
                ahead.append(own[there[:pairs]] - own[away[:pairs]])
        gaps = np.concatenate(ahead) if ahead else np.zeros(0)
        return cls(np.abs(gaps), gaps > 0)

    def clearest(self, share: float) -> tuple[int, int]:
        """How many of the clearest guesses are right, and how many those are."""
        guessed = max(1, round(share * len(self.right)))
        chosen = np.argsort(-self.clearness, kind="stable")[:guessed]
        return int(self.right[chosen].sum()), len(chosen)

    def epsilon(self, share: float, delta: float) -> float:
        """The lower bound by so many of the guesses."""
        return one_run_epsilon(*self.clearest(share), len(self.right), delta) if len(self.right) else 0.0

    def ceiling(self, share: float, delta: float) -> float:
        """The same were all of them right."""
        _, guessed = self.clearest(share)
        return one_run_epsilon(guessed, guessed, len(self.right), delta) if len(self.right) else 0.0

    def best_share(self, delta: float) -> float:
        """The share with the highest bound here."""
        return max((float(share) for share in SHARES), key=lambda share: self.epsilon(share, delta))


def decades(least: float) -> np.ndarray:
    """False positive rates from ``least`` to 1, evenly on a logarithmic scale."""
    return np.geomspace(least, 1.0, 1 + math.ceil(10 * math.log10(1 / least)))
