"""``python -m medx.tracking ui`` opens the comparison; ``python -m medx.tracking sync FOLDER`` copies runs there."""

import argparse
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from pathlib import Path

from medx.output import Parser, take_all
from medx.schema import MedxError
from medx.tracking.store import (
    SQLITE,
    SYNTHETIC,
    Destination,
    TrackingError,
    connect,
    database_path,
    database_uri,
    embedded_uri,
    has_experiment,
    view_url,
)


def main(arguments: list[str] | None = None) -> int:
    """Run one of the two commands; 1 where something could not be delivered, 2 for a refusal."""
    parser = Parser(prog="python -m medx.tracking", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    ui = commands.add_parser("ui", help="serve the MLflow UI of an embedded store, to this machine alone")
    ui.add_argument("--port", type=int, default=5000, help="port on this machine (default 5000)")
    ui.add_argument("--uri", help="sqlite:///FILE; default $MLFLOW_TRACKING_URI, else ./mlflow.db")
    ui.add_argument("--experiment", default="medx", help="MLflow experiment to show (default medx), and its -synthetic")
    copy = commands.add_parser("sync", aliases=["deliver"], help="bring what MLflow lacks of the runs below a folder")
    copy.add_argument("folder", type=Path, help="a run's output folder, or one above several")
    copy.add_argument("--uri", help="another store than the one that the runs were meant for")
    copy.add_argument("--experiment", default="medx", help="MLflow experiment, with --uri (default medx)")
    copy.add_argument("--follow", type=int, metavar="PID", help="go on while a run runs, or process PID may begin one")
    chosen = parser.parse_args(arguments)
    try:
        return serve(chosen) if chosen.command == "ui" else copy_all(chosen)
    except MedxError as error:
        print(f"medx: {error}", file=sys.stderr)
        return 2


def copy_all(chosen: argparse.Namespace) -> int:
    """Copy, and say what arrived."""
    from medx.tracking.follow import follow
    from medx.tracking.sync import sync

    if chosen.follow is not None:
        follow(chosen.folder, chosen.follow)
        return 0
    other = None if chosen.uri is None else Destination(uri=_absolute(chosen.uri), experiment=chosen.experiment)
    outcomes = sync(chosen.folder, other)
    for folder, error in outcomes:
        print(f"{folder}: {'all is there' if error is None else error}")
    if not outcomes:
        raise TrackingError(f"{chosen.folder}: no tracked run below it; accepted: a run's output folder, or one above")
    return 0 if all(error is None for _, error in outcomes) else 1


def serve(chosen: argparse.Namespace) -> int:
    """Run the MLflow server, on the loopback interface only, and say where to look once it answers."""
    given = chosen.uri or os.environ.get("MLFLOW_TRACKING_URI")
    uri = embedded_uri(Path.cwd()) if given is None else _absolute(given)
    if not uri.startswith(SQLITE):
        print(f"{uri} is a server: open it in the browser")
        return 0
    refuse_port(chosen.port)
    address = f"http://127.0.0.1:{chosen.port}"
    destinations = [Destination(uri=uri, experiment=chosen.experiment + end) for end in ("", SYNTHETIC)]
    links = [
        f"{each.experiment}: {view_url(address, connect(each).experiment_id)}"
        for each in destinations
        if has_experiment(each)
    ]
    print("MLflow starts; this takes about ten seconds", flush=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with subprocess.Popen(server_command(uri, chosen.port)) as server, ending(server):
        while server.poll() is None and not answers(chosen.port):
            time.sleep(0.2)
        if server.poll() is None:
            print("Epsilon against AUC, until Ctrl-C ends the server:", *(links or [address]), sep="\n", flush=True)
        return server.wait()
    return 0


@contextmanager
def ending(server: subprocess.Popen[bytes]) -> Iterator[None]:
    """The server ends with the block; Ctrl-C is an end like any other."""
    with suppress(KeyboardInterrupt):
        try:
            yield
        finally:
            server.terminate()


def refuse_port(port: int) -> None:
    """Raise TrackingError where no server can listen."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does: no wait after an earlier one
        try:
            probe.bind(("127.0.0.1", port))
        except (OSError, OverflowError) as error:
            raise TrackingError(f"--port {port}: {error}; accepted: a free port from 1 to 65535") from None


def server_command(uri: str, port: int) -> list[str]:
    """MLflow's own server on an embedded store, which logs warnings alone."""
    os.environ |= {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "PYTHONWARNINGS": "ignore"}
    artifacts = str(database_path(uri).parent / "mlartifacts")
    stores = ["--backend-store-uri", uri, "--registry-store-uri", uri, "--default-artifact-root", artifacts]
    where = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1", "--uvicorn-opts", "--log-level warning"]
    return [sys.executable, "-m", "mlflow", "server", *stores, *where]


def answers(port: int) -> bool:
    """Whether the server on this machine is ready, whatever proxy the environment names."""
    with closing(HTTPConnection("127.0.0.1", port, timeout=1)) as connection, suppress(OSError, HTTPException):
        connection.request("GET", "/health")
        return connection.getresponse().status == HTTPStatus.OK
    return False


def _absolute(uri: str) -> str:
    return database_uri(database_path(uri).absolute()) if uri.startswith(SQLITE) else uri


if __name__ == "__main__":
    take_all()
    sys.exit(main())
