"""The library: what ``import medx`` gives does what the commands do, and leaves the process as it found it."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pandas as pd
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

import medx
from medx import output
from medx.results import ExperimentResult
from medx.schema import CONF, CheckpointError, ConfigError, DataError
from tests.program import TINY, call


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the library has run the tiny experiment."""
    place = tmp_path_factory.mktemp("library") / "run"
    medx.run(*TINY, folder=place, quiet=True)
    return place


def comparable(result: ExperimentResult) -> dict[str, object]:
    """What does not differ between two runs of one configuration: all but times, paths and ids."""
    kept = result.model_dump(exclude={"run", "started", "timing", "checkpoint", "config", "environment"})
    return kept | {"rounds": [record | {"seconds": None} for record in kept["rounds"]]}


def test_a_run_is_the_commands(folder: Path, tmp_path: Path) -> None:
    assert comparable(medx.load_result(folder)) == comparable(call(tmp_path / "command", *()).result)
    assert {path.name for path in folder.iterdir()} == {path.name for path in (tmp_path / "command").iterdir()}


def test_leaves_the_process_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MEDX_CACHE", raising=False)

    def state() -> tuple[object, ...]:
        handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
        streams = (sys.stdout, sys.stderr, tuple(sys.argv))
        threads = (torch.get_num_threads(), set(threading.enumerate()), output.shown_by(*output.shown_by()))
        return handlers, streams, threads, Path.cwd(), dict(os.environ)

    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):  # of a program that uses Hydra itself
        outer, before = GlobalHydra.instance().hydra, state()
        medx.run(*TINY, "cache=cache", "hydra.run.dir=mine", quiet=True)
        with pytest.raises(medx.MedxError):
            medx.run(*TINY, "privacy.epsilon=-1")
        assert capfd.readouterr().out == ""
        assert state() == before
        assert GlobalHydra.instance().hydra is not None
        assert compose("config", ["seed=3"]).seed == 3
    assert outer is not None
    assert not GlobalHydra.instance().is_initialized()
    assert (tmp_path / "mine" / "result.json").exists()


@pytest.mark.parametrize(
    ("overrides", "kind", "words"),
    [
        (["mdel=cnn"], ConfigError, "mdel is unknown; did you mean model"),
        (["privacy.epsilon=1,2"], ConfigError, "privacy.epsilon=1,2: several values; call medx.sweep to run"),
        (["privacy=[local_dp,none]"], ConfigError, "a group takes one option"),
        (["experiment=demo"], ConfigError, "this is a sweep; accepted: medx.sweep"),
        (["-m"], ConfigError, "-m: not an override"),
        (["privacy.epsilon=0"], ConfigError, "privacy.epsilon=0: "),
        (["resume=nowhere"], CheckpointError, "no config.json there"),
    ],
)
def test_a_mistake_is_an_exception_of_one_line(
    overrides: list[str], kind: type[medx.MedxError], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(kind) as raised:
        medx.run(*TINY, *overrides)
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not list(tmp_path.iterdir())


def test_a_used_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has used this folder"):
        medx.run(*TINY, folder=folder, quiet=True)
    with pytest.raises(ConfigError, match="goes on in its own folder"):
        medx.run(f"resume={folder}", folder=tmp_path, quiet=True)
    with pytest.raises(ConfigError, match="no such folder"):
        medx.run(*TINY, config_dir=tmp_path / "none", quiet=True)


def test_resumes(folder: Path) -> None:
    """A run that has finished gives its result again."""
    result = medx.run(f"resume={folder}", quiet=True)
    assert comparable(result) == comparable(medx.load_result(folder))
    assert medx.compose(f"resume={folder}").federation.num_clients == 3


def test_what_the_user_stops_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A loop over runs must end there, and the run's files are in order."""

    def stop(*given: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("medx.runtime.in_process.InProcess.run", stop)
    with pytest.raises(KeyboardInterrupt):
        medx.run(*TINY, folder=tmp_path / "run")
    assert medx.load_result(tmp_path / "run").status == "killed"
    assert "resume=" in capsys.readouterr().out


def test_shows_no_flood(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a terminal a slow step is one line, and rounds are about ten."""
    medx.run(*TINY, "federation.num_rounds=40", "trainer.local_steps=1", folder=tmp_path / "loud")
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("round ") for line in lines) <= 12
    assert len(lines) < 50
    with medx.api._progress(quiet=False):
        for count in range(5):
            output.say(f"preparing: features: {count} of 5")
    assert capsys.readouterr().out == "preparing: features\n"


def test_sweeps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In processes of their own; a job that fails is an exception that has the others' results."""
    with pytest.raises(medx.SweepError, match=r"job 1: privacy.epsilon=-3: accepted") as raised:
        medx.sweep(*TINY, "privacy.epsilon=10,-3,3", folder=tmp_path / "it's a sweep")
    results = raised.value.results
    assert [result.privacy.target_epsilon for result in results] == [10, 3]
    assert "3 of 3 done" in capsys.readouterr().out
    assert medx.load_results(tmp_path / "it's a sweep") == results
    runs, rounds = results.to_frame(), results.to_frame("rounds")
    assert list(runs["target_epsilon"]) == [10, 3]
    assert list(runs["auc"]) == [result.test["auc"].value for result in results]
    assert list(rounds["run"]) == [0, 0, 1, 1]
    assert list(rounds["epsilon"]) == [record.epsilon for result in results for record in result.rounds]
    assert list(rounds["validation/auc"]) == [r.metrics["validation/auc"] for result in results for r in result.rounds]
    with pytest.raises(medx.MedxError, match="another sweep has used this folder"):
        medx.sweep(*TINY, "privacy.epsilon=10,3", folder=tmp_path / "it's a sweep", quiet=True)


def test_reads_what_runs_left(folder: Path, tmp_path: Path) -> None:
    result = medx.load_result(folder / "result.json")
    frame = medx.to_frame(result)
    assert isinstance(frame, pd.DataFrame)
    assert frame.shape[0] == 1
    assert medx.to_frame([]).empty
    assert medx.load_result(folder / "released.json").view == "released"
    model = medx.load_model(folder)
    assert model.metadata["run"] == result.run
    assert not model.training
    for wrong in (medx.load_result, medx.load_model, medx.load_results):
        with pytest.raises(DataError, match="accepted: "):
            wrong(tmp_path)
    (tmp_path / "result.json").write_text("{}")
    with pytest.raises(DataError, match="not a result of this version"):
        medx.load_result(tmp_path)


def test_composes_with_options_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "it's" / "privacy").mkdir(parents=True)
    own = (CONF / "privacy" / "local_dp.yaml").read_text().replace("epsilon: 10", "epsilon: 2")
    (tmp_path / "it's" / "privacy" / "strict.yaml").write_text(own)
    experiment = medx.compose("privacy=strict", config_dir=tmp_path / "it's")
    assert isinstance(experiment, medx.Experiment)
    assert getattr(experiment.privacy, "epsilon", None) == 2
    with pytest.raises(ConfigError, match="privacy=strict is unknown"):
        medx.compose("privacy=strict")


@pytest.mark.parametrize(
    "program",
    [
        "import medx; call = medx.run; import medx.run; again = medx.run",
        "import medx.run; call = medx.run; from medx import run as again",
        "from medx import run as call; from medx.run import main; import medx; again = medx.run",
    ],
)
def test_the_function_and_the_commands_module_share_a_name(program: str) -> None:
    """In whatever order they are imported, ``medx.run`` can be called and ``python -m medx.run`` is the command."""
    calls = """
for function in (call, again):
    try:
        function("mdel=cnn")
    except medx.MedxError as error:
        print(error)
"""
    ran = subprocess.run(
        [sys.executable, "-c", f"{program}\n{calls}"], capture_output=True, text=True, check=True, env=os.environ
    )
    first, second = ran.stdout.splitlines()
    assert first == second
    assert first.startswith("mdel is unknown; did you mean model, ")


def test_every_name_is_documented() -> None:
    assert set(medx.__all__) <= set(dir(medx))
    for name in medx.__all__:
        assert getattr(medx, name).__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'rum'"):
        getattr(medx, "rum")  # noqa: B009  # as a person would write it
