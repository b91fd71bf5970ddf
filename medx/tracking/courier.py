"""The courier: one child process that delivers this process's runs, so that MLflow is never imported here.

Both sides write lines of JSON; ``deliverer`` is the other end. Forks of this process, the jobs of a sweep, have lines
of their own to the same child. Only the standard library is imported, so that ``warm_up`` may come before all other
imports, and MLflow's, two seconds, run beside them on another core.
"""

import logging
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from medx.tracking.lines import heard, say

log = logging.getLogger(__name__)
COMMAND = (sys.executable, "-m", "medx.tracking.deliverer")
TARGET = "medx.tracking.mlflow.MlflowTracking"


class Errand:
    """One run on its way, and what the courier has told of it. ``problem`` says how the courier died."""

    def __init__(self, courier: "Courier", job: str) -> None:
        self.job = job
        self.run_id: str | None = None
        self.experiment_id: str | None = None
        self.arrived = False
        self.problem: str | None = None
        self.ended = threading.Event()
        self._courier = courier

    def close(self, wait: float) -> bool:
        """Ask for the last delivery and wait for it at most ``wait`` seconds; whether everything has arrived."""
        self._courier.tell(do="close", job=self.job)
        self.ended.wait(wait)
        return self.arrived


class Courier:
    """A line to a running child. It needs no farewell: when this process ends, however it does, so does the line.

    ``process`` is the child where this process started it, and None where it was adopted at a fork.
    """

    def __init__(self, line: socket.socket, process: subprocess.Popen[bytes] | None) -> None:
        self._line = line
        self._process = process
        self._lock = threading.Lock()
        self._errands: dict[str, Errand] = {}
        self._problem: str | None = None
        threading.Thread(target=self._listen, name="courier", daemon=True).start()

    @classmethod
    def start(cls) -> "Courier":
        """A new child; the line is its standard input."""
        ours, theirs = socket.socketpair()
        # A session of its own: Ctrl-C in the terminal is for the run, whose end still has to be delivered.
        quiet = subprocess.DEVNULL
        with theirs:
            process = subprocess.Popen(
                COMMAND, stdin=theirs.fileno(), stdout=quiet, stderr=quiet, start_new_session=True
            )
        return cls(ours, process)

    @property
    def pid(self) -> int:
        """The child's process id; raises RuntimeError where another process started it."""
        if self._process is None:
            raise RuntimeError("this courier was adopted")
        return self._process.pid

    def alive(self) -> bool:
        """Whether it can take another run."""
        return self._problem is None and (self._process is None or self._process.poll() is None)

    def another_line(self) -> socket.socket:
        """A line to the same child, for a process that is about to be forked."""
        ours, theirs = socket.socketpair()
        with theirs:
            self.tell(end=theirs, do="admit")
        return ours

    def follow(self, job: str, **order: Any) -> Errand:
        """Begin to deliver a run's spool: ``output_dir``, ``destination``, and ``folder``, where a backlog may lie."""
        errand = Errand(self, job)
        with self._lock:
            self._errands[job] = errand
            if self._problem is not None:
                self._strand(errand)
        self.tell(do="follow", job=job, **order)
        return errand

    def tell(self, *, end: socket.socket | None = None, **order: Any) -> None:
        """Send one order; a child that died is noticed by the listening thread."""
        with suppress(OSError), self._lock:
            say(self._line, order, end)

    def disown(self) -> None:
        """Close a forked process's copy of the line: while one is open, the child does not see its parent end."""
        self._line.close()

    def _listen(self) -> None:
        for said in heard(self._line):
            if "warning" in said:
                log.warning("%s", said["warning"])
            else:
                self._note(self._errands[said["job"]], said)
        code = "" if self._process is None else f" with code {self._process.wait()}"
        with self._lock:
            self._problem = f"the process that delivers it ended{code}"
            for errand in self._errands.values():
                self._strand(errand)

    def _note(self, errand: Errand, said: Mapping[str, Any]) -> None:
        errand.run_id, errand.experiment_id = said["run_id"], said["experiment_id"]
        if "arrived" in said:
            errand.arrived = said["arrived"]
            del self._errands[errand.job]
            errand.ended.set()

    def _strand(self, errand: Errand) -> None:
        errand.problem = self._problem
        errand.ended.set()


_COURIERS: list[Courier] = []  # at most one: this process's
_STARTING = threading.Lock()


def current() -> Courier:
    """The courier of this process; started where there is none yet, or where it died."""
    with _STARTING:
        if not (_COURIERS and _COURIERS[0].alive()):
            _COURIERS[:] = [Courier.start()]
        return _COURIERS[0]


def warm_up(tracking: object) -> None:
    """Start the courier before it is needed, so that MLflow's import is out of the way; costs milliseconds.

    ``tracking`` is the tracking group as composed, in plain containers; only MLflow's starts anything. An embedded
    database that has the experiment already is opened early. Wrong options are left for others to refuse.
    """
    if isinstance(tracking, dict) and tracking.get("_target_") == TARGET:
        options = {key: value for key, value in tracking.items() if key != "_target_"}
        with suppress(OSError):  # no process to be had: the run itself will meet it, and say so
            current().tell(do="open", options=options, folder=os.getcwd())


def line_for_fork() -> socket.socket | None:
    """A line of its own to this process's courier for a fork that will ``adopt`` it; None where there is none."""
    return _COURIERS[0].another_line() if _COURIERS and _COURIERS[0].alive() else None


def adopt(line: socket.socket) -> None:
    """In a fork: deliver by the courier of the process that it came from."""
    _COURIERS[:] = [Courier(line, None)]


def _after_fork() -> None:
    for courier in _COURIERS:
        courier.disown()
    _COURIERS.clear()


os.register_at_fork(after_in_child=_after_fork)
