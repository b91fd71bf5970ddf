"""The MLflow store behind a URI: connected once, with short time-outs, silent and without telemetry."""

import json
import logging
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from medx import files
from medx.released import Record
from medx.schema import MedxError

if TYPE_CHECKING:
    from mlflow import MlflowClient

SQLITE = "sqlite:///"
SYNTHETIC = "-synthetic"
DESCRIPTION = """Privacy-utility studies of federated medical image classification, by MedX.

A parent run is a sweep, a child run is a job. To compare: choose the child runs, *Chart view*, *Add chart*,
*Scatter*, X `epsilon`, Y `final/test/auc`; `docs/tracking.md` shows it.

| column | meaning |
| --- | --- |
| `epsilon` | spent so far under record-level differential privacy, by every executed step; absent: no guarantee |
| `validation/...`, `test/...` | after each round, on images that the server holds |
| `final/test/...` | the final model; `_low` and `_high` bound a 95 % bootstrap interval over images |
| `final/test/..._at_threshold` | at the threshold that was chosen on validation |
| `final/majority_accuracy` | accuracy of always answering the most frequent class: the figure to beat |
| tag `degenerate` | `true`: every test image gets the same answer |
| tag `view` | `owner`: with figures that epsilon does not cover; `released`: without (`tracking.owner_view`) |
| tag `warning` | other than `none`: noise from a seed, for studies only |
| tag `synthetic` | `true`: procedurally drawn images, no patient's |
| `seconds/...`, `bytes_up`, `bytes_down` | of one round, over all clients |
"""
VIEW_KEY = "medx"
VIEW_TAG = f"mlflow.sharedViewState.{VIEW_KEY}"
AUC = "final/test/auc"
COLUMNS = (
    "attributes.`Dataset`",
    *(f"tags.`{name}`" for name in ("dataset", "model", "privacy", "target_epsilon", "degenerate", "synthetic")),
    *(f"metrics.`{name}`" for name in ("epsilon", AUC, f"{AUC}_low", f"{AUC}_high")),
    *(f"metrics.`final/test/{name}`" for name in ("accuracy", "balanced_accuracy_at_threshold")),
    "metrics.`final/majority_accuracy`",
)
LINE = {  # how a chart of lines is drawn
    "lineSmoothness": 0,
    "scaleType": "linear",
    "xAxisScaleType": "linear",
    "xAxisKey": "step",
    "selectedXAxisMetricKey": "",
    "range": {},
    "yAxisKey": "metric",
    "yAxisExpressions": [],
    "ignoreOutliers": False,
    "useGlobalXaxisKey": True,
    "useGlobalLineSmoothing": True,
}


class TrackingError(MedxError):
    """A tracking store that cannot take runs."""


class Destination(Record):
    """Where runs go: ``sqlite:///`` and an absolute path, or an http address; and the MLflow experiment."""

    uri: str
    experiment: str
    request_timeout: int = 10

    def for_data(self, *, synthetic: bool) -> "Destination":
        """The same, or for drawn images, which say nothing of medicine, an experiment of their own."""
        own = not synthetic or self.experiment.endswith(SYNTHETIC)
        return self if own else self.model_copy(update={"experiment": self.experiment + SYNTHETIC})

    @property
    def key(self) -> str:
        """Tells destinations apart."""
        return f"{self.uri} {self.experiment}"

    @property
    def database(self) -> Path | None:
        """The embedded store's file; None for a server."""
        return database_path(self.uri) if self.uri.startswith(SQLITE) else None


def embedded_uri(folder: Path) -> str:
    """The default store: ``mlflow.db`` in ``folder``."""
    return database_uri(folder.absolute() / "mlflow.db")


def database_uri(path: Path) -> str:
    """The address of an embedded store, in which ``?`` would begin a query and ``%`` an escape."""
    return f"{SQLITE}{str(path).replace('%', '%25').replace('?', '%3F')}"


def database_path(uri: str) -> Path:
    """The file of an embedded store."""
    return Path(unquote(uri.removeprefix(SQLITE)))


def quiet_environment() -> None:
    """Set, where the user has not, what MLflow reads from the environment: few retries, no telemetry."""
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "1")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    logging.getLogger("alembic").setLevel(logging.WARNING)


def experiment_tags() -> dict[str, str]:
    """A description, the ready comparison, and the kind that makes the UI show training runs."""
    return {
        "mlflow.note.content": DESCRIPTION,
        "mlflow.experimentKind": "custom_model_development",
        VIEW_TAG: view_state(),
    }


class Store:
    """A connected experiment. Every method may raise whatever MLflow raises."""

    def __init__(self, client: "MlflowClient", experiment_id: str) -> None:
        self.client = client
        self.experiment_id = experiment_id

    def status(self, run_id: str) -> str | None:
        """A run's status; None where the store does not know it any more."""
        from mlflow.exceptions import MlflowException

        try:
            info = self.client.get_run(run_id).info
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None
        return str(info.status) if info.lifecycle_stage == "active" else None

    def tag(self, run_id: str, tags: dict[str, str]) -> None:
        """Set tags of a run."""
        for name, value in tags.items():
            self.client.set_tag(run_id, name, value)

    def find(self, tag: str, value: str) -> list[Any]:
        """Runs whose tag has this value."""
        return list(self.client.search_runs([self.experiment_id], f"tags.`{tag}` = '{value}'"))


def ready() -> None:
    """Import what ``connect`` needs, which takes seconds."""
    quiet_environment()
    import mlflow.store.tracking.sqlalchemy_store
    import mlflow.tracking  # noqa: F401


def connect(destination: Destination) -> Store:
    """Open the store and find or create the experiment; the first process creates the embedded database alone."""
    quiet_environment()
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(destination.request_timeout))
    if destination.database is None:
        return _open(destination, None)
    folder = destination.database.parent
    with files.locked(folder / f"{destination.database.name}-lock"), _without_stray(destination.uri, folder):
        return _open(destination, (folder / "mlartifacts").as_uri())


@contextmanager
def _without_stray(uri: str, folder: Path) -> Iterator[None]:
    """Remove the folder that MLflow makes besides, where it takes an escape as it is written."""
    stray = Path(uri.removeprefix(SQLITE)).parent
    ours = stray != folder and not stray.exists()
    yield
    if ours:
        with suppress(OSError):
            stray.rmdir()


def has_experiment(destination: Destination) -> bool:
    """Whether an embedded store is there with the experiment in it; looks without writing.

    Raises TrackingError where the file is something else.
    """
    path = destination.database
    if path is None or not path.exists():
        return False
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as database:
            found = database.execute("SELECT 1 FROM experiments WHERE name = ?", (destination.experiment,)).fetchone()
    except sqlite3.Error as error:
        raise TrackingError(f"{path}: no store of MLflow ({error}); accepted: sqlite:///FILE of one") from error
    return found is not None


def _open(destination: Destination, artifacts: str | None) -> Store:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    client = MlflowClient(tracking_uri=destination.uri)
    found = client.get_experiment_by_name(destination.experiment)
    if found is None:
        try:
            return Store(client, client.create_experiment(destination.experiment, artifacts, experiment_tags()))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            found = client.get_experiment_by_name(destination.experiment)
    if found is None or found.lifecycle_stage != "active":
        raise TrackingError(
            f"tracking.experiment={destination.experiment} was deleted in {destination.uri}: "
            "restore it there, or choose another name"
        )
    for name, value in experiment_tags().items():
        if name not in found.tags:
            client.set_experiment_tag(found.experiment_id, name, value)
    return Store(client, found.experiment_id)


def view_state() -> str:
    """The UI's state as JSON: jobs sorted by test AUC (which also unfolds sweeps) and four charts."""
    epsilon, auc = ({"key": name, "type": "METRIC"} for name in ("epsilon", AUC))
    charts = [
        _chart("SCATTER", "epsilon-auc", xaxis=epsilon, yaxis=auc),
        _chart(
            "PARALLEL",
            "parallel",
            selectedParams=["privacy.epsilon"],
            selectedMetrics=["epsilon", "final/test/balanced_accuracy_at_threshold", AUC],
            showAllRuns=False,
        ),
        _chart("LINE", "auc-by-round", metricKey="validation/auc", **LINE),
        _chart("LINE", "epsilon-by-round", metricKey="epsilon", **LINE),
    ]
    section = {"uuid": "medx", "name": "Privacy and utility", "display": True, "deleted": False}
    section |= {"isReordered": True, "columns": 2}
    state = {
        "searchFilter": "tags.job != ''",
        "orderByKey": f"metrics.`{AUC}`",
        "orderByAsc": False,
        "selectedColumns": list(COLUMNS),
        "runsHiddenMode": "SHOW_ALL",
        "compareRunCharts": charts,
        "compareRunSections": [section],
        "isAccordionReordered": True,
    }
    return json.dumps(state)


def view_url(server: str, experiment_id: str) -> str:
    """The link that opens the comparison on a server."""
    route = f"#/experiments/{experiment_id}/runs?compareRunsMode=CHART&viewStateShareKey={VIEW_KEY}"
    return f"{server.rstrip('/')}/{route}"


def _chart(kind: str, name: str, **fields: Any) -> dict[str, Any]:
    common = {"type": kind, "uuid": f"medx-{name}", "metricSectionId": "medx"}
    return common | {"runsCountToCompare": 100, "deleted": False, "isGenerated": False} | fields
