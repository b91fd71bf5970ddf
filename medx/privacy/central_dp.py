"""Client-level privacy: each hospital's whole update is clipped, and noise is added to the sum of a round."""

import math
from typing import Annotated

from annotated_types import Ge, Gt, Lt

from medx.privacy.base import (
    ZERO_OUT_CLIENT,
    ClientRelease,
    Exposure,
    PrivacyPlan,
    QuantileClipping,
    SampledGaussian,
    SharedNoise,
)
from medx.privacy.gaussian import Delta, GaussianMechanism
from medx.privacy.planning import check_exposure, client_plans
from medx.schema import ConfigError, PrivacyError, component

LARGEST_DELTA = 1e-3


@component("privacy/central_dp")
class CentralDP(GaussianMechanism):
    """DP-FedAvg with a fixed denominator (McMahan et al. 2018, algorithm 1).

    Unit: a client with all its records, whose content is taken out while counts stay public (zero-out). Each round
    draws every client with probability ``federation.fraction_clients`` (Poisson) and releases the noised *sum* of
    their updates, clipped to the l2 norm ``clip_norm`` and not weighted, so the sensitivity is ``clip_norm``. With
    aggregation=plain a trusted server adds the noise; with aggregation=secure every client adds a share, and the draw
    must be of all. ``target_quantile`` lets the clip norm follow that quantile of the norms (Andrew et al. 2021); its
    noise, ``quantile_noise``, is accounted.
    """

    delta: Delta | None
    target_quantile: Annotated[float, Gt(0), Lt(1)] | None
    clip_learning_rate: Annotated[float, Gt(0)]
    quantile_noise: Annotated[float, Gt(0)] | None
    assumed_colluders: Annotated[int, Ge(0)]

    def plan(self, exposure: Exposure) -> PrivacyPlan:
        """One calibration over all rounds; raises PrivacyError if delta >= 1 / num_clients."""
        delta = self.delta_for(len(exposure.num_records))
        check_exposure(exposure)
        clients = len(exposure.num_records)
        if delta >= 1 / clients:
            raise PrivacyError(
                f"privacy.delta={delta:g}: must be below 1/num_clients = {1 / clients:.3g}, the unit is a client"
            )
        q = exposure.fraction_clients
        noise_multiplier = self.noise_multiplier(delta, q, exposure)
        quantile = self._quantile(noise_multiplier, q * clients)
        return PrivacyPlan(
            mechanism="central_dp",
            unit="client",
            adjacency=ZERO_OUT_CLIENT,
            delta=delta,
            target_epsilon=self.epsilon,
            noise_source=self.noise_source,
            num_runs=self.num_runs,
            clients=client_plans(exposure, [None] * clients, self.spare(exposure.num_rounds)),
            shared_noise=self._shared(exposure) if exposure.secure_aggregation else None,
            client_release=ClientRelease(
                event=SampledGaussian(q, noise_multiplier, self.clip_norm),
                update_noise_multiplier=update_noise_multiplier(noise_multiplier, quantile),
                quantile=quantile,
            ),
        )

    def delta_for(self, clients: int) -> float:
        """``delta``, or where it is None a tenth of 1 / num_clients, but at most ``LARGEST_DELTA``.

        A mechanism that publishes one hospital whole with probability delta satisfies it: with few hospitals a share
        of 1 / num_clients alone would allow that too often.
        """
        return min(LARGEST_DELTA, 0.1 / clients) if self.delta is None else self.delta

    def _quantile(self, noise_multiplier: float, expected_clients: float) -> QuantileClipping | None:
        if self.target_quantile is None:
            return None
        # A twentieth of the expected clients, as Andrew et al. advise, but at most 3.3 % more noise on the update.
        noise = self.quantile_noise or max(expected_clients / 20, 2 * noise_multiplier)
        if 2 * noise <= noise_multiplier:
            raise ConfigError(
                f"privacy.quantile_noise={noise:g}: accepted is more than half the noise multiplier "
                f"{noise_multiplier:g}, or null"
            )
        return QuantileClipping(self.target_quantile, self.clip_learning_rate, noise)

    def _shared(self, exposure: Exposure) -> SharedNoise:
        if self.assumed_colluders >= exposure.minimum_survivors:
            raise ConfigError(
                f"privacy.assumed_colluders={self.assumed_colluders}: accepted are 0 to "
                f"{exposure.minimum_survivors - 1}, fewer than the {exposure.minimum_survivors} minimum survivors"
            )
        return SharedNoise(exposure.minimum_survivors, self.assumed_colluders, trusted_aggregator=False)


def update_noise_multiplier(noise_multiplier: float, quantile: QuantileClipping | None) -> float:
    """The update's noise multiplier at which update and quantile together are one Gaussian of ``noise_multiplier``.

    ``z = (z_update^-2 + (2 quantile_noise)^-2)^(-1/2)`` (Andrew et al. 2021, theorem 1).
    """
    if quantile is None:
        return noise_multiplier
    return 1 / math.sqrt(noise_multiplier**-2 - (2 * quantile.noise_stddev) ** -2)
