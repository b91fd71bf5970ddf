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
    return [row("python -m medx.run --help", times, 1.5)]


def measure_sweep(repeats: int) -> list[Row]:
    """The default sweep and a run of one round, in turns; the first of each, uncounted, fills the caches."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        data = data_overrides(prepare_images(folder))
        single, whole, rounds = [], [], []
        for number in range(repeats + 1):
            single.append(python(folder, "-m", "medx.run", *data, ONE_ROUND).seconds)
            place = folder / f"sweep{number}"
            whole.append(python(folder, "-m", "medx.run", *data, f"hydra.sweep.dir={place}", *SWEEP).seconds)
            rounds.append(sum(rounds_of(path) for path in place.glob("*/result.json")))
    note = f"rounds of all jobs {min(rounds[1:]):.1f} s"
    return [
        row("one round of scatternet, prompt to table", single[1:], 9.0),
        row("sweep of three, features in the cache", whole[1:], 15.0, note),
    ]


def row(name: str, times: list[float], target: float, *notes: str) -> Row:
    """The median; in the note the least, which other work on the machine moves less."""
    return Row(name, median(times), "s", target, ", ".join([f"least {min(times):.2f} s", *notes]))


def rounds_of(path: Path) -> float:
    """Seconds of all rounds of a result, by its own records."""
    return sum(record["seconds"]["total"] for record in json.loads(path.read_text())["rounds"])
