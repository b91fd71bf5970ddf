"""Which jobs a sweep is made of, and what it is refused for before its first job, each in one line.

Jobs are every combination of the values given, less what makes no sense in one: ``privacy=local_dp,none
privacy.epsilon=1,3`` is three jobs, one without privacy. A key that no option of the sweep has stays, to be refused.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from medx.hints import keys_of_option
from medx.schema import GROUPS, ConfigError

AGAIN = "resume=its_own_folder"  # of every job of a sweep that is gone on with: to go on with what lies there
# Sweepers that try every combination, and know them all before the first job.
EXHAUSTIVE = ("hydra_plugins.medx.Combinations", f"{BasicSweeper.__module__}.{BasicSweeper.__name__}")
# What a run's releases on a record depend on: who holds it, how often it is drawn, and how much noise it gets.
RELEASED = (
    "_target_", "epsilon", "delta", "num_runs", "spare_rounds", "noise_source", "unit", "max_records_per_patient",
)  # fmt: skip
RELEASES = (
    "dataset",
    "partition",
    *(f"privacy.{key}" for key in RELEASED),
    *(f"trainer.{key}" for key in ("expected_batch_size", "sampling_probability", "local_steps")),
    *(f"federation.{key}" for key in ("num_clients", "num_rounds", "fraction_clients")),
)


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


def refuse_chdir(config: DictConfig) -> None:
    """Each job would find a ledger, and so a budget, of its own behind one relative path."""
    if config.hydra.job.chdir:
        raise ConfigError(
            "hydra.job.chdir=true: ledgers, data and the tracking store are found from the directory in which the "
            "program is started; accepted: false"
        )


def has_callback(settings: Any) -> bool:
    """Whether Hydra's own ``settings`` still have MedX's callback."""
    return "sweep" in (settings.callbacks or {})


def refuse_without_callback(settings: Any) -> None:
    """Without it there would be no table, and a run could write into another's folder."""
    if not has_callback(settings):
        raise ConfigError("hydra.callbacks: MedX's own, sweep, is missing; accepted: others beside it")


def reason_to_queue(config: DictConfig) -> str | None:
    """Why this job takes no other beside it, if there is a reason."""
    if OmegaConf.select(config, "privacy.ledger") is not None:
        return "privacy.ledger"  # which job the budget still admits must not depend on who was faster
    if str(OmegaConf.select(config, "runtime._target_")).startswith("medx.runtime.ray."):
        return "runtime=ray"  # which takes all cores
    return None


def refuse_jobs(config: DictConfig) -> None:
    """Raise ConfigError where ``jobs`` is no number of jobs, or more than one although they have to queue."""
    asked, queue = config.get("jobs"), reason_to_queue(config)
    if asked is not None and (not isinstance(asked, int) or isinstance(asked, bool) or asked < 1):
        raise ConfigError(f"jobs={asked}: accepted: null, or how many jobs of a sweep run at once, from 1")
    if queue is not None and asked not in (None, 1):
        raise ConfigError(f"jobs={asked} with {queue}: its jobs run one after another; accepted: null or 1")


def refuse_unknown(config: DictConfig, jobs: list[list[str]]) -> DictConfig | None:
    """Raise ConfigError, before the first job, where a key or option of any job is unknown.

    Hydra composes each job when its turn comes: a misspelt third option would end the sweep after two runs. Gives the
    first job's configuration.
    """
    from hydra import compose
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from medx.hints import explain

    first = None
    for job in distinct([[part for part in job if part != AGAIN] for job in jobs]):
        try:
            composed = compose(config.hydra.job.config_name, overrides=job)
        except (HydraException, OmegaConfBaseException, ValueError) as error:
            raise ConfigError(explain(error, job)) from error
        first = first or composed
    return first


def refuse_selection(name: str, first: DictConfig | None, jobs: list[list[str]]) -> None:
    """Raise ConfigError where a sweep selects by no metric, or among more runs than share its epsilon."""
    if first is None or first.get("select") is None:
        return
    from medx.metrics.evaluate import refuse_unknown_metric

    refuse_unknown_metric(str(first.select))
    if first.privacy.get("num_runs") is None:
        return
    allowed = first.privacy.num_runs
    seeds = Counter(next((part for part in reversed(job) if part.startswith("seed=")), "seed") for job in jobs)
    count = max(seeds.values())
    if count > allowed:
        raise ConfigError(
            f"privacy.num_runs={allowed}: this sweep has {count} runs of one seed that would share the epsilon; "
            f"accepted is {count} or more, or fewer runs"
        )
    refuse_unlike(name, first, jobs)


def refuse_unlike(name: str, first: DictConfig, jobs: list[list[str]]) -> None:
    """Raise ConfigError where jobs that share an epsilon would not make the same releases.

    The noise of each is calibrated as if all others were like it; unlike ones together exceed the target.
    """
    from hydra import compose

    for composed in (compose(name, overrides=job) for job in jobs):
        for key in RELEASES:
            values = [OmegaConf.select(each, key) for each in (first, composed)]
            if values[0] != values[1]:
                raise ConfigError(
                    f"select: {key} differs between the jobs of this sweep; accepted is one value, as runs that "
                    "share an epsilon (privacy.num_runs) must make the same releases"
                )


def distinct(jobs: list[list[str]]) -> list[list[str]]:
    """One job for each choice of options: other values do not change what is known."""
    found: dict[tuple[str, ...], list[str]] = {}
    for job in jobs:
        found.setdefault(tuple(part for part in job if chooses(part)), job)
    return list(found.values())


def chooses(override: str) -> bool:
    """Whether it takes an option of a group, or anything else than a value of a key."""
    from hydra.core.global_hydra import GlobalHydra

    key = override.split("=", 1)[0]
    group = key.lstrip("+~").split("@", 1)[0]
    return key != group or bool(GlobalHydra.instance().config_loader().get_group_options(group))
