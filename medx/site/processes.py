"""The processes of a coordinator and of a hospital: which there are, how they start, and that they end together."""

import os
import ssl
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from pathlib import Path

from medx.output import say
from medx.schema import ConfigError
from medx.site.certificates import AUTHORITY, NODE_KEY, SECRET, SERVER, SERVER_KEY, warnings_of
from medx.site.consortium import Consortium
from medx.site.executor import execute, sigterm_as_interrupt
from medx.site.flower import QUIET
from medx.site.kits import write_flower_config
from medx.site.site_config import SiteConfig

LINK = "medx"  # what the coordinator's SuperLink is called in Flower's configuration
LAUNCH = (sys.executable, "-m", "medx.site.flower")
HERE = "127.0.0.1"
OPERATORS = f"{HERE},::1"  # addresses from which studies can be submitted
START = 60.0  # seconds that a SuperLink may take to answer
REST = 5.0  # seconds before a node that has ended is started again
CLOCK = 5.0  # seconds: Flower refuses a node that is 5 ahead, and the date that HTTP tells is up to 1 old
GRACE = 10.0  # seconds that a process gets to end


def environment_of(folder: Path) -> dict[str, str]:
    """The environment of Flower's commands for a coordinator's folder: quiet, and its own programs first."""
    folder = folder.absolute()
    own = {"FLWR_HOME": str(folder / "flwr"), "MEDX_COORDINATOR": str(folder)}
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    return {**os.environ, **QUIET, **own, "PATH": path}


def flower(folder: Path, *arguments: str) -> list[str]:
    """A command line of Flower's own ``flwr`` for the coordinator of a folder."""
    return [str(Path(sys.executable).parent / "flwr"), *arguments]


def start_coordinator(folder: Path, listen: str = "0.0.0.0") -> None:
    """SuperLink and SuperExec until one of them ends or this process is asked to; raises ConfigError."""
    folder = folder.absolute()
    consortium = Consortium.load(folder)
    write_flower_config(folder, consortium)
    for warning in warnings_of(folder):
        say(f"!! {warning}")
    environment = environment_of(folder)
    with _ended():
        link = subprocess.Popen(superlink_command(folder, consortium, listen), env=environment)
        with _stopped_with(link):
            wait_for_link(folder, consortium, link)
            register(folder, consortium)
            worker = subprocess.Popen(superexec_command(folder, consortium), env=environment)
            with _stopped_with(worker):
                say(f"coordinator of {consortium.name}: {consortium.address} is open to {_named(consortium)}")
                while link.poll() is None and worker.poll() is None:
                    time.sleep(0.5)
    ended = "SuperLink" if link.poll() is not None else "SuperExec"
    raise ConfigError(f"{ended} has ended; its lines above say why; accepted: to put that right and start again")


def superlink_command(folder: Path, consortium: Consortium, listen: str) -> list[str]:
    """Flower's SuperLink, with TLS, known nodes alone, and its state on disk."""
    return [
        *(*LAUNCH, "superlink", OPERATORS),
        *("--host", listen, "--port", str(consortium.port)),
        *("--ssl-ca-certfile", str(folder / AUTHORITY)),
        *("--ssl-certfile", str(folder / SERVER), "--ssl-keyfile", str(folder / SERVER_KEY)),
        *("--enable-supernode-auth", "--database", str(folder / "superlink.db")),
        *("--isolation", "process", "--superexec-auth-secret-file", str(folder / SECRET)),
        "--disable-runtime-dependency-installation",
    ]


def superexec_command(folder: Path, consortium: Consortium) -> list[str]:
    """What starts a process for each run's server."""
    return [
        str(Path(sys.executable).parent / "flower-superexec"),
        *("--runtime-api-address", f"{HERE}:{consortium.port}", "--root-certificates", str(folder / AUTHORITY)),
        *("--superexec-auth-secret-file", str(folder / SECRET)),
    ]


def wait_for_link(folder: Path, consortium: Consortium, link: subprocess.Popen[bytes]) -> None:
    """Wait until the SuperLink answers; raises ConfigError where it does not."""
    deadline = time.monotonic() + START
    while time.monotonic() < deadline and link.poll() is None:
        if is_open(folder, HERE, consortium.port):
            return
        time.sleep(0.2)
    raise ConfigError(f"port {consortium.port}: no SuperLink came up there; its lines above say why")


def is_open(folder: Path, host: str, port: int) -> bool:
    """Whether a SuperLink answers there with a certificate of this folder's authority."""
    return _health(folder, host, port) is not None


def clock_warning(folder: Path, host: str, port: int) -> str | None:
    """A line where this machine's clock and the SuperLink's are apart; None where not, or where nobody answers.

    The SuperLink refuses a node for that, by a bare 401, and the node ends without a word.
    """
    told = (_health(folder, host, port) or {}).get("date")
    if told is None:
        return None
    ahead = time.time() - parsedate_to_datetime(told).timestamp()
    if abs(ahead) < CLOCK:
        return None
    return (
        f"this machine's clock is {abs(ahead):.0f} seconds {'ahead of' if ahead > 0 else 'behind'} the coordinator's; "
        "accepted: 4 seconds at most, else its node is not let in"
    )


def _health(folder: Path, host: str, port: int) -> Mapping[str, str] | None:
    """What the SuperLink says before anybody has proved anything: its headers; None where there is none."""
    context = ssl.create_default_context(cafile=str(folder / AUTHORITY))
    address = f"[{host}]" if ":" in host else host
    try:
        with urllib.request.urlopen(f"https://{address}:{port}/health", timeout=5, context=context) as answer:
            return answer.headers if answer.status == 200 else None
    except OSError:  # URLError is one
        return None


def register(folder: Path, consortium: Consortium) -> None:
    """Let the consortium's nodes in, those of them that are not known yet."""
    environment, keys = environment_of(folder), folder / "nodes"
    started = [
        subprocess.Popen(
            flower(folder, "supernode", "register", str(keys / f"{member.name}.pub"), LINK, "--name", member.name),
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for member in consortium.hospitals
        if member.node is not None
    ]
    for member, each in zip([m for m in consortium.hospitals if m.node is not None], started, strict=True):
        said, _ = each.communicate()
        if each.returncode and "already" not in said.lower() and "in use" not in said.lower():
            raise ConfigError(f"node of {member.name}: {' '.join(said.split())[-300:]}")


def start_site(kit: Path, only: str | None = None, node: str | None = None) -> None:
    """A hospital's node and executor, or one of them, until this process is asked to end; raises MedxError."""
    kit = kit.absolute()
    if only == "executor":
        execute(kit, node)
        return
    consortium = Consortium.load(kit)
    command = supernode_command(kit, SiteConfig.load(kit), consortium)

    def warn() -> None:
        late = clock_warning(kit, consortium.host, consortium.port)
        for warning in [*warnings_of(kit), *([late] if late else [])]:
            say(f"!! {warning}")

    warn()
    if only == "node":
        os.execvpe(command[0], command, {**os.environ, **QUIET})
    with _kept_up(command, warn):
        execute(kit, node)


def supernode_command(kit: Path, site: SiteConfig, consortium: Consortium) -> list[str]:
    """Flower's SuperNode of a kit."""
    return [
        *(*LAUNCH, "supernode", "--root-certificates", str(kit / AUTHORITY), "--superlink", consortium.address),
        *("--auth-supernode-private-key", str(kit / NODE_KEY), "--isolation", "process"),
        *("--host", HERE, "--port", str(site.node_port), "--superexec-auth-secret-file", str(kit / SECRET)),
    ]


@contextmanager
def _kept_up(command: Sequence[str], ended: Callable[[], None]) -> Iterator[None]:
    """A process that is started again wherever it ends, as long as the block lasts; ``ended`` hears of each end."""
    over = threading.Event()

    def keep() -> None:
        while not over.is_set():
            process = subprocess.Popen(command, env={**os.environ, **QUIET})
            while process.poll() is None and not over.wait(0.2):
                pass
            if over.is_set():
                _stop(process)
                return
            say(f"the node has ended with code {process.returncode} and is started again")
            ended()
            over.wait(REST)

    thread = threading.Thread(target=keep)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@contextmanager
def _stopped_with(process: subprocess.Popen[bytes]) -> Iterator[None]:
    try:
        yield
    finally:
        _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(GRACE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextmanager
def _ended() -> Iterator[None]:
    """Ctrl-C and SIGTERM end the block, and with it this process, with code 0."""
    try:
        with sigterm_as_interrupt():
            yield
    except KeyboardInterrupt:
        sys.exit(0)


def _named(consortium: Consortium) -> str:
    return ", ".join(member.name for member in consortium.hospitals)
