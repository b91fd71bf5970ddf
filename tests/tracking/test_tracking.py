"""Tracking into a real embedded store, with servers that are down, crashes, resumes and shared sweeps."""

import ast
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from pydantic import ValidationError

from medx.results import STUDY_ONLY
from medx.tracking import courier, deliverer
from medx.tracking.__main__ import main
from medx.tracking.content import WITHHELD, as_markdown, final_metrics, flatten, round_metrics
from medx.tracking.delivery import deliver
from medx.tracking.mlflow import MlflowTracker, MlflowTracking
from medx.tracking.spool import Spool
from medx.tracking.store import Destination, connect, embedded_uri, has_experiment, open_early
from medx.tracking.view import VIEW_TAG
from tests.tracking.examples import make_record, make_result, make_run

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


def follow(destination: Destination, folder: Path, rounds: int = 3, **run: Any) -> dict[str, str]:
    tracker = MlflowTracker(destination, 60)
    tracker.start(make_run(folder, **run))
    for number in range(1, rounds + 1):
        tracker.log_round(make_record(number, number * 1.5))
    return tracker.finish(make_result())


def test_a_run_with_all_that_belongs_to_it(destination: Destination, tmp_path: Path) -> None:
    output = tmp_path / "job"
    (output / "checkpoint").mkdir(parents=True)
    (output / "checkpoint" / "model.safetensors").write_bytes(b"weights")
    (output / "extra.txt").write_text("more")
    tracker = MlflowTracker(destination, 60)
    tracker.start(make_run(output))
    for number in (1, 2):
        tracker.log_round(make_record(number, 1.5 * number))
    info = tracker.finish(
        make_result(checkpoint="checkpoint/model.safetensors"),
        [output / "extra.txt", output / "checkpoint" / "model.safetensors"],
    )

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
    tags = {"degenerate": "false", "synthetic": "false", "status": "finished", "git_revision": "0123abcd"}
    assert tags.items() <= run.data.tags.items()
    client = connect(destination).client
    folders = [None, "figures", "checkpoint"]
    kept = {each.path for folder in folders for each in client.list_artifacts(run.info.run_id, folder)}
    assert kept >= {"result.json", "statement.txt", "config.yaml", "environment.txt", "how_to_load.md", "extra.txt"}
    assert kept >= {"figures/confusion_matrix.png", "figures/roc.png", "figures/calibration.png"}
    assert "checkpoint/model.safetensors" in kept
    assert "model.safetensors" not in kept
    text = (output / "tracking" / "files" / "how_to_load.md").read_text()
    compile(text.split("```python")[1].split("```")[0], "how_to_load.md", "exec")
    assert "libtorch" not in Path(f"/proc/{courier.current().pid}/maps").read_text()  # it would cost the child seconds


@pytest.mark.parametrize(
    ("public", "asked", "whole"), [(False, None, False), (True, False, False), (False, True, True)]
)
def test_the_owners_view_is_recorded_of_public_data_or_where_it_is_asked_for(
    public: bool, asked: bool | None, whole: bool, destination: Destination, tmp_path: Path
) -> None:
    config = {"seed": 471147114711, "dataset": {"md5": "f00df00df00d"}, "privacy": {"epsilon": 5.0}}
    tracker = MlflowTracker(destination, 60, asked)
    given = make_run(tmp_path / "job").model_copy(
        update={"public": public, "config": config, "seed": 471147114711, "warning": STUDY_ONLY}
    )
    tracker.start(given)
    tracker.log_round(make_record(1, 1.5))
    failed = make_result(
        status="failed", error="row 17 is 9", seed=471147114711, config=config, config_hash="beefbeefbeef"
    )
    info = tracker.finish(failed)

    client = connect(destination).client
    run = client.get_run(info["run_id"])
    kept = tmp_path / "kept"
    kept.mkdir()
    client.download_artifacts(info["run_id"], "", str(kept))
    texts = [path.read_text() for path in kept.rglob("*") if path.suffix in (".json", ".yaml", ".txt", ".md")]
    told = "\n".join([*map(str, (run.data.params, run.data.metrics, run.data.tags, run.info.run_name)), *texts])
    told += (tmp_path / "job" / "tracking" / "spool.jsonl").read_text()
    for secret in ("471147114711", "f00df00df00d", "row 17", "beefbeefbeef", "final/test/auc", "0.625", "timing/total"):
        assert (secret in told) == whole, secret
    assert (kept / "result.json").exists() == whole
    assert (kept / "released.json").exists() != whole
    assert (kept / "figures").exists() == whole
    assert run.data.metrics["epsilon"] == pytest.approx(4.95)
    assert run.data.tags["view"] == ("owner" if whole else "released")
    assert run.data.tags["error"] == ("row 17 is 9" if whole else WITHHELD)
    aborted = MlflowTracker(destination, 60, asked)
    aborted.start(given.model_copy(update={"run": "b" * 32, "output_dir": tmp_path / "aborted"}))
    info = aborted.abort("failed", "row 17 is 9")
    assert (client.get_run(info["run_id"]).data.tags["error"] == "row 17 is 9") == whole
    assert client.get_run(info["run_id"]).data.tags["warning"] == STUDY_ONLY


def test_calls_cost_next_to_nothing_and_a_dead_server_stops_no_run(
    dead: Destination, destination: Destination, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = MlflowTracker(dead, 30)
    begun = time.perf_counter()
    tracker.start(make_run(tmp_path / "job"))
    for number in range(1, 201):
        tracker.log_round(make_record(number, 1.0))
    assert time.perf_counter() - begun < 0.5
    with caplog.at_level(logging.WARNING):
        info = tracker.finish(make_result())
    assert time.perf_counter() - begun < 15
    assert "run_id" not in info
    assert "python -m medx.tracking deliver" in caplog.text
    assert all("\n" not in record.getMessage() for record in caplog.records)
    assert str(tmp_path / "job") in Path("mlartifacts/undelivered.txt").read_text()

    arguments = ["deliver", str(tmp_path), "--uri", destination.uri, "--experiment", destination.experiment]
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
from medx.tracking import deliverer
from medx.tracking.delivery import Delivery

send = Delivery._send

def flaky(*arguments):
    send(*arguments)
    if Path(sys.argv[1]).exists():  # it arrived, but the answer was lost
        raise ConnectionError("planted")

Delivery._send = flaky
deliverer.PAUSE = 0.05
deliverer.main()
"""


def test_a_server_that_goes_down_in_the_middle(
    destination: Destination, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    down = tmp_path / "down"
    monkeypatch.setattr(courier, "COMMAND", (sys.executable, "-c", FLAKY, str(down)))
    monkeypatch.setattr(courier, "_COURIERS", [])
    tracker = MlflowTracker(destination, 60)
    tracker.start(make_run(tmp_path / "job"))
    tracker.log_round(make_record(1, 1.0))
    wait_until(lambda: "run_id" in tracker.info(), 30)
    down.touch()
    for number in (2, 3):
        tracker.log_round(make_record(number, 1.0))
        time.sleep(0.3)
    tracker.finish(make_result())
    assert "records are kept: ConnectionError: planted" in caplog.text
    assert Path("mlartifacts/undelivered.txt").exists()
    down.unlink()
    # The next run that reaches the store brings it along.
    follow(destination, tmp_path / "next", seed=1)
    wait_until(lambda: not Path("mlartifacts/undelivered.txt").exists(), 10)
    first = runs(destination)["ε=5 seed 0 local_dp scatternet pneumonia"]
    assert history(destination, first, "test/auc") == [(1, 0.9), (2, 0.9), (3, 0.9)]
    assert first.info.status == "FINISHED"
    os.kill(courier.current().pid, signal.SIGKILL)


def test_a_courier_that_is_killed_costs_a_warning_and_no_record(
    destination: Destination, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = MlflowTracker(destination, 60)
    tracker.start(make_run(tmp_path / "job"))
    tracker.log_round(make_record(1, 1.0))
    wait_until(lambda: "run_id" in tracker.info(), 30)
    killed = courier.current().pid
    os.kill(killed, signal.SIGKILL)
    for number in (2, 3):
        tracker.log_round(make_record(number, 1.0))
    begun = time.perf_counter()
    tracker.finish(make_result())
    assert time.perf_counter() - begun < 5
    (warning,) = caplog.messages
    assert "code -9" in warning
    assert f"python -m medx.tracking deliver {tmp_path / 'job'}" in warning
    assert str(tmp_path / "job") in Path("mlartifacts/undelivered.txt").read_text()

    assert [main(["deliver", str(tmp_path / "job")]) for _ in range(2)] == [0, 0]
    (run,) = runs(destination).values()
    assert history(destination, run, "test/auc") == [(1, 0.9), (2, 0.9), (3, 0.9)]
    assert run.info.status == "FINISHED"
    info = follow(destination, tmp_path / "next", seed=1)
    assert info["run_id"] == runs(destination)["ε=5 seed 1 local_dp scatternet pneumonia"].info.run_id
    assert courier.current().pid != killed
    wait_until(lambda: not Path("mlartifacts/undelivered.txt").exists(), 10)


PARENT = """
import os, sys, time
from pathlib import Path
from medx.tracking import courier
from tests.tracking.test_tracking import Destination, MlflowTracker, make_record, make_run

tracker = MlflowTracker(Destination(uri=sys.argv[1], experiment=sys.argv[2]), 60)
tracker.start(make_run(Path(sys.argv[3])))
while "run_id" not in tracker.info():
    time.sleep(0.02)
if os.fork() == 0:  # lives on, as workers do; must not hold the pipe open
    os.close(1)
    time.sleep(20)
    os._exit(0)
tracker.log_round(make_record(1, 1.0))
print(courier.current().pid, flush=True)
time.sleep(60)
"""


def test_a_courier_ends_with_its_parent(destination: Destination, tmp_path: Path) -> None:
    command = [sys.executable, "-c", PARENT, destination.uri, destination.experiment, str(tmp_path / "job")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        line = Path("/proc") / parent.stdout.readline().strip() / "cmdline"
        assert b"deliverer" in line.read_bytes()
        parent.kill()
    wait_until(lambda: not line.exists() or not line.read_bytes(), 8)  # a zombie's is empty
    (run,) = runs(destination).values()
    assert history(destination, run, "test/auc") == [(1, 0.9)]


def test_closing_waits_for_no_pause(destination: Destination, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deliverer, "PAUSE", 1000.0)
    told: list[dict[str, Any]] = []
    order = {"job": "1", "output_dir": str(tmp_path), "destination": destination.model_dump(), "folder": str(tmp_path)}
    run = make_run(tmp_path).model_dump(mode="json")
    Spool(tmp_path).append("start", {"run": run, "destination": destination.model_dump(), "job": "1"})
    warm = threading.Thread()
    warm.start()
    following = deliverer.Following(order, warm, lambda **answer: told.append(answer))
    following.start()
    wait_until(lambda: bool(told), 30)
    Spool(tmp_path).append("abort", {"status": "killed", "error": "Ctrl-C"})
    following.close()
    following.join(30)
    (run_id,) = {answer["run_id"] for answer in told}
    assert [answer.get("arrived") for answer in told] == [None, True]
    assert {run.info.run_id: run.info.status for run in runs(destination).values()} == {run_id: "KILLED"}


def test_opening_early_leaves_no_trace(destination: Destination, tmp_path: Path) -> None:
    connect(destination)
    open_early(destination)
    open_early(destination.model_copy(update={"experiment": "misspelt"}))
    assert connect(destination).client.get_experiment_by_name("misspelt") is None
    open_early(Destination(uri=embedded_uri(tmp_path), experiment="medx"))
    assert list(tmp_path.iterdir()) == []


def test_resume_continues_the_same_run(destination: Destination, tmp_path: Path) -> None:
    output = tmp_path / "job"
    tracker = MlflowTracker(destination, 60)
    tracker.start(make_run(output))
    tracker.log_round(make_record(1, 1.0))
    tracker.log_round(make_record(2, 2.0))
    wait_until(lambda: "run_id" in tracker.info(), 30)
    pid = courier.current().pid
    assert os.getpgid(pid) == pid  # Ctrl-C in a terminal does not reach the courier,
    os.kill(pid, signal.SIGINT)  # and a second hand that sends it on does not end it
    killed = tracker.abort("killed", "Ctrl-C")
    assert "run_id" in killed
    assert [run.info.status for run in runs(destination).values()] == ["KILLED"]
    # The crash cut off a line, and the round is done again.
    with open(output / "tracking" / "spool.jsonl", "a") as file:
        file.write('{"kind":"rou')
    again = MlflowTracker(destination, 60)
    changed = make_run(output)
    changed.config["resume"] = str(output)
    again.start(changed)
    again.log_round(make_record(2, 2.0))
    again.log_round(make_record(3, 3.0))
    assert again.finish(make_result())["run_id"] == killed["run_id"]
    (run,) = runs(destination).values()
    assert history(destination, run, "test/auc") == [(1, 0.9), (2, 0.9), (3, 0.9)]
    assert (run.info.status, run.data.params["resume"]) == ("FINISHED", str(output))


def test_a_store_that_was_deleted_gets_everything_anew(
    destination: Destination, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    info = follow(destination, tmp_path / "job")
    connect(destination).client.delete_run(info["run_id"])
    Spool(tmp_path / "job").append("round", make_record(4, 1.0).model_dump(mode="json"))
    assert deliver(tmp_path) == [(tmp_path / "job", None)]
    (run,) = runs(destination).values()
    assert run.info.run_id != info["run_id"]
    assert [step for step, _ in history(destination, run, "test/auc")] == [1, 2, 3, 4]


JOB = """
import os, sys
from pathlib import Path
from medx.tracking import courier
from tests.tracking.test_tracking import Destination, follow

uri, sweep, number = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
os.chdir(sweep.parent)
courier.warm_up({"_target_": courier.TARGET, "uri": 5})  # wrong options are not its business
follow(Destination(uri=uri, experiment="sweep"), sweep / str(number), seed=number, sweep=sweep)
print([name for name in ("mlflow", "sqlalchemy", "matplotlib.figure") if name in sys.modules])
"""


def test_two_processes_share_one_parent_and_import_no_mlflow(tmp_path: Path) -> None:
    uri = embedded_uri(tmp_path)  # not created yet: both processes race for it
    command = [sys.executable, "-c", JOB, uri, str(tmp_path / "sweep")]
    jobs = [subprocess.Popen([*command, str(number)], cwd=ROOT, stdout=subprocess.PIPE) for number in (0, 1)]
    assert [job.communicate()[0].strip() for job in jobs] == [b"[]", b"[]"]
    assert [job.returncode for job in jobs] == [0, 0]
    found = list(runs(Destination(uri=uri, experiment="sweep")).values())
    parents = [run for run in found if run.data.tags.get("sweep") == "parent"]
    assert len(parents) == 1
    assert len(found) == 3
    children = [run for run in found if run.data.tags.get("mlflow.parentRunId") == parents[0].info.run_id]
    assert len(children) == 2
    assert {run.info.status for run in found} == {"FINISHED"}


def test_a_failed_job_marks_the_sweep(destination: Destination, tmp_path: Path) -> None:
    follow(destination, tmp_path / "0", seed=0, sweep=tmp_path)
    failed = MlflowTracker(destination, 60)
    failed.start(make_run(tmp_path / "1", seed=1, sweep=tmp_path))
    failed.abort("failed", "CUDA out of memory")
    follow(destination, tmp_path / "2", seed=2, sweep=tmp_path)
    statuses = {
        run.data.tags.get("sweep", run.data.tags.get("seed")): run.info.status for run in runs(destination).values()
    }
    assert statuses == {"parent": "FAILED", "0": "FINISHED", "1": "FAILED", "2": "FINISHED"}


def test_the_ready_comparison_is_part_of_the_experiment(destination: Destination) -> None:
    store = connect(destination)
    state = json.loads(store.client.get_experiment(store.experiment_id).tags[VIEW_TAG])
    axes = [(chart["xaxis"]["key"], chart["yaxis"]["key"]) for chart in state["compareRunCharts"] if "xaxis" in chart]
    assert axes == [("epsilon", "final/test/auc")]
    assert {"epsilon", "final/test/auc"} <= final_metrics(make_result()).keys()


def test_an_embedded_store_in_a_folder_of_any_name(tmp_path: Path) -> None:
    folder = tmp_path / "what?now #1 %41 Zürich"
    folder.mkdir()
    destination = Destination(uri=embedded_uri(folder), experiment="x")
    assert not has_experiment(destination)
    connect(destination)
    assert {path.name for path in folder.iterdir()} >= {"mlflow.db"}
    assert list(tmp_path.iterdir()) == [folder], "nothing beside it"
    assert has_experiment(destination)
    fields = {"experiment": "x", "request_timeout": 1, "final_wait": 1, "owner_view": None}
    settled = MlflowTracking(uri="sqlite:///mlflow.db", **fields).settled(folder)
    assert settled.settled(tmp_path).uri == settled.uri == destination.uri


def test_drawn_images_have_an_experiment_of_their_own(destination: Destination, tmp_path: Path) -> None:
    info = follow(destination, tmp_path, rounds=1, synthetic=True)
    assert info["experiment"] == destination.experiment + "-synthetic"
    drawn = destination.model_copy(update={"experiment": info["experiment"]})
    assert has_experiment(drawn)
    assert not has_experiment(destination)
    assert len(runs(drawn)) == 1


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
    assert instantiate(config).tracker().info().keys() <= {"uri", "experiment"}
    assert (config._target_ == courier.TARGET) == (option == "mlflow")


def test_a_courier_and_a_tracker_are_made_without_heavy_imports() -> None:
    code = (
        "import sys; from medx.tracking import courier;"
        "courier.warm_up({'_target_': 'medx.tracking.none.NoTracking'}); assert not courier._COURIERS;"
        "print([m for m in ('pydantic', 'torch') if m in sys.modules]);"
        "from medx.tracking.mlflow import MlflowTracking;"
        "MlflowTracking(uri=None, experiment='x', request_timeout=1, final_wait=1, owner_view=None).tracker();"
        "print([m for m in ('mlflow', 'matplotlib', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split() == ["[]", "[]"]


def test_nothing_else_imports_mlflow() -> None:
    for path in (ROOT / "medx").rglob("*.py"):
        if path.parent.name == "tracking":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(name.split(".")[0] == "mlflow" for name in names), path


def test_progress_is_readable_json(destination: Destination, tmp_path: Path) -> None:
    info = follow(destination, tmp_path / "job")
    content = json.loads((tmp_path / "job" / "tracking" / "delivered.json").read_text())
    assert content[destination.key] == {"run_id": info["run_id"], "entries": 5, "last_round": 3}
