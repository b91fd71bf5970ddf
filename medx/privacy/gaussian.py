"""What all Gaussian mechanisms are asked for: the budget, whom it is shared among, and where it is kept."""

from typing import Annotated

from annotated_types import Ge, Gt, Lt
from pydantic import model_validator

from medx.privacy.accounting import calibrate_noise_multiplier
from medx.privacy.base import NoiseSource
from medx.schema import Place, component


@component
class GaussianMechanism:
    """``epsilon`` and ``delta`` hold for ``num_runs`` runs like this one together, each with noise of its own.

    More than one run shares the budget where a setting is chosen among several: the choice is then covered too, for
    training records; validation records, by which it is made, have no guarantee. ``budget`` is the most epsilon that
    the ``ledger`` (a folder) may reach over all runs on the same data. ``max_abstentions`` counts updates that are
    left out as not finite, over a run.
    """

    epsilon: Annotated[float, Gt(0)]
    delta: Annotated[float, Gt(0), Lt(1)]
    clip_norm: Annotated[float, Gt(0)]
    num_runs: Annotated[int, Ge(1)]
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

    def noise_multiplier(self, sampling_probability: float, steps: int) -> float:
        """The noise of each of one run's ``steps`` releases; one calibration for all runs."""
        return calibrate_noise_multiplier(self.epsilon, self.delta, sampling_probability, steps * self.num_runs)
