"""``python -m medx.tracking ui`` opens the comparison; ``python -m medx.tracking deliver FOLDER`` sends what waits."""

import argparse
import os
import sys
from pathlib import Path

from medx import output
from medx.tracking.delivery import deliver
from medx.tracking.store import SQLITE, Destination, connect, embedded_uri
from medx.tracking.view import view_url


def main(arguments: list[str] | None = None) -> int:
    """Run one of the two commands; 1 where something could not be delivered."""
    parser = argparse.ArgumentParser(prog="python -m medx.tracking")
    commands = parser.add_subparsers(dest="command", required=True)
    ui = commands.add_parser("ui", help="serve the MLflow UI of an embedded store, to this machine alone")
    ui.add_argument("--port", type=int, default=5000)
    ui.add_argument("--uri", help="sqlite:///FILE; default ./mlflow.db")
    ui.add_argument("--experiment", default="medx", help="MLflow experiment to show (default medx)")
    send = commands.add_parser("deliver", help="deliver the records that wait below a folder")
    send.add_argument("folder", type=Path)
    send.add_argument("--uri", help="another store than the one that the runs were meant for")
    send.add_argument("--experiment", default="medx", help="MLflow experiment, with --uri (default medx)")
    chosen = parser.parse_args(arguments)
    return serve(chosen) if chosen.command == "ui" else send_all(chosen)


def send_all(chosen: argparse.Namespace) -> int:
    """Deliver and say what arrived."""
    other = None if chosen.uri is None else Destination(uri=_absolute(chosen.uri), experiment=chosen.experiment)
    outcomes = deliver(chosen.folder, other)
    for folder, error in outcomes:
        print(f"{folder}: {'delivered' if error is None else error}")
    if not outcomes:
        print(f"{chosen.folder}: no records found below it", file=sys.stderr)
    return 0 if outcomes and all(error is None for _, error in outcomes) else 1


def serve(chosen: argparse.Namespace) -> int:
    """Become the MLflow server, on the loopback interface only."""
    uri = embedded_uri(Path.cwd()) if chosen.uri is None else _absolute(chosen.uri)
    if not uri.startswith(SQLITE):
        print(f"{uri} is a server: open it in the browser")
        return 0
    store = connect(Destination(uri=uri, experiment=chosen.experiment))
    port = str(chosen.port)
    print("MLflow starts; Ctrl-C ends it. Epsilon against AUC, in about ten seconds:", flush=True)
    print(view_url(f"http://127.0.0.1:{port}", store.experiment_id), flush=True)
    artifacts = Path(uri.removeprefix(SQLITE)).parent / "mlartifacts"
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri, "--workers", "1"]
    command += ["--default-artifact-root", str(artifacts), "--host", "127.0.0.1", "--port", port]
    os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"
    os.execv(sys.executable, command)


def _absolute(uri: str) -> str:
    return f"{SQLITE}{Path(uri.removeprefix(SQLITE)).absolute()}" if uri.startswith(SQLITE) else uri


if __name__ == "__main__":
    output.take_all()
    sys.exit(main())
