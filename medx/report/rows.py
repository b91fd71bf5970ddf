"""Results as one table, a row a run: what every table and figure of a report is made from."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, cast

import pandas as pd

from medx.configuration import NOT_HASHED, flat
from medx.report.study import Role, dataset_name, option_name, partition_name
from medx.results import ExperimentResult, Interval
from medx.selection import Selection, select

METRICS = (
    "auc", "accuracy", "balanced_accuracy", "accuracy_at_threshold", "balanced_accuracy_at_threshold",
    "sensitivity_at_threshold", "specificity_at_threshold", "quadratic_kappa", "ece", "brier",
)  # fmt: skip
BOUNDED = ("auc", "accuracy", "balanced_accuracy_at_threshold")
EVERYBODY = " (all must answer)"
BASELINES = ("local_only", "centralized")
# What the tables of a role show of a setting: runs that are alike in these and differ beyond the seed need a name.
SHOWN = {
    "utility": ("dataset", "model", "mode", "target_epsilon"),
    "convergence": ("dataset", "model", "mode", "target_epsilon", "rounds"),
    "skew": ("dataset", "model", "mode", "target_epsilon", "partition", "strategy"),
}
BASELINE_METRICS = ("auc", "accuracy_at_threshold", "balanced_accuracy_at_threshold")


@dataclass(frozen=True)
class Run:
    """A finished job of a study. ``number`` is what tables and captions cite."""

    number: int
    name: str
    roles: tuple[Role, ...]
    result: ExperimentResult


def make_frame(runs: Sequence[Run]) -> pd.DataFrame:
    """One row a run, NaN where something is undefined or absent; ``roles`` separated by spaces.

    ``candidates`` counts the runs among which a row was selected, ``selection_epsilon`` is what they spent together.
    """
    chosen = selections(runs)
    rows = []
    for run in runs:
        found = chosen.get(run.number)
        spent = (len(found.results), found.epsilon) if found else (None, None)
        rows.append(make_row(run) | {"candidates": spent[0], "selection_epsilon": spent[1]})
    frame = pd.DataFrame(rows)
    frame["model"] += variants(frame, [run.result.config for run in runs])
    return frame


def variants(frame: pd.DataFrame, configs: Sequence[dict[str, Any]]) -> pd.Series:
    """`` (dataset.size=64)`` for runs that a table would else take for another seed of the same setting."""
    names = pd.Series("", index=frame.index)
    named: list[int] = []
    for role, keys in SHOWN.items():
        rows = with_role(frame, cast(Role, role)).drop(index=named, errors="ignore")
        for _, group in rows.groupby(list(keys), dropna=False, sort=False):
            if group["config_hash"].nunique() > 1:
                for index, words in zip(group.index, differences([configs[i] for i in group.index]), strict=True):
                    names[index] = f" ({words})"
        named += list(rows.index)
    return names


def differences(configs: Sequence[dict[str, Any]]) -> list[str]:
    """For each configuration the overrides in which it differs from the others; an option stands for its keys."""
    every = [{key: value for key, value in flat(config) if key.split(".")[0] not in NOT_HASHED} for config in configs]
    keys = list(dict.fromkeys(key for one in every for key in one))
    words: list[str] = []
    for config, one in zip(configs, every, strict=True):
        own = []
        for key in keys:
            group = key.split(".")[0]
            option = f"{group}._target_"
            alike = [other for other in every if key == option or other.get(option) == one.get(option)]
            if len({repr(other.get(key)) for other in alike}) > 1:
                own.append(f"{group}={option_name(config, group)}" if key == option else f"{key}={one.get(key)}")
        words.append(", ".join(own))
    return words


def selections(runs: Sequence[Run]) -> dict[int, Selection]:
    """The winner of every private selection, by its number: one for each data set, model, mode, epsilon and seed."""
    groups: dict[tuple[Any, ...], list[Run]] = {}
    for run in runs:
        if "selection" in run.roles:
            config, spent = run.result.config, run.result.privacy
            names = (dataset_name(config), *(option_name(config, group) for group in ("model", "privacy")))
            groups.setdefault((*names, spent.target_epsilon, run.result.seed), []).append(run)
    chosen = {}
    for group in groups.values():
        found = select([run.result for run in group], "loss")
        chosen[group[found.winner].number] = found
    return chosen


def make_row(run: Run) -> dict[str, Any]:
    """One run's row."""
    result, config = run.result, run.result.config
    row: dict[str, Any] = {
        "run": run.number,
        "roles": " ".join(run.roles),
        "dataset": dataset_name(config),
        "model": option_name(config, "model"),
        "mode": mode_name(config),
        "aggregation": option_name(config, "aggregation"),
        "partition": partition_name(config),
        "strategy": option_name(config, "federation"),
        "num_clients": config["federation"]["num_clients"],
        "rounds": config["federation"]["num_rounds"],
        "local_steps": config["trainer"]["local_steps"],
        "batch": config["trainer"].get("expected_batch_size"),
        "seed": result.seed,
        "target_epsilon": result.privacy.target_epsilon,
        "epsilon": result.privacy.epsilon,
        "epsilon_rdp": result.privacy.epsilon_by_accountant.get("rdp"),
        "delta": result.privacy.delta,
    }
    row |= _test_metrics(result) | _baselines(result) | _costs(result)
    row |= {
        "majority_accuracy": result.majority_accuracy,
        "degenerate": result.degenerate,
        "synthetic": result.dataset.synthetic,
        "config_hash": result.config_hash,
        "mlflow_run": result.tracking.get("run_id", ""),
        "git": result.environment.get("git", ""),
    }
    return row


def mode_name(config: dict[str, Any]) -> str:
    """The mechanism, and whether every hospital must answer, which makes its share of the noise smaller."""
    everybody = config["aggregation"].get("minimum_survivors") == config["federation"]["num_clients"]
    return option_name(config, "privacy") + (EVERYBODY if everybody else "")


def _test_metrics(result: ExperimentResult) -> dict[str, float | None]:
    values = {name: value_of(result.test, name) for name in METRICS}
    for name in BOUNDED:
        interval = result.test.get(name, Interval(value=None))
        values |= {f"{name}_images_low": interval.low, f"{name}_images_high": interval.high}
    recalls = [name for name in result.test if name.startswith("recall_")]
    return values | {name: value_of(result.test, name) for name in recalls} | _hospitals(result)


def _hospitals(result: ExperimentResult) -> dict[str, float | None]:
    """Worst and best hospital by the final model's accuracy on its own training rows."""
    known = [value for client in result.clients if (value := client.metrics.get("accuracy")) is not None]
    return {"hospital_worst": min(known, default=None), "hospital_best": max(known, default=None)}


def _baselines(result: ExperimentResult) -> dict[str, float | None]:
    return {
        f"{baseline}_{metric}": value_of(result.baselines.get(baseline, {}), metric)
        for baseline in BASELINES
        for metric in BASELINE_METRICS
    }


def _costs(result: ExperimentResult) -> dict[str, float | None]:
    """Seconds and bytes of a round: the median over rounds, less the first, which warms up."""
    rounds = result.rounds[1:] or result.rounds
    work = [record.seconds.get("train", 0.0) + record.seconds.get("aggregate", 0.0) for record in rounds]
    return {
        "parameters": result.model.get("parameters"),
        "seconds": result.timing.get("total"),
        "round_seconds": median(work) if work else None,
        "round_bytes_up": median([float(record.bytes_up) for record in rounds]) if rounds else None,
        "round_bytes_down": median([float(record.bytes_down) for record in rounds]) if rounds else None,
    }


def value_of(metrics: dict[str, Interval], name: str) -> float | None:
    """A metric's value; None where it is undefined or was not measured."""
    return metrics[name].value if name in metrics else None


def with_role(frame: pd.DataFrame, role: Role) -> pd.DataFrame:
    """The rows of one part of the report."""
    return with_roles(frame, (role,))


def with_roles(frame: pd.DataFrame, wanted: Sequence[Role]) -> pd.DataFrame:
    """The rows of any of these parts."""
    chosen = [not set(wanted).isdisjoint(roles.split()) for roles in frame["roles"]]
    return frame[pd.Series(chosen, frame.index, dtype=bool)]
