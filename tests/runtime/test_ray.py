"""Flower's simulation on Ray gives what the same clients give in this process, quietly, and is gone afterwards."""

import pickle
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, cast

import pytest

from medx.results import ExperimentResult
from medx.runtime.ray import Carried, Ray, stop_waiting_when, wait_for_nodes
from medx.schema import ConfigError
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


def test_an_app_travels_as_bytes_and_is_unpickled_once_in_a_worker() -> None:
    apps = [pickle.dumps(Carried(pickle.dumps({"app": number}))) for number in range(2)]
    first, again, other = (cast(Any, pickle.loads(apps[number])) for number in (0, 0, 1))
    assert (first, other) == ({"app": 0}, {"app": 1})
    assert again is first


def test_the_cores_of_a_cluster_are_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray itself would say so only once all is loaded."""
    Ray(timeout=None, num_cpus=1, client_cpus=1, client_gpus=0).check()
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    Ray(timeout=None, num_cpus=None, client_cpus=1, client_gpus=0).check()
    with pytest.raises(ConfigError, match="num_cpus=1: a cluster"):
        Ray(timeout=None, num_cpus=1, client_cpus=1, client_gpus=0).check()


def lines_of(out: str) -> list[list[str]]:
    """What was printed but for times and folders, and for what each prepares in its own way."""
    own = ("preparing", "accounting", "Output")
    timeless = re.sub(r"seconds [0-9.]+", "seconds", out)
    return [line.split()[:5] for line in timeless.splitlines() if not line.startswith(own)]


@pytest.mark.parametrize(
    ("given", "cause"),
    [
        ({"client_cpus": 3.0}, r"runtime.client_cpus=3: .* there are 2 \(runtime.num_cpus\)"),
        ({"client_cpus": 1e6, "num_cpus": None}, r"runtime.client_cpus=1e\+06: .*CPU cores here"),
        ({"client_gpus": 1000.0}, r"runtime.client_gpus=1000: .* \(GPUs here"),
        ({"num_cpus": 1000}, r"runtime.num_cpus=1000: this machine has 2 CPU cores"),
    ],
)
def test_more_for_a_client_than_there_is_is_refused(
    given: dict[str, Any], cause: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray._private.utils.get_num_cpus", lambda: 2)
    usual: dict[str, Any] = {"timeout": None, "num_cpus": 2, "client_cpus": 2.0, "client_gpus": 0.0}
    Ray(**usual).check()
    with pytest.raises(ConfigError, match=f"{cause}.*; accepted: at most"):
        Ray(**(usual | given)).check()


def test_ray_equals_in_process(tmp_path: Path) -> None:
    """With secure sums: between stages a client's state lies in Flower's context, and its ledger in its own file."""
    secure = tuple(part for part in TINY if not part.startswith("trainer."))
    secure = (*secure, "privacy=distributed_dp", "privacy.delta=1e-3", "trainer.expected_batch_size=null",
              "trainer.sampling_probability=0.5", "federation.num_rounds=2")  # fmt: skip
    here = call(tmp_path / "here", base=secure)
    assert here.code == 0, here.err
    overrides = ("runtime=ray", "runtime.num_cpus=1", f"hydra.run.dir={tmp_path / 'ray'}")
    command = [sys.executable, "-c", AFTERWARDS, *secure, *overrides]
    there = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert there.returncode == 0, there.stderr
    assert there.stderr == ""
    assert lines_of(there.stdout) == lines_of(here.out)  # nothing of Ray's or Flower's
    first, second = here.result, ExperimentResult.load(tmp_path / "ray" / "result.json")
    assert set(first.test) == set(second.test)
    for name, interval in first.test.items():
        assert second.test[name].value == pytest.approx(interval.value, abs=1e-6), name
    assert second.privacy.clients == first.privacy.clients
    assert [record.epsilon for record in second.rounds] == [record.epsilon for record in first.rounds]
