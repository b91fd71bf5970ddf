"""Every hospital protects its own records: clipped, noised steps, so that nothing it sends needs to be trusted."""

from pathlib import Path
from typing import Annotated

from annotated_types import Ge, Gt, Lt
from pydantic import model_validator

from medx.privacy.accounting import calibrate_noise_multiplier
from medx.privacy.base import Exposure, NoiseSource, PrivacyPlan, SampledGaussian
from medx.privacy.planning import check_delta_of_clients, check_exposure, client_plans
from medx.schema import component


@component
class LocalDP:
    """DP-SGD at each client (Abadi et al. 2016, algorithm 1), calibrated once over all rounds and steps.

    Unit: a record (one image), added or removed. Sensitivity: each released sum of clipped gradients changes by
    at most ``clip_norm`` in the l2 norm. The guarantee holds towards the server and everybody behind it. Clients
    are disjoint in records, so the federation's epsilon is the largest client's (parallel composition, McSherry
    2009). ``budget`` is the most epsilon that the ``ledger`` (a folder) may reach over all runs on the same data.
    """

    epsilon: Annotated[float, Gt(0)]
    delta: Annotated[float, Gt(0), Lt(1)]
    clip_norm: Annotated[float, Gt(0)]
    noise_source: NoiseSource
    ledger: Path | None
    budget: Annotated[float, Gt(0)] | None
    max_abstentions: Annotated[int, Ge(0)]

    @model_validator(mode="after")
    def _check_budget(self) -> "LocalDP":
        if self.budget is not None and self.ledger is None:
            raise ValueError(f"budget={self.budget:g} needs a ledger to be kept in: set privacy.ledger to a folder")
        if self.budget is not None and self.epsilon > self.budget:
            raise ValueError(f"epsilon={self.epsilon:g} is above budget={self.budget:g}")
        return self

    def plan(self, exposure: Exposure) -> PrivacyPlan:
        """One calibration for every distinct sampling probability; raises PrivacyError if delta >= 1/N."""
        check_exposure(exposure)
        check_delta_of_clients(self.delta, exposure.num_records)
        total = exposure.steps_per_round * exposure.num_rounds
        steps = [
            SampledGaussian(
                sampling_probability=q,
                noise_multiplier=calibrate_noise_multiplier(self.epsilon, self.delta, q, total),
                clip_norm=self.clip_norm,
            )
            if records
            else None
            for records, q in zip(exposure.num_records, exposure.sampling_probability, strict=True)
        ]
        return PrivacyPlan(
            mechanism="local_dp",
            unit="record",
            adjacency="add or remove one record",
            delta=self.delta,
            target_epsilon=self.epsilon,
            noise_source=self.noise_source,
            clients=client_plans(exposure, steps),
        )
