"""Tables in every width: no line is longer, no number is cut, and what finds no room is told."""

import io
import re

import pytest
from rich.cells import cell_len
from rich.console import Console

from medx.screen import HEADERS, NEED, sweep_table
from medx.tables import Table
from tests.tracking.examples import make_result

PLAN = Table.of(
    [
        {"clients": "0, 1", "records": 941, "steps": 300, "sampling_probability": 0.25, "noise_multiplier": 8.66},
        {"clients": "2", "records": 942, "steps": 300, "sampling_probability": 0.25},
    ],
    ("steps", "sampling probability", "records"),
)


def drawn(table: Table, width: int) -> list[str]:
    """What a terminal of that width shows."""
    table.draw(Console(file=(file := io.StringIO()), width=width, force_terminal=True, no_color=True), "Title")
    return re.sub(r"\x1b\[[0-9;]*m", "", file.getvalue()).splitlines()


@pytest.mark.parametrize("width", range(30, 140, 7))
def test_nothing_is_wider_and_every_number_is_whole_or_told_to_be_missing(width: int) -> None:
    for lines in (PLAN.plain(width), drawn(PLAN, width)):
        assert max(map(cell_len, lines)) <= width
        words = re.split(r"[\s,│]+", " ".join(lines))
        assert {"8.66", "2"} <= set(words)
        for name, value in (("steps", "300"), ("records", "941")):
            assert value in words or name in " ".join(lines).partition("no room here for: ")[2]


def test_columns_that_are_the_same_in_every_row_stand_above_and_go_before_others() -> None:
    assert PLAN.plain(200)[0] == "clients  records  steps  sampling probability  noise multiplier"
    above, header, *_ = PLAN.plain(60)
    assert (above, header) == ("steps 300", "clients  records  sampling probability  noise multiplier")
    assert PLAN.plain(50)[0] == "sampling probability 0.25, steps 300"
    assert PLAN.plain(30)[-4:-2] == ["no room here for: records", "clients  noise multiplier"]


def test_many_long_class_names_become_numbers_that_are_told() -> None:
    classes = {f"a class of tissue {index}": 10 + index for index in range(9)}
    table = Table.of([{"hospital": 0, "records": 126} | classes], numbered=2)
    assert table.plain(400)[0].endswith("a class of tissue 8")
    lines = table.plain(80)
    assert "7 a class of tissue 7" in " ".join(lines[:-2])
    assert lines[-2:] == [
        "hospital  records  0   1   2   3   4   5   6   7   8",
        "0         126      10  11  12  13  14  15  16  17  18",
    ]


def test_a_sweeps_results_fit_80_columns_and_a_wide_terminal_shows_all() -> None:
    results = [(str(job), make_result(epsilon, 0.9 + job / 100)) for job, epsilon in enumerate((1.0, 5.0, 10.0))]
    shown = {}
    for width in (80, 200):
        sweep_table(list(results), file := io.StringIO(), width)
        shown[width] = file.getvalue().splitlines()
    assert max(map(len, shown[80])) <= 80
    assert shown[80][:2] == [
        "privacy local_dp, dataset pneumoniamnist, model scatternet, majority 0.625,",
        "seconds 12.5",
    ]
    assert "0.900 [0.880, 0.910]  0.900" in "\n".join(shown[80])
    assert {"dataset", "model", "privacy", "seconds"} <= set(shown[200][0].split())


def test_every_column_that_may_go_is_one() -> None:
    assert set(NEED) <= set(HEADERS)
