"""No sentence of a report that is not true of the study shown."""

from collections.abc import Sequence
from typing import Any

import pytest

from medx.report.figures import hospital_figures
from medx.report.frontier import _range, frontier_figures
from medx.report.page import Report, build_report, render
from medx.report.rows import Run, make_frame
from medx.report.study import Claim, Grid, Role, Study, job_name
from medx.results import ExperimentResult
from tests.report.examples import STUDY, interval, make_result

OTHER = Study(name="other", title="Other", question="Why?", seeds=[0], grids=[Grid(role="utility", overrides={})])


def with_size(result: ExperimentResult, size: int, **data: Any) -> ExperimentResult:
    """The run of another image size."""
    config = result.config | {"dataset": result.config["dataset"] | {"size": size} | data}
    dataset = result.dataset.model_copy(update={"image_size": size, **data})
    changes = {"config": config, "dataset": dataset, "config_hash": f"{result.config_hash[:12]}{size:04d}"}
    return result.model_copy(update=changes)


def report_of(*named: tuple[Sequence[Role], ExperimentResult], study: Study = OTHER) -> Report:
    return build_report(study, "make report", runs_of(*named), [], draw=False)


def runs_of(*named: tuple[Sequence[Role], ExperimentResult]) -> list[Run]:
    return [Run(i, job_name(result.config), tuple(roles), result) for i, (roles, result) in enumerate(named, 1)]


def text_of(report: Report) -> str:
    return render(report, "report.md.j2")


def test_another_study_says_nothing_of_the_reference() -> None:
    runs: list[tuple[Sequence[Role], ExperimentResult]] = [
        (("utility",), make_result("retinamnist", epsilon, 0, 0.7, rounds=7)) for epsilon in (0.7, 3.0)
    ]
    runs += [(("skew",), make_result("retinamnist", 3.0, 0, 0.6, rounds=7, alpha=0.3))]
    text = text_of(report_of(*[(roles, with_size(result, 64)) for roles, result in runs]))
    for phrase in (
        *("0.1)", "ublished", "Five", "five", "28 pixels", "62.5", "72 settings", "BloodMNIST", "phantom", "pneumonia"),
        *("train alone", "one place", "local_only", "paired", "kappa", "iid gives", "standard errors", "three"),
        *("standard deviation", "threshold", "SYNTHETIC", "target.\n"),
    ):
        assert phrase not in text, phrase
    for sentence in (
        "sees: dirichlet(0.3). Of these names, dirichlet(α) draws",
        "Images of 64 pixels",
        "Runs of 7 rounds.",
        "| after 1 | after 2 | after 5 | after 7 |",
        "Every setting over one seed, beside the majority class.",
        "nothing tells what another seed would change",
    ):
        assert sentence in text, sentence


def test_the_reference_says_what_its_runs_bear() -> None:
    baselines = {"baselines": True, "rounds": 5}
    named = [(("utility",), make_result("pneumoniamnist", e, s, 0.9, **baselines)) for e in (2.0, None) for s in (0, 1)]
    text = text_of(report_of(*named, study=STUDY))
    for sentence in (
        "this work: scatternet, local_dp, 5 rounds | 2 |",
        "at δ = 1e-05",
        "The published report had 5.",
        "Every setting over 2 seeds, beside the majority class, hospitals that train alone and all records in one",
        "local_only is the mean over hospitals that train alone, centralized pools all records. A run's ε covers",
        "at 2 it reaches 12.7 standard errors",
        "Images of 28 pixels",
    ):
        assert sentence in text, sentence
    plain = text_of(report_of(*named[2:]))
    assert "ε protects" not in plain
    assert "more ε" not in plain


def test_a_claim_of_other_data_stands_alone() -> None:
    claim = Claim(dataset="retinamnist", accuracy=0.5, epsilon=1, composed_epsilon=2, rounds=3, note="Noted.")
    study = STUDY.model_copy(update={"claim": claim})
    text = text_of(report_of((("utility",), make_result("pneumoniamnist", 1.0, 0, 0.9)), study=study))
    assert "No run here is of retinamnist" in text
    assert "\nNoted. Numbers:" in text, "and nothing is said of rows that are not there"


def test_runs_that_differ_beyond_the_seed_are_not_taken_for_seeds() -> None:
    runs = [make_result("pneumoniamnist", 1.0, seed, 0.9) for seed in (0, 1)]
    report = report_of(*[(("utility",), run) for run in runs], *[(("utility",), with_size(run, 64)) for run in runs])
    rows = next(table for table in report.tables() if table.name.startswith("utility")).rows
    assert [(row[1], row[5]) for row in rows[:2]] == [
        ("scatternet (dataset.size=None)", "2"),
        ("scatternet (dataset.size=64)", "2"),
    ]
    iid, skewed = runs[0], make_result("pneumoniamnist", 1.0, 0, 0.8, alpha=0.3)
    frame = make_frame(runs_of((("utility",), iid), (("utility",), skewed)))
    assert list(frame["model"]) == ["scatternet (partition=iid)", "scatternet (partition=dirichlet)"]


def test_figures_of_several_epsilons_have_several_names() -> None:
    runs = runs_of(*[(("skew",), make_result("pneumoniamnist", epsilon, 0, 0.9)) for epsilon in (0.7, 3.0, None)])
    drawn = hospital_figures(make_frame(runs), {run.number: run.result for run in runs}, "pneumoniamnist")
    assert [(picture.name.rsplit("_", 1)[1], picture.title.split(", ")[1]) for picture in drawn] == [
        ("0.7", "ε 0.7"),
        ("3", "ε 3"),
        ("none", "no privacy"),
    ]


@pytest.mark.parametrize(
    ("drawn", "said"), [((True, True), "these images were"), ((False, True), "the images of b were"), ((False,), None)]
)
def test_drawn_images_are_named(drawn: tuple[bool, ...], said: str | None) -> None:
    one = make_result("pneumoniamnist", None, 0, 0.9)
    named = [(("utility",), with_size(one, 28, synthetic=each, name="ab"[i])) for i, each in enumerate(drawn)]
    report = report_of(*named)
    assert (report.synthetic is None) if said is None else (said in str(report.synthetic))


def test_the_study_s_own_limits_are_shown() -> None:
    study = OTHER.model_copy(update={"limits": ["Only on Tuesdays."]})
    report = report_of((("utility",), make_result("pneumoniamnist", None, 0, 0.9)), study=study)
    assert "- Only on Tuesdays." in text_of(report)


def deployed(result: ExperimentResult, **changes: Any) -> ExperimentResult:
    """The same of hospitals on machines of their own."""
    return result.model_copy(update={"config": result.config | {"runtime": "deployment"}, **changes})


def test_of_hospitals_on_their_own_machines_nothing_is_simulated() -> None:
    here = make_result("pneumoniamnist", 1.0, 0, 0.9)
    text = text_of(report_of((("utility",), deployed(here))))
    assert "Hospitals are on machines of their own." in text
    assert "Metrics of hospitals on machines of their own are computed there" in text
    for phrase in ("simulated", "computed by the study on data it holds"):
        assert phrase not in text, phrase
    both = text_of(report_of((("utility",), deployed(here)), (("utility",), make_result("retinamnist", 1.0, 0, 0.7))))
    assert "on machines of their own or simulated by dealing out a data set." in both


def test_where_nothing_is_measured_the_page_is_of_what_there_is() -> None:
    empty = {"test": {}, "validation": {}, "clients": [], "majority_accuracy": None, "curves": None}
    bare = deployed(make_result("retinamnist", 1.0, 0, 0.9), **empty)
    bare = bare.model_copy(update={"rounds": [each.model_copy(update={"metrics": {}}) for each in bare.rounds]})
    runs = runs_of((("utility", "skew"), bare))
    report = build_report(OTHER, "make report", runs, [])
    text = text_of(report)
    assert "retinamnist: nothing was measured on test images here." in text
    assert "### ε spent by round" in text
    for phrase in ("Bootstrap intervals", "nan", "### Test AUC by round", "recall", "accuracy is"):
        assert phrase not in text, phrase
    assert not any(picture.name.startswith("frontier") for picture in report.pictures())


def test_several_labels_have_no_most_probable_class() -> None:
    result = make_result("retinamnist", 1.0, 0, 0.8)
    dataset = result.dataset.model_copy(update={"task": "multilabel"})
    test = {name: value for name, value in result.test.items() if not name.startswith("recall_")}
    text = text_of(report_of((("utility", "skew"), result.model_copy(update={"dataset": dataset, "test": test}))))
    assert "accuracies are means over labels, each with the threshold chosen for it on validation" in text
    for phrase in ("count the most probable class", "### Recall by class", "### More than two classes", "sensitivity"):
        assert phrase not in text, phrase
    assert "| always the majority | – | – | – | 0 | – | 0.500 | 45.0 % | 50.0 % |" in text


def test_all_must_answer_is_of_shares_of_noise_alone() -> None:
    for mode, told in (("distributed_dp", True), ("none", False), ("local_dp", False)):
        result = make_result("pneumoniamnist", None if mode == "none" else 1.0, 0, 0.9, mode=mode)
        aggregation = result.config["aggregation"] | {"minimum_survivors": 2}
        needed = result.model_copy(update={"config": result.config | {"aggregation": aggregation}})
        assert ("ll must answer" in text_of(report_of((("utility",), needed)))) is told, mode


def test_of_one_seed_no_two_modes_are_tested() -> None:
    modes = ("local_dp", "distributed_dp")
    named = {seed: [(("utility",), make_result("pneumoniamnist", 1.0, seed, 0.9 + index / 50 + seed / 100, mode=mode))
                    for index, mode in enumerate(modes)] for seed in (0, 1)}  # fmt: skip
    assert "paired" not in text_of(report_of(*named[0]))
    assert "Two modes at the same ε" in text_of(report_of(*named[0], *named[1]))


def test_a_frontier_shows_where_its_points_lie() -> None:
    low, high = _range([0.92, 0.98], 0.5)
    assert 0.9 < low < 0.92
    assert 0.98 < high < 1
    low, _ = _range([0.48, 0.53], 0.45)
    assert low < 0.45, "a majority that is near is on it"
    assert _range([float("nan")], 0.5)[0] < 0.5 < _range([float("nan")], 0.5)[1]
    runs = runs_of(*[(("utility",), make_result("pneumoniamnist", e, 0, auc, baselines=e is None))
                     for e, auc in ((1.0, 0.93), (10.0, 0.97), (None, 0.98))])  # fmt: skip
    drawn = {each.name: each for each in frontier_figures(make_frame(runs), "pneumoniamnist", 2, None)}
    (axes,) = drawn["frontier_pneumoniamnist_auc"].figure.axes
    assert 0.9 < axes.get_ylim()[0] < 0.93
    labels = axes.get_legend_handles_labels()[1]
    assert labels == [
        "scatternet, local_dp",
        "scatternet, no privacy",
        "scatternet, no privacy, alone",
        "scatternet, no privacy, one place",
        "always the majority class: 0.500, below",
    ]


def test_phantoms_alone_are_a_row_a_line_and_in_the_answer_at_epsilon_0() -> None:
    results = [make_result("pneumoniamnist", epsilon, 0, 0.9) for epsilon in (1.0, 10.0)]
    beside = [
        each.model_copy(update={"baselines": {"phantoms_alone": each.test | {"auc": interval(0.875)}}})
        for each in results
    ]
    report = report_of(*[(("utility",), each) for each in beside])
    (table,) = [table for table in report.tables() if table.name.startswith("utility")]
    rows = [dict(zip(table.header, row, strict=True)) for row in table.rows if row[0] == "phantoms_alone"]
    assert [(row["true ε"], row["AUC"], row["runs"]) for row in rows] == [("0", "0.875", "1-2")], "once"
    assert "0.875 for drawn phantoms alone, at ε 0" in report.answer[0]
    figures = frontier_figures(report.frame, "pneumoniamnist", 2, None)
    labels = next(figures).figure.axes[0].get_legend_handles_labels()[1]
    assert "scatternet, phantoms alone (ε 0)" in labels
    assert "phantoms" not in text_of(report_of(*[(("utility",), each) for each in results]))
