"""A linear head's exact inversion: what a gradient of rank one, or of few records over several rounds, gives away.

A record's gradient at a linear layer is its error times its features (Phong et al. 2018, section 3.2): where one
feature is a known constant, errors and features come apart.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import least_squares
from scipy.special import expit

from medx.schema import ConfigError

EXACT = 1e-4  # of a gradient's length: what may be left of it where a model of it is right; float32 leaves 1e-6
STARTS = 20


@dataclass(frozen=True)
class Records:
    """Features ``[n, features]`` and labels ``[n]``; ``rest`` is what they leave unexplained, in gradient lengths."""

    features: np.ndarray
    labels: np.ndarray
    rest: float

    @property
    def exact(self) -> bool:
        """Whether the attacker knows that it has them."""
        return self.rest < EXACT


def single(gradient: np.ndarray, constant: float) -> Records:
    """The one record behind a head's gradient ``[outputs, features]``, whose last feature is ``constant``.

    Of one logit the error is below zero for class 1; of several it is so at the label alone. All other features are
    one long together, as those of scatternet are: by that an attacker knows whether it has a record or noise.
    """
    errors = gradient[:, -1] / constant
    features = errors @ gradient / (errors @ errors)
    rest = np.linalg.norm(gradient - np.outer(errors, features)) / np.linalg.norm(gradient)
    rest = max(rest, abs(np.linalg.norm(features[:-1]) - 1))
    label = int(errors[0] < 0) if len(errors) == 1 else int(np.argmin(errors))
    return Records(features[None], np.array([label]), float(rest))


def several(
    weights: Sequence[np.ndarray], gradients: Sequence[np.ndarray], count: int, constant: float, seed: int = 0
) -> Records:
    """The ``count`` records that are in every round's gradient of a head of one logit, each ``[features]``.

    All gradients lie in the span of the records, and with the ``weights`` of every round known, a record's error is a
    known function of where in it the record lies: ``sigmoid(w f) - label``. So few numbers are sought, by least squares
    from several starts. With full batches alone: what is drawn anew in each round fits no one set of records. The head
    starts at zero, where every error is a half: so the first round counts the labels.
    """
    if np.any(weights[0]):
        raise ConfigError("model: its head does not start at zero; accepted: one that does, such as phantom_start=0")
    span = Span.of(np.stack(weights), np.stack(gradients) * count, count, constant)
    positives = int(np.clip(round(count / 2 - gradients[0][-1] * count / constant), 0, count))
    labels = np.arange(count) < positives
    generator = np.random.default_rng(seed)
    best = None
    for _ in range(STARTS):
        spread = generator.standard_normal((count, count)) * 10.0 ** generator.uniform(-1, 0)
        start = (constant * span.aside + spread).ravel()
        found = least_squares(span.unexplained, start, span.slopes, method="lm", args=(labels,), max_nfev=500)
        if best is None or found.cost < best.cost:
            best = found
        if 2 * best.cost < EXACT**2:
            break
    assert best is not None
    return Records(best.x.reshape(count, count) @ span.basis, labels.astype(np.int64), math.sqrt(2 * best.cost))


@dataclass(frozen=True)
class Span:
    """The span of all gradients: its ``basis [count, features]``, and gradients and models in it ``[rounds, count]``.

    ``constants [count]`` are the last feature of the basis, ``constant`` what it is of a record.
    """

    basis: np.ndarray
    inside: np.ndarray
    models: np.ndarray
    constant: float

    @classmethod
    def of(cls, models: np.ndarray, seen: np.ndarray, count: int, constant: float) -> "Span":
        """Gradients in units of their length, so that what is left of them is told in those."""
        basis = np.linalg.svd(seen, full_matrices=False)[2][:count]
        return cls(basis, seen @ basis.T, models @ basis.T, constant)

    @property
    def constants(self) -> np.ndarray:
        """See the class."""
        return self.basis[:, -1]

    @property
    def aside(self) -> np.ndarray:
        """Where in the span the constant is 1, nearest to the origin."""
        return self.constants / (self.constants @ self.constants)

    @property
    def _length(self) -> float:
        return float(np.linalg.norm(self.inside))

    def unexplained(self, numbers: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """What places in the span ``numbers [count ** 2]`` leave of the gradients, and of the constant."""
        places = numbers.reshape(len(self.basis), -1)
        errors = expit(self.models @ places.T) - labels
        rest = (errors @ places - self.inside) / self._length
        return np.concatenate([rest.ravel(), places @ self.constants / self.constant - 1])

    def slopes(self, numbers: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Its derivative ``[rounds * count + count, count ** 2]``."""
        count = len(self.basis)
        places = numbers.reshape(count, count)
        likely = expit(self.models @ places.T)
        own = np.einsum("ti,kl->tkil", likely - labels, np.eye(count))
        through = np.einsum("ti,tl,ik->tkil", likely * (1 - likely), self.models, places)
        rest = (own + through).reshape(-1, count * count) / self._length
        return np.concatenate([rest, np.kron(np.eye(count), self.constants / self.constant)])
