"""``medx attack``: what finished runs mean, from their results alone."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from medx.attacks.__main__ import main
from medx.privacy.meaning import meanings_of
from medx.results import ExperimentResult
from tests.report.examples import make_result


def of_a_run(folder: Path, epsilon: float | None, patient: float | None = None) -> ExperimentResult:
    """A result of an earlier version, which has no meaning of its own."""
    result = make_result("pneumoniamnist", epsilon, 0, 0.9)
    if patient is not None:
        by_unit = {"image": result.privacy.epsilon, "patient": patient}
        result = result.model_copy(update={"privacy": result.privacy.model_copy(update={"epsilon_by_unit": by_unit})})
    folder.mkdir()
    result.save(folder / "result.json")
    return result


def test_a_table_of_runs_and_the_same_for_programs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    one = of_a_run(tmp_path / "one", 10.0, 26.0)
    of_a_run(tmp_path / "two", None)
    one.released().save(tmp_path / "released.json")
    given = [str(tmp_path / name) for name in ("one", "two", "released.json")]
    main(given)
    lines = capsys.readouterr().out.splitlines()
    rows = [re.split(r"  +", line) for line in lines if re.match(r"\d  +\w+  +(image|patient)", line)]
    assert [row[:4] for row in rows] == [
        ["1", "local_dp", "image", "9.900"], ["1", "local_dp", "patient", "26.000"],
        ["2", "none", "image", "none"], ["2", "none", "patient", "none"],
        ["3", "local_dp", "image", "9.900"], ["3", "local_dp", "patient", "26.000"],
    ]  # fmt: skip
    assert rows[0][4:] == ["1.984", "13.5 %", "36.7 %", "75.9 %", "67.9 %", "36.7 %", "75.9 %"]
    assert set(rows[2][5:]) == {"100.0 %"}
    assert rows[4][1:] == rows[0][1:], "nothing is kept back that it needs"
    assert "Epsilon and mu at delta 1e-05." in lines[-1]
    main([*given, "--json"])
    told = json.loads(capsys.readouterr().out)
    kept = {unit: meaning.model_dump(mode="json") for unit, meaning in meanings_of(one.privacy).items()}
    assert told[0] == {"run": given[0], "mechanism": "local_dp", "delta": 1e-5, "meaning": kept,
                       "meaning_by_observer": {}, "attacks": []}  # fmt: skip


def test_where_no_patient_is_known_the_table_says_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    of_a_run(tmp_path / "one", 1.0)
    main([str(tmp_path / "one")])
    text = capsys.readouterr().out
    assert re.search(r"patient  +not bounded", text)
    assert max(map(len, text.splitlines()[1:])) <= 120, "nothing but notes is wider than the terminal"
    assert "A patient is not bounded: the data set does not tell patients." in text


def test_what_cannot_be_read_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = of_a_run(tmp_path / "one", 10.0)
    changed = result.model_copy(update={"privacy": result.privacy.model_copy(update={"epsilon": 5.0})})
    changed.save(tmp_path / "changed.json")
    (tmp_path / "other.json").write_text("{}")
    refusals = {
        "nowhere": "cannot be read (No such file or directory)",
        "other.json": "not a result of this version of medx",
        "changed.json": "the events of its clients give epsilon 9.91",
    }
    for name, why in refusals.items():
        with pytest.raises(SystemExit) as ended:
            main([str(tmp_path / "one"), str(tmp_path / name)])
        assert ended.value.code == 2
        told = capsys.readouterr()
        assert told.out == "", "all or nothing"
        assert told.err.startswith("medx: ")
        assert told.err.count("\n") == 1
        assert name in told.err
        assert why in told.err
        assert "accepted: " in told.err


def test_the_verb_is_called_by_its_own_name(tmp_path: Path) -> None:
    def call(*words: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "medx", "attack", *words]
        return subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)

    told = call("--help")
    assert told.returncode == 0
    assert "medx attack RUN" in " ".join(told.stdout.split())
    assert "python -m" not in told.stdout
    assert call().returncode == 2
    of_a_run(tmp_path / "one", 10.0)
    assert "36.7 %" in call(str(tmp_path / "one")).stdout


def test_observers_that_see_more_have_a_line_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = of_a_run(tmp_path / "one", 10.0)
    seen = result.privacy.model_copy(update={"epsilon_by_observer": {"one other hospital": 12.0}})
    result.model_copy(update={"privacy": seen}).save(tmp_path / "one" / "result.json")
    main([str(tmp_path / "one")])
    told = "1  towards one other hospital: epsilon 12.000, at most 50 of 100 found and 85 times in 100 guessed"
    assert told in capsys.readouterr().out.splitlines()
