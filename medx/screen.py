"""What a person sees: the plan before, progress during, one table after. Plain ASCII lines where no terminal is."""

import re
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from shutil import get_terminal_size
from typing import TextIO

from rich.console import Console
from rich.panel import Panel
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.text import Text

from medx.output import Show, as_called, plain_text, say, shown_by
from medx.results import ExperimentResult, Interval, RoundRecord, RunContext, told_epsilon
from medx.tables import Table

HEADERS = (
    "job", "dataset", "model", "privacy", "target ε", "ε", "AUC [95 %]", "acc. @thr.", "bal. acc. @thr.", "majority",
    "seconds", "", "data",
)  # fmt: skip
# Least needed first; what is not named stays at any width.
NEED = ("seconds", "majority", "target ε", "bal. acc. @thr.", "data", "model", "dataset", "privacy", "", "acc. @thr.",
        "ε")  # fmt: skip
PLAN_NEED = ("expected batch size", "clip norm", "steps", "sampling probability", "records")
PLAIN_LINES = 10
PATIENCE = 30  # seconds after which a round gets a plain line though it is none of those
PROGRESS = ("round", "preparing", "accounting", "baseline", "measuring")  # how lines begin that tell of progress
SYNTHETIC = "SYNTHETIC: these images were drawn by a program and show no patient; the figures say nothing of medicine"
DEGENERATE = "DEGENERATE: every test image gets the same answer"
OWNER = "OWNER'S VIEW: epsilon does not cover these metrics, counts by class and times; released.json is without them"
BASELINES = {
    "local_only": "local_only: every hospital alone, the mean over them (the lowest to the highest)",
    "centralized": "centralized: all records in one place",
    "phantoms_alone": "phantoms_alone: a head fitted to drawn phantoms, before any record was read; its ε is 0",
}
OPEN_UI = "Compare runs: make ui"
Outcome = tuple[str, ExperimentResult | str]


class Screen:
    """Follows one run on ``file`` (standard output). ``close`` ends the live display where a run breaks off."""

    def __init__(self, file: TextIO | None = None, width: int | None = None) -> None:
        self._file = file or sys.stdout
        self._width = width
        self._live = self._file.isatty()
        self._progress: Progress | None = None
        self._task = TaskID(0)
        self._began = time.monotonic()
        self._first: int | None = None
        self._num_rounds = 0
        self._folder: Path | None = None
        self._said = time.monotonic()
        self._before: tuple[Show, ...] = ()

    def on_start(self, context: RunContext) -> None:
        """Show the plan and begin the progress display."""
        say("")
        self._num_rounds, self._folder = context.num_rounds, context.folder
        self._began = self._said = time.monotonic()
        shouts = [SYNTHETIC] * context.synthetic + _of_noise(context.warning) + [OWNER] * (not context.public)
        tables = {"Plan": Table.of(context.plan_rows, PLAN_NEED), "Hospitals": Table.of(context.partition_rows, (), 2)}
        if not self._live:
            width = self._width or get_terminal_size().columns
            self._plain(context.title, *(f"!! {text}" for text in shouts))
            self._plain(*(line for table in tables.values() for line in table.plain(width)))
            self._plain("rounds begin")
            return
        console = self._console()
        for text in shouts:
            console.print(_shout(text))
        console.print(Panel(Text(_short(context.statement)), title=Text(context.title), expand=False))
        for title, table in tables.items():
            table.draw(console, title)
        self._progress = Progress(
            TextColumn("round {task.completed:.0f}/{task.total:.0f}"), BarColumn(), TextColumn("{task.fields[text]}"),
            console=console, transient=True, refresh_per_second=4,
        )  # fmt: skip
        self._progress.start()
        self._task = self._progress.add_task("", total=context.num_rounds, text="first round", completed=0)
        self._before = shown_by(self._say)

    def on_round(self, record: RoundRecord) -> None:
        """Show a round; without a terminal about ten of them, or one in half a minute."""
        if self._first is None:
            self._first = record.round
        text = self._describe(record)
        if self._progress is not None:
            self._progress.update(self._task, completed=record.round, text=text)
            return
        tenth = record.round % -(-self._num_rounds // PLAIN_LINES) == 0
        if tenth or record.round in (self._first, self._num_rounds) or time.monotonic() - self._said > PATIENCE:
            self._said = time.monotonic()
            self._plain(f"round {record.round}/{self._num_rounds}  {text}")

    def on_end(self, result: ExperimentResult) -> None:
        """End the display and show the result as a table, and where it lies."""
        self.close()
        notes = [] if self._folder is None else where(self._folder, finished=result.status == "finished")
        sweep_table([("", result)], self._file, self._width, notes)

    def on_error(self, error: BaseException) -> None:
        """Give the terminal back and say how to go on; the error is told elsewhere."""
        self.close()
        if self._folder is not None:
            self._plain(*where(self._folder, finished=False))

    def close(self) -> None:
        """End the live display, if there is one; safe to call again."""
        if self._progress is not None:
            shown_by(*self._before)
            self._progress.stop()
            self._progress = None
        say("")

    def _say(self, text: str) -> None:
        if self._progress is not None and text:
            self._progress.update(self._task, text=text)

    def _describe(self, record: RoundRecord) -> str:
        elapsed = time.monotonic() - self._began
        done = record.round - (self._first or record.round) + 1
        left = elapsed / done * (self._num_rounds - record.round)
        epsilon = "" if record.epsilon is None else f"ε {record.epsilon:.3f}  "
        trouble = {"abstained": record.abstained, "failed": record.failed}
        told = "".join(f"  {count} {name}" for name, count in trouble.items() if count)
        auc = _number(record.metrics.get("validation/auc"))
        return f"validation AUC {auc}  {epsilon}{clock(elapsed)} elapsed, {clock(left)} left{told}"

    def _console(self) -> Console:
        return Console(file=self._file, width=self._width, highlight=False)

    def _plain(self, *lines: str) -> None:
        for line in lines:
            print(plain_text(line), file=self._file, flush=True)


def sweep_table(
    results: Sequence[Outcome], file: TextIO | None = None, width: int | None = None, notes: Sequence[str] = ()
) -> None:
    """One table over the jobs of a sweep, then ``notes``; a job without a result is shown by its error line."""
    file = file or sys.stdout
    finished = [(job, result) for job, result in results if isinstance(result, ExperimentResult)]
    rows = tuple(tuple(row) for job, result in finished for row in _rows(job, result))
    shouts = [f"{_label(job)}{DEGENERATE}" for job, result in finished if result.degenerate]
    shouts += [SYNTHETIC] if any(result.dataset.synthetic for _, result in finished) else []
    shouts += list(dict.fromkeys(text for _, result in finished for text in _of_noise(result.privacy.warning)))
    shouts += [f"{_label(job)}{text}" for job, result in finished for text in _of_attacks(result)]
    shouts += [OWNER] if any(not result.dataset.public for _, result in finished) else []
    shouts += [f"{_label(job)}{result.status}: {result.error}" for job, result in finished if result.error]
    shouts += [f"{_label(job)}FAILED: {result}" for job, result in results if isinstance(result, str)]
    named = dict.fromkeys(name for _, result in finished for name in result.baselines)
    attacks = [f"{_label(job)}{each.line()}" for job, result in finished for each in result.attacks]
    closing = [*(BASELINES[name] for name in named), *_of_patients(finished), *attacks, *notes, *_open_ui(finished)]
    table = Table(HEADERS, rows, (*NEED, *([] if any(row[0] for row in rows) else ["job"])))
    if not file.isatty():
        lines = table.plain(width or get_terminal_size().columns) if rows else []
        for line in [*lines, *(f"!! {text}" for text in shouts), *closing]:
            print(plain_text(line), file=file, flush=True)
        return
    console = Console(file=file, width=width, highlight=False)
    if rows:
        table.draw(console, "Results on test")
    for text in shouts:
        console.print(_shout(text))
    for text in closing:
        console.print(Text(text, overflow="fold"))


def _rows(job: str, result: ExperimentResult) -> list[list[str]]:
    """The run, and below it its baselines."""
    auc, privacy = result.test.get("auc", Interval(value=None)), result.privacy
    between = "" if auc.low is None or auc.high is None else f" [{auc.low:.3f}, {auc.high:.3f}]"
    marks = ["SYNTHETIC"] * result.dataset.synthetic + ["SEEDED NOISE"] * (privacy.warning is not None)
    flags = ["DEGENERATE"] * bool(result.degenerate) + [result.status.upper()] * (result.status != "finished")
    what = [result.dataset.name, str(result.model.get("name", "?")), privacy.mechanism]
    target = "-" if privacy.target_epsilon is None else f"{privacy.target_epsilon:g}"
    majority, data = _number(result.majority_accuracy), " ".join(marks)
    seconds = f"{result.timing.get('total', 0.0):.1f}"
    name = job or ("run" if result.baselines else "")
    figures = [_number(privacy.epsilon), _number(auc.value) + between, *_accuracies(result.test)]
    rows = [[name, *what, target, *figures, majority, seconds, " ".join(flags), data]]
    shared = "-" if privacy.epsilon is None else "shared"
    for name, test in result.baselines.items():
        epsilon = "0" if name == "phantoms_alone" else shared
        figures = [epsilon, _auc_of(name, test.get("auc", Interval(value=None))), *_accuracies(test)]
        rows.append([f"{job} {name}".strip(), *what, target, *figures, majority, "", "", data])
    return rows


def _auc_of(baseline: str, auc: Interval) -> str:
    """Of models of single hospitals the range over them, which is no 95 % interval."""
    if auc.low is None or auc.high is None:
        return _number(auc.value)
    left, right, to = ("(", ")", " to") if baseline == "local_only" else ("[", "]", ",")
    return f"{_number(auc.value)} {left}{auc.low:.3f}{to} {auc.high:.3f}{right}"


def where(folder: Path, *, finished: bool, sweep: bool = False) -> list[str]:
    """Where a run or a sweep lies, and the command that goes on with one that did not finish."""
    here = Path.cwd()
    shown = str(folder.relative_to(here) if folder.is_relative_to(here) else folder)
    # Hydra reads other letters in its own way unless they are quoted.
    plain = re.fullmatch(r"[a-zA-Z0-9_./-]+", shown) is not None
    quoted = shown.replace("'", r"\'")
    resume = f"resume={shown}" if plain else shlex.quote(f"resume='{quoted}'")
    command = as_called(f"python -m medx.run {resume}{' -m' * sweep}")
    return [f"Output: {shown}", *([] if finished else [f"Go on with it: {command}"])]


def progress_line(text: str) -> str:
    """Of what a screen showed the last words on how far it is; empty where there are none."""
    return next((line for line in reversed(text.splitlines()) if line.startswith(PROGRESS)), "")


def _accuracies(test: dict[str, Interval]) -> list[str]:
    names = ("accuracy_at_threshold", "balanced_accuracy_at_threshold")
    return [_number(test.get(name, Interval(value=None)).value) for name in names]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _label(job: str) -> str:
    return f"job {job}: " if job else ""


def _open_ui(finished: Sequence[tuple[str, ExperimentResult]]) -> list[str]:
    """Where to compare runs, if they are recorded; of a run that has just ended the record is still on its way."""
    tracked = [result.tracking for _, result in finished if result.tracking]
    meant = [uri for _, result in finished if (uri := (result.config.get("tracking") or {}).get("uri"))]
    if tracked and "view" in tracked[-1]:
        return [f"Compare runs: {tracked[-1]['view']}"]
    if meant and meant[-1].startswith("http"):
        return [f"Compare runs: {meant[-1]}"]
    return [as_called(OPEN_UI)] if tracked or meant else []


def clock(seconds: float) -> str:
    """``m:ss`` or ``h:mm:ss``."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"


def _short(statement: str) -> str:
    """The statement without its lists of fields, which are longer than the rest."""
    lines = [line for line in statement.splitlines() if not line.startswith("Fields ")]
    return "\n".join([*lines, "Which fields may leave the house is told in the statement of result.json."])


def _of_patients(finished: Sequence[tuple[str, ExperimentResult]]) -> list[str]:
    """What a patient spends where the unit is an image and patients are known."""
    known = [result.privacy for _, result in finished if result.privacy.unit == "record"]
    spent = sorted({each.epsilon_by_unit["patient"] for each in known if "patient" in each.epsilon_by_unit})
    most = max((each.patient_images or 0 for each in known), default=0)
    if not spent or most < 2:
        return []
    low, high = told_epsilon(spent[0]), told_epsilon(spent[-1])
    between = low if low == high else f"{low} to {high}"
    return [
        f"ε is for one image; for a patient with all images (at most {most} at a hospital) it is {between}. "
        "privacy.unit=patient protects patients."
    ]


def _of_noise(warning: str | None) -> list[str]:
    return [] if warning is None else [f"NOISE FROM THE SEED: {warning}"]


def _of_attacks(result: ExperimentResult) -> list[str]:
    """What speaks against a run's claim."""
    doubts = result.privacy.noise.doubts if result.privacy.noise else []
    noise = [f"NOISE NOT AS PLANNED: {'; '.join(doubts)}"] if doubts else []
    found = [each for each in result.attacks if each.against]
    return noise + [f"AGAINST THE CLAIM: {each.observer}: {'; '.join(each.against)}" for each in found]


def _shout(text: str) -> Text:
    return Text(f" {text} ", style="bold white on red")
