"""MedX's plugins for Hydra, which takes them from this package alone."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Override
from hydra.core.utils import JobReturn, JobRuntime, JobStatus, run_job, setup_globals
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

from medx.launcher.jobs import AGAIN, knows_beforehand, meaningful, reason_to_queue, refuse_without_callback
from medx.launcher.outcomes import is_done, jobs_in, title

if TYPE_CHECKING:
    from medx.launcher.pool import Job


class Combinations(BasicSweeper):
    """Hydra's own sweeper, but that a key is left out of jobs whose option of a group has no such key."""

    @staticmethod
    def split_arguments(overrides: list[Override], max_batch_size: int | None) -> list[list[list[str]]]:
        """The jobs' overrides in batches, as Hydra asks for them."""
        (every,) = BasicSweeper.split_arguments(overrides, None)
        return list(BasicSweeper.split_overrides_to_chunks(meaningful(every), max_batch_size))

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        """Nothing: the sweep's choices were composed before its folder was made, and each job is at its turn."""


class Processes(BasicLauncher):
    """``hydra/launcher=medx``, the default: jobs at once, each in a process of its own, or in this one as Hydra has it.

    That is where there is but one, for ``jobs=1``, where they have to queue, and where a sweeper chooses the next by
    what became of those before.
    """

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Raises ConfigError where nobody would look after the sweep's folder."""
        refuse_without_callback(config.hydra)
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run them all; how each ended is in its folder, and not in what is returned."""
        config = self.config
        assert config is not None
        queue = config.get("jobs") == 1 or reason_to_queue(config) is not None or not knows_beforehand(config)
        if queue or len(job_overrides) == 1:
            return super().launch(job_overrides, initial_job_idx)
        from medx.launcher.pool import run_jobs  # here, as --help needs no terminal's colours

        setup_globals()
        jobs = [list(overrides) for overrides in job_overrides]
        run_jobs(self._jobs(jobs, initial_job_idx), len(jobs) - self._num_done(jobs), config.get("jobs"))
        return [JobReturn(overrides=job, status=JobStatus.COMPLETED) for job in jobs]

    def _num_done(self, jobs: list[list[str]]) -> int:
        assert self.config is not None
        return sum(is_done(job) for job in jobs_in(Path(self.config.hydra.sweep.dir))) if AGAIN in jobs[0] else 0

    def _jobs(self, jobs: list[list[str]], first: int) -> "Iterator[Job]":
        """Each is composed at its turn; of a sweep that is gone on with, those that finished are left out."""
        from medx.launcher.pool import Job

        assert self.hydra_context is not None
        assert self.task_function is not None
        for number, overrides in enumerate(jobs, first):
            config = self.hydra_context.config_loader.load_sweep_config(self.config, overrides)
            with open_dict(config):
                config.hydra.job.id = config.hydra.job.num = number
            HydraConfig.instance().set_config(config)  # so that the folder's name may have ${hydra:...} in it
            folder = Path(config.hydra.sweep.dir, config.hydra.sweep.subdir).absolute()
            if AGAIN in overrides and is_done(folder):
                continue
            # The loader stays here: it is not needed there, and what it holds of Hydra's sources may not travel.
            context = HydraContext(config_loader=cast(Any, None), callbacks=self.hydra_context.callbacks)
            work = partial(_run, context, self.task_function, config)
            named = title([part for part in overrides if part != AGAIN], jobs)
            yield Job(named, folder, work, alone=reason_to_queue(config) is not None)


def _run(context: HydraContext, task: TaskFunction, config: DictConfig) -> None:
    """What Hydra's own launcher does, in a process that has nothing of Hydra yet."""
    setup_globals()
    JobRuntime.instance().set("name", config.hydra.job.name)
    keys = {"job_dir_key": "hydra.sweep.dir", "job_subdir_key": "hydra.sweep.subdir"}
    _ = run_job(task_function=task, config=config, hydra_context=context, **keys).return_value  # raises what it raised
