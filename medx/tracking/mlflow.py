"""Tracking in MLflow, off the training path: calls write to the spool, another process delivers."""

import logging
import os
import uuid
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from annotated_types import Gt
from pydantic import field_validator

from medx.released import released
from medx.results import ExperimentResult, RoundRecord, Status
from medx.schema import component
from medx.tracking.backlog import Backlog
from medx.tracking.base import TrackedRun
from medx.tracking.content import WITHHELD
from medx.tracking.courier import Errand, current
from medx.tracking.spool import Kind, Spool
from medx.tracking.store import SQLITE, Destination, database_path, database_uri, embedded_uri
from medx.tracking.view import view_url

log = logging.getLogger(__name__)


@component("tracking/mlflow")
class MlflowTracking:
    """``tracking=mlflow``: the embedded store where ``uri`` is None, else ``sqlite:///FILE`` or ``http(s)://HOST``.

    ``owner_view`` records also what epsilon does not cover: metrics, times, texts of errors; None: of public data only.
    """

    uri: str | None
    experiment: Annotated[str, Gt("")]
    request_timeout: Annotated[int, Gt(0)]
    final_wait: Annotated[float, Gt(0)]
    owner_view: bool | None

    @field_validator("uri")
    @classmethod
    def _check_uri(cls, uri: str | None) -> str | None:
        if uri is not None and not uri.startswith((SQLITE, "http://", "https://")):
            raise ValueError(f"uri={uri}: accepted are null, sqlite:///FILE, http://HOST:PORT and https://HOST")
        if uri is not None and not uri.startswith(SQLITE) and "@" in uri:
            raise ValueError("uri holds a password: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD instead")
        return uri

    def destination(self, folder: Path) -> Destination:
        """Where runs go, seen from a working directory."""
        uri = self.uri
        if uri is None:
            uri = embedded_uri(folder)
        elif uri.startswith(SQLITE):
            uri = database_uri(folder.absolute() / database_path(uri))
        return Destination(uri=uri, experiment=self.experiment, request_timeout=self.request_timeout)

    def settled(self, folder: Path) -> "MlflowTracking":
        """The same with an address that is right in every working directory."""
        return replace(self, uri=self.destination(folder).uri)

    def tracker(self) -> "MlflowTracker":
        """A fresh tracker for one run."""
        return MlflowTracker(self.destination(Path.cwd()), self.final_wait, self.owner_view)


class MlflowTracker:
    """Follows one run into MLflow. The methods cost a line in a file; only the end waits, for ``final_wait`` seconds.

    What could not be delivered stays in the run's folder, and goes out with the next run that reaches the store or
    by ``python -m medx.tracking deliver FOLDER``. What is the owner's alone is not even spooled where it must stay.
    """

    def __init__(self, destination: Destination, final_wait: float, owner_view: bool | None = None) -> None:
        self._destination = destination
        self._final_wait = final_wait
        self._owner_view = owner_view
        self._whole = False
        # Where the next run that goes to the same store will look for what has not arrived.
        self._folder = Path.cwd() if destination.database is None else destination.database.parent
        self._spool: Spool | None = None
        self._errand: Errand | None = None

    def start(self, run: TrackedRun) -> None:
        """Spool the run's configuration and let the courier begin to deliver."""
        self._whole = run.public if self._owner_view is None else self._owner_view
        run = run if self._whole else run.released()
        sweep_dir = None if run.sweep_dir is None else run.sweep_dir.absolute()
        run = run.model_copy(update={"output_dir": run.output_dir.absolute(), "sweep_dir": sweep_dir})
        self._destination = self._destination.for_data(synthetic=run.synthetic)
        self._spool = Spool(run.output_dir)
        destination = self._destination.model_dump()
        self._spool.append("start", {"run": run.model_dump(mode="json"), "destination": destination})
        self._errand = current().follow(
            uuid.uuid4().hex, output_dir=str(run.output_dir), destination=destination, folder=str(self._folder)
        )

    def log_round(self, record: RoundRecord) -> None:
        """Spool one round."""
        spool, _ = self._started
        shown = record if self._whole else released(record)
        spool.append("round", shown.model_dump(mode="json"))

    def finish(self, result: ExperimentResult, files: Sequence[Path] = ()) -> dict[str, str]:
        """Spool the result and the names of its files, and wait for delivery."""
        spool, _ = self._started
        names = [os.path.relpath(path.absolute(), spool.output_dir) for path in files]
        shown = result if self._whole else result.released()
        return self._close("finish", {"result": shown.model_dump(mode="json"), "files": names})

    def abort(self, status: Status, error: str) -> dict[str, str]:
        """Spool how the run ended without a result, and wait for delivery."""
        return self._close("abort", {"status": status, "error": error if self._whole else WITHHELD})

    def info(self) -> dict[str, str]:
        """``uri``, ``experiment``; once the store has answered ``run_id``, and of a server the link ``view``."""
        known = {"uri": self._destination.uri, "experiment": self._destination.experiment}
        if self._errand is None or self._errand.run_id is None or self._errand.experiment_id is None:
            return known
        if self._destination.database is None:
            known["view"] = view_url(self._destination.uri, self._errand.experiment_id)
        return known | {"run_id": self._errand.run_id}

    @property
    def _started(self) -> tuple[Spool, Errand]:
        if self._spool is None or self._errand is None:
            raise RuntimeError("the tracker was not started")
        return self._spool, self._errand

    def _close(self, kind: Kind, body: dict[str, object]) -> dict[str, str]:
        spool, errand = self._started
        spool.append(kind, body)
        if not errand.close(self._final_wait):
            Backlog(self._folder).add(spool.output_dir)
            log.warning(
                "tracking: %s has not all of this run%s; deliver it with: python -m medx.tracking deliver %s",
                self._destination.uri,
                "" if errand.problem is None else f" ({errand.problem})",
                spool.output_dir,
            )
        return self.info()
