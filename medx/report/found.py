"""A page of runs that are there already: of a sweep's folder, of a folder of sweeps, or of one run."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from medx.configuration import flat
from medx.folder import CONFIG_FILE, RESULT_FILE, read_result
from medx.launcher.outcomes import why_unfinished
from medx.report.rows import Run
from medx.report.study import Study, job_name
from medx.report.words import listed
from medx.results import ExperimentResult
from medx.schema import ConfigError

DEEP = 4  # folders below which nobody keeps runs
INSIDE = {"baselines", "checkpoints", "ledger", "hospitals", "figures"}  # of a run
NOT_AXES = ("seed", "study", "resume", "cache", "device")


def runs_in(folder: Path) -> tuple[list[Run], list[str]]:
    """Finished runs at any depth, in the order of their folders, and a line for each other; raises ConfigError."""
    if not folder.is_dir():
        raise ConfigError(f"report {folder}: is no folder; accepted: one of a run, of a sweep, or of several sweeps")
    found: list[tuple[Path, ExperimentResult]] = []
    gaps = []
    for place in sorted(_places(folder), key=_in_order):
        name = str(place.relative_to(folder)) if place != folder else place.name
        result = read_result(place) if (place / RESULT_FILE).exists() else None
        if result is not None and result.status == "finished":
            found.append((place, result))
        else:
            gaps.append(f"{name}: {why_unfinished(place) or 'has no result'}")
    if not found:
        raise ConfigError(
            f"report {folder}: holds no finished run" + (f" ({gaps[0]})" if gaps else "") + "; accepted: a folder with "
            "some, such as multirun/DATE/TIME"
        )
    runs = [
        Run(number, job_name(result.config), ("utility",), result) for number, (_, result) in enumerate(found, start=1)
    ]
    return runs, gaps


def study_of(folder: Path, runs: Sequence[Run]) -> Study:
    """What the page says of itself, from what differs between the runs."""
    axes = list(axes_of([run.result for run in runs]))
    what = f"What changes with {listed(axes)}?" if axes else "What did these runs come to?"
    return Study.model_construct(
        name=folder.name,
        title=f"{len(runs)} run{'' if len(runs) == 1 else 's'} in {folder.name}",
        question=what,
        experiment=None,
        seeds=sorted({run.result.seed or 0 for run in runs}),
        claim=None,
        limits=["The runs are those that were in the folder; nobody said beforehand what they would be asked."],
        attacks=[],
        grids=[],
    )


def axes_of(results: Sequence[ExperimentResult]) -> Iterator[str]:
    """The keys in which configurations differ, a group whose option differs for its keys."""
    every = [dict(flat(result.config)) for result in results]
    told: set[str] = set()
    for key in dict.fromkeys(name for one in every for name in one):
        group = key.partition(".")[0]
        values = {repr(one.get(key)) for one in every}
        if len(values) < 2 or group in (*NOT_AXES, "tracking") or group in told:
            continue
        if key.endswith("._target_"):
            told.add(group)
        yield group if key.endswith("._target_") else key


def _places(folder: Path, depth: int = DEEP) -> Iterator[Path]:
    if (folder / RESULT_FILE).exists() or (folder / CONFIG_FILE).exists() or (folder / "failure.json").exists():
        yield folder
        return
    if depth:
        for each in folder.iterdir():
            if each.is_dir() and not each.is_symlink() and each.name not in INSIDE and not each.name.startswith("."):
                yield from _places(each, depth - 1)


def _in_order(path: Path) -> tuple[tuple[int, int | str], ...]:
    """Jobs are numbered: 2 comes before 10."""
    return tuple((0, int(part)) if part.isdigit() else (1, part) for part in path.parts)  # type: ignore[misc]
