"""What a sweep is refused for before its first job, each in one line that ends the program."""

import sys
from collections import Counter
from typing import Any

from omegaconf import DictConfig, OmegaConf

from medx.launcher.sweeper import AGAIN
from medx.schema import ConfigError

# What a run's releases on a record depend on: who holds it, how often it is drawn, and how much noise it gets.
RELEASES = (
    "dataset",
    "partition",
    *(f"privacy.{key}" for key in ("_target_", "epsilon", "delta", "num_runs", "spare_rounds", "noise_source")),
    *(f"trainer.{key}" for key in ("expected_batch_size", "sampling_probability", "local_steps")),
    *(f"federation.{key}" for key in ("num_clients", "num_rounds", "fraction_clients")),
)


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
    """End the program with one line, before the first job, where a key or option of any job is unknown.

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
            print(f"medx: {explain(error, job)}", file=sys.stderr)
            sys.exit(2)
        first = first or composed
    return first


def refuse_selection(name: str, first: DictConfig | None, jobs: list[list[str]]) -> None:
    """End the program with one line where a sweep selects by no metric, or among more runs than share its epsilon."""
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
        print(
            f"medx: privacy.num_runs={allowed}: this sweep has {count} runs of one seed that would share the epsilon; "
            f"accepted is {count} or more, or fewer runs",
            file=sys.stderr,
        )
        sys.exit(2)
    refuse_unlike(name, first, jobs)


def refuse_unlike(name: str, first: DictConfig, jobs: list[list[str]]) -> None:
    """End the program with one line where jobs that share an epsilon would not make the same releases.

    The noise of each is calibrated as if all others were like it; unlike ones together exceed the target.
    """
    from hydra import compose

    for composed in (compose(name, overrides=job) for job in jobs):
        for key in RELEASES:
            values = [OmegaConf.select(each, key) for each in (first, composed)]
            if values[0] != values[1]:
                print(
                    f"medx: select: {key} differs between the jobs of this sweep; accepted is one value, as runs that "
                    "share an epsilon (privacy.num_runs) must make the same releases",
                    file=sys.stderr,
                )
                sys.exit(2)


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
