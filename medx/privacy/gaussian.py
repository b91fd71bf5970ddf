"""What Gaussian mechanisms have in common: what they are asked for, and the plan that follows from it.

A mechanism chooses the noise, and nothing else: the plan that is executed and the events that are accounted are made
here of one object, ``SampledGaussian``, so that they cannot differ.
"""

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Self

from annotated_types import Ge, Gt
from pydantic import AfterValidator, model_validator
from pydantic_core import PydanticCustomError

from medx.privacy.accounting import calibrate_noise_multiplier, epsilon_spent
from medx.privacy.base import (
    ClientRelease,
    Exposure,
    NoiseSource,
    PrivacyMechanism,
    PrivacyPlan,
    SampledGaussian,
    SharedNoise,
)
from medx.privacy.exposure import check_delta, check_exposure, check_patients, client_plans
from medx.privacy.units import RECORD, Unit
from medx.schema import ConfigError, Place, PrivacyError, component


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
class GaussianMechanism(PrivacyMechanism):
    """DP-SGD at each client (Abadi et al. 2016, algorithm 1), with the noise that ``noise_for`` chooses.

    Unit: a record (one image), whose content is taken out while counts stay public (zero-out). Sensitivity: each
    released sum of clipped gradients changes by at most ``clip_norm`` in the l2 norm. Clients are disjoint in records,
    so the federation's epsilon is the largest client's (parallel composition, McSherry 2009). A class that releases
    something else, by ``shared_noise`` or ``client_release``, must say anew ``what`` it is and who ``sees`` what.

    ``budget`` is the most epsilon that the ``ledger`` (a folder) may reach over all runs on the same records.
    ``max_abstentions`` counts updates that are left out as not finite, over a run.

    The noise covers ``spare_rounds`` beside the planned ones, for rounds that are begun again: after a kill with noise
    of the system, or in a sum whose attempt failed. None is a fiftieth of the rounds, upwards, where the noise is the
    system's, and 0 where it is the seed's, which repeats a round for nothing.
    """

    delta: Delta | None
    clip_norm: ClipNorm
    spare_rounds: Annotated[int, Ge(0)] | None
    noise_source: NoiseSource
    ledger: Place | None
    budget: Annotated[float, Gt(0)] | None
    max_abstentions: Annotated[int, Ge(0)]

    protects: ClassVar[Unit] = RECORD
    what: ClassVar[str] = (
        "DP-SGD at every hospital (Abadi et al. 2016): each step clips every record's gradient and adds Gaussian noise "
        "before anything leaves"
    )
    sees: ClassVar[tuple[str, str]] = (
        "the server and whoever receives the model see each hospital's noised model of every round; "
        "the guarantee holds towards all of them, other hospitals included",
        "the server sees the sum of the hospitals' noised updates; the guarantee needs no secure aggregation and "
        "holds towards everybody, other hospitals included",
    )
    no_baselines: ClassVar[str | None] = "has no epsilon that models on the same records could share"

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        if {"shared_noise", "client_release"} & vars(cls).keys() and not {"what", "sees"} <= vars(cls).keys():
            raise TypeError(
                f"{cls.__name__} releases something else than its base: say `what` it is and who `sees` what"
            )

    @model_validator(mode="after")
    def _check_ledger(self) -> Self:
        if self.budget is not None and self.ledger is None:
            raise ValueError(f"budget={self.budget:g} needs a ledger to be kept in: set privacy.ledger to a folder")
        return self

    @property
    def protected(self) -> Unit:
        """Whom it protects as it is configured."""
        return self.protects

    @abstractmethod
    def noise_for(self, delta: float, sampling_probability: float, releases: int) -> float:
        """The noise multiplier (stddev over clip norm) of each of a run's ``releases`` on one client's records."""

    def target(self) -> tuple[float, int] | None:
        """(epsilon, runs): the most that so many runs like this one spend together; None: what the noise comes to."""
        return None

    def images_of_a_patient(self) -> int | None:
        """Of at most how many images a patient's gradient in a step is the mean; None: all, or no such unit."""
        return None

    def delta_for(self, exposure: Exposure) -> float:
        """The delta of the guarantee."""
        assert self.delta is not None
        return self.delta

    def check(self, exposure: Exposure) -> None:
        """Raise ConfigError where the mechanism cannot cover this exposure."""

    def shared_noise(self, exposure: Exposure) -> SharedNoise | None:
        """How clients make up the noise of a sum together; None: each adds all of it to its own."""
        return None

    def client_release(self, exposure: Exposure, delta: float) -> ClientRelease | None:
        """The release of a round's clipped updates where the unit is a client; None: clients release their steps."""
        return None

    def plan(self, exposure: Exposure) -> PrivacyPlan:
        """The whole run, planned once; raises PrivacyError where it would spend more than the mechanism's target."""
        check_exposure(exposure)
        delta = self.delta_for(exposure)
        check_patients(exposure, self.protected)
        check_delta(delta, exposure, self.protected)
        self.check(exposure)
        release = self.client_release(exposure, delta)
        steps = self._steps(exposure, delta) if release is None else [None] * len(exposure.num_records)
        most, runs = self.target() or (None, 1)
        plan = PrivacyPlan(
            mechanism=self,
            clients=client_plans(exposure, steps, self.spare(exposure)),
            delta=delta,
            target_epsilon=most,
            noise_source=self.noise_source,
            shared_noise=self.shared_noise(exposure),
            client_release=release,
            num_runs=runs,
            ledger=self.ledger,
            budget=self.budget,
            max_abstentions=self.max_abstentions,
            patient_images=exposure.patient_images,
            max_records_per_patient=self.images_of_a_patient(),
        )
        reserved = {tuple(plan.history(client, plan.reserved_events(client) * runs)) for client in plan.clients}
        planned = max(epsilon_spent(history, delta).value for history in reserved)
        if most is not None and planned > most:
            raise PrivacyError(
                f"privacy={self.name}: its noise comes to epsilon {planned:.4g}, above the {most:g} that it promises"
            )
        return plan if most is not None else replace(plan, target_epsilon=planned)

    def spare(self, exposure: Exposure) -> int:
        """How many rounds more than those of ``exposure`` the noise covers."""
        if self.spare_rounds is not None:
            return self.spare_rounds
        return math.ceil(exposure.num_rounds / 50) if self.noise_source == "system" else 0

    def covered(self, exposure: Exposure) -> int:
        """How many rounds the noise covers, spare ones included."""
        return exposure.num_rounds + self.spare(exposure)

    def check_baselines(self, names: Sequence[str]) -> None:
        """Refuse them where they cannot be covered, or no ledger would show them."""
        super().check_baselines(names)
        if names and self.ledger is not None:
            raise ConfigError(
                f"baseline={','.join(names)}: a baseline spends a budget of its own on every hospital's "
                "records, which privacy.ledger would not show; accepted: baseline=null, or privacy.ledger=null"
            )

    def _steps(self, exposure: Exposure, delta: float) -> list[SampledGaussian | None]:
        """Each client's release of a step, and None for one without records; equal where they are sampled alike."""
        releases = exposure.steps_per_round * self.covered(exposure)
        return [
            SampledGaussian(q, self.noise_for(delta, q, releases), self.clip_norm) if records else None
            for records, q in zip(exposure.num_records, exposure.sampling_probability, strict=True)
        ]


@component
class CalibratedMechanism(GaussianMechanism):
    """``epsilon`` and ``delta`` hold for ``num_runs`` runs like this one together, each with noise of its own.

    More than one run shares the budget where a setting is chosen among several: the choice is then covered too, for
    training records; validation records, by which it is made, have no guarantee.
    """

    epsilon: Epsilon
    num_runs: Annotated[int, Ge(1)]

    calibrated: ClassVar[bool] = True
    no_baselines: ClassVar[str | None] = None

    @model_validator(mode="after")
    def _check_budget(self) -> Self:
        if self.budget is not None and self.epsilon > self.budget:
            raise ValueError(f"epsilon={self.epsilon:g} is above budget={self.budget:g}")
        return self

    def noise_for(self, delta: float, sampling_probability: float, releases: int) -> float:
        """The least noise that both accountants certify; one calibration for all runs."""
        return calibrate_noise_multiplier(self.epsilon, delta, sampling_probability, releases * self.num_runs)

    def target(self) -> tuple[float, int]:
        """What was asked for."""
        return self.epsilon, self.num_runs

    def shared_by(self, models: int) -> Self:
        """The same with one model for each run that it was calibrated for."""
        return replace(self, num_runs=models)

    def check_baselines(self, names: Sequence[str]) -> None:
        """Refuse them beside runs that share the epsilon already."""
        if names and self.num_runs > 1:
            raise ConfigError(
                f"baseline={list(names)} with privacy.num_runs: baselines train on the same records, beside "
                "the runs that share epsilon; accepted: baseline=null"
            )
        super().check_baselines(names)
