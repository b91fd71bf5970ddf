"""Runs that never ran, for tests and for looking at the comparison."""

from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from medx.metrics import curve_data
from medx.results import DatasetInfo, ExperimentResult, Interval, PrivacyResult, RoundRecord
from medx.tracking.base import TrackedRun

METRICS = ("auc", "accuracy", "balanced_accuracy", "accuracy_at_threshold", "balanced_accuracy_at_threshold")


def make_run(
    folder: Path, epsilon: float | None = 5.0, seed: int = 0, sweep: Path | None = None, synthetic: bool = False
) -> TrackedRun:
    return TrackedRun(
        run=sha256(str(folder).encode()).hexdigest()[:32],
        output_dir=folder,
        sweep_dir=sweep,
        study="example",
        seed=seed,
        dataset="pneumoniamnist",
        model="scatternet",
        privacy="none" if epsilon is None else "local_dp",
        target_epsilon=epsilon,
        synthetic=synthetic,
        public=True,
        config_hash="abc",
        config={"seed": seed, "privacy": {"epsilon": epsilon, "delta": 1e-5}, "partition": {"sizes": [1, 2]}},
        environment={"git": "0123abcd"},
    )


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
            md5=None,
            content_hash="0",
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
