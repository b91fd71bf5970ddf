"""The mechanisms: no noise, noise at every hospital, noise once in a sum of gradients or of whole updates."""

from dataclasses import replace
from typing import Annotated, ClassVar, Literal, Self

from annotated_types import Ge, Gt, Lt

from medx.privacy.base import (
    ClientRelease,
    Exposure,
    PrivacyMechanism,
    PrivacyPlan,
    QuantileClipping,
    SampledGaussian,
    SharedNoise,
)
from medx.privacy.exposure import check_exposure, client_plans
from medx.privacy.gaussian import CalibratedMechanism, Delta
from medx.privacy.units import CLIENT, PATIENT, RECORD, Unit
from medx.schema import ConfigError, component

LARGEST_DELTA = 1e-3


@component("privacy/none")
class NoPrivacy(PrivacyMechanism):
    """The baseline: nothing is clipped, no noise is added, nothing is promised. It has no epsilon, and accepts none."""

    def plan(self, exposure: Exposure) -> PrivacyPlan:
        """Client plans without a noisy step."""
        check_exposure(exposure)
        return PrivacyPlan(mechanism=self, clients=client_plans(exposure, [None] * len(exposure.num_records)))


@component
class StepMechanism(CalibratedMechanism):
    """Each step clips records, or with ``unit=patient`` patients, and is noised.

    A patient's gradient is the mean over at most ``max_records_per_patient`` images, drawn anew for each step (None:
    all), and is clipped as one; batches are drawn of patients (user-level sampling: Charles et al. 2024, Chua et al.
    2024). So the sensitivity is ``clip_norm`` for a patient, by the same proof.
    """

    unit: Literal["record", "patient"] = "record"
    max_records_per_patient: Annotated[int, Ge(1)] | None = 4

    added: ClassVar[tuple[str, ...]] = ("unit", "max_records_per_patient")

    @property
    def protected(self) -> Unit:
        """A record, or a patient."""
        return PATIENT if self.unit == "patient" else RECORD

    def images_of_a_patient(self) -> int | None:
        """What was configured, where a patient is the unit."""
        return self.max_records_per_patient if self.unit == "patient" else None


@component("privacy/local_dp")
class LocalDP(StepMechanism):
    """DP-SGD at each client (Abadi et al. 2016, algorithm 1), calibrated once over all rounds and steps.

    Unit: a record or a patient. The guarantee holds towards the server and everybody behind it: nothing that a hospital
    sends needs to be trusted. Every distinct sampling probability has its own noise.
    """

    delta: Delta


@component("privacy/distributed_dp")
class DistributedDP(StepMechanism):
    """The distributed Gaussian mechanism over a sum of clipped gradients (Kairouz, Liu and Steinke 2021).

    A round is one global DP-SGD step (Abadi et al. 2016): the same sampling probability everywhere, each record or
    patient clipped, the *sum* released. Unit: one of them, whose content is taken out (zero-out). Sensitivity of the
    sum: ``clip_norm`` in the l2 norm, plus sqrt(dimension) grid units of rounding and an allowance for float32.
    ``assumed_colluders`` clients may subtract their shares: the others still make up the noise. Without secure
    aggregation the server sees every share, so ``trusted_aggregator`` must say that it is trusted.
    """

    delta: Delta
    assumed_colluders: Annotated[int, Ge(0)]
    trusted_aggregator: bool

    what: ClassVar[str] = (
        "distributed Gaussian mechanism (Kairouz, Liu and Steinke 2021): hospitals add shares of the noise, and only "
        "their sum is released"
    )
    sees: ClassVar[tuple[str, str]] = (
        "the server sees every hospital's sum under its own share of the noise and is trusted with it",
        "the server sees the noised sum of a round and nobody's part of it",
    )
    optimizers: ClassVar[tuple[str, ...] | None] = ("sgd",)

    def check(self, exposure: Exposure) -> None:
        """Refuse what is not one global step a round that only a trusted server sees in parts."""
        if exposure.steps_per_round != 1:
            raise ConfigError(
                f"trainer.local_steps={exposure.steps_per_round}: privacy=distributed_dp takes 1, a global step a round"
            )
        drawn = zip(exposure.sampling_probability, exposure.num_records, strict=True)
        if len({q for q, records in drawn if records}) > 1:  # from a hospital without records nothing is drawn
            raise ConfigError(
                "trainer.expected_batch_size: privacy=distributed_dp needs one sampling probability at all hospitals; "
                "set trainer.sampling_probability, or trainer.expected_batch_size=null for all records"
            )
        if not exposure.secure_aggregation and not self.trusted_aggregator:
            raise ConfigError(
                "aggregation=plain: privacy=distributed_dp hides a record behind the sum's noise, which a server that "
                "sees single updates does not meet; accepted: aggregation=secure, or privacy.trusted_aggregator=true"
            )

    def shared_noise(self, exposure: Exposure) -> SharedNoise:
        """The sum is one release, whoever contributes to it."""
        trusted = not exposure.secure_aggregation
        return SharedNoise(exposure.minimum_survivors, self.assumed_colluders, trusted_aggregator=trusted)

    def alone(self) -> Self:
        """All of the noise is the one client's."""
        return replace(self, trusted_aggregator=True, assumed_colluders=0)


@component("privacy/central_dp")
class CentralDP(CalibratedMechanism):
    """DP-FedAvg with a fixed denominator (McMahan et al. 2018, algorithm 1).

    Unit: a client with all its records, whose content is taken out while counts stay public (zero-out). Each round
    draws every client with probability ``federation.fraction_clients`` (Poisson) and releases the noised *sum* of
    their updates, clipped to the l2 norm ``clip_norm`` and not weighted, so the sensitivity is ``clip_norm``. With
    aggregation=plain a trusted server adds the noise; with aggregation=secure every client adds a share, and the draw
    must be of all. ``target_quantile`` lets the clip norm follow that quantile of the norms (Andrew et al. 2021); its
    noise, ``quantile_noise``, is accounted.
    """

    target_quantile: Annotated[float, Gt(0), Lt(1)] | None
    clip_learning_rate: Annotated[float, Gt(0)]
    quantile_noise: Annotated[float, Gt(0)] | None
    assumed_colluders: Annotated[int, Ge(0)]

    protects: ClassVar[Unit] = CLIENT
    what: ClassVar[str] = (
        "DP-FedAvg (McMahan et al. 2018): every hospital's update is clipped and Gaussian noise is added to their sum"
    )
    sees: ClassVar[tuple[str, str]] = (
        "the server draws the hospitals, sees every clipped update without noise and is trusted with it; "
        "the guarantee holds towards whoever receives the models, not towards the server",
        "the server sees the noised sum of a round and nobody's part of it",
    )
    shares_momentum: ClassVar[bool] = False
    no_baselines: ClassVar[str | None] = "hides a hospital among many, which one alone cannot be"

    def delta_for(self, exposure: Exposure) -> float:
        """``delta``, or where it is None a tenth of 1 / num_clients, but at most ``LARGEST_DELTA``.

        A mechanism that publishes one hospital whole with probability delta satisfies it: with few hospitals a share
        of 1 / num_clients alone would allow that too often.
        """
        return min(LARGEST_DELTA, 0.1 / len(exposure.num_records)) if self.delta is None else self.delta

    def client_release(self, exposure: Exposure, delta: float) -> ClientRelease:
        """One release a round for all clients."""
        q = exposure.fraction_clients
        noise = self.noise_for(delta, q, self.covered(exposure))
        event = SampledGaussian(q, noise, self.clip_norm)
        if self.target_quantile is None:
            return ClientRelease(event, None)
        # A twentieth of the expected clients, as Andrew et al. advise, but at most 3.3 % more noise on the update.
        count_noise = self.quantile_noise or max(q * len(exposure.num_records) / 20, 2 * noise)
        return ClientRelease(event, QuantileClipping(self.target_quantile, self.clip_learning_rate, count_noise))

    def shared_noise(self, exposure: Exposure) -> SharedNoise | None:
        """A server that is trusted adds the noise; one that sees the sum alone cannot."""
        if not exposure.secure_aggregation:
            return None
        return SharedNoise(exposure.minimum_survivors, self.assumed_colluders, trusted_aggregator=False)
