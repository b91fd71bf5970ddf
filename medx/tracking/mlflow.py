"""Tracking in MLflow, off the training path: calls write to the spool, one thread in the background delivers."""

import logging
import os
import threading
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from annotated_types import Gt
from pydantic import field_validator

from medx.results import ExperimentResult, RoundRecord, Status
from medx.schema import component
from medx.tracking.backlog import Backlog
from medx.tracking.base import TrackedRun
from medx.tracking.delivery import Delivery, one_line
from medx.tracking.spool import Kind, Spool
from medx.tracking.store import SQLITE, Destination, embedded_uri, quiet_environment
from medx.tracking.view import view_url

log = logging.getLogger(__name__)
PAUSE = 1.0
LONGEST_PAUSE = 30.0


@component
class MlflowTracking:
    """``tracking=mlflow``: the embedded store where ``uri`` is None, else ``sqlite:///FILE`` or ``http(s)://HOST``."""

    uri: str | None
    experiment: Annotated[str, Gt("")]
    request_timeout: Annotated[int, Gt(0)]
    final_wait: Annotated[float, Gt(0)]

    @field_validator("uri")
    @classmethod
    def _check_uri(cls, uri: str | None) -> str | None:
        if uri is not None and not uri.startswith((SQLITE, "http://", "https://")):
            raise ValueError(f"uri={uri}: accepted are null, sqlite:///FILE, http://HOST:PORT and https://HOST")
        if uri is not None and not uri.startswith(SQLITE) and "@" in uri:
            raise ValueError("uri holds a password: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD instead")
        return uri

    def destination(self) -> Destination:
        """Where runs go, seen from the working directory of now."""
        uri = self.uri
        if uri is None:
            uri = embedded_uri(Path.cwd())
        elif uri.startswith(SQLITE):
            uri = f"{SQLITE}{Path(uri.removeprefix(SQLITE)).absolute()}"
        return Destination(uri=uri, experiment=self.experiment, request_timeout=self.request_timeout)

    def tracker(self) -> "MlflowTracker":
        """A fresh tracker for one run."""
        return MlflowTracker(self.destination(), self.final_wait)


class MlflowTracker:
    """Follows one run into MLflow. The methods cost a line in a file; only the end waits, for ``final_wait`` seconds.

    What could not be delivered stays in the run's folder, and goes out with the next run that reaches the store or
    by ``python -m medx.tracking deliver FOLDER``.
    """

    def __init__(self, destination: Destination, final_wait: float) -> None:
        self._destination = destination
        self._final_wait = final_wait
        self._backlog = Backlog(Path.cwd())
        self._closing = threading.Event()
        self._spool: Spool | None = None
        self._delivery: Delivery | None = None
        self._thread = threading.Thread(target=self._work, name="tracking", daemon=True)

    def start(self, run: TrackedRun) -> None:
        """Spool the run's configuration and begin to deliver in the background."""
        quiet_environment(self._destination.request_timeout)
        sweep_dir = None if run.sweep_dir is None else run.sweep_dir.absolute()
        run = run.model_copy(update={"output_dir": run.output_dir.absolute(), "sweep_dir": sweep_dir})
        self._spool = Spool(run.output_dir)
        self._delivery = Delivery(self._spool, self._destination)
        body = {"run": run.model_dump(mode="json"), "destination": self._destination.model_dump()}
        self._spool.append("start", body | {"job": uuid.uuid4().hex})
        self._thread.start()

    def log_round(self, record: RoundRecord) -> None:
        """Spool one round."""
        self._started.append("round", record.model_dump(mode="json"))

    def finish(self, result: ExperimentResult, files: Sequence[Path] = ()) -> dict[str, str]:
        """Spool the result and the names of its files, and wait for delivery."""
        folder = self._started.output_dir
        names = [os.path.relpath(path.absolute(), folder) for path in files]
        return self._close("finish", {"result": result.model_dump(mode="json"), "files": names})

    def abort(self, status: Status, error: str) -> dict[str, str]:
        """Spool how the run ended without a result, and wait for delivery."""
        return self._close("abort", {"status": status, "error": error})

    def info(self) -> dict[str, str]:
        """``uri``, ``experiment``; once the store has answered ``run_id``, and of a server the link ``view``."""
        known = {"uri": self._destination.uri, "experiment": self._destination.experiment}
        if self._delivery is None or self._delivery.run_id is None or self._delivery.experiment_id is None:
            return known
        if self._destination.database is None:
            known["view"] = view_url(self._destination.uri, self._delivery.experiment_id)
        return known | {"run_id": self._delivery.run_id}

    @property
    def _started(self) -> Spool:
        if self._spool is None:
            raise RuntimeError("the tracker was not started")
        return self._spool

    def _close(self, kind: Kind, body: dict[str, object]) -> dict[str, str]:
        spool = self._started
        spool.append(kind, body)
        self._closing.set()
        self._thread.join(self._final_wait)
        if self._thread.is_alive() or (self._delivery is not None and self._delivery.pending()):
            self._backlog.add(spool.output_dir)
            log.warning(
                "tracking: %s has not all of this run; deliver it with: python -m medx.tracking deliver %s",
                self._destination.uri,
                spool.output_dir,
            )
        return self.info()

    def _work(self) -> None:
        """Deliver every second, after a failure less often, and once more at the end."""
        pause = 0.0
        helped = False
        while not self._closing.wait(pause):
            reached = self._attempt(quiet=pause > PAUSE)
            pause = PAUSE if reached else min(LONGEST_PAUSE, 2 * max(pause, PAUSE))
            if reached and not helped:
                helped = True
                self._backlog.deliver(self._destination)
        self._attempt(quiet=pause > PAUSE)

    def _attempt(self, quiet: bool) -> bool:
        if self._delivery is None:
            return False
        try:
            self._delivery.push()
        except Exception as error:
            # Whatever a store raises, a run goes on: the records are safe in the spool, and the reason is told.
            if not quiet:
                log.warning("tracking: %s fails, records are kept: %s", self._destination.uri, one_line(error))
            return False
        return True
