"""Noise that is added once: every hospital adds a share, and only the noised sum of a round is ever seen."""

from typing import Annotated

from annotated_types import Ge

from medx.privacy.base import ZERO_OUT, Exposure, PrivacyPlan, SampledGaussian, SharedNoise
from medx.privacy.gaussian import Delta, GaussianMechanism
from medx.privacy.planning import check_delta, check_exposure, client_plans
from medx.schema import ConfigError, component


@component("privacy/distributed_dp")
class DistributedDP(GaussianMechanism):
    """The distributed Gaussian mechanism over a sum of clipped gradients (Kairouz, Liu and Steinke 2021).

    A round is one global DP-SGD step (Abadi et al. 2016): the same sampling probability everywhere, each record
    clipped, the *sum* released. Unit: a record, whose content is taken out (zero-out). Sensitivity of the sum:
    ``clip_norm`` in the l2 norm, plus sqrt(dimension) grid units of rounding and an allowance for float32.
    ``assumed_colluders`` clients may subtract their shares: the others still make up the noise. Without secure
    aggregation the server sees every share, so ``trusted_aggregator`` must say that it is trusted.
    """

    delta: Delta
    assumed_colluders: Annotated[int, Ge(0)]
    trusted_aggregator: bool

    def plan(self, exposure: Exposure) -> PrivacyPlan:
        """One calibration for all: the sum is one release, whoever contributes to it."""
        check_exposure(exposure)
        check_delta(self.delta, exposure.num_records)
        self._check_sum(exposure)
        q = _drawn(exposure)[0]
        noise_multiplier = self.noise_multiplier(self.delta, q, exposure)
        step = SampledGaussian(q, noise_multiplier, self.clip_norm)
        return PrivacyPlan(
            mechanism="distributed_dp",
            unit="record",
            adjacency=ZERO_OUT,
            delta=self.delta,
            target_epsilon=self.epsilon,
            noise_source=self.noise_source,
            num_runs=self.num_runs,
            clients=client_plans(exposure, [step] * len(exposure.num_records), self.spare(exposure.num_rounds)),
            shared_noise=SharedNoise(
                exposure.minimum_survivors,
                self.assumed_colluders,
                trusted_aggregator=not exposure.secure_aggregation,
            ),
        )

    def _check_sum(self, exposure: Exposure) -> None:
        if exposure.steps_per_round != 1:
            raise ConfigError(
                f"trainer.local_steps={exposure.steps_per_round}: privacy=distributed_dp takes 1, a global step a round"
            )
        if len(set(_drawn(exposure))) != 1:
            raise ConfigError(
                "trainer.expected_batch_size: privacy=distributed_dp needs one sampling probability at all hospitals; "
                "set trainer.sampling_probability, or trainer.expected_batch_size=null for all records"
            )
        if not exposure.secure_aggregation and not self.trusted_aggregator:
            raise ConfigError(
                "aggregation=plain: privacy=distributed_dp hides a record behind the sum's noise, which a server that "
                "sees single updates does not meet; accepted: aggregation=secure, or privacy.trusted_aggregator=true"
            )
        if exposure.minimum_survivors - self.assumed_colluders < 1:
            raise ConfigError(
                f"privacy.assumed_colluders={self.assumed_colluders}: accepted are 0 to "
                f"{exposure.minimum_survivors - 1}, fewer than the {exposure.minimum_survivors} minimum survivors"
            )


def _drawn(exposure: Exposure) -> list[float]:
    """The sampling probabilities that are used: from a hospital without records nothing is drawn."""
    pairs = zip(exposure.sampling_probability, exposure.num_records, strict=True)
    return [q for q, records in pairs if records] or [1.0]
