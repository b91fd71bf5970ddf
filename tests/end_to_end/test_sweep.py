"""A sweep: a parent's identity, jobs that fail beside jobs that finish, one table, one exit code."""

import json
from pathlib import Path

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from omegaconf import DictConfig

from medx.results import ExperimentResult
from tests.program import call


def test_one_bad_job_does_not_stop_the_others(tmp_path: Path) -> None:
    ran = call(tmp_path, "seed=0,-1,1", "-m")
    assert ran.code == 1
    for job in ("0", "2"):
        assert ExperimentResult.load(tmp_path / job / "result.json").status == "finished"
    assert not (tmp_path / "1" / "result.json").exists()
    table = ran.out[ran.out.rindex("job  dataset") :]
    assert "Traceback" not in ran.err
    assert [line.split()[0] for line in table.splitlines()[1:3]] == ["0", "2"]
    (failed,) = [line for line in table.splitlines() if "FAILED" in line]
    assert "job 1" in failed
    assert "seed=-1: input should be greater than or equal to 0" in failed
    assert json.loads((tmp_path / "sweep.json").read_text())["id"]


def test_a_sweep_without_a_fault_ends_with_zero_also_in_a_folder_that_had_one(tmp_path: Path) -> None:
    assert call(tmp_path, "seed=-1,1", "-m").code == 1
    again = call(tmp_path, "seed=0,1", "-m", "privacy.epsilon=3")  # -m may stand anywhere
    assert again.code == 0
    results = [ExperimentResult.load(tmp_path / job / "result.json") for job in ("0", "1")]
    assert [(result.seed, result.privacy.target_epsilon) for result in results] == [(0, 3), (1, 3)]
    assert "FAILED" not in again.out
    assert again.out.count("job  dataset") == 1


def test_unknown_option_of_a_later_job_is_refused_before_the_first(tmp_path: Path) -> None:
    ran = call(tmp_path, "partition=iid,dirichlett", "-m")
    assert ran.code == 2
    assert ran.err == "medx: partition=dirichlett is unknown; did you mean dirichlet\n"
    assert not list(tmp_path.iterdir())
    ran = call(tmp_path, "experiment=demo,dmeo", "-m")
    assert ran.code == 2
    assert ran.err.startswith("medx: experiment=dmeo is unknown")
    assert not list(tmp_path.iterdir())
    ran = call(tmp_path, "privacy=local_dp,none", "privacy.epsilon=1,3", "-m")
    assert ran.code == 2
    assert ran.err == "medx: privacy.epsilon has no meaning with privacy=none; accepted there: no key\n"


def test_hydra_composes_each_job_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    composed: list[list[str]] = []
    compose = ConfigLoaderImpl.load_sweep_config

    def noted(self: ConfigLoaderImpl, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        composed.append([part for part in sweep_overrides if part.startswith("seed=")])
        return compose(self, master_config, sweep_overrides)

    monkeypatch.setattr(ConfigLoaderImpl, "load_sweep_config", noted)
    assert call(tmp_path, "seed=0,1,2", "-m").code == 0
    assert composed == [["seed=0"], ["seed=1"], ["seed=2"]]


def test_seeds_of_a_sweep_do_not_leak_into_each_other(tmp_path: Path) -> None:
    ran = call(tmp_path / "sweep", "seed=3,0", "-m")
    assert ran.code == 0, ran.err
    alone = call(tmp_path / "alone")
    assert ExperimentResult.load(tmp_path / "sweep" / "1" / "result.json").test == alone.result.test
