"""A sweep: a parent's identity, jobs that fail beside jobs that finish, one table, one exit code."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from joblib.externals.loky import get_reusable_executor
from omegaconf import DictConfig

from medx.federation.hospital import Hospital
from medx.launcher.jobs import meaningful
from medx.launcher.outcomes import record_failure, show
from medx.results import ExperimentResult
from medx.run import dismiss_workers
from tests.program import TINY, call, call_plainly


def test_one_bad_job_does_not_stop_the_others(tmp_path: Path) -> None:
    more = ("hydra.output_subdir=.hydra", "hydra.sweep.subdir=a/${hydra.job.num}")
    ran = call(tmp_path, "seed=0,-1,1", "federation.num_rounds=1", *more, "-m")
    assert ran.code == 1
    first, bad, last = [str(Path("a", number)) for number in "012"]
    for job in (first, last):
        assert ExperimentResult.load(tmp_path / job / "result.json").status == "finished"
    assert not (tmp_path / bad / "result.json").exists()
    table = ran.out[ran.out.rindex("\njob  ") + 1 :]
    assert "Traceback" not in ran.err
    assert [line.split()[0] for line in table.splitlines()[1:3]] == [first, last]
    (failed,) = [line for line in table.splitlines() if "FAILED" in line]
    assert failed.startswith(f"!! job {bad}: FAILED: seed=-1: seed=-1: input should be greater than or equal to 0")
    assert json.loads((tmp_path / "sweep.json").read_text())["id"]


def test_jobs_that_left_nothing_are_a_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record_failure(tmp_path / "0", ["seed=0"], ValueError("no"))
    assert not show(tmp_path, [["seed=0"], ["seed=1"], ["seed=2"]], stopped=True)
    assert "left nothing" not in capsys.readouterr().out
    assert not show(tmp_path, [["seed=0"], ["seed=1"], ["seed=2"]])
    assert f"FAILED: 2 of 3 jobs left nothing in {tmp_path}" in capsys.readouterr().out
    assert not show(tmp_path / "empty", [["seed=0"]])
    assert "1 of 1 jobs left nothing" in capsys.readouterr().out


def test_a_sweep_without_its_callback_is_refused(tmp_path: Path) -> None:
    for more in ((), ("seed=0,1", "-m")):
        ran = call(tmp_path, "~hydra.callbacks.sweep", *more)
        assert (ran.code, ran.err) == (
            2,
            "medx: hydra.callbacks: MedX's own, sweep, is missing; accepted: others beside it\n",
        )


def test_a_key_is_left_out_where_the_option_has_none(tmp_path: Path) -> None:
    ran = call(tmp_path, "privacy=local_dp,none", "privacy.clip_norm=0.1,0.2", "federation.num_rounds=1", "-m")
    assert ran.code == 0, ran.err
    assert ran.out.startswith("privacy.clip_norm is left out where privacy=none, which has no such key\n")
    results = [ExperimentResult.load(tmp_path / job / "result.json") for job in "012"]
    found = [(result.privacy.mechanism, result.config["privacy"].get("clip_norm")) for result in results]
    assert found == [("local_dp", 0.1), ("local_dp", 0.2), ("none", None)]
    assert not (tmp_path / "3").exists()


def test_meaningful_jobs() -> None:
    def jobs(*choices: str) -> list[str]:
        every = itertools.product(*(["=".join((key, value)) for value in values.split(",")]
                                    for key, values in (choice.split("=") for choice in choices)))  # fmt: skip
        return [" ".join(job) for job in meaningful(every)]

    assert jobs("partition=iid,dirichlet,quantity", "partition.alpha=1,2", "seed=0") == [
        *("partition=iid seed=0", "partition=dirichlet partition.alpha=1 seed=0"),
        *("partition=dirichlet partition.alpha=2 seed=0", "partition=quantity partition.alpha=1 seed=0"),
        "partition=quantity partition.alpha=2 seed=0",
    ]
    for kept in (("partition=iid", "partition.alpha=1"), ("partition=iid,dirichlet", "partition.alhpa=1")):
        assert all(kept[1] in job for job in jobs(*kept)), "a mistake stays, to be refused"


def test_joblibs_workers_end_with_the_program() -> None:
    executor = get_reusable_executor(max_workers=2)
    executor.submit(abs, -1).result()
    workers = list(executor._processes.values())
    assert workers
    dismiss_workers()
    assert not any(worker.is_alive() for worker in workers)


def test_a_folder_belongs_to_one_sweep(tmp_path: Path) -> None:
    ran = call(tmp_path, "seed=0,1", "-m", "privacy.epsilon=3")  # -m may stand anywhere
    assert ran.code == 0
    results = [ExperimentResult.load(tmp_path / job / "result.json") for job in ("0", "1")]
    assert [(result.seed, result.privacy.target_epsilon) for result in results] == [(0, 3), (1, 3)]
    assert ran.out.count("\njob  ") == 1
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    again = call(tmp_path, "seed=2", "-m")
    assert again.code == 2
    (line,) = again.err.splitlines()
    assert line.startswith(f"medx: hydra.sweep.dir={tmp_path}: another sweep has used this folder; accepted: another")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_unknown_option_of_a_later_job_is_refused_before_the_first(tmp_path: Path) -> None:
    ran = call(tmp_path, "partition=iid,dirichlett", "-m")
    assert ran.code == 2
    assert ran.err == "medx: partition=dirichlett is unknown; did you mean dirichlet\n"
    assert not list(tmp_path.iterdir())
    ran = call(tmp_path, "experiment=demo,dmeo", "-m")
    assert ran.code == 2
    assert ran.err.startswith("medx: experiment=dmeo is unknown")
    assert not list(tmp_path.iterdir())
    ran = call(tmp_path, "privacy=local_dp,none", "privacy.epsilno=1,3", "-m")
    assert ran.code == 2
    assert ran.err.startswith("medx: privacy.epsilno is unknown; did you mean privacy.epsilon, ")
    ran = call(tmp_path, "select=lss", "seed=0,1", "-m")
    assert ran.code == 2
    assert ran.err.startswith("medx: select=lss: no such metric; accepted: loss, accuracy,")
    assert not list(tmp_path.iterdir())


def test_hydra_composes_each_job_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    composed: list[list[str]] = []
    compose = ConfigLoaderImpl.load_sweep_config

    def noted(self: ConfigLoaderImpl, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        composed.append([part for part in sweep_overrides if part.startswith("seed=")])
        return compose(self, master_config, sweep_overrides)

    monkeypatch.setattr(ConfigLoaderImpl, "load_sweep_config", noted)
    assert call(tmp_path, "seed=0,1", "federation.num_rounds=1", "-m").code == 0
    assert composed == [["seed=0"], ["seed=1"]]


def test_seeds_of_a_sweep_do_not_leak_into_each_other(tmp_path: Path) -> None:
    ran = call(tmp_path / "sweep", "seed=3,0", "-m")
    assert ran.code == 0, ran.err
    alone = call(tmp_path / "alone")
    assert ExperimentResult.load(tmp_path / "sweep" / "1" / "result.json").test == alone.result.test


def stop_in(monkeypatch: pytest.MonkeyPatch, seed: int, fault: type[BaseException]) -> None:
    """Raise where hospital 1 begins round 2 of the run with this seed."""
    train = Hospital.train

    def faulty(hospital: Hospital, state: Any, number: int) -> Any:
        if (hospital.job.setup.seed, hospital.client, number) == (seed, 1, 2):
            raise fault
        return train(hospital, state, number)

    monkeypatch.setattr(Hospital, "train", faulty)


def test_a_sweep_that_was_stopped_goes_on_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    sweep = tmp_path / "sweep"
    tracked = tuple(part for part in TINY if not part.startswith("tracking"))
    with monkeypatch.context() as patch:
        stop_in(patch, 1, KeyboardInterrupt)
        given = ("privacy.ledger=ledger", "tracking.final_wait=60")
        assert call(sweep, "seed=0,1,2", *given, "-m", base=tracked).code == 130
    assert [(sweep / job / "result.json").exists() for job in "012"] == [True, True, False]
    first = (sweep / "0" / "result.json").read_bytes()
    monkeypatch.chdir(tmp_path / "elsewhere")
    refused = call_plainly(sweep, "resume=../sweep", "privacy.epsilon=3", "-m")
    assert refused.code == 2
    assert "privacy.epsilon=3: a sweep goes on with its own settings" in refused.err
    ran = call_plainly(sweep, "resume=../sweep", "jobs=1", "-m")
    assert ran.code == 0, ran.err
    assert (sweep / "0" / "result.json").read_bytes() == first, "what was finished is kept"
    results = [ExperimentResult.load(sweep / job / "result.json") for job in "012"]
    assert [(result.seed, result.status, len(result.rounds)) for result in results] == [
        (seed, "finished", 2) for seed in range(3)
    ]
    table = ran.out[ran.out.rindex("\njob  ") + 1 :]
    assert [line.split()[0] for line in table.splitlines()[1:4]] == ["0", "1", "2"]
    assert list((tmp_path / "elsewhere").iterdir()) == []
    assert len(list((tmp_path / "ledger").glob("*.sqlite"))) == 3
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("medx-synthetic").experiment_id])
    assert sorted(run.data.tags.get("seed", "parent") for run in runs) == ["0", "1", "2", "parent"]
    assert {run.info.status for run in runs} == {"FINISHED"}


def test_resume_of_many_names_one_sweep(tmp_path: Path) -> None:
    assert "no sweep.json there" in call_plainly(tmp_path, f"resume={tmp_path}", "-m").err
    assert call(tmp_path / "sweep", "seed=0", "-m").code == 0
    assert "this is the folder of a sweep; add -m" in call_plainly(tmp_path, f"resume={tmp_path / 'sweep'}").err
