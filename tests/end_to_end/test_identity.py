"""Which run is this: a folder belongs to one run, known by an id that moves with it, and its spending with it."""

import json
import multiprocessing
import re
import shutil
import signal
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from medx.federation.checkpoint import checkpoints
from medx.folder import RunFolder, read_config
from medx.model.export import load_model
from medx.schema import CONF, ConfigError
from tests.end_to_end.test_resume import ledger_steps, run_until
from tests.program import TINY, Ran, call, call_plainly


def began(folder: Path) -> str:
    return str(json.loads((folder / "config.json").read_text())["started"])


def contents(folder: Path) -> dict[Path, bytes]:
    """Every file below a folder, but for what SQLite keeps while a file of it is open."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix not in (".sqlite-shm", ".sqlite-wal")]
    return {path: path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of five rounds with noise of the system that kill -9 ended in round 3, with a second attempt at none."""
    folder = tmp_path_factory.mktemp("stopped") / "scratch"
    system = ("privacy.noise_source=system", "privacy.spare_rounds=0")
    overrides = ("federation.num_rounds=5", "federation.min_clients=3", *system)
    assert run_until(folder, 3, signal.SIGKILL, *overrides).returncode == -signal.SIGKILL
    return folder


def test_everything_that_a_run_leaves_carries_its_id(reference: Ran) -> None:
    run, config_hash, config = read_config(reference.folder)
    result = reference.result
    assert len(run) == 32
    assert (result.run, result.config_hash, result.config) == (run, config_hash, config)
    assert result.started == began(reference.folder)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", result.started)
    for path in checkpoints(reference.folder / "checkpoints"):
        state = json.loads((path / "state.json").read_text())
        assert state["run"] == run
    assert state["charged"] == {"0": 8, "1": 8, "2": 8}
    assert load_model(reference.folder / "model.safetensors").metadata["run"] == run
    for path in (reference.folder / "ledger").glob("*.sqlite"):
        with closing(sqlite3.connect(path)) as database:
            assert database.execute("SELECT run_id FROM runs").fetchall() == [(run,)]


def test_a_folder_of_another_run_is_refused_and_left_as_it_was(reference: Ran) -> None:
    before = contents(reference.folder)
    ran = call(reference.folder, "seed=2")
    assert ran.code == 2
    (line,) = ran.err.splitlines()
    assert f"run {reference.result.run} has used this folder" in line
    assert f"resume={reference.folder}" in line
    assert contents(reference.folder) == before


def claim(folder: Path, results: Any, barrier: Any) -> None:
    place = RunFolder.new(folder, "0" * 16)
    barrier.wait()
    try:
        place.occupy({"seed": 1})
        results.put(place.run)
    except ConfigError as error:
        results.put(str(error))
    barrier.wait()


def test_of_runs_that_begin_at_once_in_one_folder_one_gets_it(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    results, barrier = context.Queue(), context.Barrier(4)
    processes = [context.Process(target=claim, args=(tmp_path / "out", results, barrier)) for _ in range(4)]
    for process in processes:
        process.start()
    told = [results.get(timeout=30) for _ in processes]
    for process in processes:
        process.join(30)
    (winner,) = [text for text in told if len(text) == 32]
    assert read_config(tmp_path / "out")[0] == winner
    assert all("has used this folder" in text for text in told if text != winner)
    assert [path.name for path in (tmp_path / "out").iterdir() if path.name != ".lock"] == ["config.json"]


def test_default_folders_of_one_second_differ() -> None:
    text = (CONF / "config.yaml").read_text()
    assert text.count("%H-%M-%S-%f") == 2


def test_a_run_that_still_runs_is_not_gone_on_with(tmp_path: Path, reference: Ran) -> None:
    folder = Path(shutil.copytree(reference.folder, tmp_path / "run"))
    place = RunFolder.of(folder, reference.result.config_hash)
    ran = call(folder, f"resume={folder}", base=())
    assert ran.code == 2
    assert "is running there" in ran.err
    place.release()
    RunFolder.of(folder, reference.result.config_hash).release()


def resumed(stopped: Path, tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch) -> Ran:
    """The stopped run's copy gone on with after it was moved, by a link, or from within."""
    folder = tmp_path / "archive" / "run"
    shutil.copytree(stopped, folder)
    if how == "linked":
        (tmp_path / "link").symlink_to(folder)
        monkeypatch.chdir(tmp_path)
        return call_plainly(folder, "resume=link")
    monkeypatch.chdir(folder)
    return call_plainly(folder, "resume=." if how == "from within" else f"resume={folder}")


@pytest.mark.parametrize("how", ["moved", "linked", "from within"])
def test_a_run_that_moved_goes_on_with_its_own_ledgers(
    stopped: Path, tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = ledger_steps(stopped / "ledger")
    assert before[1] == 6
    ran = resumed(stopped, tmp_path, how, monkeypatch)
    result = ran.result
    assert result.run == read_config(stopped)[0]
    assert result.started == began(stopped), "it is the run that is gone on with"
    spent = ledger_steps(ran.folder / "ledger")
    # Round 3 is charged again, so the last round finds no room: the run ends there, and says what was spent.
    assert (result.status, ran.code) == ("budget_exhausted", 1)
    assert [client.steps for client in result.privacy.clients] == spent
    assert spent[1] == 10
    assert Path(str(result.checkpoint)) == ran.folder.resolve() / "model.safetensors"
    again = call_plainly(ran.folder, f"resume={ran.folder}").result
    assert again.privacy.epsilon == result.privacy.epsilon > 9
    assert [path.name for path in tmp_path.iterdir() if path.name not in ("archive", "link")] == []


@pytest.mark.parametrize("damage", ["of another run", "from before", "gone"])
def test_a_ledger_without_the_runs_entries_is_refused(stopped: Path, tmp_path: Path, damage: str) -> None:
    folder = Path(shutil.copytree(stopped, tmp_path / "run"))
    ledger = folder / "ledger" / "client_0002.sqlite"
    if damage == "gone":
        shutil.rmtree(folder / "ledger")
    else:
        with sqlite3.connect(ledger) as database:
            if damage == "of another run":
                database.execute("UPDATE rounds SET run_id = ?", ("1" * 32,))
                database.execute("UPDATE runs SET run_id = ?", ("1" * 32,))
            else:
                database.execute("DELETE FROM rounds WHERE round > 1")
    ran = call(folder, f"resume={folder}", base=())
    assert ran.code == 2
    line = ran.err.splitlines()[-1]
    run = read_config(folder)[0]
    expected = {
        "of another run": f"client_0002.sqlite has no entry of run {run}, which had begun at least 4 steps",
        "from before": f"client_0002.sqlite has 2 steps of run {run}, which had begun at least 4 steps",
        "gone": "is missing, and this run had one",
    }
    assert expected[damage] in line
    assert not (folder / "result.json").exists()


@pytest.mark.parametrize("part", ["checkpoints", "config.json", "result.json"])
def test_a_part_of_another_run_is_refused(reference: Ran, stopped: Path, tmp_path: Path, part: str) -> None:
    folder = Path(shutil.copytree(reference.folder, tmp_path / "run"))
    if part == "checkpoints":
        shutil.rmtree(folder / part)
        shutil.copytree(stopped / part, folder / part)
    elif part == "config.json":
        saved = json.loads((folder / part).read_text())
        saved["federation"]["num_rounds"] = 6
        (folder / part).write_text(json.dumps(saved))
    else:
        other = reference.result.model_copy(update={"run": "1" * 32})
        other.save(folder / part)
    ran = call(folder, f"resume={folder}", base=())
    assert ran.code == 2
    (line,) = ran.err.splitlines()
    assert "run" in line
    assert reference.result.run in line


def test_a_run_killed_before_its_first_checkpoint_starts_anew_under_its_id(tmp_path: Path, stopped: Path) -> None:
    folder = Path(shutil.copytree(stopped, tmp_path / "run"))
    shutil.rmtree(folder / "checkpoints")  # what was charged stays charged
    ran = call(folder, f"resume={folder}", base=())
    assert ran.result.run == read_config(stopped)[0]
    assert ran.result.status == "budget_exhausted"
    assert [client.steps for client in ran.result.privacy.clients] == ledger_steps(folder / "ledger")


def test_runs_of_one_configuration_are_charged_each_in_a_common_ledger(tmp_path: Path) -> None:
    ledger = (f"privacy.ledger={tmp_path / 'ledger'}", "privacy.budget=12")
    first = call(tmp_path / "first", *ledger)
    assert first.code == 0, first.err
    second = call(tmp_path / "second", *ledger)
    assert second.code == 2
    assert "budget=12" in second.err


def test_a_relative_ledger_is_one_ledger_wherever_jobs_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    limit = ("privacy.ledger=ledger", "privacy.budget=12")
    ran = call(tmp_path / "sweep", "seed=0,1", *limit, "hydra.job.chdir=true", "-m")
    assert ran.code == 2
    assert ran.err == (
        "medx: hydra.job.chdir=true: ledgers, data and the tracking store are found from the directory in which the "
        "program is started; accepted: false\n"
    )
    assert list(tmp_path.iterdir()) == []
    assert call(tmp_path / "first", *limit).code == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    again = call_plainly(tmp_path / "first", "resume=../first")
    assert again.code == 0, again.err
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_record_of_mlflow_is_found_again_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    monkeypatch.chdir(tmp_path)
    base = tuple(part for part in TINY if not part.startswith("tracking"))
    first = call_plainly(tmp_path / "out", *base, "hydra.run.dir=out")
    assert first.code == 0, first.err
    recorded = first.result.tracking
    shutil.move(tmp_path / "out", tmp_path / "moved")
    (tmp_path / "moved" / "tracking" / "synced.json").unlink()  # the store is asked for the run by its id
    monkeypatch.chdir(tmp_path / "moved")
    again = call_plainly(tmp_path / "moved", "resume=.")
    assert again.code == 0, again.err
    assert not list((tmp_path / "moved").glob("mlflow.db"))
    assert again.result.tracking == recorded
    client = MlflowClient(tracking_uri=again.result.tracking["uri"])
    (run,) = client.search_runs([client.get_experiment_by_name("medx-synthetic").experiment_id])
    assert run.data.tags["run"] == run.data.tags["job"] == again.result.run
    assert run.data.tags["output_dir"] == str(tmp_path / "moved")
    assert run.info.status == "FINISHED"
    kept = {each.path for each in client.list_artifacts(run.info.run_id, "checkpoint")}
    assert kept == {"checkpoint/model.safetensors"}
    assert [path.name for path in tmp_path.rglob("mlflow.db")] == ["mlflow.db"]
