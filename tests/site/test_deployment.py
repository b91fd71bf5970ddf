"""The same study on real processes: SuperLink, three SuperNodes with TLS and node keys, and the executors."""

import json
import multiprocessing
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import torch

from medx.model.storage import read_tensors
from medx.site.consortium import Consortium
from medx.site.executor import execute
from medx.site.processes import HERE, is_open, supernode_command
from medx.site.site_config import SiteConfig
from medx.site.submitting import submit
from tests.site.consortium_example import (
    LOCAL,
    NAMES,
    SECURE,
    Example,
    approve,
    make_example,
    signed,
    simulated,
    study_of,
)

PATIENCE = 60.0
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@contextmanager
def process(command: list[str], log: Path, environment: dict[str, str] | None = None) -> Iterator[subprocess.Popen]:
    """A process whose words go to a file, and that ends with the block."""
    with log.open("wb") as file:
        started = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment)
    try:
        yield started
    finally:
        started.terminate()
        try:
            started.wait(15)
        except subprocess.TimeoutExpired:
            started.kill()
            started.wait()


def free_port() -> int:
    """A port after which three more are free: one for each node."""
    for _ in range(50):
        with ExitStack() as held:
            first = held.enter_context(socket.socket())
            first.bind((HERE, 0))
            port = int(first.getsockname()[1])
            try:
                for number in range(1, 4):
                    held.enter_context(socket.socket()).bind((HERE, port + number))
            except OSError:
                continue
            return port
    raise AssertionError("no four free ports in a row")


def answer_for(kit: str) -> None:
    """An executor in a process of its own that need not import anything any more."""
    torch.set_num_threads(1)
    execute(Path(kit))


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Example]:
    """A consortium that runs, by its kits."""
    folder = tmp_path_factory.mktemp("consortium")
    example = make_example(folder, free_port())
    for name in NAMES:
        example.set_policy(name, secure_aggregation=False, trusted_server=example.consortium.coordinator)
    started = [sys.executable, "-m", "medx.site", "coordinator", "start", str(example.coordinator), "--listen", HERE]
    forks = multiprocessing.get_context("forkserver")
    forks.set_forkserver_preload(["medx.site.executor", "medx.site.hospital", "medx.trainer.module"])
    with ExitStack() as stack:
        stack.enter_context(process(started, folder / "coordinator.log"))
        wait_until(lambda: is_open(example.coordinator, HERE, example.consortium.port))
        wait_until(lambda: "is open to" in (folder / "coordinator.log").read_text())
        for name in NAMES:
            kit = example.kit(name)
            command = supernode_command(kit, SiteConfig.load(kit), Consortium.load(kit))
            stack.enter_context(process(command, folder / f"{name}.log"))
            executor = forks.Process(target=answer_for, args=(str(kit),), daemon=True)
            executor.start()
            stack.callback(end, executor)
        yield example


def end(executor: multiprocessing.process.BaseProcess) -> None:
    executor.terminate()
    executor.join(15)
    executor.kill()


def wait_until(holds, seconds: float = PATIENCE) -> None:  # type: ignore[no-untyped-def]
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it does not come up"
        time.sleep(0.2)


@pytest.mark.parametrize("own", [LOCAL, SECURE], ids=["local", "secure"])
def test_a_study_on_real_nodes_is_the_simulation_to_the_bit(
    running: Example, tmp_path: Path, own: tuple[str, ...]
) -> None:
    expected = simulated(running, tmp_path / "simulation", *own)
    study = study_of(running, *own)
    approve(running, study)
    result = submit(running.coordinator, signed(running, study))
    assert result.status == "finished", result.error
    folder = running.coordinator / "runs" / study.digest[:16]
    first, _ = read_tensors(tmp_path / "simulation" / "model.safetensors")
    second, _ = read_tensors(folder / "model.safetensors")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert result.privacy.epsilon == expected.privacy.epsilon
    assert [each["receipt"]["hospital"] for each in json.loads((folder / "receipts.json").read_text())] == list(NAMES)
