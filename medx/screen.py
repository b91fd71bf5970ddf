"""What a person sees: the plan before, progress during, one table after. Plain ASCII lines where no terminal is."""

import sys
import time
from collections.abc import Sequence
from typing import Any, Protocol, TextIO

from rich.console import Console
from rich.panel import Panel
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Table
from rich.text import Text

from medx.results import ExperimentResult, Interval, RoundRecord

HEADERS = (
    "job", "dataset", "model", "privacy", "target ε", "ε", "AUC [95 %]", "accuracy", "bal. acc. @thr.", "majority",
    "seconds", "",
)  # fmt: skip
PLAIN_LINES = 10
SYNTHETIC = "SYNTHETIC: these images were drawn by a program and show no patient; the figures say nothing of medicine"
DEGENERATE = "DEGENERATE: every test image gets the same answer"
OWNER = "OWNER'S VIEW: epsilon does not cover these metrics, counts by class and times; released.json is without them"
OPEN_UI = "Compare runs: make ui"
Rows = Sequence[dict[str, Any]]
Outcome = tuple[str, ExperimentResult | str]


class Plan(Protocol):
    """What the screen shows before the first round."""

    @property
    def title(self) -> str:
        """Data, model, privacy, seed."""
        ...

    @property
    def num_rounds(self) -> int:
        """Rounds of the whole run."""
        ...

    @property
    def synthetic(self) -> bool:
        """Whether the images are drawn."""
        ...

    @property
    def public(self) -> bool:
        """Whether everybody has the records."""
        ...

    @property
    def warning(self) -> str | None:
        """What a reader must know of the noise."""
        ...

    @property
    def statement(self) -> str:
        """The privacy statement as text."""
        ...

    @property
    def plan_rows(self) -> Rows:
        """What the clients will do."""
        ...

    @property
    def partition_rows(self) -> Rows:
        """What the clients hold."""
        ...


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

    def on_start(self, context: Plan) -> None:
        """Show the plan and begin the progress display."""
        self._num_rounds = context.num_rounds
        self._began = time.monotonic()
        shouts = [SYNTHETIC] * context.synthetic + _of_noise(context.warning) + [OWNER] * (not context.public)
        if not self._live:
            self._plain(context.title, *(f"!! {text}" for text in shouts))
            self._plain(*_plain_table(*_cells(context.plan_rows)), *_plain_table(*_cells(context.partition_rows)))
            return
        console = self._console()
        for text in shouts:
            console.print(_shout(text))
        console.print(Panel(Text(context.statement), title=Text(context.title), expand=False))
        for title, rows in {"Plan": context.plan_rows, "Hospitals": context.partition_rows}.items():
            console.print(_rich_table(title, *_cells(rows)))
        self._progress = Progress(
            TextColumn("round {task.completed:.0f}/{task.total:.0f}"), BarColumn(), TextColumn("{task.fields[text]}"),
            console=console, transient=True, refresh_per_second=4,
        )  # fmt: skip
        self._progress.start()
        self._task = self._progress.add_task("", total=context.num_rounds, text="first round", completed=0)

    def on_round(self, record: RoundRecord) -> None:
        """Show a round; without a terminal about ten of them."""
        if self._first is None:
            self._first = record.round
        text = self._describe(record)
        if self._progress is not None:
            self._progress.update(self._task, completed=record.round, text=text)
        elif record.round in (self._first, self._num_rounds) or record.round % -(-self._num_rounds // PLAIN_LINES) == 0:
            self._plain(f"round {record.round}/{self._num_rounds}  {text}")

    def on_end(self, result: ExperimentResult) -> None:
        """End the display and show the result as a table of one row."""
        self.close()
        sweep_table([("", result)], self._file, self._width)

    def on_error(self, error: BaseException) -> None:
        """Give the terminal back; the error is told elsewhere."""
        self.close()

    def close(self) -> None:
        """End the live display, if there is one; safe to call again."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

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
    headers, rows = list(HEADERS), [_row(job, result) for job, result in finished]
    if all(job == "" for job, _ in finished):
        headers, rows = headers[1:], [row[1:] for row in rows]
    shouts = [f"{_label(job)}{DEGENERATE}" for job, result in finished if result.degenerate]
    shouts += [SYNTHETIC] if any(result.dataset.synthetic for _, result in finished) else []
    shouts += list(dict.fromkeys(text for _, result in finished for text in _of_noise(result.privacy.warning)))
    shouts += [OWNER] if any(not result.dataset.public for _, result in finished) else []
    shouts += [f"{_label(job)}{result.status}: {result.error}" for job, result in finished if result.error]
    shouts += [f"{_label(job)}FAILED: {result}" for job, result in results if isinstance(result, str)]
    closing = [*notes, *([_open_ui(finished)] if finished else [])]
    if not file.isatty():
        for line in [*(_plain_table(headers, rows) if rows else []), *(f"!! {text}" for text in shouts), *closing]:
            print(plain_text(line), file=file, flush=True)
        return
    console = Console(file=file, width=width, highlight=False)
    if rows:
        console.print(_rich_table("Results on test", headers, rows))
    for text in shouts:
        console.print(_shout(text))
    for text in closing:
        console.print(Text(text))


def _row(job: str, result: ExperimentResult) -> list[str]:
    auc = result.test.get("auc", Interval(value=None))
    between = "" if auc.low is None or auc.high is None else f" [{auc.low:.3f}, {auc.high:.3f}]"
    flags = ["DEGENERATE"] * bool(result.degenerate) + ["SYNTHETIC"] * result.dataset.synthetic
    flags += ["SEEDED NOISE"] * (result.privacy.warning is not None)
    flags += [result.status.upper()] * (result.status != "finished")
    return [
        job,
        result.dataset.name,
        str(result.model.get("name", "?")),
        result.privacy.mechanism,
        "-" if result.privacy.target_epsilon is None else f"{result.privacy.target_epsilon:g}",
        _number(result.privacy.epsilon),
        _number(auc.value) + between,
        _value(result, "accuracy"),
        _value(result, "balanced_accuracy_at_threshold"),
        _number(result.majority_accuracy),
        f"{result.timing.get('total', 0.0):.1f}",
        " ".join(flags),
    ]


def _value(result: ExperimentResult, name: str) -> str:
    return _number(result.test.get(name, Interval(value=None)).value)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _label(job: str) -> str:
    return f"job {job}: " if job else ""


def _open_ui(finished: Sequence[tuple[str, ExperimentResult]]) -> str:
    view = finished[-1][1].tracking.get("view")
    return OPEN_UI if view is None else f"Compare runs: {view}"


def clock(seconds: float) -> str:
    """``m:ss`` or ``h:mm:ss``."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"


def _cells(rows: Rows) -> tuple[list[str], list[list[str]]]:
    """Headers and texts of rows that may lack keys."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    return [name.replace("_", " ") for name in names], [[_text(row.get(name)) for name in names] for row in rows]


def _text(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _rich_table(title: str, headers: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(title=title, title_justify="left")
    for index, header in enumerate(headers):
        table.add_column(Text(header), justify="left" if index == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*[Text(cell, style="bold red" if "DEGENERATE" in cell else "") for cell in row])
    return table


def _of_noise(warning: str | None) -> list[str]:
    return [] if warning is None else [f"NOISE FROM THE SEED: {warning}"]


def _shout(text: str) -> Text:
    return Text(f" {text} ", style="bold white on red")


def _plain_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [[plain_text(cell) for cell in line] for line in (headers, *rows)]
    widths = [max(len(line[index]) for line in lines) for index in range(len(headers))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]


def plain_text(text: str) -> str:
    """Printable ASCII: Greek spelled out, control codes and the rest replaced."""
    spelled = text.replace("ε", "epsilon").replace("δ", "delta")
    return "".join(letter if " " <= letter <= "~" else "?" for letter in spelled)
