"""The same study on real processes: SuperLink, three SuperNodes with TLS and node keys, and the executors."""

import contextlib
import http.client
import json
import multiprocessing
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import date
from pathlib import Path

import pytest
import torch

from medx.federation.checkpoint import RECORDS
from medx.model.storage import read_tensors
from medx.site import certificates
from medx.site.consortium import Consortium
from medx.site.executor import execute
from medx.site.processes import HERE, clock_warning, environment_of, is_open, supernode_command
from medx.site.site_config import SiteConfig
from medx.site.submitting import app_of, submit
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
NODES: dict[str, subprocess.Popen] = {}  # the SuperNodes that run, by hospital
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


def free_port(more: int = 3) -> int:
    """A port after which some more are free: one for each node."""
    for _ in range(50):
        with ExitStack() as held:
            first = held.enter_context(socket.socket())
            first.bind((HERE, 0))
            port = int(first.getsockname()[1])
            try:
                for number in range(1, more + 1):
                    held.enter_context(socket.socket()).bind((HERE, port + number))
            except OSError:
                continue
            return port
    raise AssertionError("no free ports in a row")


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
            NODES[name] = stack.enter_context(process(command, folder / f"{name}.log"))
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


def test_a_study_on_real_nodes_is_the_simulation_to_the_bit(running: Example, tmp_path: Path) -> None:
    """By secure sums; that other ways are too is told without nodes (``test_hospital``), and buffers' below."""
    expected = simulated(running, tmp_path / "simulation", *SECURE)
    study = study_of(running, *SECURE)
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


def test_buffered_rounds_go_on_while_a_node_is_stopped(running: Example) -> None:
    """``SIGSTOP`` for a SuperNode in the middle: nobody waits for it, and what it may have spent is counted."""
    study = study_of(running, *LOCAL, "federation=fedbuff", "federation.buffer_size=2", "federation.num_rounds=4")
    approve(running, study)
    folder = running.coordinator / "runs" / study.digest[:16]
    gone: list[int] = []

    def rounds() -> int:
        path = folder / "checkpoints" / RECORDS
        return len(path.read_text().splitlines()) if path.exists() else 0

    def stop_and_go_on() -> None:
        wait_until(lambda: rounds() >= 1)
        NODES["west"].send_signal(signal.SIGSTOP)
        try:
            gone.append(rounds())
            wait_until(lambda: rounds() >= gone[0] + 2)
            gone.append(rounds())
        finally:
            NODES["west"].send_signal(signal.SIGCONT)

    beside = threading.Thread(target=stop_and_go_on)
    beside.start()
    result = submit(running.coordinator, signed(running, study))
    beside.join(PATIENCE)
    assert result.status == "finished", result.error
    assert len(gone) == 2, "two updates and more while it was stopped"
    assert gone[1] >= gone[0] + 2
    steps = [client.steps for client in result.privacy.clients]
    assert steps[:2] == [4 * 2, 4 * 2], "the others have answered as often as planned"
    assert steps[2] <= 4 * 2
    assert [each["receipt"]["hospital"] for each in json.loads((folder / "receipts.json").read_text())] == list(NAMES)
    assert max(client.epsilon or 0.0 for client in result.privacy.clients) <= 10


def node_of(example: Example, name: str, folder: Path, **files: Path) -> list[str]:
    """The command of a node with a copy of a hospital's kit in which some files are others, on a port of its own."""
    kit = folder / name
    shutil.copytree(example.kit(name), kit)
    for file, path in files.items():
        shutil.copy(path, kit / file.replace("_", "."))
    site = SiteConfig.load(kit).model_copy(update={"node_port": free_port()})
    return [*supernode_command(kit, site, Consortium.load(kit)), "--max-retries", "2"]


def test_who_is_not_of_the_consortium_does_not_get_in(running: Example, tmp_path: Path) -> None:
    """Each by a real node: a key that nobody registered, another's certificates, no TLS, and a key that is in use."""
    stranger = make_example(tmp_path / "stranger", running.consortium.port)
    plain = node_of(running, "north", tmp_path / "c")
    at = plain.index("--root-certificates")
    commands = {
        "unregistered key": (
            node_of(running, "north", tmp_path / "a", node_key=stranger.kit("north") / "node.key"),
            "Failed to activate SuperNode",
        ),
        "another authority": (
            node_of(running, "north", tmp_path / "b", ca_crt=stranger.kit("north") / "ca.crt"),
            "CERTIFICATE_VERIFY_FAILED",
        ),
        "no TLS": ([*plain[:at], *plain[at + 2 :], "--insecure"], "Insecure connection is enabled"),
        "a key that is in use": (node_of(running, "north", tmp_path / "d"), "Failed to activate SuperNode"),
    }
    with ExitStack() as stack:
        started = {
            name: stack.enter_context(process(command, tmp_path / f"{name}.log"))
            for name, (command, _) in commands.items()
        }
        for name, each in started.items():
            assert each.wait(PATIENCE) != 0, name
    for name, (_, why) in commands.items():
        said = (tmp_path / f"{name}.log").read_text()
        assert why in said, name
        assert "SuperNode ID" not in said, name


AN_HOUR = """
import sys
from datetime import timedelta
from flwr.supernode import node_auth_http_interceptor as signing
from medx.site.flower import main

now, ahead = signing.now, timedelta(hours=int(sys.argv.pop(1)))
signing.now = lambda: now() + ahead
main()
"""


def test_a_node_whose_clock_is_off_by_an_hour_does_not_get_in_and_is_told_why(
    running: Example, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flower's node ends without a word about it, so the hospital's command compares clocks. Nothing is charged."""
    logs = {}
    with ExitStack() as stack:
        for hours in (0, 1, -1):
            _, module, name, *arguments = node_of(running, "north", tmp_path / str(hours))[1:]
            assert (module, name) == ("medx.site.flower", "supernode")
            logs[hours] = tmp_path / f"{hours}.log"
            command = [sys.executable, "-c", AN_HOUR, str(hours), name, *arguments]
            stack.enter_context(process(command, logs[hours])).wait(PATIENCE)
    said = {hours: log.read_text() for hours, log in logs.items()}
    assert "Failed to activate SuperNode" in said[0], "with the right time it comes as far as that its key is in use"
    assert all("activate" not in said[hours] and "SuperNode ID" not in said[hours] for hours in (1, -1))
    kit, port, true = tmp_path / "0" / "north", running.consortium.port, time.time
    assert clock_warning(kit, HERE, port) is None, "this machine's own clock is right"
    assert clock_warning(kit, HERE, free_port()) is None, "nobody answers there"
    for hours, words in ((1, "ahead of"), (-1, "behind")):
        monkeypatch.setattr("medx.site.processes.time.time", lambda hours=hours: true() + 3600 * hours)
        pattern = rf"clock is (359[5-9]|360[0-5]) seconds {words} the coordinator's; accepted: 4 seconds at most"
        assert re.search(pattern, str(clock_warning(kit, HERE, port)))


def test_from_outside_nothing_but_the_nodes_api_is_reached(running: Example) -> None:
    """The open edition's Control API knows no accounts: an address that is not the operator's gets 403."""
    control, node = "/v1/control/list-runs", "/v1/fleet/pull-messages"
    outside, inside = "127.0.0.2", HERE
    assert status_of(running, outside, control) == 403
    assert status_of(running, outside, "/v1/runtime/acquire-task") == 403
    assert status_of(running, outside, "/docs", "GET") == 403
    assert status_of(running, outside, node + "/../../control/list-runs") in (403, 404)
    assert status_of(running, inside, control) not in (403, 404)
    assert status_of(running, outside, "/health", "GET") == 200
    assert status_of(running, outside, node) not in (200, 403, 404), "it takes a node's signature"


def status_of(example: Example, source: str, path: str, method: str = "POST") -> int:
    context = ssl.create_default_context(cafile=str(example.coordinator / certificates.AUTHORITY))
    port = example.consortium.port
    connection = http.client.HTTPSConnection(HERE, port, timeout=10, context=context, source_address=(source, 0))
    connection.putrequest(method, path, skip_accept_encoding=True)
    connection.putheader("Content-Length", "0")
    connection.putheader("Content-Type", "application/x-protobuf")
    connection.endheaders()
    status = connection.getresponse().status
    connection.close()
    return status


def test_an_expired_certificate_is_refused_and_warned_of(running: Example, tmp_path: Path) -> None:
    made = tmp_path / "ended"
    made.mkdir()
    certificates.make_authority(made, "lungs", date(2030, 1, 1))
    certificates.make_server(made, HERE, date.today())  # it ended when this day began
    assert "ended" in certificates.warnings_of(made)[0]
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made / certificates.SERVER, made / certificates.SERVER_KEY)
    with socket.create_server((HERE, 0)) as listening:
        port = listening.getsockname()[1]
        thread = threading.Thread(target=shake_hands, args=(listening, context), daemon=True)
        thread.start()
        assert not is_open(made, HERE, port)
        thread.join(10)


def shake_hands(listening: socket.socket, context: ssl.SSLContext) -> None:
    with contextlib.suppress(OSError):
        accepted, _ = listening.accept()
        with context.wrap_socket(accepted, server_side=True):
            pass


def test_code_in_a_bundle_that_is_named_like_the_package_is_never_run(running: Example, tmp_path: Path) -> None:
    """Whoever submits past ``medx submit`` sends a package ``medx`` along: hospitals answer by the installed one."""
    study = study_of(running, *SECURE, "federation.num_rounds=1")
    approve(running, study)
    bundle, trace = tmp_path / "bundle", tmp_path / "trace"
    (bundle / "medx" / "site").mkdir(parents=True)
    answers = tmp_path / "answers.json"
    app = app_of(signed(running, study)).replace("medx.site.server_app", "own")
    (bundle / "pyproject.toml").write_text(f"{app}answers = {json.dumps(str(answers))}\n")
    planted = f"import pathlib\npathlib.Path({str(trace)!r}).touch()\n"
    for place in ("medx/__init__.py", "medx/site/__init__.py", "medx/site/hospital.py"):
        (bundle / place).write_text(planted)
    (bundle / "own.py").write_text(SERVER)
    command = [str(Path(sys.executable).parent / "flwr"), "run", str(bundle), "medx", "--stream"]
    environment = environment_of(running.coordinator)
    subprocess.run(command, env=environment, check=False, timeout=120, stdout=subprocess.DEVNULL)
    assert sorted(json.loads(answers.read_text())) == [0, 1, 2], "the installed app has answered"
    assert not trace.exists()


SERVER = """
import json
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import ServerApp
app = ServerApp()

@app.main()
def main(grid, context):
    config = ConfigRecord({"challenge": bytes(32), "charged": [0, 0, 0]})
    messages = [Message(RecordDict({"config": config}), node, "query") for node in grid.get_node_ids()]
    replies = list(grid.send_and_receive(messages, timeout=60))
    with open(context.run_config["answers"], "w") as file:
        json.dump([reply.content["client"]["client"] for reply in replies if reply.has_content()], file)
"""
