"""Which jobs a sweep is made of: every combination of the values given, less what makes no sense in one.

``privacy=local_dp,none privacy.epsilon=1,3`` is three jobs: one without privacy. A key that no option of the sweep has
stays, to be refused.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from medx.hints import keys_of_option
from medx.schema import GROUPS

AGAIN = "resume=its_own_folder"  # of every job of a sweep that is gone on with: to go on with what lies there
# Sweepers that try every combination, and know them all before the first job.
EXHAUSTIVE = ("hydra_plugins.medx.Combinations", f"{BasicSweeper.__module__}.{BasicSweeper.__name__}")


def meaningful(jobs: Iterable[Sequence[str]]) -> list[list[str]]:
    """The jobs without keys that their own option of a group lacks and another's has; each job once."""
    jobs = [list(job) for job in jobs]
    kept = {tuple(part for part in job if not _misplaced(part, job, jobs)): None for job in jobs}
    return [list(job) for job in kept]


def left_out(jobs: Iterable[Sequence[str]]) -> list[str]:
    """A line for each option in a sweep of which keys are left out."""
    jobs = [list(job) for job in jobs]
    found = {
        f"{part.split('=', 1)[0]} is left out where {group}={_chosen(job, group)}, which has no such key": None
        for job in jobs
        for part in job
        if (group := _misplaced(part, job, jobs))
    }
    return list(found)


def _misplaced(part: str, job: Sequence[str], jobs: Sequence[Sequence[str]]) -> str | None:
    """The group of a key that the job's option lacks, while another job's option has it."""
    key = part.split("=", 1)[0]
    group = key.partition(".")[0]
    option = _chosen(job, group) if group in GROUPS and group != key else None
    if option is None or key in keys_of_option(group, option):
        return None
    others = {_chosen(other, group) for other in jobs} - {None}
    return group if any(key in keys_of_option(group, str(other)) for other in others) else None


def _chosen(job: Sequence[str], group: str) -> str | None:
    """The option that a job names for a group."""
    named = [part.split("=", 1)[1] for part in job if part.split("=", 1)[0] == group]
    return named[-1] if named else None


def jobs_of(config: DictConfig) -> list[list[str]]:
    """Overrides of all jobs of a sweep; none where a sweeper chooses them as it goes."""
    return meaningful(combinations(config))


def combinations(config: DictConfig) -> list[list[str]]:
    """Overrides of every combination of the values given, whether or not it makes sense."""
    if not knows_beforehand(config):
        return []
    params = [f"{key}={value}" for key, value in (config.hydra.sweeper.params or {}).items()]
    parsed = OverridesParser.create().parse_overrides([*params, *written(config.hydra.overrides.task)])
    (every,) = BasicSweeper.split_arguments(parsed, None)
    return [list(job) for job in every]


def knows_beforehand(config: DictConfig) -> bool:
    """Whether the sweeper knows all jobs before the first has run; others choose them as they go."""
    return str(config.hydra.sweeper._target_) in EXHAUSTIVE


def written(overrides: Any) -> list[str]:
    """Overrides as they were typed, whatever ``${...}`` in them stands for."""
    parts = OmegaConf.to_container(overrides, resolve=False)
    assert isinstance(parts, list)
    return [str(part) for part in parts]
