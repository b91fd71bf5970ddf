"""Every hospital protects its own records: clipped, noised steps, so that nothing it sends needs to be trusted."""

from medx.privacy.base import ZERO_OUT, Exposure, PrivacyPlan, SampledGaussian
from medx.privacy.gaussian import Delta, GaussianMechanism
from medx.privacy.planning import check_delta, check_exposure, client_plans
from medx.schema import component


@component("privacy/local_dp")
class LocalDP(GaussianMechanism):
    """DP-SGD at each client (Abadi et al. 2016, algorithm 1), calibrated once over all rounds and steps.

    Unit: a record (one image), whose content is taken out while counts stay public (zero-out). Sensitivity: each
    released sum of clipped gradients changes by at most ``clip_norm`` in the l2 norm. The guarantee holds towards the
    server and everybody behind it. Clients are disjoint in records, so the federation's epsilon is the largest
    client's (parallel composition, McSherry 2009).
    """

    delta: Delta

    def plan(self, exposure: Exposure) -> PrivacyPlan:
        """One calibration for every distinct sampling probability; raises PrivacyError if delta >= 1/N."""
        check_exposure(exposure)
        check_delta(self.delta, exposure.num_records)
        steps = [
            SampledGaussian(
                sampling_probability=q,
                noise_multiplier=self.noise_multiplier(self.delta, q, exposure, exposure.steps_per_round),
                clip_norm=self.clip_norm,
            )
            if records
            else None
            for records, q in zip(exposure.num_records, exposure.sampling_probability, strict=True)
        ]
        return PrivacyPlan(
            mechanism="local_dp",
            unit="record",
            adjacency=ZERO_OUT,
            delta=self.delta,
            target_epsilon=self.epsilon,
            noise_source=self.noise_source,
            num_runs=self.num_runs,
            clients=client_plans(exposure, steps, self.spare(exposure.num_rounds)),
        )
