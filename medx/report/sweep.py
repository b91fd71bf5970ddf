"""A report of whatever runs lie in a folder: one run, a sweep, or a folder of sweeps. What differs is their axes."""

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medx.configuration import NOT_HASHED, flat
from medx.folder import CONFIG_FILE, RESULT_FILE, SWEEP_FILE, read_result
from medx.launcher.outcomes import ended, jobs_in
from medx.report.rows import Run
from medx.report.study import Grid, Role, Study, dataset_name, option_name, option_shown, partition_name
from medx.report.words import listed
from medx.results import ExperimentResult
from medx.schema import ConfigError, DataError

UNSAID = (*NOT_HASHED, "hydra", "tracking")
FEW = 6  # values of an axis that are told one by one


@dataclass(frozen=True)
class Found:
    """The finished runs of a folder, as a study that they might be of, and a line for each that is lacking."""

    study: Study
    runs: list[Run]
    gaps: list[str]


def read_sweep(folder: Path) -> Found:
    """Raises ConfigError where no run has finished there, DataError where a result cannot be read."""
    gaps: list[str] = []
    finished: dict[str, ExperimentResult] = {}
    for job in _jobs(folder):
        name = str(job.relative_to(folder)) if job != folder else folder.resolve().name
        result = read_result(job) if (job / RESULT_FILE).exists() and not (job / CONFIG_FILE).exists() else ended(job)
        if isinstance(result, str):
            gaps.append(f"{name}: {result}")
        elif result.status != "finished":
            gaps.append(f"{name}: {result.status}: {result.error or 'no reason given'}")
        elif (other := _same(result, finished)) is not None:
            gaps.append(f"{name}: of the same configuration and seed as {other}, and left out")
        else:
            finished[name] = result
    gaps += _left_nothing(folder)
    if not finished:
        why = f"; {gaps[0]}" if gaps else ""
        raise ConfigError(
            f"{folder}: no finished run lies there{why}; accepted: the folder of a run, of a sweep or of several, or "
            "one with study.yaml and results.csv"
        )
    results = _in_order(_told_apart(finished))
    runs = [Run(number, name, roles(one, finished.values()), one) for number, (name, one) in enumerate(results, 1)]
    return Found(study_of(folder, [run.result for run in runs]), runs, gaps)


def _jobs(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise DataError(f"{folder}: is no folder; accepted: the folder of a run, of a sweep or of several")
    if (folder / CONFIG_FILE).exists() or (folder / RESULT_FILE).exists():
        return [folder]
    jobs = jobs_in(folder)
    alone = [path.parent for path in sorted(folder.glob(f"**/{RESULT_FILE}"))]  # results that were copied without more
    return [*jobs, *(each for each in alone if not {each, *each.parents} & set(jobs))]


def _same(result: ExperimentResult, finished: dict[str, ExperimentResult]) -> str | None:
    """Another run that does not differ, or None; a run in a released view has no seed, and is never another's."""
    key = (result.config_hash, result.seed)
    if None in key:
        return None
    return next((name for name, each in finished.items() if (each.config_hash, each.seed) == key), None)


def _left_nothing(folder: Path) -> Iterator[str]:
    """A line for each sweep some of whose jobs have left no trace."""
    for path in sorted(folder.glob(f"**/{SWEEP_FILE}")):
        planned, found = json.loads(path.read_text()).get("jobs") or [], jobs_in(path.parent)
        if len(found) < len(planned):
            where = "" if path.parent == folder else f"{path.parent.relative_to(folder)}: "
            yield f"{where}{len(planned) - len(found)} of {len(planned)} jobs left nothing"


def _told_apart(finished: dict[str, ExperimentResult]) -> dict[str, ExperimentResult]:
    """The same runs; data of one name that have other classes under names that tell which, as a table has one kind."""
    kinds: dict[str, dict[str, ExperimentResult]] = {}
    for result in finished.values():
        kind = repr((result.dataset.task, result.dataset.class_names))
        kinds.setdefault(dataset_name(result.config), {}).setdefault(kind, result)
    several = {
        name: [kind.config["dataset"] for kind in known.values()] for name, known in kinds.items() if len(known) > 1
    }

    def renamed(result: ExperimentResult) -> ExperimentResult:
        name, data = dataset_name(result.config), result.config["dataset"]
        others = several.get(name, [])
        counts = {key: len({repr(each.get(key)) for each in others}) for key in data}
        differ = [key for key, count in counts.items() if count > 1]
        enough = [key for key in differ if counts[key] == len(others)][:1] or differ
        if not enough:
            return result
        told = (f"{key}={_without_common(data[key], [each.get(key) for each in others])}" for key in enough)
        words = f"{name} ({', '.join(told)})"
        return result.model_copy(update={"config": result.config | {"dataset": data | {"name": words}}})

    return {job: renamed(result) for job, result in finished.items()}


def _without_common(value: Any, values: Sequence[Any]) -> Any:
    """A path from where these part, as the folders above say nothing; anything else as it is."""
    if not all(isinstance(each, str) and Path(each).is_absolute() for each in values):
        return value
    common = os.path.commonpath([os.path.dirname(each) for each in values])
    return Path(value).relative_to(common)


def _in_order(finished: dict[str, ExperimentResult]) -> list[tuple[str, ExperimentResult]]:
    """By data, model and mode, each as it first appears, then by epsilon, without privacy last, and seed."""
    names = {
        job: (dataset_name(each.config), option_name(each.config, "model"), option_name(each.config, "privacy"))
        for job, each in finished.items()
    }
    first = [list(dict.fromkeys(column)) for column in zip(*names.values(), strict=True)]

    def order(pair: tuple[str, ExperimentResult]) -> tuple[list[int], float, int]:
        job, result = pair
        target = result.privacy.target_epsilon
        places = [known.index(name) for known, name in zip(first, names[job], strict=True)]
        return places, float("inf") if target is None else target, result.seed or 0

    return sorted(finished.items(), key=order)


def roles(result: ExperimentResult, every: Iterable[ExperimentResult]) -> tuple[Role, ...]:
    """For which parts of a report a run counts: for utility always, for skew where partitions differ."""
    dealt = {partition_name(each.config) for each in every}
    chosen: list[Role] = ["utility"]
    chosen += ["skew"] if len(dealt) > 1 else []
    chosen += ["selection"] if result.config.get("select") and result.privacy.epsilon is not None else []
    return tuple(chosen)


def study_of(folder: Path, results: Sequence[ExperimentResult]) -> Study:
    """A title and a question for these runs."""
    data = listed(dict.fromkeys(dataset_name(each.config) for each in results))
    found = axes([each.config for each in results])
    seeds = list(dict.fromkeys(each.seed for each in results if each.seed is not None))
    if len(results) == 1:
        title, question = f"One run on {data}", "What does this run come to?"
    elif found:
        title = f"{listed(name for name, _ in found)} on {data}"
        question = f"What {'does' if len(found) == 1 else 'do'} {listed(told(*axis) for axis in found)} change?"
    else:
        title, question = f"{len(seeds)} seeds of one setting on {data}", "What does another seed change?"
    grids = [Grid(role="utility", overrides={})]
    return Study(name=folder.resolve().name, title=title, question=question, seeds=seeds or [0], grids=grids)


def told(name: str, values: list[Any]) -> str:
    """``privacy.epsilon (1, 3, 10)``."""
    shown = [f"{value:g}" if isinstance(value, float) else "null" if value is None else str(value) for value in values]
    few = shown if len(shown) <= FEW else [*shown[: FEW - 1], "...", shown[-1]]
    return f"{name} ({', '.join(few)})"


def axes(configs: Sequence[dict[str, Any]]) -> list[tuple[str, list[Any]]]:
    """What differs between these configurations beyond the seed, with its values; options first.

    What follows from those before it, such as a preset's values from its option, is no axis of its own.
    """
    flats = [{key: value for key, value in flat(config) if key.split(".")[0] not in UNSAID} for config in configs]
    keys = list(dict.fromkeys(key for one in flats for key in one))
    options = [key for key in keys if key.endswith("._target_")]
    names = [key for key in keys if key == "dataset.name"]
    found: list[tuple[str, list[Any]]] = []
    told_apart = [""] * len(configs)
    for key in dict.fromkeys([*names, *options, *_by_values(keys, flats)]):
        group = key.split(".")[0]
        option = key in options
        values = [option_shown(config, group) if option else one.get(key)
                  for config, one in zip(configs, flats, strict=True)]  # fmt: skip
        finer = [f"{known}|{value!r}" for known, value in zip(told_apart, values, strict=True)]
        if len(set(finer)) > len(set(told_apart)):
            told_apart = finer
            lacks = any(key not in one for one in flats)  # then it is not null where it is not
            shown = {repr(value): value for value in values if value is not None or not lacks}
            found.append((group if option or key == "dataset.name" else key, list(shown.values())))
    return found


def _by_values(keys: Sequence[str], flats: Sequence[dict[str, Any]]) -> list[str]:
    """Keys whose values differ, the ones with most values first: what else moves follows from them."""
    counts = {key: len({repr(one.get(key)) for one in flats}) for key in keys}
    return sorted((key for key in keys if counts[key] > 1), key=lambda key: (-counts[key], key != "privacy.epsilon"))
