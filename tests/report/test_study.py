"""Jobs of a study: known by hash and seed, run once, gone on with, and told about where they cannot be."""

import json
from pathlib import Path

import pytest

from medx.report.__main__ import main, unattacked
from medx.report.runner import collect, prepare_folder, run_jobs
from medx.report.study import Grid, Study, Value, combinations, load_study, parse_seeds, plan_jobs
from medx.results import ExperimentResult
from medx.schema import ConfigError
from tests.report.examples import attacked as attacked_result
from tests.report.examples import make_result

TINY: dict[str, Value | list[Value]] = {
    "dataset": "phantom",
    "dataset.num_train": 80,
    "dataset.num_validation": 30,
    "dataset.num_test": 40,
    "model": "cnn",
    "model.widths": "[4]",
    "trainer.expected_batch_size": 8,
    "trainer.local_steps": 1,
    "federation.num_clients": 2,
    "federation.num_rounds": 1,
    "privacy": "none",
}


def study_of(*grids: Grid, seeds: tuple[int, ...] = (0, 1)) -> Study:
    return Study(name="s", title="t", question="q", seeds=list(seeds), grids=list(grids))


def test_the_reference_study_asks_what_the_report_answers() -> None:
    study = load_study("reference_report")
    assert len(study.seeds) == 5
    assert not set(study.seeds) & {100, 101}, "the search's seeds"
    jobs, _ = plan_jobs(study, study.seeds[:1])
    assert len({job.folder for job in jobs}) == len(jobs)
    utility = [job for job in jobs if "utility" in job.roles and "scatternet" in job.name]
    for dataset in ("pneumoniamnist", "retinamnist"):
        for mode in ("local_dp", "distributed_dp"):
            private = [job for job in utility if dataset in job.name and job.overrides and f" {mode} " in job.name]
            assert {job.config["privacy"]["epsilon"] for job in private} == {0.5, 1, 2, 5, 10}, (dataset, mode)
        mixes = {job.config["partition"].get("alpha") for job in jobs if dataset in job.name and "skew" in job.roles}
        assert mixes == {0.1, 0.5, 1, None}
    assert all(job.config["study"] == "reference_report" for job in jobs)


def test_hashes_know_settings_and_not_seeds() -> None:
    grid = Grid(role="utility", overrides={**TINY, "privacy": "local_dp", "privacy.epsilon": [1, 5]})
    again = Grid(role="skew", overrides={**TINY, "privacy": "local_dp", "privacy.epsilon": 5})
    jobs, left_out = plan_jobs(study_of(grid, again))
    assert left_out == []
    assert [job.seed for job in jobs] == [0, 1, 0, 1], "the same job wanted twice runs once"
    assert len({job.config_hash for job in jobs}) == 2
    assert [job.roles for job in jobs] == [("utility",)] * 2 + [("utility", "skew")] * 2
    only, _ = plan_jobs(study_of(grid), seeds=[7])
    assert [job.folder for job in only] == [f"{jobs[0].config_hash}-7", f"{jobs[2].config_hash}-7"]


def test_a_job_is_attacked_if_any_grid_wants_it_and_is_the_same_job() -> None:
    plain, attacked = (Grid(role="utility", overrides={**TINY, **more}) for more in ({}, {"attack": "standard"}))
    for grids in ((plain, attacked), (attacked, plain)):
        jobs, _ = plan_jobs(study_of(*grids), seeds=[0])
        assert [job.attacked for job in jobs] == [True]
        assert "attack=standard" in jobs[0].overrides
    assert [job.folder for job in plan_jobs(study_of(plain), seeds=[0])[0]] == [jobs[0].folder]
    result = make_result("pneumoniamnist", 10.0, 0, 0.9)
    (line,) = unattacked(jobs, {jobs[0].folder: result}, Path("outputs"))
    assert f"outputs/{jobs[0].folder} is deleted" in line
    assert unattacked(jobs, {jobs[0].folder: attacked_result(result)}, Path("outputs")) == []
    assert unattacked(jobs, {}, Path("outputs")) == [], "it is told to be missing already"


def test_extra_overrides_reach_their_data_set_alone() -> None:
    grid = Grid(role="utility", overrides={"dataset": ["pneumoniamnist", "retinamnist"]})
    jobs, _ = plan_jobs(study_of(grid), [0], ["pneumoniamnist:dataset.md5=" + "0" * 32, "trainer.momentum=0.5"])
    assert [job.config["dataset"]["md5"] for job in jobs] == ["0" * 32, None]
    assert [job.config["trainer"]["momentum"] for job in jobs] == [0.5, 0.5]


def test_an_optional_grid_may_be_missing_and_another_may_not() -> None:
    unknown: dict[str, Value | list[Value]] = {"privacy": "telepathy"}
    there = Grid(role="utility", overrides=TINY)
    jobs, left_out = plan_jobs(study_of(there, Grid(role="utility", optional=True, overrides=unknown)))
    assert len(jobs) == 2
    assert len(left_out) == 1
    assert "telepathy" in left_out[0]
    with pytest.raises(ConfigError, match="telepathy"):
        plan_jobs(study_of(Grid(role="utility", overrides=unknown)))
    with pytest.raises(ConfigError, match=r"privacy\.epsilonn"):
        plan_jobs(study_of(Grid(role="utility", overrides={"privacy.epsilonn": 1})))


def test_words_of_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert parse_seeds("0,3-5,4") == [0, 3, 4, 5]
    with pytest.raises(ConfigError, match="seeds=x"):
        parse_seeds("x")
    assert list(combinations({"a": [1, 2], "b": None})) == [["a=1", "b=null"], ["a=2", "b=null"]]
    assert main(["--study", "nosuch"]) == 2
    assert "reference_report" in capsys.readouterr().err


def test_runs_what_is_missing_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    good = Grid(role="utility", overrides=TINY)
    bad = Grid(role="skew", seeds=[0], overrides={**TINY, "federation.num_clients": 9999})
    jobs, _ = plan_jobs(study_of(good, bad))
    store = tmp_path / "outputs" / "s"
    errors = run_jobs(jobs, store, 1)
    told = [line for line in capsys.readouterr().out.splitlines() if " of 3 done" in line]
    # In whatever order: one that is computed lets the next begin while its record is still on its way.
    assert sorted("FAILED" in line for line in told) == [False, False, True], "one that fails does not stop the others"
    assert [f"({count} of 3 done" in line for count, line in enumerate(told, 1)] == [True] * 3
    assert list(errors) == [jobs[2].folder]
    assert "the training split has" in errors[jobs[2].folder]
    done = collect(jobs, store)
    assert list(done) == [jobs[0].folder, jobs[1].folder]
    run_ids = {folder: result.tracking["run_id"] for folder, result in done.items()}

    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    tags = client.get_run(run_ids[jobs[0].folder]).data.tags
    assert (tags["study"], tags["privacy"], tags["dataset"], tags["seed"]) == ("s", "none", "phantom", "0")
    client.delete_run(run_ids[jobs[0].folder])
    left = collect(jobs[:2], store)
    assert list(left) == [jobs[1].folder], "deleted in MLflow: to be made again, and only that one"
    saved = {key: value for key, value in jobs[0].config.items() if key != "resume"}
    broken = store / jobs[0].folder / "checkpoints" / "round_00001"
    broken.mkdir(parents=True)
    (broken.parent.parent / "config.json").write_text(json.dumps(saved))
    errors = run_jobs([job for job in jobs[:2] if job.folder not in left], store, 1)
    assert errors == {}, "a checkpoint that cannot be read is no reason to fail"
    again = collect(jobs[:2], store)
    assert again[jobs[1].folder].tracking["run_id"] == run_ids[jobs[1].folder]
    assert again[jobs[0].folder].tracking["run_id"] != run_ids[jobs[0].folder]
    assert again[jobs[0].folder].test == done[jobs[0].folder].test, "the same seed gives the same result"


def test_a_foreign_or_unfinished_result_does_not_count(tmp_path: Path) -> None:
    jobs, _ = plan_jobs(study_of(Grid(role="utility", overrides=TINY), seeds=(0,)))
    folder = tmp_path / jobs[0].folder
    folder.mkdir()
    result = make_result("pneumoniamnist", None, 0, 0.9).model_copy(update={"tracking": {}})
    for changes, known in (
        ({"config_hash": jobs[0].config_hash}, True),
        ({"config_hash": "0" * 16}, False),
        ({"config_hash": jobs[0].config_hash, "seed": 1}, False),
        ({"config_hash": jobs[0].config_hash, "status": "aborted"}, False),
    ):
        ExperimentResult.model_validate(result.model_dump() | changes).save(folder / "result.json")
        assert (collect(jobs, tmp_path) != {}) is known, changes


def test_an_interrupted_job_goes_on_and_a_broken_one_starts_anew(tmp_path: Path) -> None:
    folder = tmp_path / "x-0"
    assert not prepare_folder(folder)
    (folder / "config.json").write_text("{}")
    (folder / "ledger").mkdir()
    assert not prepare_folder(folder), "nothing was trained: start anew"
    assert not (folder / "ledger").exists()
    (folder / "checkpoints" / "round_00001").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({}))
    assert prepare_folder(folder)
    assert (folder / "checkpoints" / "round_00001").exists()
    result = make_result("pneumoniamnist", None, 0, 0.9)
    result.model_copy(update={"status": "aborted"}).save(folder / "result.json")
    assert not prepare_folder(folder), "an aborted run would abort again from its checkpoint"
