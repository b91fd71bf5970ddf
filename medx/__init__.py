"""MedX: privacy-utility studies of federated medical image classification.

```python
import medx

results = medx.sweep("dataset=phantom", "privacy.epsilon=1,3,10")
results.to_frame().plot("epsilon", "auc")
```

Importing it loads nothing else: torch, Flower and Hydra come with the first call. Hospital software sends nothing home,
so the telemetry of the libraries is off in this process, unless its environment says otherwise.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from medx.api import (
        Results,
        SweepError,
        compose,
        load_model,
        load_result,
        load_results,
        run,
        sweep,
        to_frame,
    )
    from medx.experiment import Experiment
    from medx.results import ExperimentResult
    from medx.schema import MedxError

for _name, _off in {
    "FLWR_TELEMETRY_ENABLED": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
}.items():
    os.environ.setdefault(_name, _off)

__version__ = "0.7.0"
__all__ = [
    "Experiment",
    "ExperimentResult",
    "MedxError",
    "Results",
    "SweepError",
    "compose",
    "load_model",
    "load_result",
    "load_results",
    "run",
    "sweep",
    "to_frame",
]
_ELSEWHERE = {"Experiment": "medx.experiment", "ExperimentResult": "medx.results", "MedxError": "medx.schema"}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_ELSEWHERE.get(name, "medx.api")), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
