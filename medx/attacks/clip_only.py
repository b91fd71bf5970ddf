"""Clipping without noise, to show what it hides: no mechanism, and so no option of any configuration."""

from typing import ClassVar

from medx.privacy.base import Exposure, PrivacyMechanism, PrivacyPlan, SampledGaussian
from medx.privacy.exposure import check_exposure, client_plans
from medx.privacy.gaussian import ClipNorm
from medx.schema import component


@component
class ClipOnly(PrivacyMechanism):
    """Every record's gradient is clipped as under local_dp, and no noise is added: nothing is promised."""

    clip_norm: ClipNorm

    what: ClassVar[str] = "clipping without noise, which hides nothing"

    def plan(self, exposure: Exposure) -> PrivacyPlan:
        """Steps with a clip norm and a noise of zero."""
        check_exposure(exposure)
        steps = [SampledGaussian(q, 0.0, self.clip_norm) for q in exposure.sampling_probability]
        return PrivacyPlan(mechanism=self, clients=client_plans(exposure, steps))
