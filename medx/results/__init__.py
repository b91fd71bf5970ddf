"""What a run leaves behind, as records, and who is told of it."""

from medx.results.attack import AttackResult
from medx.results.observer import Observer, RunContext, Together
from medx.results.privacy import (
    NONE_FROM,
    STUDY_ONLY,
    AggregationResult,
    ClientEvents,
    Meaning,
    NoiseMeasured,
    PrivacyResult,
    PublicWeights,
    told_epsilon,
)
from medx.results.record import (
    ClientResult,
    CurveData,
    DatasetInfo,
    ExperimentResult,
    Interval,
    PersonalResult,
    RoundRecord,
    Status,
    SubgroupResult,
    read_rounds,
    released_config,
)

__all__ = [
    "NONE_FROM",
    "STUDY_ONLY",
    "AggregationResult",
    "AttackResult",
    "ClientEvents",
    "ClientResult",
    "CurveData",
    "DatasetInfo",
    "ExperimentResult",
    "Interval",
    "Meaning",
    "NoiseMeasured",
    "Observer",
    "PersonalResult",
    "PrivacyResult",
    "PublicWeights",
    "RoundRecord",
    "RunContext",
    "Status",
    "SubgroupResult",
    "Together",
    "read_rounds",
    "released_config",
    "told_epsilon",
]
