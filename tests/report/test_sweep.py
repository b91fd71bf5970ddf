"""A page of whatever runs lie in a folder: its axes, its order, and what is lacking."""

import json
from pathlib import Path

import pytest

from medx.report.__main__ import main
from medx.report.sweep import axes, read_sweep, told
from medx.results import ExperimentResult
from medx.schema import ConfigError
from tests.report.examples import make_result, refusal


def leave(folder: Path, result: ExperimentResult | None, error: str | None = None) -> Path:
    """What a job leaves: its configuration and a result, or a failure."""
    folder.mkdir(parents=True)
    if error is not None:
        (folder / "failure.json").write_text(json.dumps({"overrides": ["a=1"], "error": error}))
    if result is not None:
        (folder / "config.json").write_text(json.dumps({"run": result.run, "config_hash": result.config_hash}))
        result.save(folder / "result.json")
    return folder


def sweep(folder: Path, *results: ExperimentResult, jobs: int | None = None) -> Path:
    for number, result in enumerate(results):
        leave(folder / str(number), result)
    content = {"id": "x", "jobs": [["a=1"]] * (len(results) if jobs is None else jobs)}
    (folder / "sweep.json").write_text(json.dumps(content))
    return folder


def several() -> list[ExperimentResult]:
    return [make_result("pneumoniamnist", e, s, 0.9) for e in (None, 10.0, 1.0) for s in (1, 0)]


def test_a_sweep_is_told_by_its_axes(tmp_path: Path) -> None:
    found = read_sweep(sweep(tmp_path / "s", *several()))
    assert found.gaps == []
    assert found.study.title == "privacy and privacy.epsilon on pneumoniamnist"
    assert found.study.question == "What do privacy (none, local_dp) and privacy.epsilon (1, 10) change?"
    order = [(run.result.privacy.target_epsilon, run.result.seed) for run in found.runs]
    assert order == [(None, 0), (None, 1), (1.0, 0), (1.0, 1), (10.0, 0), (10.0, 1)]
    assert [run.name for run in found.runs] == ["1", "0", "5", "4", "3", "2"]
    assert {run.roles for run in found.runs} == {("utility",)}


def test_one_run_and_seeds_alone(tmp_path: Path) -> None:
    one = read_sweep(leave(tmp_path / "run", make_result("retinamnist", 1.0, 0, 0.7)))
    assert (one.study.title, one.runs[0].name) == ("One run on retinamnist", "run")
    seeds = read_sweep(sweep(tmp_path / "s", *[make_result("retinamnist", 1.0, seed, 0.7) for seed in (0, 1)]))
    assert (seeds.study.title, seeds.study.question) == (
        "2 seeds of one setting on retinamnist", "What does another seed change?",
    )  # fmt: skip
    (tmp_path / "copied" / "x").mkdir(parents=True)
    make_result("retinamnist", 1.0, 0, 0.7).save(tmp_path / "copied" / "x" / "result.json")
    assert [run.name for run in read_sweep(tmp_path / "copied").runs] == ["x"]


def test_what_is_lacking_is_listed(tmp_path: Path) -> None:
    runs = several()
    folder = sweep(tmp_path / "s", *runs[:3], jobs=8)
    leave(folder / "3", None, error="privacy.epsilon=0: accepted: above 0")
    leave(folder / "4", runs[3].model_copy(update={"status": "aborted", "error": "too few answered"}))
    leave(folder / "5", runs[0])
    (folder / "6").mkdir()
    (folder / "6" / "config.json").write_text("{}")
    found = read_sweep(folder)
    assert [run.name for run in found.runs] == ["1", "0", "2"]
    assert found.gaps == [
        "3: privacy.epsilon=0: accepted: above 0",
        "4: aborted: too few answered",
        "5: of the same configuration and seed as 0, and left out",
        "6: ended without a result",
        "1 of 8 jobs left nothing",
    ]


def test_a_folder_of_sweeps_of_other_data_and_models(tmp_path: Path) -> None:
    sweep(tmp_path / "day" / "one", *[make_result("pneumoniamnist", 1.0, 0, 0.9, alpha=a) for a in (None, 0.3)])
    sweep(tmp_path / "day" / "two", make_result("retinamnist", None, 0, 0.7, model="cnn"))
    found = read_sweep(tmp_path / "day")
    assert "pneumoniamnist and retinamnist" in found.study.title
    assert {run.name for run in found.runs} == {"one/0", "one/1", "two/0"}
    assert found.runs[0].roles == ("utility", "skew")
    assert main([str(tmp_path / "day")]) == 0
    text = (tmp_path / "day" / "report" / "report.md").read_text()
    assert "### Privacy and utility: pneumoniamnist" in text
    assert "### Privacy and utility: retinamnist" in text
    assert "recall: 2" in text, "of retina's three classes"
    assert "A job is the run's folder in" in text
    assert f"medx report {tmp_path / 'day'}" in text
    assert main([str(tmp_path / "day")]) == 0, "the page that is there is no run"


def test_data_of_one_name_and_other_classes_have_tables_of_their_own(tmp_path: Path) -> None:
    runs = []
    for name, path in (("pneumoniamnist", "/data/x/a"), ("retinamnist", "/data/b")):
        result = make_result(name, 1.0, 0, 0.8)
        own = {"_target_": "medx.dataset.folder.Folder", "name": "own", "path": path}
        runs.append(result.model_copy(update={"config": result.config | {"dataset": own}}))
    found = read_sweep(sweep(tmp_path / "s", *runs))
    assert [run.result.config["dataset"]["name"] for run in found.runs] == ["own (path=x/a)", "own (path=b)"]
    assert main([str(tmp_path / "s")]) == 0
    assert "recall: 2" in (tmp_path / "s" / "report" / "report.md").read_text()


def test_what_follows_from_an_axis_is_none_of_its_own() -> None:
    base = make_result("pneumoniamnist", 1.0, 0, 0.9).config
    chosen = [(1.0, 0.1), (10.0, 0.5)]
    configs = [
        base | {"privacy": base["privacy"] | {"epsilon": e}, "trainer": base["trainer"] | {"learning_rate": rate}}
        for e, rate in chosen
    ]
    assert axes(configs) == [("privacy.epsilon", [1.0, 10.0])]
    both = [*configs, configs[0] | {"trainer": configs[1]["trainer"]}]
    assert [name for name, _ in axes(both)] == ["privacy.epsilon", "trainer.learning_rate"]
    assert axes([base, base | {"seed": 5, "cache": "/elsewhere"}]) == []
    assert told("a.b", [1.0, None, "x"]) == "a.b (1, null, x)"
    assert told("a", list(range(9))) == "a (0, 1, 2, 3, 4, ..., 8)"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["empty"], "no finished run lies there"),
        (["failed"], "0: it was cold"),
        (["file"], "is no folder"),
        (["broken"], "not a result of this version"),
        (["good", "--seeds", "1"], "--seeds: goes with a study"),
        (["good", "--publish"], "--publish: goes with a study"),
        (["good", "good"], "good"),
        (["good", "--out", "file"], "file"),
    ],
)
def test_a_mistake_is_one_line(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("file").write_text("")
    leave(Path("failed") / "0", None, error="it was cold")
    Path("broken").mkdir()
    Path("broken/result.json").write_text("{}")
    leave(Path("good"), make_result("pneumoniamnist", 1.0, 0, 0.9))
    assert said in refusal(words, capsys)


def test_a_folder_without_runs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"study\.yaml and results\.csv"):
        read_sweep(tmp_path)
