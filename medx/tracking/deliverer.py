"""The courier's own process, ``python -m medx.tracking.deliverer``: standard input is a socket for orders and answers.

Each run is followed by a thread of its own, so that a server that does not answer keeps no other run waiting. More
sockets may come along the first: those of the parent's forks.
"""

import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from medx.tracking.backlog import Backlog
from medx.tracking.delivery import Delivery, one_line
from medx.tracking.lines import heard, say
from medx.tracking.mlflow import MlflowTracking
from medx.tracking.spool import Spool
from medx.tracking.store import Destination, open_early, quiet_environment

log = logging.getLogger("medx.tracking.deliverer")
PAUSE = 1.0
LONGEST_PAUSE = 30.0
LAST_WAIT = 5.0  # for what is left when the parent has gone
Tell = Callable[..., None]


class Following(threading.Thread):
    """One run on its way: delivered every second, after a failure less often, and once more when it is closed."""

    def __init__(self, order: dict[str, Any], warming: threading.Thread, tell: Tell) -> None:
        super().__init__(daemon=True)
        self._destination = Destination.model_validate(order["destination"])
        self._delivery = Delivery(Spool(Path(order["output_dir"])), self._destination)
        self._backlog = Backlog(Path(order["folder"]))
        self._job = order["job"]
        self._warming = warming
        self._tell = tell
        self._closing = threading.Event()

    def close(self) -> None:
        """Deliver once more, now, and answer."""
        self._closing.set()

    def run(self) -> None:
        """Follow the run to its end and say whether everything arrived."""
        self._warming.join()
        pause = 0.0
        helped = False
        while not self._closing.wait(pause):
            known = self._delivery.run_id
            reached = self._attempt(quiet=pause > PAUSE)
            if self._delivery.run_id != known:
                self._report()
            pause = PAUSE if reached else min(LONGEST_PAUSE, 2 * max(pause, PAUSE))
            if reached and not helped:
                helped = True
                self._help()
        reached = self._attempt(quiet=pause > PAUSE)
        self._report(arrived=reached)
        if reached and not helped:
            self._help()

    def _attempt(self, quiet: bool) -> bool:
        try:
            self._delivery.push()
        except Exception as error:
            # Whatever a store raises, a run goes on: the records are safe in the spool, and the reason is told.
            if not quiet:
                log.warning("tracking: %s fails, records are kept: %s", self._destination.uri, one_line(error))
            return False
        return True

    def _help(self) -> None:
        try:
            self._backlog.deliver(self._destination)
        except Exception as error:
            log.warning("tracking: earlier runs' records still wait: %s", one_line(error))

    def _report(self, **more: bool) -> None:
        delivery = self._delivery
        self._tell(job=self._job, run_id=delivery.run_id, experiment_id=delivery.experiment_id, **more)


class Telling(logging.Handler):
    """Warnings go to the parent, which logs them."""

    def __init__(self, tell: Tell) -> None:
        super().__init__(logging.WARNING)
        self._say = tell

    def emit(self, record: logging.LogRecord) -> None:
        """Send one line."""
        self._say(warning=record.getMessage())


def warm() -> None:
    """Import and prepare all that a delivery needs, so that the end of a run does not wait for it."""
    quiet_environment()
    try:
        import mlflow.store.tracking.sqlalchemy_store  # noqa: F401
        from mlflow import MlflowClient  # noqa: F401

        from medx.tracking.figures import draw_nothing
        from medx.tracking.files import installed_packages

        installed_packages()
        draw_nothing()
    except Exception as error:  # the first delivery will meet it too, and tell what it means
        log.debug("warming up: %s", one_line(error))


class Line:
    """One process that gives orders, and the runs that are followed for it."""

    def __init__(self, line: socket.socket, warming: threading.Thread) -> None:
        self._line = line
        self._warming = warming
        self._lock = threading.Lock()
        self._following: dict[str, Following] = {}
        self._forks: list[threading.Thread] = []

    def tell(self, **answer: object) -> None:
        """Send one answer, if anybody is left to be told."""
        with suppress(OSError), self._lock:
            say(self._line, answer)

    def serve(self) -> None:
        """Take orders until the process has gone; then one last attempt for what is left."""
        for order in heard(self._line, self._admit):
            if order["do"] == "open":
                threading.Thread(target=_open, args=(order, self._warming), daemon=True).start()
            elif order["do"] == "follow":
                self._following = {job: each for job, each in self._following.items() if each.is_alive()}
                self._following[order["job"]] = Following(order, self._warming, self.tell)
                self._following[order["job"]].start()
            elif order["do"] == "close":
                self._following[order["job"]].close()
        last = time.monotonic() + LAST_WAIT
        for each in self._following.values():
            each.close()
        for each in self._following.values():
            each.join(max(0.0, last - time.monotonic()))
        for fork in self._forks:  # they end with their parent, and so do their lines
            fork.join(max(0.0, last + 1 - time.monotonic()))

    def _admit(self, line: socket.socket) -> None:
        self._forks.append(threading.Thread(target=Line(line, self._warming).serve, daemon=True))
        self._forks[-1].start()


def _open(order: dict[str, Any], warming: threading.Thread) -> None:
    warming.join()
    try:
        open_early(MlflowTracking(**order["options"]).destination(Path(order["folder"])))
    except Exception as error:  # a wrong option is refused, and a broken store told, where the run itself meets it
        log.debug("opening early: %s", one_line(error))


def main() -> None:
    """Serve the parent, and leave at once: exit handlers of libraries may wait for a server."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    warming = threading.Thread(target=warm, daemon=True)
    warming.start()
    parent = Line(socket.socket(fileno=os.dup(sys.stdin.fileno())), warming)
    logging.getLogger("medx").addHandler(Telling(parent.tell))
    parent.serve()
    os._exit(0)


if __name__ == "__main__":
    main()
