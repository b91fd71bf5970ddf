"""A whole private run as a process, against the script one writes first and against a loop without any framework.

All do five rounds of 15 steps with expected batch 64 at five hospitals on PneumoniaMNIST, with the small CNN, at
epsilon 10 and clip norm 1. Ours does more: it plans, checks, keeps ledgers, evaluates on two splits with intervals,
writes checkpoints and tracks in MLflow.
"""

import json
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from benchmarks.common import (
    BATCH,
    CLIP,
    EPSILON,
    HOSPITALS,
    MOMENTUM,
    RATE,
    ROUNDS,
    STEPS,
    Process,
    Row,
    data_overrides,
    interleaved,
    prepare_images,
    python,
    ratio,
)

WORK = (
    "model=cnn",
    "privacy=local_dp",
    f"privacy.epsilon={EPSILON:g}",
    f"privacy.clip_norm={CLIP:g}",
    f"federation.num_clients={HOSPITALS}",
    f"federation.num_rounds={ROUNDS}",
    f"trainer.local_steps={STEPS}",
    f"trainer.expected_batch_size={BATCH}",
    f"trainer.learning_rate={RATE:g}",
    f"trainer.momentum={MOMENTUM:g}",
)


def measure(repeats: int) -> list[Row]:
    """Whole processes, and rounds alone; the first run of each part warms caches and is not counted."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        overrides = [*data_overrides(prepare_images(folder)), *WORK]
        rounds: dict[str, list[float]] = {"ours": [], "bare 1": [], "bare 2": []}

        def ours() -> float:
            process, seconds = run_medx(folder, overrides)
            rounds["ours"].append(seconds)
            return process.seconds

        def bare(threads: int) -> Callable[[], float]:
            def run() -> float:
                process = python(folder, "-m", "benchmarks.bare_loop", "--threads", str(threads))
                rounds[f"bare {threads}"].append(process.number("rounds"))
                return process.seconds

            return run

        def obvious() -> float:
            return python(folder, "-m", "benchmarks.obvious_script").seconds

        parts = {"ours": ours, "bare 1": bare(1), "bare 2": bare(2), "obvious": obvious}
        for part in (ours, bare(1)):
            part()
        for figures in rounds.values():
            figures.clear()
        whole = interleaved(parts, repeats)
    return rows(whole, rounds)


def rows(whole: dict[str, list[float]], rounds: dict[str, list[float]]) -> list[Row]:
    """Ratios; the bare loop counts with whichever number of threads suits it better."""
    best = min(("bare 1", "bare 2"), key=lambda part: median(rounds[part]))
    middle = {part: median(figures) for part, figures in whole.items()}
    inner = {part: median(figures) for part, figures in rounds.items()}
    return [
        Row("run over obvious script (process)", ratio(whole, "ours", "obvious"), "x", 1 / 5, "five times faster"),
        Row("obvious script over run (process)", ratio(whole, "obvious", "ours"), "x", None, "five times is the aim"),
        Row("run over bare loop (rounds)", ratio(rounds, "ours", best), "x", 1.15, f"{best} thread(s)"),
        Row("run over bare loop (process)", ratio(whole, "ours", best), "x", None, f"{best} thread(s)"),
        *(Row(f"  process, {part}", value, "s") for part, value in middle.items()),
        *(Row(f"  rounds, {part}", value, "s") for part, value in inner.items()),
    ]


def run_medx(folder: Path, overrides: list[str]) -> tuple[Process, float]:
    """One run as a person starts it, and the wall time of its rounds by its own record."""
    output = folder / "run"
    process = python(folder, "-m", "medx.run", f"hydra.run.dir={output / fresh(output)}", *overrides)
    newest = max(output.glob("*/result.json"), key=lambda path: path.stat().st_mtime)
    return process, float(json.loads(newest.read_text())["timing"]["rounds"])


def fresh(folder: Path) -> str:
    """A name that no run in ``folder`` has yet."""
    return f"{len(list(folder.glob('*'))):03d}"
