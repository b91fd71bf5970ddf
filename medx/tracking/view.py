"""A ready comparison for the MLflow UI: epsilon against AUC, opened by one link.

The UI keeps shared views as tags of the experiment (seen with MLflow 3.17). A later UI that does not read this one
says so and shows the runs as usual; ``docs/tracking.md`` gives the clicks.
"""

import json
from typing import Any

VIEW_KEY = "medx"
VIEW_TAG = f"mlflow.sharedViewState.{VIEW_KEY}"
AUC = "final/test/auc"
COLUMNS = (
    *(f"tags.`{name}`" for name in ("dataset", "model", "privacy", "target_epsilon", "degenerate", "synthetic")),
    *(f"metrics.`{name}`" for name in ("epsilon", AUC, f"{AUC}_low", f"{AUC}_high")),
    *(f"metrics.`final/test/{name}`" for name in ("accuracy", "balanced_accuracy_at_threshold")),
    "metrics.`final/majority_accuracy`",
)


def view_state() -> str:
    """The UI's state as JSON: jobs sorted by test AUC (which also unfolds sweeps) and four charts."""
    charts = [
        _chart("SCATTER", "epsilon-auc", xaxis=_metric("epsilon"), yaxis=_metric(AUC)),
        _chart(
            "PARALLEL",
            "parallel",
            selectedParams=["privacy.epsilon"],
            selectedMetrics=["epsilon", "final/test/balanced_accuracy_at_threshold", AUC],
            showAllRuns=False,
        ),
        _chart("LINE", "auc-by-round", metricKey="validation/auc", **_line()),
        _chart("LINE", "epsilon-by-round", metricKey="epsilon", **_line()),
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


def _metric(name: str) -> dict[str, str]:
    return {"key": name, "type": "METRIC"}


def _line() -> dict[str, Any]:
    return {
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
