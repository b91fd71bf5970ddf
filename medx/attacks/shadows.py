"""Halves of every hospital's records, on each of which a shadow run is trained, and what the models then say."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from annotated_types import Ge
from numpy.random import Generator

from medx.configuration import build
from medx.partition import Rows
from medx.randomness import derive_seed, numpy_generator
from medx.results import ExperimentResult
from medx.schema import ConfigError, component


@component
class Halves:
    """Deals as ``base`` does, and keeps one half of every hospital's records: those of shadow run ``number``.

    Runs 2k and 2k + 1 have the two halves of one draw. So each record is in one of the two, and of a hospital all runs
    have equally many records: plan and noise are the same in all. Of an odd number of records one is in neither.
    Draws follow ``seed`` and not the run's own, so that all runs have the same hospitals.
    """

    base: dict[str, Any]
    number: Annotated[int, Ge(0)]
    seed: Annotated[int, Ge(0)]

    def split(
        self, labels: np.ndarray, num_classes: int, num_clients: int, generator: Generator, **known: np.ndarray
    ) -> Rows:
        """The half of each hospital's rows."""
        del generator
        dealing = numpy_generator(derive_seed(self.seed, "partition"))
        whole = build({"partition": self.base}, "partition").split(labels, num_classes, num_clients, dealing, **known)
        return halves(whole, self.seed, self.number)


def halves(parts: Sequence[np.ndarray], seed: int, number: int) -> Rows:
    """Sorted rows of each hospital that are in run ``number``."""
    draw = numpy_generator(derive_seed(seed, "shadow", number // 2))
    shuffled = [draw.permutation(part) for part in parts]
    begins = [number % 2 * (len(part) // 2) for part in parts]
    return [np.sort(rows[at : at + len(rows) // 2]) for rows, at in zip(shuffled, begins, strict=True)]


@dataclass(frozen=True)
class Claims:
    """The runs' ``epsilon`` at ``delta``, and that of a record ``replaced`` by another; None where nothing is claimed.

    ``test_auc`` is how good the models are, the mean.
    """

    epsilon: float | None
    replaced: float | None
    delta: float | None
    test_auc: float | None

    @classmethod
    def of(cls, results: Sequence[ExperimentResult]) -> "Claims":
        """The most that any of the runs claims."""
        privacy = [result.privacy for result in results]
        aucs = [auc for result in results if (auc := result.test["auc"].value) is not None]
        return cls(
            epsilon=most([each.epsilon for each in privacy]),
            replaced=most([each.epsilon_replace for each in privacy]),
            delta=most([each.delta for each in privacy]),
            test_auc=float(np.mean(aucs)) if aucs else None,
        )


def most(values: Sequence[float | None]) -> float | None:
    """The largest of those that are there."""
    return max((value for value in values if value is not None), default=None)


NOTHING = Claims(None, None, None, None)


@dataclass(frozen=True)
class Observed:
    """What the models of all runs say of every record, and which records each run had.

    ``inside`` is ``bool [runs, n]``; ``signals`` are logits of the true label's probability ``[runs, n]``, and
    ``others`` of records that no run had ``[runs, m]``. ``rows`` are the records' places in the training split and
    ``hospitals`` where they are, both ``int64 [n]``.
    """

    inside: np.ndarray
    signals: np.ndarray
    others: np.ndarray
    rows: np.ndarray
    hospitals: np.ndarray
    claims: Claims = NOTHING


def logits(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The logit of the true label's probability ``[n]`` (Carlini et al. 2022), of ``[n, classes]`` in float64.

    The others' probabilities are added up, as one minus the label's would be nought for what a model is sure of.
    """
    if labels.ndim != 1:
        raise ConfigError("dataset: its records have several labels each; accepted: one label a record")
    truth = np.arange(probabilities.shape[1]) == labels[:, None]
    tiny = np.finfo(np.float64).tiny
    right, wrong = (np.where(mask, probabilities, 0.0).sum(1) for mask in (truth, ~truth))
    return np.log(np.maximum(right, tiny)) - np.log(np.maximum(wrong, tiny))
