"""Jobs at once, each in a process of its own: one that is killed takes no other along, and nothing leaks to the next.

Processes come from Python's fork server, which has imported all that a run needs, computed nothing and has no threads;
where a system has none they start anew. A job is told by its files: its screen, its result, its failure.
"""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import connection, forkserver, get_all_start_methods, get_context, parent_process
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from threading import Thread
from typing import TextIO

from medx import output
from medx.launcher.outcomes import INTERRUPTED, outcome
from medx.launcher.progress import SCREEN_FILE, JobFiles, Progress, overall
from medx.screen import clock

PRELOAD = "medx.launcher.preload"
WARNINGS_FILE = ".warnings"
STREAMS = ((1, SCREEN_FILE), (2, WARNINGS_FILE))
MOST = 8  # at once unless more are asked for: each holds its data in memory
GLANCE = 0.25  # seconds between two looks at what runs


@dataclass(frozen=True)
class Job:
    """``work`` is called in the job's own process, so it can be pickled; ``title`` tells it from the other jobs.

    None runs beside a job that must be ``alone``.
    """

    title: str
    folder: Path
    work: Callable[[], object]
    alone: bool = False


def run_jobs(jobs: Iterable[Job], total: int, asked: int | None) -> None:
    """Run them all, ``asked`` at a time, or None: as many as suit the machine; their files tell how each ended.

    Each is taken from ``jobs`` when its turn comes. After Ctrl-C, in this process or one of theirs, those that run
    end in order, and KeyboardInterrupt is raised; so they do after any other error in this process.
    """
    output.say("preparing: libraries")
    where = get_context("forkserver") if "forkserver" in get_all_start_methods() else get_context("spawn")
    where.set_forkserver_preload([PRELOAD])
    pool = _Pool(where, jobs_at_once(asked, total, *_machine(where)), total)
    try:
        for job in jobs:
            pool.start(job)
        pool.finish()
    except BaseException:
        pool.interrupt()
        raise
    finally:
        pool.progress.close()


def jobs_at_once(asked: int | None, num_jobs: int, cores: int, gpus: int) -> int:
    """``asked`` as a number: null is one a core up to ``MOST``, or one where they would share a GPU."""
    if asked is None:
        asked = 1 if gpus else min(cores, MOST)
    return max(1, min(asked, num_jobs))


@dataclass
class _Running:
    job: Job
    process: BaseProcess
    files: JobFiles
    began: float = field(default_factory=time.monotonic)


class _Pool:
    """Those that run: ``at_once`` that compute, and at most as many that wait for their records to arrive."""

    def __init__(self, where: SpawnContext | ForkServerContext, at_once: int, total: int) -> None:
        self.progress = Progress()
        self._where = where
        self._at_once, self._total, self._done = at_once, total, 0
        self._began = time.monotonic()
        self._running: list[_Running] = []

    def start(self, job: Job) -> None:
        """Begin it as soon as there is room; raises KeyboardInterrupt where the user stopped one."""
        while not self._has_room(job.alone):
            self._wait()
        job.folder.mkdir(parents=True, exist_ok=True)
        share = 1 if job.alone else self._at_once
        files = JobFiles(job.title, job.folder)
        process = self._where.Process(target=_serve, args=(job, share, dict(os.environ)))
        with _without_interrupts():  # a process that nobody knows of would not hear of Ctrl-C
            process.start()
            self._running.append(_Running(job, process, files))
        self._show()

    def finish(self) -> None:
        """Wait for all of them; raises KeyboardInterrupt where the user stopped one."""
        while self._running:
            self._wait()

    def interrupt(self) -> None:
        """Pass Ctrl-C on, once for each time that the user presses it, and wait for the jobs to end in order."""

        def press(*_: object) -> None:
            for each in list(self._running):
                if each.process.is_alive():
                    os.kill(each.process.pid or 0, signal.SIGINT)

        before = signal.signal(signal.SIGINT, press)  # an exception could come between any two lines
        try:
            press()
            while self._running:
                self._wait(stopping=True)
        finally:
            signal.signal(signal.SIGINT, before)

    def _has_room(self, alone: bool) -> bool:
        computing = [each for each in self._running if not each.files.measured]
        if computing and (alone or any(each.job.alone for each in computing)):
            return False
        return len(computing) < self._at_once and len(self._running) < 2 * self._at_once  # where the store is slow

    def _wait(self, stopping: bool = False) -> None:
        """Until a job has ended, or for a glance; tells of those that have ended."""
        ended = connection.wait([each.process.sentinel for each in self._running], GLANCE)
        codes = [self._end(each) for each in list(self._running) if each.process.sentinel in ended]
        for each in self._running:
            each.files.look()
        self._show()
        if INTERRUPTED in codes and not stopping:
            raise KeyboardInterrupt

    def _end(self, ended: _Running) -> int:
        self._running.remove(ended)
        ended.process.join()
        code = ended.process.exitcode or 0
        warnings = ended.job.folder / WARNINGS_FILE
        if warnings.exists():
            self.progress.warn(warnings.read_text(errors="replace"))
            warnings.unlink()
        described = outcome(ended.job.folder, ended.job.title, code)
        took = clock(time.monotonic() - ended.began)
        self._done += 1
        far = "" if self.progress.live else f"  ({self._overall()})"  # a terminal shows it in a line of its own
        self.progress.tell(f"job {ended.job.folder.name}  {ended.job.title}  {described}  {took}{far}")
        return code

    def _show(self) -> None:
        self.progress.show([*(each.files.last_line() for each in self._running), self._overall()])

    def _overall(self) -> str:
        parts = [each.files.part() for each in self._running]
        return overall(self._done, parts, self._total, time.monotonic() - self._began)


def _machine(where: SpawnContext | ForkServerContext) -> tuple[int, int]:
    """Cores and GPUs as torch counts them, in a process that has it, when the fork server has imported all."""
    answer, ask = where.Pipe(duplex=False)
    process = where.Process(target=_count, args=(ask,))
    if isinstance(where, ForkServerContext):
        with _without_interrupts():  # Ctrl-C is not for it, nor by it for a job that is not ready to hear of it
            forkserver.ensure_running()
    process.start()
    ask.close()
    counted: tuple[int, int] = answer.recv()
    process.join()
    return counted


def _count(answer: Connection) -> None:
    import torch

    answer.send((torch.get_num_threads(), torch.cuda.device_count()))


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Ctrl-C waits until the block is over; a process that starts in it has to unblock SIGINT itself."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _serve(job: Job, share: int, environment: dict[str, str]) -> None:
    """What the job's process does: its screen and warnings go to files, and it has one core in ``share``."""
    os.setpgid(0, 0)  # Ctrl-C in a terminal is for the parent, which passes it on
    Thread(target=_end_with_parent, daemon=True).start()
    os.environ.clear()
    os.environ.update(environment)  # the fork server has that of the day it was started
    sys.stdout, sys.stderr = (_to_file(descriptor, job.folder / name) for descriptor, name in STREAMS)
    output.shown_by(output.Line())
    import torch

    from medx.machine import keep_freed_memory, share_threads

    keep_freed_memory()
    share_threads(max(1, torch.get_num_threads() // share))
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        job.work()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def _to_file(descriptor: int, path: Path) -> TextIO:
    """A stream for what this process writes to the descriptor, through Python or not."""
    with path.open("wb") as file:
        os.dup2(file.fileno(), descriptor)
    return os.fdopen(descriptor, "w", buffering=1, encoding="utf-8", errors="replace", closefd=False)


def _end_with_parent() -> None:
    """End this process, at once and without a word, when its parent does."""
    if (parent := parent_process()) is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGKILL)
