"""The screen with and without a terminal."""

import io
import re
from types import SimpleNamespace
from typing import Any

from medx.results import STUDY_ONLY
from medx.screen import Outcome, Screen, sweep_table
from tests.tracking.examples import make_record, make_result


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def context(**changes: Any) -> Any:
    values: dict[str, Any] = {
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
    screen.on_end(make_result(**result))
    return file.getvalue()


def test_plain_lines_without_a_terminal() -> None:
    text = follow(io.StringIO())
    assert re.fullmatch(r"[\n -~]*", text), "ASCII without control codes"
    rounds = re.findall(r"^round (\d+)/50  validation AUC 0.900  epsilon (\S+)  .* elapsed, .* left$", text, re.M)
    assert [int(number) for number, _ in rounds] == [1, *range(5, 51, 5)]
    assert rounds[-1][1] == "5.000"
    assert "hospital  records  normal  pneumonia" in text
    assert "0.950 [0.930, 0.960]" in text
    assert "make ui" in text


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
    sweep_table([("", result)], file := io.StringIO())
    header, row, closing = file.getvalue().splitlines()
    assert re.split(r"\s{2,}", row) == [
        "pneumoniamnist", "scatternet", "local_dp", "5", "4.950", "-", "-", "-", "0.625", "12.5",
    ]  # fmt: skip
    assert not header.startswith("job")
    assert closing == "Compare runs: http://tracker:5000/#/x"


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
