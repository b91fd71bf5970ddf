"""Jobs of a sweep at once, each in a fork of this process: imports are paid once, and every core has a job of its own.

A fork must not inherit threads that compute. So this process imports and composes, and runs no job itself.
"""

import ctypes
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import connection, get_context
from multiprocessing.connection import Connection
from multiprocessing.context import ForkProcess
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

import torch

from medx.board import Board, overall
from medx.machine import share_threads
from medx.screen import clock, progress_line

SCREEN_FILE = "screen.txt"
INTERRUPTED = 130
MOST = 8  # at once unless more are asked for: each holds its data in memory
MOST_NICE = 4  # levels below its parent's priority
PR_SET_PDEATHSIG = 1  # of linux/prctl.h
GLANCE, RARE_GLANCE = 0.25, 3.0  # seconds between two looks at what runs, on a terminal and without one
Work = Callable[[Callable[[], None]], object]
Describe = Callable[[Path, str, int], str]


def jobs_at_once(asked: int | None, num_jobs: int, queue: str | None = None) -> int:
    """``jobs`` of the configuration as a number: null is one a core up to ``MOST``, or one where they share a GPU.

    Where the last jobs would leave cores idle they run beside those before them: three at once on two cores.
    ``queue`` names what makes jobs wait for each other. Where the system has no safe fork it is one.
    """
    if num_jobs <= 1 or queue is not None or sys.platform != "linux":
        return 1
    if asked is None:
        cores = torch.get_num_threads()
        asked = 1 if torch.cuda.device_count() else min(cores + num_jobs % cores, MOST)
    return min(asked, num_jobs)


@dataclass
class Member:
    """A job on its way: its fork, and the file that takes what it writes to its standard error."""

    title: str
    folder: Path
    process: ForkProcess
    measured: Connection  # the fork says here that it has no more to compute
    errors: IO[bytes]
    began: float
    alone: bool
    computes: bool = True

    def listen(self) -> None:
        """Note what the fork says, or that it is about to end without a word."""
        with suppress(EOFError):
            self.measured.recv_bytes()
            self.computes = False
        self.measured.close()

    def said(self) -> str:
        """How far it is, in the words that it showed last."""
        screen = self.folder / SCREEN_FILE
        return (progress_line(screen.read_text(errors="replace")) if screen.exists() else "") or "starts"

    def last_line(self) -> str:
        """What is shown of it while it runs."""
        return f"job {self.folder.name}  {self.title}  {self.said() if self.computes else 'measured, being recorded'}"

    def part(self) -> float:
        """How much of it is done, from 0 to 1: of its rounds."""
        rounds = re.match(r"round (\d+)/(\d+)  ", self.said())
        return 1.0 if not self.computes else int(rounds[1]) / int(rounds[2]) if rounds else 0.0


def die_with(parent: int) -> None:
    """End this process, at once and without a word, when its parent does."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)  # it had gone before this could be said


@contextmanager
def without_interrupts() -> Iterator[None]:
    """Ctrl-C waits until the block is over; a fork made in it has to unblock SIGINT itself."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


class Crew:
    """Runs jobs, ``at_once`` of them at a time.

    A job is given a function to call when it has no more to compute: the next may then begin, while this one waits for
    its records to be delivered. A job's screen is kept in its folder; its warnings are passed on when it ends, with the
    line that ``describe`` makes of its folder, title and exit code (negative for a signal). ``total`` jobs are to come.
    """

    def __init__(self, at_once: int, describe: Describe, total: int) -> None:
        self._process = os.getpid()
        self._at_once = at_once
        self._threads = max(1, torch.get_num_threads() // at_once)
        self._describe = describe
        self._total = total
        self._done = 0
        self._began = time.monotonic()
        self._members: list[Member] = []
        self._board = Board()

    def start(self, title: str, folder: Path, work: Work, *, alone: bool = False) -> None:
        """Begin ``work`` in a fork, as soon as there is room, or none beside it where it must be ``alone``.

        Raises KeyboardInterrupt where the user stopped a job.
        """
        while not self._has_room(alone):
            self._wait()
        errors = TemporaryFile()  # noqa: SIM115  # closed when the job's end is told
        measured, measuring = get_context("fork").Pipe(duplex=False)
        arguments = (folder / SCREEN_FILE, errors.fileno(), work, measuring)
        process = get_context("fork").Process(target=self._work, args=arguments)
        with without_interrupts():  # a fork that nobody knows of would not hear of Ctrl-C
            process.start()
            self._members.append(Member(title, folder, process, measured, errors, time.monotonic(), alone))
        measuring.close()
        self._show()

    def _has_room(self, alone: bool) -> bool:
        computing = [member for member in self._members if member.computes]
        if computing and (alone or any(member.alone for member in computing)):
            return False
        return len(computing) < self._at_once and len(self._members) < 2 * self._at_once  # where the store is slow

    def finish(self) -> None:
        """Wait for all jobs; raises KeyboardInterrupt where the user stopped one."""
        while self._members:
            self._wait()
        self._board.close()

    def interrupt(self) -> None:
        """Pass Ctrl-C on, once for each time that the user presses it, and wait for the jobs to end in order."""
        while self._members:
            for member in self._members:
                if member.process.is_alive():
                    os.kill(member.process.ident or 0, signal.SIGINT)
            try:
                while self._members:
                    self._wait(stopping=True)
            except KeyboardInterrupt:
                continue
        self._board.close()

    def _work(self, screen: Path, errors: int, work: Work, measuring: Connection) -> None:
        """What the fork does."""
        try:
            if self._at_once > torch.get_num_threads():  # it yields to those before it: else all end, and wait, at once
                os.nice(min(sum(member.computes for member in self._members), MOST_NICE))
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
            os.setpgid(0, 0)  # Ctrl-C in a terminal is for the parent, which passes it on
            die_with(self._process)
            sys.stdout = screen.open("w", buffering=1, encoding="utf-8")
            os.dup2(sys.stdout.fileno(), 1)  # also for what does not go through Python
            os.dup2(errors, 2)
            share_threads(self._threads)
            work(lambda: measuring.send_bytes(b"measured"))
        except KeyboardInterrupt:
            sys.exit(INTERRUPTED)

    def _wait(self, stopping: bool = False) -> None:
        """Until a job has ended or made room, or for a glance; tells of those that have ended."""
        sentinels = [member.process.sentinel for member in self._members]
        listening = {member.measured: member for member in self._members if not member.measured.closed}
        ended = connection.wait([*sentinels, *listening], GLANCE if self._board.live else RARE_GLANCE)
        for said in listening.keys() & set(ended):
            listening[said].listen()
        codes = [self._end(member) for member in list(self._members) if member.process.sentinel in ended]
        self._show()
        if INTERRUPTED in codes and not stopping:
            raise KeyboardInterrupt

    def _show(self) -> None:
        self._board.show([*(member.last_line() for member in self._members), self._overall()])

    def _overall(self) -> str:
        parts = [member.part() for member in self._members]
        return overall(self._done, parts, self._total, time.monotonic() - self._began)

    def _end(self, member: Member) -> int:
        self._members.remove(member)
        member.measured.close()
        member.process.join()
        code = member.process.exitcode or 0
        with member.errors:
            member.errors.seek(0)
            self._board.warn(member.errors.read().decode(errors="replace"))
        described = self._describe(member.folder, member.title, code)
        took = clock(time.monotonic() - member.began)
        self._done += 1
        far = "" if self._board.live else f"  ({self._overall()})"  # a terminal shows it in a line of its own
        self._board.tell(f"job {member.folder.name}  {member.title}  {described}  {took}{far}")
        return code
