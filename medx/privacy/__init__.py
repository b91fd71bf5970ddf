"""Privacy: plans, mechanisms, accounting, ledger and statement; here what a mechanism of your own is made of."""

from medx.privacy.base import Exposure, PrivacyMechanism, PrivacyPlan, SampledGaussian
from medx.privacy.gaussian import CalibratedMechanism, Delta, GaussianMechanism

__all__ = [
    "CalibratedMechanism",
    "Delta",
    "Exposure",
    "GaussianMechanism",
    "PrivacyMechanism",
    "PrivacyPlan",
    "SampledGaussian",
]
