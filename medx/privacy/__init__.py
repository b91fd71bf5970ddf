"""Privacy: plans, accounting, the ledger and the statement."""

from medx.privacy.base import (
    ClientPlan,
    Exposure,
    NoiseSource,
    PrivacyMechanism,
    PrivacyPlan,
    SampledGaussian,
)

__all__ = [
    "ClientPlan",
    "Exposure",
    "NoiseSource",
    "PrivacyMechanism",
    "PrivacyPlan",
    "SampledGaussian",
]
