"""What a person gets wrong at ``python -m medx.report`` is one line and exit code 2, before anything runs."""

from pathlib import Path

import pytest

from medx.report.runner import finished
from medx.report.study import Job, Study, load_study, parse_seeds, plan_jobs
from medx.schema import ConfigError, DataError
from tests.report.examples import make_result, refusal

JOB = Job("name", ("utility",), (), "hash", 0, False, make_result("pneumoniamnist", None, 0, 0.9).config)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--nope"], "--nope"),
        (["--study"], "--study"),
        (["--study", ""], "phantom_report"),
        (["--study", "phantom_report,"], "phantom_report"),
        (["--workers", "x"], "--workers"),
        (["--workers", "0"], "workers=0"),
        (["--seeds", ""], "seeds="),
        (["nosuch"], "nosuch"),
        (["compare"], "RUN"),
        (["compare", "a"], "RUN"),
        (["compare", "a", "b", "c"], "c"),
        (["compare", "--nope", "a", "b"], "--nope"),
        (["compare", "nosuch", "nosuch"], "output folder"),
        (["--study", "phantom_report", "--set", "foo"], "foo"),
        (["--study", "phantom_report", "--render-only"], "no job has a result yet"),
        (["--study", "phantom_report", "--out", "file"], "file"),
    ],
)
def test_a_mistake_is_one_line(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if "--set" not in words:  # composing a study takes seconds
        monkeypatch.setattr("medx.report.__main__.plan_jobs", lambda *_: ([JOB], []))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("not a folder")
    assert said in refusal(words, capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["file"], "nothing ran, and nothing is left"


@pytest.mark.parametrize("text", ["x", "", "1,", "4-0", "-1", "1-2-3", "²", "0-999999999"])
def test_seeds_that_are_none(text: str) -> None:
    with pytest.raises(ConfigError, match="seeds="):
        parse_seeds(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "the whole file"),
        (b"title: [", "no YAML"),
        (b"\xff", "no YAML"),
        (b"{title: t, question: q, seeds: [0], grids: []}", "grids"),
        (b"{title: t, question: q, seeds: [], grids: [{role: skew, overrides: {}}]}", "seeds"),
        (b"{title: t, question: q, seeds: [0], grids: [{role: skew, overrides: {a: []}}]}", r"grids.0.overrides.a"),
    ],
)
def test_a_study_that_cannot_be(text: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "study.yaml").write_bytes(text)
    with pytest.raises(ConfigError, match=said) as told:
        load_study("mine", tmp_path)
    assert "\n" not in str(told.value)


def test_a_study_whose_parts_all_lack_is_refused_with_what_they_lack() -> None:
    grids = [{"role": "skew", "optional": True, "overrides": {"privacy": "telepathy"}}]
    study = Study.model_validate({"title": "t", "question": "q", "seeds": [0], "grids": grids})
    with pytest.raises(ConfigError, match="telepathy"):
        plan_jobs(study)


@pytest.mark.parametrize("text", [b"", b"{}", b"\xff\xfe"])
def test_a_result_that_cannot_be_read_is_named(text: bytes, tmp_path: Path) -> None:
    (tmp_path / JOB.folder).mkdir()
    (tmp_path / JOB.folder / "result.json").write_bytes(text)
    with pytest.raises(DataError, match=r"hash-0/result\.json") as told:
        finished(JOB, tmp_path)
    assert "\n" not in str(told.value)
