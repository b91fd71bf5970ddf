"""The courier: one child process that delivers this process's runs, so that MLflow is never imported here.

Both sides write lines of JSON; ``deliverer`` is the other end. Only the standard library is imported, so that
``warm_up`` may come before all other imports, and MLflow's, two seconds, run beside them on another core.
"""

import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

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
    """A running child. It needs no farewell: when this process ends, however it does, the pipe ends, and so the child.

    Pipes are unbuffered, so that no lock of theirs can be held by the listening thread at a fork or at the exit.
    """

    def __init__(self) -> None:
        # A session of its own: Ctrl-C in the terminal is for the run, whose end still has to be delivered.
        self._process = subprocess.Popen(
            COMMAND,
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._lock = threading.Lock()
        self._errands: dict[str, Errand] = {}
        self._problem: str | None = None
        threading.Thread(target=self._listen, name="courier", daemon=True).start()

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._process.pid

    def alive(self) -> bool:
        """Whether it can take another run."""
        return self._problem is None and self._process.poll() is None

    def follow(self, job: str, **order: Any) -> Errand:
        """Begin to deliver a run's spool: ``output_dir``, ``destination``, and ``folder``, where a backlog may lie."""
        errand = Errand(self, job)
        with self._lock:
            self._errands[job] = errand
            if self._problem is not None:
                self._strand(errand)
        self.tell(do="follow", job=job, **order)
        return errand

    def tell(self, **order: Any) -> None:
        """Send one order; a child that died is noticed by the listening thread."""
        line = json.dumps(order, default=str).encode() + b"\n"
        assert self._process.stdin is not None
        try:
            with self._lock:
                self._process.stdin.write(line)
        except BrokenPipeError:
            pass

    def disown(self) -> None:
        """Close a forked process's copies of the pipes: while one is open, the child does not see its parent end."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            said = json.loads(line)
            if "warning" in said:
                log.warning("%s", said["warning"])
            else:
                self._note(self._errands[said["job"]], said)
        code = self._process.wait()
        with self._lock:
            self._problem = f"the process that delivers it ended with code {code}"
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
            _COURIERS[:] = [Courier()]
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


def _after_fork() -> None:
    for courier in _COURIERS:
        courier.disown()
    _COURIERS.clear()


os.register_at_fork(after_in_child=_after_fork)
