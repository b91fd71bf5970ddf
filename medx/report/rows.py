"""Results as one table, a row a run: what every table and figure of a report is made from."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import pandas as pd

from medx.configuration import NOT_HASHED, flat
from medx.report.study import Role, dataset_name, option_name, option_shown, partition_name
from medx.results import ExperimentResult, Interval
from medx.selection import select

HEADLINE = ("auc", "accuracy_at_threshold", "balanced_accuracy_at_threshold")
OPERATING = ("sensitivity_at_threshold", "specificity_at_threshold")  # what a yes and a no are worth: of two classes
METRICS = (
    "auc", "accuracy", "balanced_accuracy", "accuracy_at_threshold", "balanced_accuracy_at_threshold",
    "sensitivity_at_threshold", "specificity_at_threshold", "quadratic_kappa", "ece", "brier",
)  # fmt: skip
BOUNDED = ("auc", "accuracy", "balanced_accuracy_at_threshold")
SHARED = ("distributed_dp", "central_dp")  # where noise may be made in shares
VERSIONS = ("medx", "torch", "flwr", "opacus")
EVERYBODY = " (all must answer)"
PER_PATIENT = " (per patient)"
PATIENTS_APART = " (validation by patient)"
BASELINES = ("local_only", "centralized")
PHANTOMS = "phantoms_alone"  # a baseline that no record was needed for, and whose epsilon is 0
WHO = ("model", "mode", "target_epsilon")
SETTING = ("dataset", "model", "mode", "partition", "rounds", "target_epsilon", "config_hash")
SKEW_SHOWN = ("dataset", "model", "mode", "target_epsilon", "partition", "strategy")
SKEW_SETTING = (*SKEW_SHOWN, "rounds", "config_hash")
# What the tables of a role show of a setting: runs that are alike in these and differ beyond the seed need a name.
NAMED_BY: dict[Role, tuple[str, ...]] = {
    "utility": ("dataset", "model", "mode", "target_epsilon"),
    "baselines": ("dataset", "model", "mode", "target_epsilon"),
    "convergence": ("dataset", "model", "mode", "target_epsilon", "rounds"),
    "skew": ("dataset", "model", "mode", "target_epsilon", "partition", "strategy"),
}
Results = Mapping[int, ExperimentResult]
Setting = dict[str, Any]


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
    spent = _selections(runs)
    unchosen = {"candidates": None, "selection_epsilon": None}
    frame = pd.DataFrame([make_row(run) | spent.get(run.number, unchosen) for run in runs])
    frame["model"] += _variants(frame, [run.result.config for run in runs])
    return frame


def with_role(frame: pd.DataFrame, *roles: Role) -> pd.DataFrame:
    """The rows of any of these parts of the report."""
    chosen = [not set(roles).isdisjoint(text.split()) for text in frame["roles"]]
    return frame[pd.Series(chosen, frame.index, dtype=bool)]


def with_none(frame: pd.DataFrame) -> pd.DataFrame:
    """A table as ``results.csv`` gives it, where ``none`` of a column of words reads as nothing."""
    return frame.assign(mode=frame["mode"].fillna("none")) if "mode" in frame else frame


def class_count(rows: pd.DataFrame) -> int:
    """How many classes a data set has, by whose recall its rows know."""
    return int(rows.filter(regex=r"^recall_\d+$").notna().any().sum())


def with_phantoms(rows: pd.DataFrame) -> pd.DataFrame:
    """The runs that were measured beside phantoms alone, with the metrics of these in place of their own."""
    if f"{PHANTOMS}_auc" not in rows:  # of a table from before
        return rows[:0]
    known = rows[rows[f"{PHANTOMS}_auc"].notna()]
    return known.assign(**{metric: known[f"{PHANTOMS}_{metric}"] for metric in (*HEADLINE, *OPERATING)})


def of_two_classes(rows: pd.DataFrame) -> bool:
    """Whether there is a threshold, and with it a sensitivity and a specificity."""
    return bool((rows["task"] == "binary").all()) if "task" in rows else class_count(rows) == 2


def settings_of(frame: pd.DataFrame, keys: Sequence[str] = SETTING) -> Iterator[tuple[Setting, pd.DataFrame]]:
    """Runs that differ in nothing but the seed, in the study's order; without privacy last."""
    for values, rows in frame.groupby(list(keys), dropna=False, sort=False):
        yield dict(zip(keys, values, strict=True)), rows


def seeds_by_setting(rows: pd.DataFrame) -> list[int]:
    """The numbers of seeds that settings have, each once."""
    return sorted({int(count) for count in rows.groupby("config_hash")["seed"].nunique()})


def skew_rows(frame: pd.DataFrame) -> pd.DataFrame:
    """Runs of the skew part, by the number that a partition is known by: the most unequal first, IID last."""
    rows = with_role(frame, "skew")
    order = rows["partition"].str.extract(r"\((.+)\)", expand=False).astype(float)
    return rows.assign(order=order).sort_values(["dataset", "mode", "order", "partition", "run"], kind="stable")


def make_row(run: Run) -> dict[str, Any]:
    """One run as a row: its settings, epsilon, test metrics and costs."""
    result, config, privacy = run.result, run.result.config, run.result.privacy
    kept = result.environment
    row: dict[str, Any] = {
        "run": run.number,
        "roles": " ".join(run.roles),
        "dataset": dataset_name(config),
        "task": result.dataset.task,
        "model": option_name(config, "model"),
        "mode": _mode_name(config),
        "aggregation": option_name(config, "aggregation"),
        "partition": partition_name(config),
        "strategy": option_name(config, "federation"),
        "num_clients": config["federation"]["num_clients"],
        "rounds": config["federation"]["num_rounds"],
        "local_steps": config["trainer"]["local_steps"],
        "batch": config["trainer"].get("expected_batch_size"),
        "seed": result.seed,
        "target_epsilon": privacy.target_epsilon,
        "epsilon": privacy.epsilon,
        "epsilon_rdp": privacy.epsilon_by_accountant.get("rdp"),
        "delta": privacy.delta,
    }
    return (
        row
        | ({} if (patient := privacy.epsilon_by_unit.get("patient")) is None else {"epsilon_patient": patient})
        | _measured(result)
        | _costs(result)
        | {
            "majority_accuracy": result.majority_accuracy,
            "degenerate": result.degenerate,
            "synthetic": result.dataset.synthetic,
            "config_hash": result.config_hash,
            "mlflow_run": result.tracking.get("run_id", ""),
            "git": result.environment.get("git", ""),
            "started": result.started,
            "versions": ", ".join(f"{name} {kept[name]}" for name in VERSIONS if name in kept),
        }
    )


def _mode_name(config: dict[str, Any]) -> str:
    """The mechanism; whether every hospital must answer, which makes its share of noise smaller; patients."""
    needed = config["aggregation"].get("minimum_survivors")
    said = {
        EVERYBODY: needed == config["federation"]["num_clients"] and option_name(config, "privacy") in SHARED,
        PER_PATIENT: config["privacy"].get("unit") == "patient",
        PATIENTS_APART: config["dataset"].get("validation") == "by_patient",
    }
    return option_name(config, "privacy") + "".join(words for words, holds in said.items() if holds)


def _measured(result: ExperimentResult) -> dict[str, float | None]:
    """Metrics on test, the worst and best hospital's (accuracy of the final model on its training rows), baselines'."""
    unknown = Interval(value=None)
    values = {name: result.test.get(name, unknown).value for name in METRICS}
    for name in BOUNDED:
        interval = result.test.get(name, unknown)
        values |= {f"{name}_images_low": interval.low, f"{name}_images_high": interval.high}
    values |= {name: interval.value for name, interval in result.test.items() if name.startswith("recall_")}
    known = [value for client in result.clients if (value := client.metrics.get("accuracy")) is not None]
    values |= {"hospital_worst": min(known, default=None), "hospital_best": max(known, default=None)}
    for baseline in (*BASELINES, PHANTOMS):
        measured = result.baselines.get(baseline, {})
        values |= {f"{baseline}_{metric}": measured.get(metric, unknown).value for metric in (*HEADLINE, *OPERATING)}
    return values


def _costs(result: ExperimentResult) -> dict[str, float | None]:
    """Seconds and bytes of a round: the median over rounds, less the first, which warms up."""
    rounds = result.rounds[1:] or result.rounds
    work = [record.seconds.get("train", 0.0) + record.seconds.get("aggregate", 0.0) for record in rounds]
    return {
        "parameters": result.model.get("parameters"),
        "seconds": result.timing.get("total"),
        "round_seconds": median(work) if rounds else None,
        "round_bytes_up": median([float(record.bytes_up) for record in rounds]) if rounds else None,
        "round_bytes_down": median([float(record.bytes_down) for record in rounds]) if rounds else None,
    }


def _selections(runs: Sequence[Run]) -> dict[int, dict[str, Any]]:
    """What each private selection's winner was chosen among and what that cost, by the winner's number.

    There is one for each data set, model, mode, epsilon and seed.
    """
    groups: dict[tuple[Any, ...], list[Run]] = {}
    for run in runs:
        if "selection" in run.roles:
            config, epsilon = run.result.config, run.result.privacy.target_epsilon
            names = (dataset_name(config), option_name(config, "model"), _mode_name(config))
            groups.setdefault((*names, epsilon, run.result.seed), []).append(run)
    spent = {}
    for group in groups.values():
        found = select([run.result for run in group], "loss")
        spent[group[found.winner].number] = {"candidates": len(group), "selection_epsilon": found.epsilon}
    return spent


def _variants(frame: pd.DataFrame, configs: Sequence[dict[str, Any]]) -> pd.Series:
    """`` (dataset.size=64)`` for runs that a table would else take for another seed of the same setting."""
    names = pd.Series("", index=frame.index)
    named: list[int] = []
    for role, keys in NAMED_BY.items():
        rows = with_role(frame, role).drop(index=named, errors="ignore")
        for _, group in settings_of(rows, keys):
            if group["config_hash"].nunique() > 1:
                for index, words in zip(group.index, _differences([configs[i] for i in group.index]), strict=True):
                    names[index] = f" ({words})"
        named += list(rows.index)
    return names


def _differences(configs: Sequence[dict[str, Any]]) -> list[str]:
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
                own.append(f"{group}={option_shown(config, group)}" if key == option else f"{key}={one.get(key)}")
        words.append(", ".join(own))
    return words
