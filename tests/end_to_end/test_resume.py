"""Killed at any moment and resumed: the same result to the bit, and a ledger that never shows less."""

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from medx.federation.checkpoint import checkpoints
from tests.program import TINY, Ran, call

SIGNALLED = """
import os, sys
from medx.federation.hospital import Hospital

kind, when = int(sys.argv.pop()), int(sys.argv.pop())
train = Hospital.train

def signalled(hospital, state, number):
    update = train(hospital, state, number)
    if (number, hospital.client) == (when, 1):
        os.kill(os.getpid(), kind)
    return update

Hospital.train = signalled
import medx.run

medx.run.main()
"""


def run_until(folder: Path, number: int, kind: signal.Signals, *overrides: str) -> subprocess.CompletedProcess[str]:
    """Run in a process of its own, which gets a signal while hospital 1 trains in this round."""
    where = [f"hydra.run.dir={folder}", *overrides]
    command = [sys.executable, "-c", SIGNALLED, *TINY, *where, str(number), str(int(kind))]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False, env=dict(os.environ))


def ledger_steps(folder: Path) -> list[int]:
    """Steps that every hospital's ledger shows as begun."""
    steps = []
    for path in sorted(folder.glob("client_*.sqlite")):
        with sqlite3.connect(path) as database:
            steps.append(int(database.execute("SELECT total(steps) FROM rounds").fetchone()[0]))
    return steps


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of five rounds that kill -9 ended in round 3."""
    folder = tmp_path_factory.mktemp("killed")
    ended = run_until(folder, 3, signal.SIGKILL, "federation.num_rounds=5")
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    return folder


@pytest.fixture
def copied(killed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(killed, tmp_path / "killed"))


def test_the_ledger_shows_what_a_killed_run_had_begun(killed: Path) -> None:
    steps = ledger_steps(killed / "ledger")
    assert steps[1] == 6  # three rounds of two steps, the third not committed
    assert min(steps) >= 4
    assert [path.name for path in checkpoints(killed / "checkpoints")] == ["round_00002", "round_00001"]
    assert not (killed / "result.json").exists()


@pytest.mark.parametrize("overrides", [(), (*TINY, "federation.num_rounds=5")], ids=["alone", "with the overrides"])
def test_resumed_run_ends_as_if_never_killed(copied: Path, reference: Ran, overrides: tuple[str, ...]) -> None:
    resumed = call(copied, f"resume={copied}", *overrides, base=())
    assert resumed.code == 0, resumed.err
    result, whole = resumed.result, reference.result
    assert result.status == "finished"
    assert result.test == whole.test
    assert result.validation == whole.validation
    assert result.config_hash == whole.config_hash
    assert [(r.round, r.metrics, r.epsilon) for r in result.rounds] == [
        (r.round, r.metrics, r.epsilon) for r in whole.rounds
    ]
    assert result.privacy.clients == whole.privacy.clients
    assert ledger_steps(copied / "ledger") == [10, 10, 10]


def test_a_round_done_again_with_other_noise_is_charged_again(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hospitals 0 and 1 had begun round 3; by another version of torch the same model gets other noise there."""
    monkeypatch.setattr("medx.federation.setup._computed_by", lambda device: ("9.9", device))
    before = ledger_steps(copied / "ledger")
    resumed = call(copied, f"resume={copied}", base=())
    assert before[:2] == [6, 6]
    assert resumed.result.status == "budget_exhausted", "a round too few is left of what was reserved"
    assert ledger_steps(copied / "ledger") == [client.steps for client in resumed.result.privacy.clients] == [10] * 3
    assert len(resumed.result.rounds) == 4


def test_other_data_are_refused(copied: Path) -> None:
    newest = checkpoints(copied / "checkpoints")[0] / "state.json"
    state = json.loads(newest.read_text())
    assert len(state["data"]) == 64
    newest.write_text(json.dumps(state | {"data": 64 * "0"}))
    ran = call(copied, f"resume={copied}", base=())
    assert ran.code == 2
    assert "the data, or which hospital has which of them, are not those that the run began with" in ran.err
    newest.write_text(json.dumps({key: value for key, value in state.items() if key != "data"}))
    assert call(copied, f"resume={copied}", base=()).code == 0, "a checkpoint of an earlier version"


def test_killed_before_the_first_checkpoint(tmp_path: Path, reference: Ran) -> None:
    # As after kill -9 in round 1: the set-up is written, nothing else.
    folder = tmp_path / "run"
    folder.mkdir()
    shutil.copy(reference.folder / "config.json", folder)
    resumed = call(folder, f"resume={folder}", base=())
    assert resumed.code == 0, resumed.err
    assert resumed.result.test == reference.result.test


def test_resume_of_a_finished_run_repeats_its_result(tmp_path: Path, reference: Ran) -> None:
    folder = Path(shutil.copytree(reference.folder, tmp_path / "run"))
    again = call(folder, f"resume={folder}", base=())
    assert again.code == 0, again.err
    assert again.result.test == reference.result.test
    assert again.result.privacy == reference.result.privacy
    assert len(again.result.rounds) == 5
    assert ledger_steps(folder / "ledger") == [10, 10, 10]


def test_changed_configuration_is_refused_with_the_difference(copied: Path) -> None:
    ran = call(copied / "new", f"resume={copied}", "privacy.epsilon=3", base=())
    assert "privacy.epsilon: 10.0 in the run, 3.0 now" in ran.refusal
    ran = call(copied / "new", f"resume={copied}", "model=scatternet", base=())
    assert "model._target_: 'medx.model.cnn.Cnn' in the run" in ran.refusal
    assert not (copied / "result.json").exists()


@pytest.mark.parametrize("damage", ["cut", "flipped", "no state"])
def test_corrupt_checkpoint_falls_back_to_the_one_before(copied: Path, reference: Ran, damage: str) -> None:
    newest = checkpoints(copied / "checkpoints")[0]
    path = newest / ("state.json" if damage == "no state" else "tensors.safetensors")
    content = bytearray(path.read_bytes())
    if damage == "flipped":
        content[-100] ^= 1
    else:
        content = content[: len(content) // 2]
    path.write_bytes(content)
    resumed = call(copied, f"resume={copied}", base=())
    assert resumed.code == 0, resumed.err
    assert "round_00002 cannot be read" in resumed.err
    assert "falling back to the one before" in resumed.err
    assert resumed.result.test == reference.result.test


def test_no_readable_checkpoint_is_refused(copied: Path) -> None:
    for path in checkpoints(copied / "checkpoints"):
        (path / "state.json").write_text("{}")
    ran = call(copied / "new", f"resume={copied}", base=())
    assert ran.code == 2
    assert "no readable checkpoint" in ran.err.splitlines()[-1]
    assert not (copied / "result.json").exists()


@pytest.mark.parametrize("damage", ["missing", "corrupt"])
def test_ledger_that_is_missing_or_corrupt_is_refused(copied: Path, damage: str) -> None:
    for path in (copied / "ledger").glob("client_0001.sqlite*"):
        path.unlink()
    if damage == "corrupt":
        (copied / "ledger" / "client_0001.sqlite").write_bytes(b"SQLite format 3\x00" + bytes(5000))
    ran = call(copied / "new", f"resume={copied}", base=())
    assert ran.code == 2
    line = ran.err.splitlines()[-1]
    assert "client_0001.sqlite" in line
    assert ("is missing, and this run had one" if damage == "missing" else "ledger") in line
    assert not (copied / "result.json").exists()
    assert (copied / "ledger" / "client_0001.sqlite").exists() == (damage == "corrupt")  # none is made silently


def test_noise_of_the_system_is_charged_again_and_stops_before_it_overspends(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    first = call(folder, "privacy.noise_source=system", "privacy.spare_rounds=0")
    assert first.code == 0, first.err
    shutil.rmtree(folder / "checkpoints" / "round_00002")
    again = call(folder, f"resume={folder}", base=())
    assert again.code == 1
    assert again.result.status == "budget_exhausted"
    assert "round 2" in str(again.result.error)
    assert ledger_steps(folder / "ledger") == [4, 4, 4]
    assert again.result.privacy.epsilon is not None
    assert again.result.privacy.epsilon <= 10


def test_a_reserve_lets_a_run_finish_and_rounds_show_what_ledgers_hold(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    first = call(folder, "privacy.noise_source=system", "federation.num_rounds=3")
    assert first.code == 0, first.err
    assert first.result.privacy.epsilon is not None
    assert first.result.privacy.epsilon < 9.2  # of 10: three rounds of the four that the noise covers
    assert "covers 4 rounds, 1 more than planned" in first.result.privacy.statement
    shutil.rmtree(folder / "checkpoints" / "round_00003")
    again = call(folder, f"resume={folder}", base=())
    assert again.code == 0, again.err
    assert ledger_steps(folder / "ledger") == [8, 8, 8]
    assert again.result.rounds[-1].epsilon == pytest.approx(again.result.privacy.epsilon)
    assert 9.85 < again.result.privacy.epsilon <= 10  # type: ignore[operator]
    shutil.rmtree(folder / "checkpoints" / "round_00003")
    stopped = call(folder, f"resume={folder}", base=())
    assert stopped.result.status == "budget_exhausted"
    assert "privacy.spare_rounds" in str(stopped.result.error)
    assert stopped.result.privacy.epsilon == again.result.privacy.epsilon


def test_ctrl_c_marks_the_run_as_killed(tmp_path: Path, reference: Ran) -> None:
    ended = run_until(tmp_path, 3, signal.SIGINT, "federation.num_rounds=5")
    assert ended.returncode == 130, ended.stderr
    assert "Traceback" not in ended.stderr
    ran = Ran(130, ended.stdout, ended.stderr, tmp_path)
    assert ran.result.status == "killed"
    assert len(ran.result.rounds) == 2
    assert checkpoints(tmp_path / "checkpoints")[0].name == "round_00002"
    spent = [client.steps for client in ran.result.privacy.clients]
    assert spent[1] == 6
    assert spent == ledger_steps(tmp_path / "ledger")
    resumed = call(tmp_path, f"resume={tmp_path}", base=())
    assert resumed.result.status == "finished"
    assert resumed.result.test == reference.result.test
