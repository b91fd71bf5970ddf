"""``python -m medx.attacks RUN ...``: what the epsilon of finished runs leaves possible, however one attacks."""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from shutil import get_terminal_size

from rich.console import Console

from medx import output
from medx.folder import read_result
from medx.output import Parser, plain_text, refusing
from medx.privacy.meaning import UNKNOWN, in_short, meanings_of, observers_of, upwards
from medx.results import ExperimentResult, Meaning, told_epsilon
from medx.schema import ConfigError, MedxError
from medx.tables import Table

HELP = """
RUN is the output folder of a finished run, its result.json or its released.json;
this machine need not have made it. Nothing is trained and no image is read.

  found, 1 %              of 100 that were trained on, as many are told at most
                          by a test that wrongly flags 1 in 100 that were not
  advantage               the most by which the found can exceed the wrongly flagged
  guessed, 10 %           who would guess right 1 time in 10 without the run
                          does so at most this often with it
  mu                      of the Gaussian mechanism with this epsilon

All are upper bounds for every attack, of the epsilon that is named, and mean
nothing towards whoever sees more than it covers: see the run's statement. Where
they differ by who looks, a line tells each: how many of 100 are found where 1 in
100 is wrongly accused, and how often is guessed what 1 in 10 would guess.

examples:
  python -m medx.attacks outputs/2031-01-01/12-00-00
  python -m medx.attacks multirun/2031-01-01/12-00-00/*/ --json

exit code: 0, or 2 where a run cannot be read.
"""
HEADER = ("run", "mechanism", "for one", "epsilon", "mu", "found, 0.1 %", "found, 1 %", "found, 10 %", "advantage",
          "guessed, 1 %", "guessed, 10 %")  # fmt: skip
NEED = ("mu", "found, 0.1 %", "guessed, 1 %", "found, 10 %", "advantage", "mechanism")  # the first may go first
NOTE = "Upper bounds for every attack; a patient's is of all images of one."


@dataclass(frozen=True)
class Told:
    """One run by the name it was given, and what it means by unit."""

    name: str
    result: ExperimentResult
    meanings: dict[str, Meaning]
    observers: dict[str, Meaning]


def main(arguments: Sequence[str] | None = None) -> None:
    """Read, tell."""
    parser = Parser.of("medx.attacks", __doc__, HELP)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="output folder of a finished run, or its result.json")
    parser.add_argument("--json", action="store_true", help="all figures, with the curves")
    chosen = parser.parse_args(arguments)
    with refusing():
        told = [read(text) for text in chosen.runs]
    if chosen.json:
        print(json.dumps([as_record(each) for each in told], indent=1))
    else:
        show(told)


def read(text: str) -> Told:
    """A run by its folder or file; raises MedxError."""
    result = read_result(Path(text))
    try:
        return Told(text, result, meanings_of(result.privacy), observers_of(result.privacy))
    except MedxError as error:
        raise ConfigError(f"{text}: {error}") from error


def as_record(told: Told) -> dict[str, object]:
    """For programs."""
    found = {unit: meaning.model_dump(mode="json") for unit, meaning in told.meanings.items()}
    observers = {observer: meaning.model_dump(mode="json") for observer, meaning in told.observers.items()}
    privacy = told.result.privacy
    attacks = [each.model_dump(mode="json") for each in told.result.attacks]
    return {"run": told.name, "mechanism": privacy.mechanism, "delta": privacy.delta, "meaning": found,
            "meaning_by_observer": observers, "attacks": attacks}  # fmt: skip


def show(told: Sequence[Told]) -> None:
    """The table, as wide as there is room, with its notes."""
    numbered = list(enumerate(told, start=1))
    for number, each in numbered:
        print(plain_text(f"{number}  {each.name}"))
    table = Table(HEADER, tuple((str(number), *row) for number, each in numbered for row in rows(each)), NEED)
    if sys.stdout.isatty():
        table.draw(Console(highlight=False), "What the bounds mean")
    else:
        print("\n".join(table.plain(get_terminal_size().columns)))
    for line in notes(numbered):
        print(plain_text(line))


def notes(numbered: Sequence[tuple[int, Told]]) -> Iterator[str]:
    """What a reader of the table must know, and what stands beside it: other observers, attacks that were made."""
    if any("patient" not in each.meanings for _, each in numbered):
        yield f"A patient is {UNKNOWN}."
    deltas = sorted({each.result.privacy.delta for _, each in numbered if each.result.privacy.delta is not None})
    at = f" Epsilon and mu at delta {', '.join(f'{delta:g}' for delta in deltas)}." if deltas else ""
    yield NOTE + at
    for number, each in numbered:
        for observer, meaning in each.observers.items():
            epsilon = "no epsilon" if meaning.epsilon is None else f"epsilon {told_epsilon(meaning.epsilon)}"
            yield f"{number}  towards {observer}: {epsilon}, {in_short(meaning)}"
        for found in each.result.attacks:
            yield f"{number}  {found.line()}"


def rows(told: Told) -> Iterator[list[str]]:
    """Cells for an image, and for a patient whether or not one is bounded."""
    for unit in ("image", "patient"):
        who = [told.result.privacy.mechanism, unit]
        meaning = told.meanings.get(unit)
        if meaning is None:
            yield [*who, UNKNOWN.partition(":")[0], *["-"] * (len(HEADER) - 4)]
            continue
        epsilon = "none" if meaning.epsilon is None else told_epsilon(meaning.epsilon)
        shares = (*meaning.detected.values(), meaning.advantage, *meaning.reconstructed.values())
        yield [*who, epsilon, "-" if meaning.mu is None else f"{meaning.mu:.3f}", *map(percent, shares)]


def percent(share: float) -> str:
    """A tenth of a percent, and a digit more below one; upwards."""
    digits = 1 if share >= 0.01 else 2
    return f"{100 * upwards(share, digits + 2):.{digits}f} %"


if __name__ == "__main__":
    output.take_all()
    main()
