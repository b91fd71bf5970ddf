"""Personal models beside the shared one and a hospital alone: the report's tables."""

import pandas as pd
import pytest

from medx.report.personal import personal_best_table, personal_hospitals_table, personal_table
from medx.report.rows import Run, make_frame
from medx.results import ExperimentResult, PersonalResult
from tests.report.examples import interval, make_result

Figures = tuple[float, float, float]  # alone, shared, personal


def told(seed: int, method: str, *hospitals: Figures, auc: bool = True, classes: int = 2) -> ExperimentResult:
    """A run with these accuracies; AUC is .05 more, balanced accuracy .1 less, where a hospital has them."""

    def of(client: int, figure: float) -> dict[str, object]:
        known = {"accuracy": figure} | (
            {"auc": figure + 0.05, "balanced_accuracy": figure - 0.1} if auc or client else {}
        )
        return {name: interval(each) for name, each in known.items()}

    personal = [
        PersonalResult(
            client=client,
            method=method,
            chosen={},
            own=True,
            test_counts=[10 + client] * classes,
            local_only=of(client, alone),  # type: ignore[arg-type]
            shared=of(client, shared),  # type: ignore[arg-type]
            personal=of(client, own),  # type: ignore[arg-type]
        )
        for client, (alone, shared, own) in enumerate(hospitals)
    ]
    result = make_result("pneumoniamnist" if classes == 2 else "retinamnist", 1.0, seed, 0.9)
    return result.model_copy(update={"personal": personal, "config_hash": f"{method} {classes}"})


def frame_of(*results: ExperimentResult) -> tuple[pd.DataFrame, dict[int, ExperimentResult]]:
    runs = [Run(number, "run", ("personal",), result) for number, result in enumerate(results, 1)]
    return make_frame(runs), {run.number: run.result for run in runs}


def two_seeds(method: str, *, more: float = 0.0) -> list[ExperimentResult]:
    return [
        told(seed, method, (0.8, 0.7, 0.76 + more), (0.6, 0.66 + seed / 50, 0.7 + more)) for seed in (0, 1)
    ]  # fmt: skip


def test_a_setting_shows_means_over_hospitals_and_what_is_gained() -> None:
    table = personal_table(*frame_of(*two_seeds("fine_tune")))
    (row,) = table.data.to_dict("records")
    assert row["local_only_auc"] == pytest.approx(0.75)
    assert row["shared_auc"] == pytest.approx(0.735)
    assert row["gain_auc"] == pytest.approx(0.78 - 0.75), "the difference of the columns beside it"
    assert row["gain_balanced_accuracy"] == pytest.approx(0.63 - 0.6)
    assert row["worst_personal"] == pytest.approx(0.7)
    assert row["seeds"] == 2
    assert table.rows[0][-1] == "1-2"


def test_the_best_that_is_free_is_named_with_what_it_is_judged_by() -> None:
    worse, best, dear = two_seeds("interpolate"), two_seeds("ditto", more=0.01), two_seeds("mr_mtl", more=0.2)
    three = [told(0, "fine_tune", (0.8, 0.7, 0.7), (0.8, 0.7, 0.7), classes=3)]
    table = personal_best_table(*frame_of(*worse, *best, *dear, *three))
    binary, several = table.data.to_dict("records")
    assert (binary["best"], binary["metric"]) == ("ditto", "auc"), "mr_mtl costs epsilon"
    assert binary["gain"] == pytest.approx(0.79 - 0.75)
    assert several["metric"] == "balanced_accuracy"
    assert several["gain"] == pytest.approx(-0.1)
    assert table.rows[1][table.header.index("personal - better of both")] == "-0.100"


def test_a_hospital_without_the_metric_is_not_counted() -> None:
    frame = frame_of(told(0, "fine_tune", (0.8, 0.7, 0.2), (0.6, 0.5, 0.7), auc=False))
    table = personal_best_table(*frame)
    (row,) = table.data.to_dict("records")
    assert (row["measured"], row["personal"]) == (1, pytest.approx(0.75))
    assert table.rows[0][table.header.index("hospitals that have it")] == "1 of 2"
    nobody = personal_table(*frame_of(told(0, "fine_tune", (0.8, 0.7, 0.2), auc=False)))
    assert nobody.rows[0][nobody.header.index("AUC, personal - better of both")] == "–"


def test_every_hospital_has_a_row_with_its_interval_and_its_gap() -> None:
    table = personal_hospitals_table(*frame_of(*two_seeds("fine_tune")))
    assert table.data["hospital"].tolist() == [0, 1]
    assert table.data["images"].tolist() == [20, 22]
    assert table.data["gap"].round(3).tolist() == [-0.04, 0.0]
    assert table.rows[0][table.header.index("accuracy, personal")] == "0.760 [0.740, 0.770]"
    assert not personal_hospitals_table(*frame_of(make_result("pneumoniamnist", 10.0, 0, 0.9))).rows
