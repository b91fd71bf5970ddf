"""Two runs side by side."""

from pathlib import Path

import pytest

from medx.report.__main__ import main
from tests.report.examples import make_result


def test_prints_what_differs_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, epsilon, auc in (("a", 1.0, 0.90), ("b", None, 0.95)):
        (tmp_path / name).mkdir()
        make_result("pneumoniamnist", epsilon, 0, auc).save(tmp_path / name / "result.json")
    out = tmp_path / "drawn"
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "b" / "result.json"), "--out", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()

    def row(name: str) -> list[str]:
        cells = [[cell.strip() for cell in line.strip("│┃").replace("┃", "│").split("│")] for line in lines]
        return next(line for line in cells if line[0] == name)

    assert row("privacy.epsilon") == ["privacy.epsilon", "1.0", "–"]
    assert row("auc") == ["auc", "0.900 [0.880, 0.910]", "0.950 [0.930, 0.960]", "+0.050"]
    assert row("epsilon")[1:] == ["0.99", "–"]
    assert not any(line.split("│")[1].strip() == "seed" for line in lines if line.count("│") > 2), "equal keys stay out"
    assert (out / "compare.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (out / "compare.svg").read_text()


def test_refuses_what_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(tmp_path), str(tmp_path)]) == 2
    (tmp_path / "result.json").write_text("{}")
    assert main(["compare", str(tmp_path), str(tmp_path)]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 2, "one line each"
    assert "output folder" in errors[0]
