"""Jobs of a sweep side by side: what a person and the files see is what one after another would have left."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from medx.launcher.jobs import refuse_jobs
from medx.launcher.outcomes import why_unfinished
from medx.launcher.pool import Job, jobs_at_once, run_jobs
from medx.results import ExperimentResult
from medx.schema import ConfigError
from tests import jobs
from tests.program import TINY, Ran, call, call_plainly

ROOT = Path(__file__).resolve().parents[2]


LONG = (*TINY, "privacy=none", "federation.num_rounds=500")  # nothing to calibrate, and time enough to be stopped


@contextmanager
def program(folder: Path, *overrides: str) -> Iterator["subprocess.Popen[str]"]:
    """``python -m medx.run`` as a process of its own, its working directory ``folder``."""
    command = [sys.executable, "-m", "medx.run", *overrides, "hydra.sweep.dir=sweep", "-m"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    folder.mkdir(exist_ok=True)
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=folder, env=environment, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            yield process
        finally:
            process.kill()  # it has ended, unless the test has failed


def process_of(job: Path) -> int:
    """Process id of a running job: the one whose standard output is its screen."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "fd/1").readlink() == job / "screen.txt":
                return int(process.name)
        except OSError:  # it has ended, or is not ours
            continue
    raise LookupError(job)


def wait_for_end(pids: list[int], seconds: float = 20) -> None:
    """Until none of these processes is there, or is more than an entry for its parent to read."""
    end = time.monotonic() + seconds
    while any(Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_text() for pid in pids):
        assert time.monotonic() < end
        time.sleep(0.05)


def wait_for_rounds(folder: Path, jobs: list[str], seconds: float = 240) -> None:
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
    figures = [[line.split()[:12] for line in text.splitlines()[:3]] for text in (table, same)]  # before the seconds
    assert figures[0] == figures[1]
    assert [line[:3] for line in figures[0][1:]] == [["0", "seed=3", "phantom"], ["2", "seed=0", "phantom"]]
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


def test_a_job_whose_process_is_killed_fails_alone_and_can_be_gone_on_with(tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    with program(tmp_path, *TINY, "privacy=none", "federation.num_rounds=60", "seed=0,1,2", "jobs=2") as sweep:
        wait_for_rounds(folder, ["1"])
        os.kill(process_of(folder / "1"), signal.SIGKILL)
        out, _ = sweep.communicate(timeout=240)
    assert sweep.returncode == 1
    assert "!! job 1: FAILED: seed=1: its process ended by SIGKILL" in out
    assert out.count("its process ended by SIGKILL") == 2  # when it ends, and in the table
    assert [result_of(folder, job).status for job in ("0", "2")] == ["finished", "finished"]
    assert not (folder / "1" / "result.json").exists()
    again = call_plainly(folder, f"resume={folder}", "jobs=2", "-m")
    assert again.code == 0, again.err
    assert [line.split()[1] for line in again.out.splitlines() if " of 1 done" in line] == ["1"]
    assert [len(result_of(folder, job).rounds) for job in ("0", "1", "2")] == [60, 60, 60]


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

    monkeypatch.setattr("medx.launcher.pool.outcome", broken)
    with pytest.raises(ZeroDivisionError):
        call(tmp_path, "seed=0,1", "jobs=2", "-m")


def test_an_unforeseen_error_is_kept_in_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medx.federation.server.round_metrics", lambda *arguments: jobs.divide_by_zero())
    ran = call(tmp_path, "seed=0,1", "jobs=1", "-m")
    assert ran.code == 1
    assert ran.out.count("!! job ") == 2
    assert all("ZeroDivisionError" in (tmp_path / job / "error.log").read_text() for job in ("0", "1"))


def test_a_job_that_the_user_stops_ends_the_sweep(tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    with program(tmp_path, *LONG, "seed=1,0,2", "jobs=2") as sweep:
        wait_for_rounds(folder, ["0", "1"])
        os.kill(process_of(folder / "0"), signal.SIGINT)
        out, err = sweep.communicate(timeout=240)
    assert (sweep.returncode, err) == (130, "")
    assert result_of(folder, "0").status == "killed"
    assert result_of(folder, "1").status == "killed"  # the parent told it
    assert not (folder / "2").exists()
    assert [line[0] for line in out.splitlines() if line.endswith("KILLED")] == ["0", "1"]
    assert "job 2" not in out


def test_an_interrupt_reaches_every_job_once_and_in_order(tmp_path: Path) -> None:
    with program(tmp_path, *LONG, "seed=0,1", "jobs=2") as sweep:
        wait_for_rounds(tmp_path / "sweep", ["0", "1"])
        sweep.send_signal(signal.SIGINT)
        _, err = sweep.communicate(timeout=240)
    assert sweep.returncode == 130, err
    assert "Traceback" not in err
    for job in ("0", "1"):
        result = result_of(tmp_path / "sweep", job)
        assert result.status == "killed"
        assert 0 < len(result.rounds) < 500


def test_an_impatient_user_gets_an_end_too(tmp_path: Path) -> None:
    with program(tmp_path, *LONG, "seed=0,1", "jobs=2") as sweep:
        wait_for_rounds(tmp_path / "sweep", ["0", "1"])
        running = [process_of(tmp_path / "sweep" / job) for job in ("0", "1")]
        for _ in range(2):
            sweep.send_signal(signal.SIGINT)
            time.sleep(0.2)
        sweep.communicate(timeout=240)
    assert sweep.returncode == 130
    wait_for_end(running)


def test_jobs_end_with_their_parent(tmp_path: Path) -> None:
    with program(tmp_path, *LONG, "seed=0,1", "jobs=2") as sweep:
        wait_for_rounds(tmp_path / "sweep", ["0", "1"])
        running = [process_of(tmp_path / "sweep" / job) for job in ("0", "1")]
        sweep.kill()
        sweep.communicate(timeout=240)
    wait_for_end(running)


def test_jobs_share_one_copying_process_and_one_parent_run(tmp_path: Path) -> None:
    overrides = [part for part in TINY if part != "tracking=none"]
    with program(tmp_path, *overrides, "federation.num_rounds=40", "seed=0,1", "jobs=2") as sweep:
        wait_for_rounds(tmp_path / "sweep", ["0", "1"])
        command = f"sync\0{tmp_path / 'sweep'}\0--follow".encode()
        found = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
        assert sum(command in line for line in found) == 1
        _, err = sweep.communicate(timeout=240)
    assert (sweep.returncode, err) == (0, "")
    ids = [result_of(tmp_path / "sweep", job).tracking["run_id"] for job in ("0", "1")]
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    runs = [client.get_run(run_id) for run_id in ids]
    assert [run.info.status for run in runs] == ["FINISHED", "FINISHED"]
    assert len({run.data.tags["mlflow.parentRunId"] for run in runs}) == 1
    assert all(len(client.get_metric_history(run_id, "test/auc")) == 40 for run_id in ids)


def test_a_job_gives_up_its_place_when_it_is_measured_and_one_that_must_be_alone_has_none_beside_it(
    tmp_path: Path,
) -> None:
    names = ("first", "second", "alone", "third", "fourth")
    beside = {"first": "second", "second": "first", "third": "fourth", "fourth": "third"}
    after = {"first": "alone", "second": "alone", "alone": "third"}  # begin while those before wait for a store
    todo = []
    for name in names:
        folders = (tmp_path / each for each in (name, beside.get(name, name), after.get(name, name)))
        work = partial(jobs.measured_then_recorded, *folders)
        todo.append(Job(name, tmp_path / name, work, alone=name == "alone"))
    run_jobs(todo, len(todo), 2)
    assert [why_unfinished(job.folder) for job in todo] == [None] * 5
    times = {name: [float(part) for part in (tmp_path / name / "times").read_text().split()] for name in names}
    overlap = {
        (a, b) for a in names for b in names if a < b and times[a][0] < times[b][1] and times[b][0] < times[a][1]
    }
    assert overlap == {("first", "second"), ("fourth", "third")}


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_jobs_that_end_without_a_word_or_by_a_fault_are_told_of(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("medx.launcher.pool.get_all_start_methods", lambda: [method])
    monkeypatch.setenv("FROM_THE_PARENT", method)
    work = (partial(jobs.leave_without_a_word, 3), jobs.divide_by_zero, partial(jobs.threads, tmp_path / "2"))
    todo = [Job(f"seed={number}", tmp_path / str(number), each) for number, each in enumerate(work)]
    run_jobs(todo, len(todo), 2)
    told, err = capfd.readouterr()
    reasons = [why_unfinished(job.folder) for job in todo]
    assert reasons == ["its process ended by code 3", "its process ended by code 1", "ended without a result"]
    assert all(f"FAILED: {reason}" in told for reason in reasons[:2])
    assert "ZeroDivisionError: a fault of the program" in err
    share, whole, environment = (tmp_path / "2" / "threads").read_text().split()
    assert (int(share), environment) == (max(1, int(whole) // 2), method)


def test_how_many_at_once() -> None:
    assert [jobs_at_once(None, count, cores=4, gpus=0) for count in (0, 1, 3, 7, 8, 9)] == [1, 1, 3, 4, 4, 4]
    assert [jobs_at_once(asked, 9, cores=4, gpus=0) for asked in (1, 2, 20)] == [1, 2, 9]
    assert [jobs_at_once(asked, 99, cores=64, gpus=0) for asked in (None, 20)] == [8, 20]
    assert [jobs_at_once(asked, 9, cores=4, gpus=1) for asked in (None, 3)] == [1, 3]


def test_jobs_that_have_to_queue_are_not_run_at_once() -> None:
    for wrong in (0, -1, 1.5, True, "many"):
        with pytest.raises(ConfigError, match="accepted: null"):
            refuse_jobs(OmegaConf.create({"jobs": wrong}))
    with pytest.raises(ConfigError, match=r"jobs=2 with runtime=ray: .* accepted: null or 1"):
        refuse_jobs(OmegaConf.create({"jobs": 2, "runtime": {"_target_": "medx.runtime.ray.Ray"}}))


def test_no_number_of_jobs_is_refused(tmp_path: Path) -> None:
    assert call(tmp_path / "one", "jobs=0").refusal.startswith("medx: jobs=0: accepted: null")
    ran: Ran = call(tmp_path / "sweep", "jobs=none", "seed=0,1", "-m")
    assert ran.refusal.startswith("medx: jobs=none: accepted: null")
