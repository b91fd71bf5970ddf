"""Flower's simulation on Ray gives what the same clients give in this process, quietly, and is gone afterwards."""

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, cast

import pytest

from medx.results import ExperimentResult
from medx.runtime.ray import stop_waiting_when, wait_for_nodes
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


def test_a_stopped_simulation_waits_for_no_answer() -> None:
    class Silent:
        def pull_messages(self, message_ids: list[str]) -> list[str]:
            return message_ids

    grid, stopped = Silent(), threading.Event()
    stop_waiting_when(stopped, cast(Any, grid))
    assert grid.pull_messages(["a"]) == ["a"]
    stopped.set()
    with pytest.raises(KeyboardInterrupt):
        grid.pull_messages(["a"])


def test_the_server_waits_until_all_clients_are_there_but_not_for_ever() -> None:
    class Slow:
        asked = 0

        def get_node_ids(self) -> list[int]:
            self.asked += 1
            return list(range(self.asked))

    grid = Slow()
    wait_for_nodes(cast(Any, grid), 4)
    assert grid.asked == 4
    grid.get_node_ids = lambda: [1]  # type: ignore[method-assign]
    wait_for_nodes(cast(Any, grid), 4, patience=0.2)


def test_ray_equals_in_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDX_CACHE", str(tmp_path / "cache"))
    here = call(tmp_path / "here")
    assert here.code == 0, here.err
    overrides = ("runtime=ray", "runtime.num_cpus=2", f"hydra.run.dir={tmp_path / 'ray'}")
    command = [sys.executable, "-c", AFTERWARDS, *TINY, *overrides]
    there = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert there.returncode == 0, there.stderr
    assert there.stderr == ""
    assert [line.split()[:5] for line in there.stdout.splitlines()] == [
        line.split()[:5] for line in here.out.splitlines()
    ]  # the same lines but for times: nothing of Ray's or Flower's
    first, second = here.result, ExperimentResult.load(tmp_path / "ray" / "result.json")
    assert set(first.test) == set(second.test)
    for name, interval in first.test.items():
        assert second.test[name].value == pytest.approx(interval.value, abs=1e-6), name
    assert second.privacy.clients == first.privacy.clients
