"""The short version of ``python -m tests.kill``, and that its judgement rejects what states too little."""

import subprocess
import sys
from pathlib import Path

from tests.kill import judged
from tests.program import Ran

ROOT = Path(__file__).resolve().parents[2]


def test_killed_and_gone_on_with_a_run_states_what_its_ledgers_hold() -> None:
    command = [sys.executable, "-m", "tests.kill", "--runs", "2", "--seed", "3", "--longest", "0.5"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False, cwd=ROOT)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "2 runs killed and gone on with, 0 of them wrong" in ended.stdout


def test_a_result_that_states_too_little_is_wrong(reference: Ran) -> None:
    result, run = reference.result, str(reference.result.run)
    assert judged("", result, run, reference.folder).problem is None
    less = result.model_copy(update={"privacy": result.privacy.model_copy(update={"epsilon": 6.28})})
    assert judged("", less, run, reference.folder).problem == "it states less than the ledgers hold"
    assert "folder of" in str(judged("", result, "1" * 32, reference.folder).problem)
