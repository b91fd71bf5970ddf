"""The screen with and without a terminal."""

import io
import re
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from medx import output
from medx.launcher.outcomes import names
from medx.results import STUDY_ONLY, Interval
from medx.screen import Outcome, Screen, progress_line, sweep_table, where
from tests.tracking.examples import make_record, make_result


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def context(**changes: Any) -> Any:
    values: dict[str, Any] = {
        "folder": Path.cwd() / "outputs/one",
        "title": "PneumoniaMNIST: scatternet, local_dp [red], seed 0",
        "num_rounds": 50,
        "synthetic": False,
        "public": True,
        "warning": None,
        "statement": "Privacy statement\nUnit: one record.",
        "plan_rows": [{"clients": "0, 1", "noise_multiplier": 8.66}, {"clients": "2"}],
        "partition_rows": [{"hospital": 0, "records": 941, "normal": 241, "pneumonia": 700}],
    }
    return SimpleNamespace(**(values | changes))


def follow(file: io.StringIO, synthetic: bool = False, **result: Any) -> str:
    screen = Screen(file, 160)
    screen.on_start(context(synthetic=synthetic))
    for number in range(1, 51):
        screen.on_round(make_record(number, number / 10))
    screen.on_end(make_result(**({"tracking": {"uri": "sqlite:///mlflow.db"}} | result)))
    return file.getvalue()


def test_plain_lines_without_a_terminal() -> None:
    text = follow(io.StringIO())
    assert re.fullmatch(r"[\n -~]*", text), "ASCII without control codes"
    rounds = re.findall(r"^round (\d+)/50  validation AUC 0.900  epsilon (\S+)  .* elapsed, .* left$", text, re.M)
    assert [int(number) for number, _ in rounds] == [1, *range(5, 51, 5)]
    assert rounds[-1][1] == "5.000"
    assert "hospital  records  normal  pneumonia" in text
    assert "0.950 [0.930, 0.960]" in text
    assert text.endswith("\nOutput: outputs/one\nCompare runs: make ui\n")


def test_a_terminal_gets_the_plan_live_progress_and_a_table() -> None:
    text = follow(Terminal())
    assert "\x1b[" in text
    assert "Unit: one record." in text
    assert "local_dp [red], seed 0" in text, "brackets are text, not markup"
    assert "round 50/50" in text
    assert "\x1b[?25h" in text, "the cursor is given back"
    assert "0.950 [0.930, 0.960]" in text


def test_a_run_that_breaks_off_gives_the_terminal_back() -> None:
    file = Terminal()
    screen = Screen(file)
    screen.on_start(context())
    assert "\x1b[?25h" not in file.getvalue()
    screen.close()
    screen.close()
    assert "\x1b[?25h" in file.getvalue()


def test_degenerate_and_synthetic_are_shouted() -> None:
    for file in (io.StringIO(), Terminal()):
        data = make_result().dataset.model_copy(update={"synthetic": True})
        text = follow(file, synthetic=True, degenerate=True, dataset=data)
        assert text.count("SYNTHETIC: these images") == 2, "before and after"
        assert "DEGENERATE: every test image" in text
    assert "DEGENERATE" not in follow(io.StringIO())
    assert "SYNTHETIC" not in follow(io.StringIO())


def test_a_sweep_shows_every_job_and_the_failed_ones_with_their_error() -> None:
    for file in (io.StringIO(), Terminal()):
        stopped = make_result(1.0, 0.9, status="budget_exhausted", error="ledger: 0.1 left")
        results: list[Outcome] = [
            ("0", make_result(None, 0.97)),
            ("1", "privacy.epsilon=-1: epsilon must be above 0"),
            ("2", stopped),
        ]
        sweep_table(results, file, 200)
        text = file.getvalue()
        assert "0.970 [0.950, 0.980]" in text
        assert "job 1: FAILED: privacy.epsilon=-1: epsilon must be above 0" in text
        assert "BUDGET_EXHAUSTED" in text
        assert "job 2: budget_exhausted: ledger: 0.1 left" in text
    sweep_table([("0", "nothing worked")], plain := io.StringIO())
    assert plain.getvalue() == "!! job 0: FAILED: nothing worked\n"


def test_undefined_figures_and_a_server_link() -> None:
    result = make_result(test={}, tracking={"view": "http://tracker:5000/#/x"})
    sweep_table([("", result)], file := io.StringIO(), 80)
    *above, header, row, closing = file.getvalue().splitlines()
    assert above == ["target epsilon 5, majority 0.625, seconds 12.5"]
    assert re.split(r"\s{2,}", row) == ["pneumoniamnist", "scatternet", "local_dp", "4.950", "-", "-"]
    assert not header.startswith("job")
    assert closing == "Compare runs: http://tracker:5000/#/x"


@pytest.mark.parametrize(
    ("tracking", "shown"),
    [
        ({"uri": "sqlite:////runs/mlflow.db"}, "Compare runs: make ui\n"),
        ({"uri": "http://tracker:5000"}, "Compare runs: http://tracker:5000\n"),
        ({"_target_": "medx.tracking.tracker.NoTracking"}, "Output: outputs/one\n"),
    ],
)
def test_where_to_compare_is_told_before_the_record_has_arrived(tracking: dict[str, Any], shown: str) -> None:
    result = make_result(tracking={})
    config = result.config | {"tracking": tracking}
    assert follow(io.StringIO(), tracking={}, config=config).endswith(shown)


def test_noise_of_the_seed_and_the_owners_view_are_said_with_and_without_a_terminal() -> None:
    for file in (io.StringIO(), Terminal()):
        screen = Screen(file, 400)
        screen.on_start(context(public=False, warning=STUDY_ONLY))
        result = make_result()
        privacy = result.privacy.model_copy(update={"warning": STUDY_ONLY})
        dataset = result.dataset.model_copy(update={"public": False})
        screen.on_end(result.model_copy(update={"privacy": privacy, "dataset": dataset}))
        assert file.getvalue().count(f"NOISE FROM THE SEED: {STUDY_ONLY}") == 2, "before and after"
        assert "SEEDED NOISE" in file.getvalue()
        assert file.getvalue().count("OWNER'S VIEW") == 2
    text = follow(io.StringIO())
    assert "NOISE FROM THE SEED" not in text
    assert "OWNER'S VIEW" not in text


def test_accuracies_are_those_at_the_threshold_and_baselines_are_rows() -> None:
    values = {"auc": (0.9, 0.8, 0.95), "accuracy": (0.5, None, None), "accuracy_at_threshold": (0.7, None, None)}
    test = {name: Interval(value=value, low=low, high=high) for name, (value, low, high) in values.items()}
    alone = {"auc": Interval(value=0.6, low=0.5, high=0.7), "accuracy_at_threshold": Interval(value=0.65)}
    result = make_result(test=test, baselines={"local_only": alone, "centralized": alone})
    for file in (io.StringIO(), Terminal()):
        sweep_table([("3", result)], file, 120)
        rows = [re.split(r"(?: |│)(?: |│)+", line.strip("│ ")) for line in file.getvalue().splitlines()]
        figures = {row[0]: row[row.index("local_dp") + 1 :][:3] for row in rows if row[0].startswith("3")}
        assert figures == {
            "3": ["4.950", "0.900 [0.800, 0.950]", "0.700"],
            "3 local_only": ["shared", "0.600 (0.500 to 0.700)", "0.650"],
            "3 centralized": ["shared", "0.600 [0.500, 0.700]", "0.650"],
        }
        assert "the mean over them (the lowest to the highest)" in file.getvalue()


def test_where_a_run_lies_and_how_to_go_on(tmp_path: Path) -> None:
    assert where(Path.cwd() / "outputs/one", finished=True) == ["Output: outputs/one"]
    assert where(tmp_path, finished=False, sweep=True)[1] == f"Go on with it: python -m medx.run resume={tmp_path} -m"
    _, odd = where(tmp_path / "what's, now=1", finished=False)
    (argument,) = shlex.split(odd)[-1:]
    (override,) = OverridesParser.create().parse_overrides([argument])
    assert override.value() == f"{tmp_path}/what's, now=1"
    screen = Screen(file := io.StringIO(), 80)
    screen.on_start(context())
    screen.on_error(RuntimeError())
    assert file.getvalue().endswith("Go on with it: python -m medx.run resume=outputs/one\n")


def test_progress_is_words_and_no_piece_of_a_table() -> None:
    text = follow(io.StringIO())
    assert progress_line(text).startswith("round 50/50  validation AUC")
    assert progress_line(text[: text.index("round 1/50")]) == "rounds begin"
    assert progress_line("hospital  records\n0  941\n") == ""


def test_what_is_prepared_is_said_in_a_line_that_goes_and_beside_the_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "_SHOWN", [output.Line()])
    monkeypatch.setattr(output, "EVERY", 0.0)
    monkeypatch.setattr(sys, "stdout", terminal := Terminal())
    output.counted("preparing: features of 4708 images", 4708)(1200)
    assert terminal.getvalue().endswith("features of 4708 images: 1200 of 4708\x1b[K\r")
    screen = Screen(terminal, 80)
    screen.on_start(context())
    assert "\r\x1b[K\r" in terminal.getvalue(), "the line is gone before the plan is shown"
    output.say("measuring the model")
    screen.close()
    assert "measuring the model" in terminal.getvalue().split("Hospitals")[1]
    output.shown_by()
    monkeypatch.setattr(sys, "stdout", plain := io.StringIO())
    output.shown_by(output.Line())
    for text in ("preparing: the data set", "preparing: the data set", "", "accounting: ε"):
        output.say(text)
    assert plain.getvalue() == "preparing: the data set\naccounting: epsilon\n"


def test_jobs_go_by_what_sets_them_apart_where_there_is_room() -> None:
    shared = ["privacy=local_dp"]
    seeds = [[*shared, f"privacy.epsilon={epsilon}", f"seed={seed}"] for epsilon in (1, 5) for seed in (0, 1)]
    assert names(["0", "1", "2", "3"], seeds) == ["0 seed=0", "1 seed=1", "2 seed=0", "3 seed=1"]
    assert names(["0", "2"], seeds) == ["0 seed=0", "2 seed=0"], "one that left nothing is no other's name"
    assert names(["0", "1"], [[f"privacy.epsilon={epsilon}"] for epsilon in (1, 5)]) == ["0", "1"], "a column tells"
    long = [[f"trainer.learning_rate_noise={rate}"] for rate in (0.1, 0.25)]
    assert names(["0", "1"], long) == ["0", "1"]
    assert names(["DAY/0", "DAY/1"], []) == ["DAY/0", "DAY/1"], "of jobs that are not known"
    assert names([], []) == []
