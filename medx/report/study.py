"""A study: grids of overrides, and the jobs they come to, each known by its configuration's hash and its seed."""

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import pandas as pd
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, MissingConfigException
from pydantic import Field, ValidationError

from medx.configuration import plain, typed
from medx.hints import explain
from medx.released import Record
from medx.schema import CONF, ConfigError, option_of

STUDIES = CONF.parent / "experiments"
Role = Literal["utility", "baselines", "convergence", "skew", "selection", "personal", "step_overhead", "sum_overhead"]
Value = str | int | float | None
Axis = Annotated[list[Value], Field(min_length=1)]
Seeds = Annotated[list[int], Field(min_length=1)]
MOST_SEEDS = 1000


class Claim(Record):
    """What the published report says of one data set; ``composed_epsilon`` is that epsilon once it is added up."""

    dataset: str
    accuracy: float
    epsilon: float
    composed_epsilon: float
    rounds: int
    note: str


class Grid(Record):
    """Jobs for one part of the report: every combination of the lists in ``overrides``.

    ``seeds`` replaces the study's. Jobs of an ``alone`` grid are timed, so nothing runs beside them. An
    ``optional`` grid is left out, and said to be, where this version lacks one of its options.
    """

    role: Role
    overrides: dict[str, Value | Axis]
    seeds: Seeds | None = None
    alone: bool = False
    optional: bool = False


class Study(Record):
    """``experiments/NAME/study.yaml``. ``limits`` are sentences that hold for this study and not for every one.

    ``attacks`` are folders of `medx membership` and of `experiments.reconstruction`, seen from the file's own.
    """

    name: str = ""
    title: str
    question: str
    experiment: str | None = None
    seeds: Seeds
    claim: Claim | None = None
    limits: list[str] = Field(default_factory=list)
    attacks: list[Path] = Field(default_factory=list)
    grids: Annotated[list[Grid], Field(min_length=1)]


@dataclass(frozen=True)
class Job:
    """One run of a study. ``config`` is the composed configuration."""

    name: str
    roles: tuple[Role, ...]
    overrides: tuple[str, ...]
    config_hash: str
    seed: int
    alone: bool
    config: dict[str, Any]

    @property
    def folder(self) -> str:
        """Name of its output folder."""
        return f"{self.config_hash}-{self.seed}"

    @property
    def attacked(self) -> bool:
        """Whether attacks follow the run; its hash does not say so, as its numbers do not depend on it."""
        return bool(self.config["attack"] == "standard")


def load_study(name: str, folder: Path = STUDIES) -> Study:
    """Read a study; raises ConfigError with one line."""
    path = folder / name / "study.yaml"
    if not path.exists():
        known = ", ".join(sorted(found.parent.name for found in folder.glob("*/study.yaml")))
        raise ConfigError(f"study={name}: {path} is not there; accepted: {known or 'none'}")
    try:
        read = Study.model_validate(yaml.safe_load(path.read_text()))
        return read.model_copy(update={"name": name, "attacks": [path.parent / each for each in read.attacks]})
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is no YAML ({' '.join(str(error).split())})") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the whole file"
        raise ConfigError(f"{path}: {where}: {first['msg']}") from None


def parse_seeds(text: str) -> list[int]:
    """``0,1,2`` or ``0-4`` or both; raises ConfigError."""
    seeds: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"(\d{1,18})(?:-(\d{1,18}))?", part.strip(), re.ASCII)
        low, high = (int(found[1]), int(found[2] or found[1])) if found else (0, -1)
        if not 0 <= high - low < MOST_SEEDS:
            raise ConfigError(
                f"seeds={text}: {part!r} names no seeds; accepted: numbers and rising ranges of at most {MOST_SEEDS}, "
                "e.g. 0,1,2 or 0-4"
            )
        seeds += range(low, high + 1)
    return list(dict.fromkeys(seeds))


def plan_jobs(
    study: Study, seeds: Sequence[int] | None = None, extra: Sequence[str] = ()
) -> tuple[list[Job], list[str]]:
    """The study's jobs, each once whatever number of grids want it, and a line for every grid that is left out.

    ``seeds`` replaces the study's. ``extra`` are overrides for all jobs (``trainer.momentum=0``) or one data set's
    (``retinamnist:dataset.md5=...``).
    """
    jobs: dict[str, Job] = {}
    left_out: list[str] = []
    GlobalHydra.instance().clear()
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        for grid in study.grids:
            try:
                for job in _jobs_of(study, grid, seeds or study.seeds, extra):
                    known = jobs.get(job.folder, job)
                    roles = tuple(dict.fromkeys([*known.roles, *job.roles]))
                    more = job if job.attacked else known  # which is the same run, and something after it
                    jobs[job.folder] = replace(more, roles=roles, alone=known.alone or job.alone)
            except HydraException as error:
                if not (grid.optional and isinstance(error, MissingConfigException)):
                    raise ConfigError(f"study={study.name}: {explain(error, [])}") from error
                chosen = ", ".join(f"{key}={value}" for key, value in grid.overrides.items())
                left_out.append(f"{grid.role} ({chosen}): {explain(error, [])}")
    if not jobs:
        raise ConfigError(f"study={study.name}: comes to no job; {'; '.join(left_out)}")
    return _in_order(list(jobs.values())), left_out


def _in_order(jobs: list[Job]) -> list[Job]:
    """Roles, data sets, models and modes as the study names them first; then by size, epsilon, partition, seed."""
    names = ["role", "dataset", "model", "privacy"]
    keys = pd.DataFrame(
        {
            "role": job.roles[0],
            "dataset": dataset_name(job.config),
            "model": option_name(job.config, "model"),
            "privacy": option_name(job.config, "privacy"),
            "batch": job.config["trainer"].get("expected_batch_size") or 0,
            "rounds": job.config["federation"]["num_rounds"],
            "epsilon": job.config["privacy"].get("epsilon", float("inf")),
            "partition": partition_name(job.config),
            "seed": job.seed,
        }
        for job in jobs
    )
    keys[names] = keys[names].apply(lambda column: pd.factorize(column)[0])  # by first appearance
    return [jobs[index] for index in keys.sort_values(keys.columns.tolist(), kind="stable").index]


def _jobs_of(study: Study, grid: Grid, seeds: Sequence[int], extra: Sequence[str]) -> Iterator[Job]:
    base = [f"experiment={study.experiment}"] if study.experiment else []
    for chosen in combinations(grid.overrides):
        overrides = [*base, f"study={study.name}", *chosen]
        overrides += extra_for(extra, _dataset(overrides)) if extra else []
        config = plain(compose("config", overrides))
        for seed in grid.seeds or seeds:
            seeded = config | {"seed": seed}
            words = (*overrides, f"seed={seed}")
            yield Job(job_name(seeded), (grid.role,), words, typed(seeded).hash, seed, grid.alone, seeded)


def combinations(overrides: dict[str, Value | list[Value]]) -> Iterator[list[str]]:
    """Hydra overrides for every combination of the lists, in the order written."""
    axes = [[(key, value) for value in (values if isinstance(values, list) else [values])]
            for key, values in overrides.items()]  # fmt: skip
    for choice in itertools.product(*axes):
        yield [f"{key}={'null' if value is None else value}" for key, value in choice]


def extra_for(extra: Sequence[str], dataset: str) -> list[str]:
    """The extra overrides that concern jobs of this data set."""
    named = [re.match(r"(?:([^=:]*):)?(.*)", text, re.DOTALL) for text in extra]
    return [found[2] for found in named if found is not None and found[1] in (None, dataset)]


def _dataset(overrides: Sequence[str]) -> str:
    names = [text.split("=", 1)[1] for text in overrides if text.startswith("dataset=")]
    return names[-1] if names else dataset_name(plain(compose("config", list(overrides))))


def option_name(config: dict[str, Any], group: str) -> str:
    """The chosen option of a group, from the class that the configuration names."""
    return option_of(group, config[group]["_target_"])


def option_shown(config: dict[str, Any], group: str) -> str | None:
    """The same as a reader tells it apart: trainers by their class, which options share; None without the group."""
    target = config.get(group, {}).get("_target_")
    if target is None:
        return None
    return str(target).rsplit(".", 1)[-1] if group == "trainer" else option_of(group, target)


def dataset_name(config: dict[str, Any]) -> str:
    """The data set's short name."""
    return str(config["dataset"].get("name", option_name(config, "dataset")))


def partition_name(config: dict[str, Any]) -> str:
    """``iid``, ``dirichlet(0.1)``, ..."""
    name = option_name(config, "partition")
    detail = config["partition"].get("alpha", config["partition"].get("classes_per_client"))
    return name if detail is None else f"{name}({detail:g})"


def job_name(config: dict[str, Any]) -> str:
    """A name that reads: ``retinamnist scatternet local_dp ε=5 iid 50 rounds seed=0``."""
    privacy, aggregation = option_name(config, "privacy"), option_name(config, "aggregation")
    epsilon = config["privacy"].get("epsilon")
    batch = config["trainer"].get("expected_batch_size")
    words = [dataset_name(config), option_name(config, "model"), privacy]
    words += [] if epsilon is None else [f"ε={epsilon:g}"]
    words += [] if aggregation == "plain" else [aggregation]
    words += [partition_name(config), f"{config['federation']['num_rounds']} rounds"]
    words += [] if batch is None else [f"batch {batch}"]
    own = option_name(config, "personalisation") if "personalisation" in config else "none"
    words += [] if own == "none" else [own]
    return " ".join([*words, f"seed={config['seed']}"])
