"""Runs that never ran, for tests and for looking at the comparison."""

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from medx.federation.checkpoint import append_record
from medx.folder import RESULT_FILE, SWEEP_FILE
from medx.metrics import curve_data
from medx.results import (
    AttackResult,
    DatasetInfo,
    ExperimentResult,
    Interval,
    NoiseMeasured,
    PrivacyResult,
    RoundRecord,
    RunContext,
)
from medx.tracking.store import Destination
from medx.tracking.tracker import MlflowTracker, MlflowTracking

METRICS = ("auc", "accuracy", "balanced_accuracy", "accuracy_at_threshold", "balanced_accuracy_at_threshold")


def make_context(folder: Path, epsilon: float | None = 5.0, seed: int = 0, **changes: Any) -> RunContext:
    mechanism = "none" if epsilon is None else "local_dp"
    config = {
        "study": "example",
        "seed": seed,
        "model": {"_target_": "medx.model.scatternet.Scatternet"},
        "privacy": {"_target_": f"medx.privacy.{mechanism}.Mechanism", "epsilon": epsilon, "delta": 1e-5},
        "partition": {"sizes": [1, 2]},
    }
    values: dict[str, Any] = {
        "title": "an example",
        "dataset": "pneumoniamnist",
        "run": sha256(str(folder).encode()).hexdigest()[:32],
        "config_hash": "abc",
        "folder": folder,
        "config": config,
        "num_rounds": 3,
        "resumed": False,
        "synthetic": False,
        "public": True,
        "warning": None,
        "statement": "Privacy statement\nMechanism: none.\n",
        "plan_rows": [],
        "partition_rows": [],
    }
    return RunContext(**(values | changes))


class ToldRun:
    """A run that does for its folder and its tracker what a real one does, and computes nothing."""

    def __init__(
        self,
        destination: Destination,
        folder: Path,
        *,
        sweep: Path | None = None,
        owner_view: bool | None = None,
        wait: float = 60,
        **context: Any,
    ) -> None:
        self.folder = folder
        where = {"uri": destination.uri, "experiment": destination.experiment, "request_timeout": 10}
        self.tracker = MlflowTracker(MlflowTracking(**where, final_wait=wait, owner_view=owner_view), sweep)  # type: ignore[arg-type]
        if sweep is not None and not (sweep / SWEEP_FILE).exists():
            sweep.mkdir(parents=True, exist_ok=True)
            (sweep / SWEEP_FILE).write_text(json.dumps({"id": sha256(str(sweep).encode()).hexdigest()[:32]}))
        folder.mkdir(parents=True, exist_ok=True)
        self.tracker.on_start(make_context(folder, **context))

    def rounds(self, *numbers: int, **values: Any) -> None:
        for number in numbers:
            record = make_record(number, 1.5 * number, **values)
            append_record(self.folder / "checkpoints", record)
            self.tracker.on_round(record)

    def finish(self, **changes: Any) -> dict[str, str]:
        """End with a result; gives where it is recorded."""
        result = make_result(**changes)
        result.save(self.folder / RESULT_FILE)
        self.tracker.on_end(result)
        return result.tracking


def make_record(number: int, epsilon: float | None = None, auc: float | None = 0.9) -> RoundRecord:
    return RoundRecord(
        round=number,
        epsilon=epsilon,
        metrics={"validation/auc": auc, "test/auc": auc, "validation/mcc": None},
        seconds={"train": 0.5, "total": 0.6},
        bytes_up=1000,
        bytes_down=2000,
        clients=5,
    )


def make_result(epsilon: float | None = 5.0, auc: float = 0.95, **changes: Any) -> ExperimentResult:
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 2, 200)
    scores = np.clip(0.5 * labels + 0.5 * generator.random(200), 0, 1)
    intervals = {name: Interval(value=auc, low=auc - 0.02, high=auc + 0.01) for name in METRICS}
    values: dict[str, Any] = {
        "run": "0" * 32,
        "status": "finished",
        "seed": 0,
        "config_hash": "abc",
        "dataset": DatasetInfo(
            name="pneumoniamnist",
            title="PneumoniaMNIST",
            task="binary",
            md5="f00df00df00d",
            content_hash="f00df00df00d",
            synthetic=False,
            public=True,
            sizes={"train": 4708, "validation": 524, "test": 624},
            class_names=["normal", "pneumonia"],
            class_counts={"test": [234, 390]},
            image_size=28,
            num_channels=1,
        ),
        "model": {"name": "scatternet"},
        "validation": intervals,
        "test": intervals | {"mcc": Interval(value=None)},
        "threshold": 0.6,
        "majority_accuracy": 0.625,
        "degenerate": False,
        "curves": curve_data(np.column_stack([1 - scores, scores]), labels),
        "privacy": PrivacyResult(
            mechanism="none" if epsilon is None else "local_dp",
            epsilon=None if epsilon is None else epsilon * 0.99,
            epsilon_by_accountant={} if epsilon is None else {"prv": epsilon * 0.99, "pld": epsilon * 0.985},
            delta=1e-5,
            target_epsilon=epsilon,
            statement="Each image is protected.\n",
        ),
        "rounds": [],
        "timing": {"total": 12.5},
        "config": {"seed": 0},
    }
    return ExperimentResult(**(values | changes))


def make_attack(**changes: Any) -> AttackResult:
    values: dict[str, Any] = {
        "attack": "canaries", "observer": "server", "claimed": 4.95, "delta": 1e-5, "found": 4.2, "shift": 1.1,
        "error": 0.1, "planned": 1.2, "one_run": 2.0, "ceiling": 3.76, "trials": 400, "seconds": 2.5, "against": [],
    }  # fmt: skip
    return AttackResult(**(values | changes))


def with_noise(**changes: Any) -> PrivacyResult:
    """A guarantee whose noise was looked at, and had a tail."""
    values: dict[str, Any] = {
        "values": 1000, "size": 0.99, "tail": 5.0, "coordinates": 0.1, "rounds": 0.2, "hospitals": 0.3,
        "doubts": ["the tail: 5 standard deviations from chance"],
    }  # fmt: skip
    return make_result().privacy.model_copy(update={"noise": NoiseMeasured(**(values | changes))})
