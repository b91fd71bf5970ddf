"""No privacy: nothing is clipped, no noise is added, nothing is promised."""

from medx.privacy.base import Exposure, PrivacyPlan
from medx.privacy.planning import check_exposure, client_plans
from medx.schema import component


@component("privacy/none")
class NoPrivacy:
    """The baseline. It has no epsilon, and accepts none."""

    def plan(self, exposure: Exposure) -> PrivacyPlan:
        """Client plans without a noisy step."""
        check_exposure(exposure)
        return PrivacyPlan(
            mechanism="none",
            unit=None,
            adjacency=None,
            delta=None,
            target_epsilon=None,
            noise_source="seed",
            clients=client_plans(exposure, [None] * len(exposure.num_records)),
        )
