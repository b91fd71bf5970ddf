"""One Hydra job: configuration to experiment, with the screen and the tracking store listening."""

from collections.abc import Callable
from pathlib import Path

from omegaconf import DictConfig

from medx.configuration import GROUPS, build, config_hash, construct, plain, resumed_config
from medx.experiment import Experiment, config_name, run_experiment, write_down
from medx.machine import environment
from medx.observer import Observer, RunContext
from medx.results import ExperimentResult, RoundRecord, Status
from medx.screen import Screen
from medx.sweep import SWEEP_FILE, mark_failed
from medx.tracking.base import TrackedRun, Tracker


def run_job(
    cfg: DictConfig, folder: Path, overrides: list[str], measured: Callable[[], None] = lambda: None
) -> float | None:
    """Run one job in its output folder; gives the validation AUC, which an optimising sweeper maximises.

    ``measured`` is called when all is computed and written, before the wait for the tracking store.
    """
    config = plain(cfg)
    resume = config.pop("resume")
    output = folder
    if resume is not None:
        output = Path(resume)
        config = resumed_config(output, config, overrides)
    experiment = make_experiment(config)
    tracking = build(config, "tracking")
    observers: list[Observer] = [Screen(), Tracked(tracking.tracker(), sweep_folder(folder), measured)]
    result = run_experiment(
        experiment,
        config,
        config_hash=config_hash(config),
        folder=output,
        observers=observers,
        resume=resume is not None,
    )
    if output != folder:
        write_down(result, folder)
    if result.status != "finished":
        mark_failed(folder.name, killed=result.status == "killed")
    return result.validation["auc"].value


def make_experiment(config: dict[str, object]) -> Experiment:
    """The typed experiment of a plain configuration; raises ConfigError with one line."""
    built = {group: build(config, group) for group in GROUPS if group != "tracking"}
    scalars = {key: value for key, value in config.items() if key not in GROUPS}
    experiment: Experiment = construct(Experiment, scalars | built, "")
    return experiment


def sweep_folder(folder: Path) -> Path | None:
    """The sweep that this job belongs to, found by the file that names it."""
    for parent in folder.parents:
        if (parent / SWEEP_FILE).exists():
            return parent
    return None


class Tracked:
    """A tracker as an observer of the run; ``before_wait`` is called before it waits for the store."""

    def __init__(self, tracker: Tracker, sweep: Path | None, before_wait: Callable[[], None]) -> None:
        self._tracker = tracker
        self._sweep = sweep
        self._before_wait = before_wait

    def on_start(self, context: RunContext) -> None:
        """Tell the tracker which run this is."""
        config = context.config
        self._tracker.start(
            TrackedRun(
                output_dir=context.folder,
                sweep_dir=self._sweep,
                study=config["study"] or "",
                seed=config["seed"],
                dataset=context.dataset,
                model=config_name(config, "model"),
                privacy=config_name(config, "privacy"),
                target_epsilon=config["privacy"].get("epsilon"),
                synthetic=context.synthetic,
                public=context.public,
                warning=context.warning,
                config_hash=context.config_hash,
                config=config,
                environment=environment("cpu"),
                description=context.statement,
            )
        )

    def on_round(self, record: RoundRecord) -> None:
        """Pass it on."""
        self._tracker.log_round(record)

    def on_end(self, result: ExperimentResult) -> None:
        """Pass it on with the checkpoint, and note in the result where the run is recorded."""
        files = [Path(result.checkpoint)] if result.checkpoint else []
        if result.status != "killed":  # after Ctrl-C nothing more may begin
            self._before_wait()
        result.tracking = self._tracker.finish(result, files)

    def on_error(self, error: BaseException) -> None:
        """The record is closed as failed."""
        status: Status = "killed" if isinstance(error, KeyboardInterrupt) else "failed"
        self._tracker.abort(status, str(error).splitlines()[0] if str(error) else type(error).__name__)
