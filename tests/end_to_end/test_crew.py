"""Jobs of a sweep side by side: what a person and the files see is what one after another would have left."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

import medx.federation.client
from medx.crew import Crew, jobs_at_once
from medx.federation.payload import State
from medx.results import ExperimentResult
from medx.schema import ConfigError
from medx.sweep_checks import refuse_jobs
from tests.program import TINY, Ran, call, call_plainly

ROOT = Path(__file__).resolve().parents[2]


def program(folder: Path, *overrides: str) -> "subprocess.Popen[str]":
    """``python -m medx.run`` as a process of its own, its working directory ``folder``."""
    command = [sys.executable, "-m", "medx.run", *overrides, "hydra.sweep.dir=sweep", "-m"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    folder.mkdir(exist_ok=True)
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=pipe, stderr=pipe, text=True)


def children_of(pid: int) -> dict[int, str]:
    """Process ids of its children and their command lines."""
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return {int(child): Path(f"/proc/{child}/cmdline").read_text() for child in found}


def wait_for_rounds(folder: Path, jobs: list[str], seconds: float = 60) -> None:
    """Until each of these jobs has finished a round: then the second has been kept, and the first surely reached."""
    end = time.monotonic() + seconds
    while not all(max([0, *map(_round, (folder / job / "checkpoints").glob("round_*"))]) > 1 for job in jobs):
        assert time.monotonic() < end
        time.sleep(0.05)


def _round(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("round_"))


def result_of(folder: Path, job: str) -> ExperimentResult:
    """A job's result."""
    return ExperimentResult.load(folder / job / "result.json")


def test_jobs_side_by_side_end_as_one_after_another_would(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    ran = call(tmp_path / "beside", "seed=3,-1,0", "jobs=2", "-m")
    after = call(tmp_path / "after", "seed=3,-1,0", "jobs=1", "-m")
    assert (ran.code, after.code) == (1, 1)
    for job in ("0", "2"):
        one, other = result_of(tmp_path / "beside", job), result_of(tmp_path / "after", job)
        assert (one.test, one.validation, one.privacy) == (other.test, other.validation, other.privacy)
        assert (one.config, one.config_hash) == (other.config, other.config_hash)
        assert "round 2/2" in (tmp_path / "beside" / job / "screen.txt").read_text()
    (told, table), (_, same) = (each.out.rsplit("\njob  ", 1) for each in (ran, after))
    figures = [[line.split()[:11] for line in text.splitlines()[:3]] for text in (table, same)]  # before the seconds
    assert figures[0] == figures[1]
    assert [line[:3] for line in figures[0][1:]] == [["0", "phantom", "cnn"], ["2", "phantom", "cnn"]]
    assert "!! job 1: FAILED: " in table
    assert sorted(line.split()[1:3] for line in told.splitlines() if " of 3 done" in line) == [
        ["0", "seed=3"],
        ["1", "seed=-1"],
        ["2", "seed=0"],
    ]
    assert "seed=-1: input should be greater than or equal to 0" in told
    assert [f"({count} of 3 done" in told for count in (1, 2, 3)] == [True] * 3
    assert ran.out.splitlines()[-2:] == [
        f"Output: {tmp_path / 'beside'}",
        f"Go on with it: python -m medx.run resume={tmp_path / 'beside'} -m",
    ]
    assert ran.err == ""


def fault_of_seed(monkeypatch: pytest.MonkeyPatch, seed: int, fault: Any) -> None:
    """Call ``fault`` when client 1 of the run with this seed begins round 2."""
    train = medx.federation.client.train_locally

    def faulty(job: Any, client: int, arrays: Any, server_round: int, mu: float) -> Any:
        if (job.setup.seed, client, server_round) == (seed, 1, 2):
            fault()
        return train(job, client, arrays, server_round, mu)

    monkeypatch.setattr(medx.federation.client, "train_locally", faulty)


def test_a_job_whose_process_is_killed_fails_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fault_of_seed(monkeypatch, 1, lambda: os.kill(os.getpid(), signal.SIGKILL))
    ran = call(tmp_path, "seed=0,1,2", "jobs=2", "-m")
    assert ran.code == 1
    assert "!! job 1: FAILED: " in ran.out
    assert "its process ended by SIGKILL" in ran.out
    assert [result_of(tmp_path, job).status for job in ("0", "2")] == ["finished", "finished"]
    assert not (tmp_path / "1" / "result.json").exists()


def test_a_job_that_ends_without_a_word_fails_and_the_sweep_can_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("medx.crew.die_with", lambda parent: os._exit(3))
        ran = call(tmp_path, "seed=0,1", "jobs=2", "-m")
    assert ran.code == 1
    assert ran.out.count("its process ended by code 3") == 4  # each when it ends, and in the table
    assert "finished" not in ran.out
    again = call_plainly(tmp_path, f"resume={tmp_path}", "jobs=2", "-m")
    assert again.code == 0, again.err
    assert [result_of(tmp_path, job).status for job in ("0", "1")] == ["finished", "finished"]


def test_jobs_with_one_ledger_run_one_after_another(tmp_path: Path) -> None:
    ledger = f"privacy.ledger={tmp_path / 'ledger'}"
    ran = call(tmp_path / "twins", ledger, "runtime.workers=1,2", "jobs=null", "-m")
    assert ran.code == 0, ran.out
    assert not (tmp_path / "twins" / "0" / "screen.txt").exists()
    both = call(tmp_path / "asked", ledger, "seed=0,1", "jobs=2", "-m")
    assert both.refusal.startswith("medx: jobs=2 with privacy.ledger: its jobs run one after another")


def test_what_the_parent_meets_itself_is_no_success(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object) -> str:
        raise ZeroDivisionError("a fault of the program")

    monkeypatch.setattr("medx.sweep.outcome", broken)
    with pytest.raises(ZeroDivisionError):
        call(tmp_path, "seed=0,1", "jobs=2", "-m")


def test_an_unforeseen_error_is_kept_in_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object) -> State:
        raise ZeroDivisionError("a fault of the program")

    monkeypatch.setattr("medx.federation.server.round_metrics", broken)
    ran = call(tmp_path, "seed=0,1", "jobs=2", "-m")
    assert ran.code == 1
    assert ran.out.count("!! job ") == 2
    assert all("ZeroDivisionError" in (tmp_path / job / "error.log").read_text() for job in ("0", "1"))


def test_a_job_that_the_user_stops_ends_the_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fault_of_seed(monkeypatch, 1, lambda: os.kill(os.getpid(), signal.SIGINT))
    ran = call(tmp_path, "seed=1,0,2", "jobs=2", "federation.num_rounds=40", "-m")
    assert ran.code == 130
    assert result_of(tmp_path, "0").status == "killed"
    assert result_of(tmp_path, "1").status == "killed"  # the parent told it
    assert {path.name for path in (tmp_path / "2").glob("*")} <= {".hydra"}
    assert [line[0] for line in ran.out.splitlines() if line.endswith("KILLED")] == ["0", "1"]
    assert "job 2" not in ran.out


def test_an_interrupt_reaches_every_job_once_and_in_order(tmp_path: Path) -> None:
    with program(tmp_path, *TINY, "federation.num_rounds=500", "seed=0,1", "jobs=2") as sweep:
        wait_for_rounds(tmp_path / "sweep", ["0", "1"])
        sweep.send_signal(signal.SIGINT)
        _, err = sweep.communicate(timeout=60)
    assert sweep.returncode == 130, err
    assert "Traceback" not in err
    for job in ("0", "1"):
        result = result_of(tmp_path / "sweep", job)
        assert result.status == "killed"
        assert 0 < len(result.rounds) < 500


def test_jobs_end_with_their_parent(tmp_path: Path) -> None:
    with program(tmp_path, *TINY, "federation.num_rounds=500", "seed=0,1", "jobs=2") as sweep:
        wait_for_rounds(tmp_path / "sweep", ["0", "1"])
        forks = children_of(sweep.pid)
        assert len(forks) == 2
        sweep.kill()
        sweep.communicate(timeout=60)
    end = time.monotonic() + 10
    while any(Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_text() for pid in forks):
        assert time.monotonic() < end
        time.sleep(0.05)


def test_jobs_share_one_copying_process_and_one_parent_run(tmp_path: Path) -> None:
    overrides = [part for part in TINY if part != "tracking=none"]
    with program(tmp_path, *overrides, "federation.num_rounds=20", "seed=0,1", "jobs=2") as sweep:
        wait_for_rounds(tmp_path / "sweep", ["0", "1"])
        jobs = [child for pid in children_of(sweep.pid) for child in children_of(pid).values()]
        assert sum("--follow" in line for line in jobs) == 1
        _, err = sweep.communicate(timeout=120)
    assert (sweep.returncode, err) == (0, "")
    ids = [result_of(tmp_path / "sweep", job).tracking["run_id"] for job in ("0", "1")]
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    runs = [client.get_run(run_id) for run_id in ids]
    assert [run.info.status for run in runs] == ["FINISHED", "FINISHED"]
    assert len({run.data.tags["mlflow.parentRunId"] for run in runs}) == 1
    assert all(len(client.get_metric_history(run_id, "test/auc")) == 20 for run_id in ids)


def test_a_job_that_must_be_alone_has_none_beside_it(tmp_path: Path) -> None:
    crew = Crew(3, lambda folder, title, code: f"code {code}", 3)

    def work(folder: Path, measured: Any) -> None:
        began = time.monotonic()
        time.sleep(0.4)
        (folder / "times").write_text(f"{began} {time.monotonic()}")
        measured()
        time.sleep(0.2)

    names = ("first", "second", "alone", "third", "fourth")
    for name in names:
        (tmp_path / name).mkdir()
        crew.start(name, tmp_path / name, partial(work, tmp_path / name), alone=name == "alone")
    crew.finish()
    times = {name: [float(part) for part in (tmp_path / name / "times").read_text().split()] for name in names}
    overlap = {
        (a, b) for a in names for b in names if a < b and times[a][0] < times[b][1] and times[b][0] < times[a][1]
    }
    assert overlap == {("first", "second"), ("fourth", "third")}


@pytest.mark.parametrize(("cores", "levels"), [(2, [0, 1, 2]), (3, [0, 0, 0])])
def test_where_jobs_outnumber_cores_the_earlier_ones_go_first(
    cores: int, levels: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: cores)
    crew, before = Crew(3, lambda folder, title, code: f"code {code}", 3), os.nice(0)

    def work(folder: Path, measured: Any) -> None:
        (folder / "level").write_text(str(os.nice(0) - before))
        time.sleep(0.5)

    for name in "012":
        (tmp_path / name).mkdir()
        crew.start(name, tmp_path / name, partial(work, tmp_path / name))
    crew.finish()
    assert [int((tmp_path / name / "level").read_text()) for name in "012"] == levels
    assert os.nice(0) == before


def test_how_many_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    assert [jobs_at_once(None, count) for count in (0, 1, 3, 7, 8, 9)] == [1, 1, 3, 7, 4, 5]
    assert [jobs_at_once(asked, 9) for asked in (1, 2, 20)] == [1, 2, 9]
    for wrong in (0, -1, 1.5, True, "many"):
        with pytest.raises(ConfigError, match="accepted: null"):
            refuse_jobs(OmegaConf.create({"jobs": wrong}))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    assert (jobs_at_once(None, 99), jobs_at_once(20, 99)) == (8, 20)
    assert (jobs_at_once(None, 9, "runtime=ray"), jobs_at_once(1, 9, "runtime=ray")) == (1, 1)
    with pytest.raises(ConfigError, match=r"jobs=2 with runtime=ray: .* accepted: null or 1"):
        refuse_jobs(OmegaConf.create({"jobs": 2, "runtime": {"_target_": "medx.runtime.ray.Ray"}}))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert (jobs_at_once(None, 9), jobs_at_once(3, 9)) == (1, 3)
    monkeypatch.setattr(sys, "platform", "darwin")
    assert jobs_at_once(3, 9) == 1


def test_no_number_of_jobs_is_refused(tmp_path: Path) -> None:
    assert call(tmp_path / "one", "jobs=0").refusal.startswith("medx: jobs=0: accepted: null")
    ran: Ran = call(tmp_path / "sweep", "jobs=none", "seed=0,1", "-m")
    assert ran.refusal.startswith("medx: jobs=none: accepted: null")
