"""What a person waits for who trains little: ``--help``, one round, and a warm sweep."""

import json
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from benchmarks.common import Row, data_overrides, prepare_images, python

SWEEP = ("privacy.epsilon=1,5,10", "-m")
ONE_ROUND = "federation.num_rounds=1"


def measure_help(repeats: int) -> list[Row]:
    """Seconds of ``python -m medx.run --help``."""
    with TemporaryDirectory() as folder:
        times = [python(Path(folder), "-m", "medx.run", "--help").seconds for _ in range(repeats + 1)][1:]
    return [Row("python -m medx.run --help", median(times), "s", 1.0, "")]


def measure_sweep(repeats: int) -> list[Row]:
    """The default sweep and a run of one round; the first, uncounted run fills the caches of features and noise."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        data = data_overrides(prepare_images(folder))

        def one_round() -> float:
            return python(folder, "-m", "medx.run", *data, ONE_ROUND).seconds

        def sweep(place: Path) -> tuple[float, float]:
            process = python(folder, "-m", "medx.run", *data, f"hydra.sweep.dir={place}", *SWEEP)
            return process.seconds, sum(rounds_of(path) for path in place.glob("*/result.json"))

        def bare() -> float:
            """The three loops one after the other, with whichever number of threads suits them better."""
            loops = [
                [python(folder, "-m", "benchmarks.bare_linear", "--threads", threads, *data) for _ in range(3)]
                for threads in ("1", "2")
            ]
            return min(sum(loop.number("rounds") for loop in runs) for runs in loops)

        one_round()
        sweep(folder / "warm")
        found = [(one_round(), *sweep(folder / f"sweep{number}"), bare()) for number in range(repeats)]
    single, whole, rounds, loops = (median(column) for column in zip(*found, strict=True))
    excess = median(after - 1.2 * inside for _, after, _, inside in found)
    note = f"{whole:.1f} s; rounds of all jobs {rounds:.1f} s, bare loops {loops:.1f} s"
    return [
        Row("one round of scatternet, prompt to table", single, "s", 6.0),
        Row("sweep of three less 1.2 times bare loops", excess, "s", 5.0, note),
    ]


def rounds_of(path: Path) -> float:
    """Seconds of all rounds of a result, by its own records."""
    return sum(record["seconds"]["total"] for record in json.loads(path.read_text())["rounds"])
