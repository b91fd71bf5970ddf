"""What all Gaussian mechanisms are asked for: the budget, whom it is shared among, and where it is kept."""

import math
from typing import Annotated

from annotated_types import Ge, Gt
from pydantic import AfterValidator, model_validator
from pydantic_core import PydanticCustomError

from medx.privacy.accounting import calibrate_noise_multiplier
from medx.privacy.base import Exposure, NoiseSource
from medx.schema import Place, component


def within(least: float, most: float) -> AfterValidator:
    """A number's range, told as a whole and in short."""

    def check(value: float) -> float:
        if not least <= value <= most:
            raise PydanticCustomError("out_of_range", f"accepted: {least:g} to {most:g}")  # type: ignore[arg-type]
        return value

    return AfterValidator(check)


# What both accountants certify, and the statement's figures for several records; beyond it their numerics fail.
Epsilon = Annotated[float, within(1e-3, 100)]
Delta = Annotated[float, within(1e-14, 0.5)]
# Norms are compared and noise is added in float32, whose squares end at 1e38 and lose digits below 1e-38.
ClipNorm = Annotated[float, within(1e-15, 1e15)]


@component
class GaussianMechanism:
    """``epsilon`` and ``delta`` hold for ``num_runs`` runs like this one together, each with noise of its own.

    More than one run shares the budget where a setting is chosen among several: the choice is then covered too, for
    training records; validation records, by which it is made, have no guarantee. ``budget`` is the most epsilon that
    the ``ledger`` (a folder) may reach over all runs on the same records. ``max_abstentions`` counts updates that are
    left out as not finite, over a run.

    The noise covers ``spare_rounds`` beside the planned ones, for rounds that are begun again: after a kill with noise
    of the system, or in a sum whose attempt failed. None is a fiftieth of the rounds, upwards, where the noise is the
    system's, and 0 where it is the seed's, which repeats a round for nothing.
    """

    epsilon: Epsilon
    clip_norm: ClipNorm
    num_runs: Annotated[int, Ge(1)]
    spare_rounds: Annotated[int, Ge(0)] | None
    noise_source: NoiseSource
    ledger: Place | None
    budget: Annotated[float, Gt(0)] | None
    max_abstentions: Annotated[int, Ge(0)]

    @model_validator(mode="after")
    def _check_budget(self) -> "GaussianMechanism":
        if self.budget is not None and self.ledger is None:
            raise ValueError(f"budget={self.budget:g} needs a ledger to be kept in: set privacy.ledger to a folder")
        if self.budget is not None and self.epsilon > self.budget:
            raise ValueError(f"epsilon={self.epsilon:g} is above budget={self.budget:g}")
        return self

    def spare(self, num_rounds: int) -> int:
        """How many rounds more than ``num_rounds`` the noise covers."""
        if self.spare_rounds is not None:
            return self.spare_rounds
        return math.ceil(num_rounds / 50) if self.noise_source == "system" else 0

    def noise_multiplier(
        self, delta: float, sampling_probability: float, exposure: Exposure, releases_per_round: int = 1
    ) -> float:
        """The noise of each of one run's releases, spare ones included; one calibration for all runs."""
        releases = releases_per_round * (exposure.num_rounds + self.spare(exposure.num_rounds))
        return calibrate_noise_multiplier(self.epsilon, delta, sampling_probability, releases * self.num_runs)
