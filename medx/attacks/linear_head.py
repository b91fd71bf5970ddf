"""A linear head's exact inversion: what a gradient of rank one, or of few records over several rounds, gives away.

A record's gradient at a linear layer is its error times its features (Phong et al. 2018, section 3.2): where one feature
is a known constant, or the layer has a bias, errors and features come apart.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import least_squares
from scipy.special import expit

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
    from several starts. With full batches alone: what is drawn anew in each round fits no one set of records.
    """
    seen = np.stack(gradients) * count
    basis = np.linalg.svd(seen, full_matrices=False)[2][:count]  # [count, features]
    inside, models = seen @ basis.T, np.stack(weights) @ basis.T
    aside = basis[:, -1] / (basis[:, -1] @ basis[:, -1])  # in the span, the point where the constant is 1
    length = float(np.linalg.norm(seen))

    def unexplained(numbers: np.ndarray, positive: np.ndarray) -> np.ndarray:
        places = numbers.reshape(count, count)
        errors = expit(models @ places.T) - positive
        wrong: np.ndarray = np.concatenate(
            [((errors @ places - inside) / length).ravel(), places @ basis[:, -1] / constant - 1]
        )
        return wrong

    best: tuple[float, np.ndarray, np.ndarray] | None = None
    generator = np.random.default_rng(seed)
    for start in range(STARTS):
        for positives in range(count + 1):
            positive = (np.arange(count) < positives).astype(np.float64)
            spread = generator.standard_normal((count, count)) * 10.0 ** generator.uniform(-1, 0)
            found = least_squares(
                unexplained, (constant * aside + spread).ravel(), args=(positive,), method="lm", max_nfev=2000
            )
            rest = float(np.linalg.norm(found.fun))
            if best is None or rest < best[0]:
                best = rest, found.x.reshape(count, count), positive
        if best is not None and best[0] < EXACT and start:
            break
    assert best is not None
    return Records(best[1] @ basis, best[2].astype(np.int64), best[0])
