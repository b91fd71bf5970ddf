"""What the examples' pages say to type, typed as it stands there, in a copy of their folders."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from medx.privacy.ledger import PrivacyLedger
from medx.results import ExperimentResult
from medx.schema import CheckpointError
from tests.audit import recompute

TREE = Path(__file__).parents[2]
Typed = Callable[[str], list[subprocess.CompletedProcess[str]]]


@pytest.fixture
def typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Typed:
    """A function of an example's name that types all blocks of its page, one after another, in a folder of its own."""

    def every(name: str) -> list[subprocess.CompletedProcess[str]]:
        folder = tmp_path / name
        shutil.copytree(TREE / "examples" / name, folder)
        monkeypatch.chdir(folder)
        blocks = re.findall(r"```(sh|python)\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
        return [run(kind, text) for kind, text in blocks]

    def run(kind: str, text: str) -> subprocess.CompletedProcess[str]:
        command = ["bash", "-ec", text] if kind == "sh" else ["python", "-c", text]
        paths = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        environment = {**os.environ, "PATH": paths, "PYTHONPATH": str(TREE)}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    return every


def refusal(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 2, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if "UserWarning" not in line and "warn" not in line]
    assert line.startswith("medx: ")
    return line


def test_a_mechanism_of_ones_own_runs_is_booked_and_tells_what_it_is(typed: Typed) -> None:
    trained, told, refused = typed("custom_mechanism")
    assert trained.returncode == 0, trained.stderr
    assert "fixed_noise" in trained.stdout
    privacy = ExperimentResult.load(Path("run/result.json")).privacy
    assert {client.noise_multiplier for client in privacy.clients} == {3.0}
    assert privacy.epsilon == pytest.approx(recompute(privacy.clients, 1e-5)["prv"])
    assert told.stdout.startswith(f"fixed_noise {privacy.epsilon}\n{privacy.statement}\n{{"), told.stderr
    assert "'mechanism': 'fixed_noise'" in told.stdout.splitlines()[-1]
    for words in (
        "with the noise that was asked for",
        "the noise was given, and covers no more than epsilon",
        "Unit: one record",
    ):
        assert words in privacy.statement
    assert "budget=5 at delta=1e-05 would be exceeded" in refusal(refused)
    for client in privacy.clients:
        with closing(PrivacyLedger(Path(f"ledgers/client_{client.client:04d}.sqlite"), create=False)) as ledger:
            assert [(entry.event[0].noise_multiplier, entry.event[1]) for entry in ledger.entries()] == [(3.0, 6)]
            assert client.steps == 6


def test_a_model_of_ones_own_trains_comes_back_and_may_not_couple_records(typed: Typed) -> None:
    trained, loaded, refused = typed("custom_model")
    assert trained.returncode == 0, trained.stderr
    assert ExperimentResult.load(Path("run/result.json")).model["name"] == "tiny_cnn"
    assert loaded.stdout.startswith("tensor([["), loaded.stderr
    said = re.findall(r"```text\n(.*?)\n```", Path("README.md").read_text(), re.DOTALL)
    assert said == [refusal(refused)]
    from medx.model.export import load_model

    with pytest.raises(CheckpointError, match="model/tiny_cnn: no component of this version"):
        load_model("run/model.safetensors")
