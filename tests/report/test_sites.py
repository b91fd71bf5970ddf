"""Hospitals and groups that the data tell, and a patient's epsilon: in the report's tables and on the screen."""

import io

import pandas as pd

from medx.report.cells import spent
from medx.report.effects import site_table, subgroup_table
from medx.report.rows import Run, make_frame
from medx.results import ClientResult, ExperimentResult, SubgroupResult
from medx.screen import sweep_table
from tests.report.examples import interval, make_result


def told(seed: int, *groups: str, patient: float = 64.75) -> ExperimentResult:
    """A run whose data tell two hospitals and some groups; what is measured follows from all three."""

    def measured(value: float) -> dict[str, object]:
        return {name: interval(value + seed / 100) for name in ("auc", "balanced_accuracy_at_threshold")}

    result = make_result("pneumoniamnist", 10.0, seed, 0.9)
    clients = [
        ClientResult(
            client=client,
            name=f"h{client}",
            num_records=50,
            class_counts=[25, 25],
            metrics={},
            test_counts=[10, 20 + client],
            test=measured(0.8 + client / 10),  # type: ignore[arg-type]
            baselines={"local_only": measured(0.7)} if client else {},  # type: ignore[dict-item]
        )
        for client in range(2)
    ]
    found = [
        SubgroupResult(column="sex", value=group, class_counts=[3, 4], metrics=measured(ord(group) / 100))  # type: ignore[arg-type]
        for group in groups
    ]
    spent_by = {"image": 9.98, "patient": patient, "hospital": 3e6}
    privacy = result.privacy.model_copy(update={"epsilon_by_unit": spent_by, "patient_images": 30})
    return result.model_copy(update={"clients": clients, "subgroups": found, "privacy": privacy})


def frame_of(*results: ExperimentResult) -> tuple[pd.DataFrame, dict[int, ExperimentResult]]:
    runs = [Run(number, "run", ("utility",), result) for number, result in enumerate(results, 1)]
    return make_frame(runs), {run.number: run.result for run in runs}


def test_each_hospital_of_the_data_has_a_row_beside_its_own_model() -> None:
    table = site_table(*frame_of(told(0), told(2)))
    assert table.data["hospital"].tolist() == [0, 1]
    assert [row[table.header.index("hospital")] for row in table.rows] == ["0 h0", "1 h1"]
    assert table.data["images"].tolist() == [30, 31]
    assert table.data["run_auc"].round(4).tolist() == [0.81, 0.91], "the mean over seeds"
    assert table.data["run_auc_low"].round(4).tolist() == [0.79, 0.89]
    assert table.data["local_only_auc"].round(4).fillna(0).tolist() == [0, 0.71]
    assert not site_table(*frame_of(make_result("pneumoniamnist", 10.0, 0, 0.9))).rows


def test_runs_of_two_configurations_are_not_averaged() -> None:
    other = told(4, "F").model_copy(update={"config_hash": "another"})
    frame, results = frame_of(told(0, "F"), told(2, "F"), other)
    for make in (site_table, subgroup_table):
        assert set(make(frame, results).data["runs"]) == {"1-2", "3"}


def test_a_group_is_the_same_group_in_every_seed_whatever_its_place() -> None:
    table = subgroup_table(*frame_of(told(0, "F", "M"), told(2, "M", "F")))
    assert table.data["group"].tolist() == ["F", "M"]
    assert table.data["run_auc"].round(4).tolist() == [round(ord(group) / 100 + 0.01, 4) for group in "FM"]


def test_a_patients_epsilon_stands_beside_an_images() -> None:
    frame, _ = frame_of(told(0), told(1, patient=2046.4))
    assert spent(frame).shown["ε of a patient"] == "above 1000 (none)"
    assert spent(frame[:1]).shown["ε of a patient"] == "64.750"
    unknown, _ = frame_of(make_result("pneumoniamnist", 10.0, 0, 0.9))
    assert "ε of a patient" not in spent(unknown).shown
    for results, says in (
        ([told(0), told(1, patient=2046.4)], "(at most 30 at a hospital) it is 64.750 to above 1000 (none)."),
        ([told(0)], "(at most 30 at a hospital) it is 64.750."),
    ):
        sweep_table([(str(job), result) for job, result in enumerate(results)], file := io.StringIO(), 200)
        assert says in file.getvalue()
    sweep_table([("", make_result("pneumoniamnist", 10.0, 0, 0.9))], file := io.StringIO(), 200)
    assert "patient" not in file.getvalue()
