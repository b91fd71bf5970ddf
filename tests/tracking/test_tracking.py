"""Run folders copied into a real embedded store, with stores that are down, crashes, resumes and shared sweeps."""

import ast
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from pydantic import ValidationError

from medx.results import STUDY_ONLY, Meaning
from medx.tracking import follow as following
from medx.tracking import sync as syncing
from medx.tracking import tracker
from medx.tracking.__main__ import main
from medx.tracking.content import WITHHELD, as_markdown, end_tags, final_metrics, flatten, round_metrics
from medx.tracking.follow import LINGER, Followed
from medx.tracking.record import RUN_FILE, SYNCED_FILE, change_backlog, read_run, read_synced
from medx.tracking.store import VIEW_TAG, Destination, Store, connect, embedded_uri, has_experiment
from medx.tracking.sync import sync
from medx.tracking.tracker import MlflowTracking
from tests.tracking.examples import ToldRun, make_attack, make_context, make_record, make_result, with_noise

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def store_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One database for all tests: creating it takes seconds."""
    return tmp_path_factory.mktemp("store")


@pytest.fixture
def destination(store_dir: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Destination:
    monkeypatch.chdir(store_dir)
    return Destination(uri=embedded_uri(store_dir), experiment=request.node.name)


@pytest.fixture
def dead() -> Destination:
    """An address where nothing listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return Destination(uri=f"http://127.0.0.1:{port}", experiment="dead")


@pytest.fixture
def unfollowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """No process that copies: tests copy themselves."""
    monkeypatch.setattr(tracker, "COMMAND", (sys.executable, "-c", ""))


def runs(destination: Destination) -> dict[str, Any]:
    store = connect(destination)
    found = store.client.search_runs([store.experiment_id])
    return {run.info.run_name: run for run in found}


def history(destination: Destination, run: Any, name: str) -> list[tuple[int, float]]:
    return [(each.step, each.value) for each in connect(destination).client.get_metric_history(run.info.run_id, name)]


def wait_until(true: Callable[[], bool], seconds: float) -> None:
    """Fail where something does not become true in time."""
    last = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < last
        time.sleep(0.02)


def has_arrived(run: ToldRun, destination: Destination) -> bool:
    """Whether the store has the run as far as it is."""
    told = read_run(run.folder)
    return told is not None and read_synced(run.folder, destination).saved == told.saved


def whole_run(destination: Destination, folder: Path, **given: Any) -> dict[str, str]:
    run = ToldRun(destination, folder, **given)
    run.rounds(1, 2, 3)
    return run.finish()


def follower_of(root: Path) -> subprocess.Popen[bytes]:
    return tracker._FOLLOWERS[root.absolute()]


def test_a_run_with_all_that_belongs_to_it(destination: Destination, tmp_path: Path) -> None:
    output = tmp_path / "job"
    output.mkdir()
    (output / "model.safetensors").write_bytes(b"weights")
    told = ToldRun(destination, output)
    follower = follower_of(output)
    told.rounds(1, 2)
    wait_until(lambda: has_arrived(told, destination), 30)
    assert "libtorch" not in Path(f"/proc/{follower.pid}/maps").read_text()  # it would cost that process seconds
    info = told.finish(checkpoint=str(output / "model.safetensors"))

    run = runs(destination)["ε=5 seed 0 local_dp scatternet pneumonia"]
    assert info["run_id"] == run.info.run_id
    assert run.info.status == "FINISHED"
    assert run.data.params["privacy.epsilon"] == "5.0"
    assert run.data.params["partition.sizes"] == "[1, 2]"
    assert history(destination, run, "epsilon") == [(1, 1.5), (2, 3.0), (2, pytest.approx(4.95))]
    assert history(destination, run, "seconds/train") == [(1, 0.5), (2, 0.5)]
    wanted = {"final/test/auc": 0.95, "final/test/auc_low": 0.93, "final/test/auc_high": 0.96, "epsilon": 4.95}
    assert {name: run.data.metrics[name] for name in wanted} == pytest.approx(wanted)
    assert "final/test/mcc" not in run.data.metrics
    tags = {"degenerate": "false", "synthetic": "false", "status": "finished", "output_dir": str(output)}
    assert tags.items() <= run.data.tags.items()
    (data,) = run.inputs.dataset_inputs
    assert (data.dataset.name, data.dataset.digest) == ("pneumoniamnist", "f00df00df00d")
    assert json.loads(data.dataset.profile) == {
        "num_rows": 5856, "num_train": 4708, "num_validation": 524, "num_test": 624,
    }  # fmt: skip
    client = connect(destination).client
    folders = [None, "figures", "checkpoint"]
    kept = {each.path for folder in folders for each in client.list_artifacts(run.info.run_id, folder)}
    assert kept >= {"result.json", "statement.txt", "config.yaml", "environment.txt", "how_to_load.md"}
    assert kept >= {"figures/confusion_matrix.png", "figures/roc.png", "figures/calibration.png"}
    assert "checkpoint/model.safetensors" in kept
    assert "model.safetensors" not in kept
    text = Path(client.download_artifacts(run.info.run_id, "how_to_load.md", str(tmp_path))).read_text()
    compile(text.split("```python")[1].split("```")[0], "how_to_load.md", "exec")
    assert follower.wait(10) == 0, "it ends with its run"


@pytest.mark.usefixtures("unfollowed")
@pytest.mark.parametrize(
    ("public", "asked", "whole"), [(False, None, False), (True, False, False), (False, True, True)]
)
def test_the_owners_view_is_recorded_of_public_data_or_where_it_is_asked_for(
    public: bool, asked: bool | None, whole: bool, destination: Destination, tmp_path: Path
) -> None:
    config = make_context(tmp_path).config | {"seed": 471147114711, "dataset": {"md5": "f00df00df00d"}}
    given: dict[str, Any] = {"public": public, "config": config, "warning": STUDY_ONLY}
    told = ToldRun(destination, tmp_path / "job", owner_view=asked, **given)
    told.rounds(1, 2)
    sync(tmp_path)
    data = make_result().dataset.model_copy(update={"class_counts": {"test": [90210902109021, 390]}})
    ended: dict[str, Any] = {"status": "failed", "error": "row 17 is 9", "seed": 471147114711, "dataset": data}
    ended |= {"attacks": [make_attack(found=3.8247193)], "privacy": with_noise(size=0.9871123)}
    told.finish(**ended, config=config, config_hash="beefbeefbeef")
    assert sync(tmp_path) == [(tmp_path / "job", None)]

    (run,) = runs(destination).values()
    client = connect(destination).client
    kept = tmp_path / "kept"
    kept.mkdir()
    client.download_artifacts(run.info.run_id, "", str(kept))
    texts = [path.read_text() for path in kept.rglob("*") if path.suffix in (".json", ".yaml", ".txt", ".md")]
    shown = (run.data.params, run.data.metrics, run.data.tags, run.info.run_name, run.inputs.to_dictionary())
    everything = "\n".join([*map(str, shown), *texts, (tmp_path / "job" / RUN_FILE).read_text()])
    secrets = ("471147114711", "f00df00df00d", "row 17", "beefbeefbeef", "final/test/auc", "0.625", "timing/total")
    for secret in (*secrets, "90210902109021", "attack/server/lower_bound_found", "3.8247193", "0.9871123", "the tail"):
        assert (secret in everything) == whole, secret
    assert "4708" in everything, "counts of splits are no secret"
    assert (kept / "result.json").exists() == whole
    assert (kept / "released.json").exists() != whole
    assert (kept / "figures").exists() == whole
    assert run.data.metrics["epsilon"] == pytest.approx(4.95)
    assert run.data.tags["view"] == ("owner" if whole else "released")
    assert run.data.tags["error"] == ("row 17 is 9" if whole else WITHHELD)
    times = {run.info.end_time - run.info.start_time}
    for name in run.data.metrics:
        steps = client.get_metric_history(run.info.run_id, name)
        times |= {metric.timestamp - run.info.start_time for metric in steps}
    assert (times == {0}) != whole, "when a round ended tells how long it took"

    aborted = ToldRun(destination, tmp_path / "aborted", owner_view=asked, **given)
    aborted.tracker.on_error(RuntimeError("row 17 is 9"))
    sync(tmp_path)
    (run,) = connect(destination).find("output_dir", str(tmp_path / "aborted"))
    assert (run.data.tags["error"] == "row 17 is 9") == whole
    assert (run.info.status, run.data.tags["warning"]) == ("FAILED", STUDY_ONLY)


def test_calls_cost_next_to_nothing_and_a_dead_server_stops_no_run(
    dead: Destination, destination: Destination, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    begun = time.perf_counter()
    told = ToldRun(dead, tmp_path / "job", wait=30)
    for number in range(1, 201):
        told.rounds(number)
    assert time.perf_counter() - begun < 1
    with caplog.at_level(logging.WARNING):
        info = told.finish()
    assert time.perf_counter() - begun < 30
    assert "run_id" not in info
    assert f"bring it there with: python -m medx.tracking sync {tmp_path / 'job'}" in caplog.text
    assert all("\n" not in record.getMessage() for record in caplog.records)
    assert str(tmp_path / "job") in Path("mlartifacts/undelivered.txt").read_text()

    arguments = ["sync", str(tmp_path), "--uri", destination.uri, "--experiment", destination.experiment]
    assert main(arguments) == 0
    assert main(arguments) == 0
    (run,) = runs(destination).values()
    assert history(destination, run, "test/auc") == [(number, 0.9) for number in range(1, 201)]
    assert run.info.status == "FINISHED"
    # Where it was meant to go has still nothing.
    assert main(["deliver", str(tmp_path)]) == 1
    Path("mlartifacts/undelivered.txt").unlink()


FLAKY = """
import sys
from pathlib import Path
from medx.tracking import follow
from medx.tracking.__main__ import main
from mlflow import MlflowClient

send = MlflowClient.log_batch

def flaky(*arguments, **more):
    send(*arguments, **more)
    if Path(sys.argv[1]).exists():  # it arrived, but the answer was lost
        raise ConnectionError("planted")

MlflowClient.log_batch = flaky
follow.PAUSE = 0.05
main(["sync", *sys.argv[2:]])
"""


def test_a_server_that_goes_down_in_the_middle(
    destination: Destination, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    down = tmp_path / "down"
    monkeypatch.setattr(tracker, "COMMAND", (sys.executable, "-c", FLAKY, str(down)))
    told = ToldRun(destination, tmp_path / "job")
    told.rounds(1)
    wait_until(lambda: has_arrived(told, destination), 30)
    down.touch()
    told.rounds(2)
    wait_until(lambda: read_synced(told.folder, destination).problem is not None, 10)
    told.rounds(3)
    told.finish()
    assert caplog.text.count("records are kept: ConnectionError: planted") == 1
    assert "has not all of this run (ConnectionError: planted)" in caplog.text
    assert Path("mlartifacts/undelivered.txt").exists()
    down.unlink()
    # The next run that reaches the store brings it along.
    whole_run(destination, tmp_path / "next", seed=1)
    wait_until(lambda: not Path("mlartifacts/undelivered.txt").exists(), 10)
    first = runs(destination)["ε=5 seed 0 local_dp scatternet pneumonia"]
    assert history(destination, first, "test/auc") == [(1, 0.9), (2, 0.9), (3, 0.9)]
    assert first.info.status == "FINISHED"


def test_a_server_that_is_started_late_gets_everything(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    place = tmp_path / "store"
    place.write_text("a file, where the store's folder is to be")
    destination = Destination(uri=embedded_uri(place), experiment="late")
    told = ToldRun(destination, tmp_path / "job")
    told.rounds(1)
    wait_until(lambda: read_synced(told.folder, destination).problem is not None, 30)
    place.unlink()
    told.rounds(2)
    assert "run_id" in told.finish()
    (run,) = runs(destination).values()
    assert history(destination, run, "test/auc") == [(1, 0.9), (2, 0.9)]
    assert run.info.status == "FINISHED"
    assert "has not all" not in caplog.text


def test_a_process_that_is_killed_while_it_copies_costs_no_record(
    destination: Destination, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    told = ToldRun(destination, tmp_path / "job")
    told.rounds(1)
    killed = follower_of(told.folder)
    wait_until(lambda: has_arrived(told, destination), 30)
    killed.kill()
    killed.wait()
    told.rounds(2, 3)
    assert "run_id" in told.finish()
    assert caplog.messages == []
    assert follower_of(told.folder).pid != killed.pid
    (run,) = runs(destination).values()
    assert history(destination, run, "test/auc") == [(1, 0.9), (2, 0.9), (3, 0.9)]

    monkeypatch.setattr(tracker, "COMMAND", (sys.executable, "-c", "raise SystemExit(3)"))
    again = ToldRun(destination, tmp_path / "again", seed=1)
    begun = time.perf_counter()
    again.finish()
    assert time.perf_counter() - begun < 10, "nobody waits for a process that has gone"
    assert f"python -m medx.tracking sync {tmp_path / 'again'}" in caplog.text
    assert sync(tmp_path) == [(tmp_path / "again", None), (tmp_path / "job", None)]
    assert {run.info.status for run in runs(destination).values()} == {"FINISHED"}
    change_backlog(Path("mlartifacts/undelivered.txt"), drop=[str(tmp_path / "again")])


KILLED = """
import sys, time
from pathlib import Path
from medx.tracking import tracker
from medx.tracking.store import Destination
from tests.tracking.examples import ToldRun

told = ToldRun(Destination(uri=sys.argv[1], experiment=sys.argv[2]), Path(sys.argv[3]))
told.rounds(1)
print(tracker._FOLLOWERS[told.folder].pid, flush=True)
time.sleep(60)
"""


def test_of_a_run_that_is_killed_the_rest_is_copied_and_it_is_told(destination: Destination, tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED, destination.uri, destination.experiment, str(tmp_path / "job")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = Path("/proc") / process.stdout.readline().strip() / "cmdline"
        wait_until(lambda: read_synced(tmp_path / "job", destination).run_id is not None, 30)
        assert b"medx.tracking" in line.read_bytes()
        assert [run.info.status for run in runs(destination).values()] == ["RUNNING"]
        process.kill()
    wait_until(lambda: not line.exists() or not line.read_bytes(), 8)  # a zombie's is empty
    (run,) = runs(destination).values()
    assert history(destination, run, "test/auc") == [(1, 0.9)]
    assert (run.info.status, run.data.tags["error"]) == ("KILLED", "its process has gone")


MLFLOW = {"_target_": "medx.tracking.tracker.MlflowTracking"}


def test_the_process_that_copies_is_ready_before_its_run(destination: Destination, tmp_path: Path) -> None:
    for name in ("job", "refused"):
        (tmp_path / name).mkdir()
        tracker.follow_early(MLFLOW, tmp_path / name)
    tracker.follow_early({"_target_": "medx.tracking.tracker.NoTracking"}, tmp_path)
    assert tmp_path not in tracker._FOLLOWERS
    ready, refused = follower_of(tmp_path / "job"), follower_of(tmp_path / "refused")
    command = [*tracker.COMMAND, str(tmp_path / "job"), "--follow", "1"]  # by a process that has gone since
    assert subprocess.run(command, check=False, timeout=60).returncode == 0
    assert (ready.poll(), refused.poll()) == (None, None)
    assert not list(tmp_path.glob("*/*")), "nothing is left of a run that never was"
    (tmp_path / "refused").rmdir()
    assert refused.wait(10) == 0

    whole_run(destination, tmp_path / "job")
    assert follower_of(tmp_path / "job") is ready
    assert [run.info.status for run in runs(destination).values()] == ["FINISHED"]
    assert ready.wait(10) == 0


@pytest.mark.usefixtures("unfollowed")
def test_an_end_waits_for_no_pause(destination: Destination, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "PAUSE", 1000.0)
    told = ToldRun(destination, tmp_path, wait=0.1)
    followed = Followed(tmp_path)
    assert followed.look()
    told.rounds(1)
    assert followed.look()
    (run,) = runs(destination).values()
    assert history(destination, run, "test/auc") == [], "rounds wait until it is time"
    told.tracker.on_error(KeyboardInterrupt())
    assert not followed.look()
    (run,) = runs(destination).values()
    assert (run.info.status, run.data.tags["error"]) == ("KILLED", "KeyboardInterrupt")
    assert history(destination, run, "test/auc") == [(1, 0.9)]
    shutil.rmtree(tmp_path / "tracking")
    assert not followed.look(), "a folder that is removed ends no process"


@pytest.mark.usefixtures("unfollowed")
def test_a_run_that_has_arrived_is_not_asked_for_anew_and_one_that_was_killed_is(
    destination: Destination, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("ended", "killed")
    ended, killed = (ToldRun(destination, tmp_path / name, seed=seed, wait=0.1) for seed, name in enumerate(names))
    ended.finish()
    killed.rounds(1)
    assert [error for _, error in sync(tmp_path)] == [None, None]
    killed.tracker._running.close()  # its process has gone: its file still says that it runs, and that has arrived
    asked: list[object] = []

    def answer(destination: Destination) -> Store:
        asked.append(destination)
        return connect(destination)

    monkeypatch.setattr(syncing, "connect", answer)
    assert not Followed(tmp_path / "ended").look()
    assert asked == []
    assert not Followed(tmp_path / "killed").look()
    assert asked
    assert sorted(run.info.status for run in runs(destination).values()) == ["FINISHED", "KILLED"]
    change_backlog(Path("mlartifacts/undelivered.txt"), drop=[str(tmp_path)])


def test_resume_continues_the_same_run(destination: Destination, tmp_path: Path) -> None:
    output = tmp_path / "job"
    told = ToldRun(destination, output)
    told.rounds(1, 2)
    follower = follower_of(output)
    wait_until(lambda: has_arrived(told, destination), 30)
    assert os.getpgid(follower.pid) == follower.pid  # Ctrl-C in a terminal does not reach it,
    follower.send_signal(signal.SIGINT)  # and a second hand that sends it on does not end it
    killed = told.finish(status="killed", error="stopped by the user")
    assert "run_id" in killed
    assert [run.info.status for run in runs(destination).values()] == ["KILLED"]
    # The crash cut off a line, and the round is done again.
    with open(output / "checkpoints" / "rounds.jsonl", "a") as file:
        file.write('{"round": 3')
    config = make_context(output).config | {"resume": str(output)}
    again = ToldRun(destination, output, config=config)
    again.rounds(2, auc=0.5)
    again.rounds(3)
    assert again.finish()["run_id"] == killed["run_id"]
    (run,) = runs(destination).values()
    assert history(destination, run, "test/auc") == [(1, 0.9), (2, 0.9), (3, 0.9)]
    assert (run.info.status, run.data.params["resume"]) == ("FINISHED", str(output))


@pytest.mark.usefixtures("unfollowed")
def test_a_round_counts_from_when_it_is_kept(destination: Destination, tmp_path: Path) -> None:
    told = ToldRun(destination, tmp_path)
    told.rounds(1)
    from tests.tracking.examples import append_record

    append_record(tmp_path / "checkpoints", make_record(2, auc=0.1))  # killed here, its checkpoint is not there
    assert sync(tmp_path) == [(tmp_path, None)]
    told.rounds(2)
    assert sync(tmp_path) == [(tmp_path, None)]
    (run,) = runs(destination).values()
    assert history(destination, run, "test/auc") == [(1, 0.9), (2, 0.9)]
    assert run.info.status == "RUNNING"


@pytest.mark.usefixtures("unfollowed")
def test_a_finished_folder_is_copied_once_whoever_asks_and_wherever_it_lies(
    destination: Destination, tmp_path: Path
) -> None:
    told = ToldRun(destination, tmp_path / "job", wait=0.1)
    (tmp_path / "job" / "model.safetensors").write_bytes(b"weights")
    told.rounds(1, 2, 3)
    told.finish(checkpoint=str(tmp_path / "job" / "model.safetensors"))
    moved = Path(shutil.move(tmp_path / "job", tmp_path / "archive"))
    assert sync(moved) == [(moved, None)]
    client = connect(destination).client

    def metrics() -> list[tuple[str, int, float, int]]:
        found = [client.get_metric_history(run.info.run_id, name) for name in run.data.metrics]
        return [(each.key, each.step, each.value, each.timestamp) for every in found for each in every]

    (run,) = runs(destination).values()
    first = metrics()
    artifacts = Path(run.info.artifact_uri.removeprefix("file://"))
    written = {path: path.stat().st_mtime_ns for path in artifacts.rglob("*")}
    assert any(path.name == "model.safetensors" for path in written)
    assert run.data.tags["output_dir"] == str(moved)
    assert main(["sync", str(tmp_path)]) == 0
    assert {path: path.stat().st_mtime_ns for path in artifacts.rglob("*")} == written, "nothing was to be done"
    (moved / SYNCED_FILE).unlink()  # as if the answer had been lost with the process
    assert main(["sync", str(tmp_path)]) == 0
    (run,) = runs(destination).values()
    assert metrics() == first
    assert run.info.status == "FINISHED"
    assert len(run.inputs.dataset_inputs) == 1
    change_backlog(Path("mlartifacts/undelivered.txt"), drop=[str(tmp_path / "job")])


@pytest.mark.usefixtures("unfollowed")
def test_a_store_that_was_deleted_gets_everything_anew(destination: Destination, tmp_path: Path) -> None:
    told = ToldRun(destination, tmp_path / "job", wait=0.1)
    told.rounds(1, 2, 3)
    told.finish()
    sync(tmp_path)
    (before,) = runs(destination).values()
    connect(destination).client.delete_run(before.info.run_id)
    assert sync(tmp_path) == [(tmp_path / "job", None)]
    (run,) = runs(destination).values()
    assert run.info.run_id != before.info.run_id
    assert [step for step, _ in history(destination, run, "test/auc")] == [1, 2, 3]
    content = json.loads((tmp_path / "job" / SYNCED_FILE).read_text())
    assert content[destination.key]["run_id"] == run.info.run_id
    change_backlog(Path("mlartifacts/undelivered.txt"), drop=[str(tmp_path / "job")])


JOB = """
import os, sys
from pathlib import Path
from medx.tracking.store import Destination
from tests.tracking.examples import ToldRun

uri, sweep, number = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
os.chdir(sweep.parent)
told = ToldRun(Destination(uri=uri, experiment="sweep"), sweep / str(number), seed=number, sweep=sweep)
told.rounds(1)
told.finish()
print([name for name in ("mlflow", "sqlalchemy", "matplotlib.figure") if name in sys.modules])
"""


def test_processes_share_one_follower_and_one_parent_and_import_no_mlflow(tmp_path: Path) -> None:
    uri, sweep = embedded_uri(tmp_path), tmp_path / "sweep"
    command = [sys.executable, "-c", JOB, uri, str(sweep)]
    jobs = [subprocess.Popen([*command, str(number)], cwd=ROOT, stdout=subprocess.PIPE) for number in (0, 1)]
    wait_until(lambda: (sweep / "0" / RUN_FILE).exists() and (sweep / "1" / RUN_FILE).exists(), 60)
    time.sleep(1)  # one of two that began at once may still be about to see the other
    following = [path for path in Path("/proc").glob("[0-9]*/cmdline") if str(sweep).encode() in _read(path)]
    assert sum(b"--follow" in _read(path) for path in following) <= 1 + sum(job.poll() is None for job in jobs) // 2
    assert [job.communicate()[0].strip() for job in jobs] == [b"[]", b"[]"]
    assert [job.returncode for job in jobs] == [0, 0]
    found = list(runs(Destination(uri=uri, experiment="sweep")).values())
    parents = [run for run in found if run.data.tags.get("sweep") == "parent"]
    assert len(parents) == 1
    assert len(found) == 3
    children = [run for run in found if run.data.tags.get("mlflow.parentRunId") == parents[0].info.run_id]
    assert len(children) == 2
    assert {run.info.status for run in found} == {"FINISHED"}
    wait_until(lambda: not any(str(sweep).encode() in _read(path) for path in following), LINGER + 15)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # it has ended
        return b""


@pytest.mark.usefixtures("unfollowed")
def test_a_failed_job_marks_the_sweep_wherever_it_lies(destination: Destination, tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    for seed in (0, 1, 2):
        told = ToldRun(destination, sweep / str(seed), seed=seed, sweep=sweep, wait=0.1)
        if seed == 1:
            told.tracker.on_error(RuntimeError("CUDA out of memory"))
        else:
            told.finish()
    sync(sweep / "0")
    moved = Path(shutil.move(sweep, tmp_path / "moved"))
    assert [error for _, error in sync(moved)] == [None, None, None]
    found = {run.data.tags.get("sweep", run.data.tags.get("seed")): run for run in runs(destination).values()}
    statuses = {name: run.info.status for name, run in found.items()}
    assert statuses == {"parent": "FAILED", "0": "FINISHED", "1": "FAILED", "2": "FINISHED"}
    parent = found.pop("parent").info
    assert parent.run_name == f"example sweep {tmp_path.name} sweep"
    assert parent.start_time == found["0"].info.start_time, "the time of the copy is not the sweep's"
    assert parent.end_time == max(run.info.end_time for run in found.values())
    for seed in (0, 1, 2):
        change_backlog(Path("mlartifacts/undelivered.txt"), drop=[str(sweep / str(seed))])


def test_the_ready_comparison_is_part_of_the_experiment(destination: Destination) -> None:
    store = connect(destination)
    state = json.loads(store.client.get_experiment(store.experiment_id).tags[VIEW_TAG])
    axes = [(chart["xaxis"]["key"], chart["yaxis"]["key"]) for chart in state["compareRunCharts"] if "xaxis" in chart]
    assert axes == [("epsilon", "final/test/auc")]
    assert {"epsilon", "final/test/auc"} <= final_metrics(make_result()).keys()


def test_what_epsilon_means_is_among_the_metrics_and_undefined_figures_are_not() -> None:
    result = make_result()
    assert not [name for name in final_metrics(result) if name.startswith("meaning/")], "of an earlier version"
    shares = {"0.01": 0.3}
    meaning = Meaning(epsilon=5000, mu=None, detected=shares, advantage=0.5, reconstructed={"0.1": 0.7}, curve=[(0, 0)])
    told = result.model_copy(update={"privacy": result.privacy.model_copy(update={"meaning": {"image": meaning}})})
    assert {name: value for name, value in final_metrics(told).items() if name.startswith("meaning/")} == {
        "meaning/image/advantage": 0.5,
        "meaning/image/detected_at_0.01": 0.3,
        "meaning/image/reconstructed_from_0.1": 0.7,
    }


def test_what_attacks_found_and_what_the_noise_was_like_are_among_metrics_and_tags() -> None:
    plain = make_result()
    assert not [name for name in final_metrics(plain) if name.startswith(("attack/", "noise/"))]
    assert not {"against_claim", "noise_doubts"} & end_tags(plain).keys()
    every = [make_attack(), make_attack(observer="whoever gets the model", found=None, against=["more was found"])]
    told = make_result(attacks=every, privacy=with_noise(rounds=None))
    metrics = final_metrics(told)
    assert {name: value for name, value in metrics.items() if name.startswith(("attack/server/", "noise/"))} == {
        "attack/server/lower_bound_found": 4.2, "attack/server/claimed": 4.95, "attack/server/shift": 1.1,
        "attack/server/shift_planned": 1.2, "attack/server/by_guesses": 2.0, "attack/server/by_guesses_ceiling": 3.76,
        "noise/values": 1000, "noise/size": 0.99, "noise/tail": 5.0, "noise/coordinates": 0.1, "noise/hospitals": 0.3,
    }  # fmt: skip
    public = {
        name.rpartition("/")[2] for name in final_metrics(told) if name.startswith("attack/whoever gets the model/")
    }
    assert public == {"claimed", "shift", "shift_planned", "by_guesses", "by_guesses_ceiling"}, "no bound: any epsilon"
    tags = end_tags(told)
    assert tags["against_claim"] == "whoever gets the model: more was found"
    assert tags["noise_doubts"] == "the tail: 5 standard deviations from chance"
    assert end_tags(make_result(attacks=every[:1]))["against_claim"] == "none"
    released = told.released()
    assert not [name for name in final_metrics(released) if name.startswith(("attack/", "noise/"))]
    assert not {"against_claim", "noise_doubts"} & end_tags(released).keys()


def test_an_embedded_store_in_a_folder_of_any_name(tmp_path: Path) -> None:
    folder = tmp_path / "what?now #1 %41 Zürich"
    folder.mkdir()
    destination = Destination(uri=embedded_uri(folder), experiment="x")
    assert not has_experiment(destination)
    assert list(folder.iterdir()) == [], "to look writes nothing"
    connect(destination)
    assert {path.name for path in folder.iterdir()} >= {"mlflow.db"}
    assert list(tmp_path.iterdir()) == [folder], "nothing beside it"
    assert has_experiment(destination)
    assert not has_experiment(destination.model_copy(update={"experiment": "misspelt"}))
    fields = {"experiment": "x", "request_timeout": 1, "final_wait": 1, "owner_view": None}
    settled = MlflowTracking(uri="sqlite:///mlflow.db", **fields).settled(folder)
    assert settled.settled(tmp_path).uri == settled.uri == destination.uri


@pytest.mark.usefixtures("unfollowed")
def test_drawn_images_have_an_experiment_of_their_own(destination: Destination, tmp_path: Path) -> None:
    told = ToldRun(destination, tmp_path, synthetic=True)
    sync(tmp_path)
    info = told.finish()
    assert info["experiment"] == destination.experiment + "-synthetic"
    drawn = destination.model_copy(update={"experiment": info["experiment"]})
    assert has_experiment(drawn)
    assert not has_experiment(destination)
    assert len(runs(drawn)) == 1
    change_backlog(Path("mlartifacts/undelivered.txt"), drop=[str(tmp_path)])


def test_a_statement_is_markdown_that_wraps() -> None:
    text = "Privacy statement\nMechanism: none. There: is no epsilon.\nMasks are agreed.\n"
    wanted = "### Privacy statement\n\n- **Mechanism:** none. There: is no epsilon.\n- Masks are agreed."
    assert as_markdown(text) == wanted


SERVER = """
import http.server, pathlib, sys, time
time.sleep(0.5)
class Health(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        pathlib.Path(sys.argv[2]).touch()
        self.send_response(200); self.end_headers()
server = http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Health)
server.handle_request()
"""


def test_the_link_to_the_ui_comes_when_the_server_answers(
    destination: Destination, dead: Destination, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect(destination)
    port, answered, said = dead.uri.rpartition(":")[2], tmp_path / "answered", []
    monkeypatch.setattr("medx.tracking.__main__.server_command", lambda uri, port: server(port))

    def server(port: int) -> list[str]:
        return [sys.executable, "-c", SERVER, str(port), str(answered)]

    monkeypatch.setattr("builtins.print", lambda *words, **_: said.append((answered.exists(), "\n".join(words))))
    given = ["ui", "--port", port, "--experiment", destination.experiment]
    assert main(given) == 0
    (early, _), (late, text) = said
    assert (early, late) == (False, True)
    experiment = connect(destination).experiment_id
    assert f"{destination.experiment}: http://127.0.0.1:{port}/#/experiments/{experiment}/" in text
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        assert main(["ui", "--port", str(busy.getsockname()[1])]) == 2
    assert "accepted: a free port" in said[-1][1]


def test_a_file_that_is_no_store_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes").write_text("no database of anybody's, but long enough to be read as one")
    assert main(["ui", "--port", "5999", "--uri", f"sqlite:///{tmp_path}/notes"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"medx: {tmp_path}/notes: no store of MLflow")


@pytest.mark.parametrize("given", [[], ["uii"], ["ui", "--port", "many"], ["ui", "--prot", "1"]])
def test_a_wrong_command_is_one_line(given: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(given)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("medx: ")


def test_metrics_leave_out_what_is_undefined() -> None:
    metrics = round_metrics(make_record(1, None, None))
    assert not {"epsilon", "test/auc", "validation/mcc"} & set(metrics)
    assert metrics["bytes_up"] == 1000
    assert "epsilon" not in final_metrics(make_result(None))
    assert dict(flatten({"a": {"b": None, "c": {}}, "d[0]": "x" * 9000})) == {
        "a.b": "null",
        "a.c": "{}",
        "d_0_": "x" * 6000,
    }


@pytest.mark.parametrize(
    ("uri", "says"), [("ftp://x", "accepted are"), ("http://me:secret@host", "MLFLOW_TRACKING_PASSWORD")]
)
def test_a_wrong_uri_is_refused(uri: str, says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        MlflowTracking(uri=uri, experiment="x", request_timeout=1, final_wait=1, owner_view=None)


@pytest.mark.parametrize("option", ["mlflow", "none"])
def test_an_option_has_the_fields_of_its_class(option: str) -> None:
    from hydra.utils import get_class, instantiate

    config = OmegaConf.load(ROOT / "conf" / "tracking" / f"{option}.yaml")
    keys = set(config) - {"_target_"}
    assert keys == set(get_class(config._target_).__dataclass_fields__)  # type: ignore[attr-defined]
    assert len(instantiate(config).observers(None)) == (option == "mlflow")


def test_a_tracker_is_made_without_heavy_imports() -> None:
    code = (
        "import sys; from medx.tracking.tracker import MlflowTracking;"
        "tracking = MlflowTracking(uri=None, experiment='x', request_timeout=1, final_wait=1, owner_view=None);"
        "tracking.observers(None);"
        "print([m for m in ('mlflow', 'matplotlib', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split() == ["[]"]


def test_nothing_else_imports_mlflow() -> None:
    for path in (ROOT / "medx").rglob("*.py"):
        if path.parent.name == "tracking":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(name.split(".")[0] == "mlflow" for name in names), path
