"""A run in MLflow's terms: its parameters, tags and metrics. Pure functions, no MLflow."""

import json
import re
from collections.abc import Iterator
from typing import Any

from medx.results import ExperimentResult, Interval, RoundRecord, Status
from medx.tracking.base import TrackedRun

PARAM_LENGTH = 6000
NAME_LENGTH = 70  # of what stands before a colon, to be its name and no sentence
WITHHELD = "told to the study's owner only, who finds it in result.json and in the log"
RUN_STATUS: dict[Status, str] = {
    "finished": "FINISHED",
    "failed": "FAILED",
    "aborted": "FAILED",
    "killed": "KILLED",
    "budget_exhausted": "KILLED",
}
DESCRIPTION = """Privacy-utility studies of federated medical image classification, by MedX.

A parent run is a sweep, a child run is a job. To compare: choose the child runs, *Chart view*, *Add chart*,
*Scatter*, X `epsilon`, Y `final/test/auc`; `docs/tracking.md` shows it.

| column | meaning |
| --- | --- |
| `epsilon` | spent so far under record-level differential privacy, by every executed step; absent: no guarantee |
| `validation/...`, `test/...` | after each round, on images that the server holds |
| `final/test/...` | the final model; `_low` and `_high` bound a 95 % bootstrap interval over images |
| `final/test/..._at_threshold` | at the threshold that was chosen on validation |
| `final/majority_accuracy` | accuracy of always answering the most frequent class: the figure to beat |
| tag `degenerate` | `true`: every test image gets the same answer |
| tag `view` | `owner`: with figures that epsilon does not cover; `released`: without (`tracking.owner_view`) |
| tag `warning` | other than `none`: noise from a seed, for studies only |
| tag `synthetic` | `true`: procedurally drawn images, no patient's |
| `seconds/...`, `bytes_up`, `bytes_down` | of one round, over all clients |
"""


def flatten(config: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted keys and values as text; lists as JSON. MLflow's limits on keys and lengths are kept."""
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and value:
            yield from flatten(value, f"{name}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, default=str)
            yield re.sub(r"[^\w\-. :/]", "_", name)[:250], text[:PARAM_LENGTH]


def as_markdown(statement: str) -> str:
    """A statement, one sentence or more a line, as a heading and a list that wraps in the UI."""
    title, *lines = statement.splitlines() or [""]
    items = []
    for line in filter(None, lines):
        name, colon, rest = line.partition(": ")
        items.append(f"- **{name}:** {rest}" if colon and len(name) < NAME_LENGTH else f"- {line}")
    return "\n".join([f"### {title}", "", *items])


def start_tags(run: TrackedRun) -> dict[str, str]:
    """What is known about a run before the first round."""
    tags = {
        "study": run.study,
        "dataset": run.dataset,
        "model": run.model,
        "privacy": run.privacy,
        "target_epsilon": "none" if run.target_epsilon is None else f"{run.target_epsilon:g}",
        "synthetic": _flag(run.synthetic),
        "public": _flag(run.public),
        "warning": run.warning or "none",
        "run": run.run,
        "status": "running",
        "output_dir": str(run.output_dir),
        "mlflow.note.content": as_markdown(run.description),
        "mlflow.source.name": "medx.run",
    }
    tags |= {"seed": str(run.seed)} if run.seed is not None else {}
    tags |= {"config_hash": run.config_hash} if run.config_hash is not None else {}
    revision = run.environment.get("git")
    return tags | ({"git_revision": revision, "mlflow.source.git.commit": revision} if revision else {})


def end_tags(result: ExperimentResult) -> dict[str, str]:
    """What only the end tells."""
    told = result.error or ("none" if result.status == "finished" else WITHHELD)
    tags = {
        "status": result.status,
        "view": result.view,
        "synthetic": _flag(result.dataset.synthetic),
        "warning": result.privacy.warning or "none",
        "error": told[:5000],
    }
    return tags | ({} if result.degenerate is None else {"degenerate": _flag(result.degenerate)})


def round_metrics(record: RoundRecord) -> dict[str, float]:
    """A round's metrics; undefined ones are absent."""
    counts = ("bytes_up", "bytes_down", "clients", "abstained", "failed")
    values: dict[str, float | None] = dict(record.metrics) | {"epsilon": record.epsilon}
    values |= {f"seconds/{phase}": seconds for phase, seconds in record.seconds.items()}
    values |= {name: float(getattr(record, name)) for name in counts}
    return _defined(values)


def final_metrics(result: ExperimentResult) -> dict[str, float]:
    """The result's metrics with their intervals, epsilon by accountant, and timing; undefined ones are absent."""
    values: dict[str, float | None] = {
        "epsilon": result.privacy.epsilon,
        "delta": result.privacy.delta,
        "final/majority_accuracy": result.majority_accuracy,
        "final/threshold": result.threshold,
    }
    values |= {f"epsilon/{name}": value for name, value in result.privacy.epsilon_by_accountant.items()}
    values |= {f"timing/{name}": value for name, value in result.timing.items()}
    splits = {"test": result.test, "validation": result.validation}
    splits |= {f"baseline/{name}": intervals for name, intervals in result.baselines.items()}
    for split, intervals in splits.items():
        for name, interval in intervals.items():
            values |= _bounds(f"final/{split}/{name}", interval)
    return _defined(values)


def _bounds(name: str, interval: Interval) -> dict[str, float | None]:
    return {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}


def _defined(values: dict[str, float | None]) -> dict[str, float]:
    return {re.sub(r"[^\w\-. :/]", "_", name): value for name, value in values.items() if value is not None}


def _flag(value: bool) -> str:
    return "true" if value else "false"
