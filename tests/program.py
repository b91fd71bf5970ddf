"""The program as a person calls it, in this process, on a handful of synthetic images."""

import io
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import absl.logging

import medx.launcher.sweep
import medx.run
from medx.results import ExperimentResult

DATA = ("dataset=phantom", "dataset.num_train=150", "dataset.num_validation=40", "dataset.num_test=60")
MODEL = ("model=cnn", "model.widths=[4,8]", "model.num_groups=2")
WORK = (
    "trainer.expected_batch_size=20",
    "trainer.local_steps=2",
    "federation.num_clients=3",
    "federation.num_rounds=2",
)
SCATTERNET = ("model=scatternet", "model.num_phantoms=60", "model.num_components=20", "model.num_views=1")
TINY = (*DATA, *MODEL, *WORK, "tracking=none", "device=cpu", "noise=seed")


@dataclass(frozen=True)
class Ran:
    """What a call left behind."""

    code: int
    out: str
    err: str
    folder: Path

    @property
    def result(self) -> ExperimentResult:
        """Its result.json."""
        return ExperimentResult.load(self.folder / "result.json")

    @property
    def refusal(self) -> str:
        """The one line of a refusal; fails where there was more, or something was left behind."""
        assert self.code == 2, self.err
        (line,) = self.err.splitlines()
        assert line.startswith("medx: "), line
        assert not self.folder.exists() or not list(self.folder.iterdir())
        return line


def call(folder: Path, *overrides: str, base: tuple[str, ...] = TINY) -> Ran:
    """``python -m medx.run`` with these overrides, output in ``folder``; an override replaces one of ``base``."""
    if "-m" in overrides and not any(part.startswith("jobs=") for part in overrides):
        overrides = ("jobs=1", *overrides)  # here: what a test replaces in this process is not so in another
    own = {part.lstrip("+~").split("=", 1)[0] for part in overrides}
    kept = {part.split("=", 1)[0]: part for part in base if part.split("=", 1)[0] not in own}.values()
    where = f"hydra.sweep.dir={folder}" if "-m" in overrides else f"hydra.run.dir={folder}"
    return call_plainly(folder, *kept, where, *overrides)


def call_plainly(folder: Path, *arguments: str) -> Ran:
    """``python -m medx.run`` with exactly these arguments."""
    # Hydra closes all log handlers; absl's (of dp-accounting) would close pytest's own stream, but never this one.
    absl.logging.get_absl_handler().python_handler.stream = sys.__stderr__
    out, err = io.StringIO(), io.StringIO()
    with fresh_program(arguments), redirect_stdout(out), redirect_stderr(err):
        try:
            medx.run.main()
            code = 0
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 0
    return Ran(code, out.getvalue(), err.getvalue(), folder)


@contextmanager
def fresh_program(arguments: tuple[str, ...]) -> Iterator[None]:
    """The command line of a new process, and nothing remembered from an earlier call."""
    before, handler = sys.argv, signal.getsignal(signal.SIGINT)
    medx.run._RAISED.clear()
    medx.run._UNFINISHED.clear()
    medx.launcher.sweep._SWEEPS.clear()
    sys.argv = ["medx", *arguments]
    try:
        yield
    finally:
        sys.argv = before
        signal.signal(signal.SIGINT, handler)
