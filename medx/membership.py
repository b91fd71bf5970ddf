"""``python -m medx.membership FILE [key=value ...]``: attack the settings in a file, side by side.

It trains the shadow runs that are not in the cache, and writes a table, a figure and all numbers.
"""

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from shutil import get_terminal_size
from textwrap import wrap

import yaml
from pydantic import ValidationError

from medx import output
from medx.attacks.membership import ATTACKS, STUDY_FILE, Found, Membership, MembershipStudy, attack
from medx.attacks.pictures import NAMES, member_roc
from medx.files import write_text
from medx.output import Parser, plain_text, refusing, say
from medx.released import Record
from medx.schema import ConfigError
from medx.shadows import Shadows
from medx.tables import Table

EPILOG = """\
examples:
  python -m medx.membership experiments/membership/settings.yaml
  python -m medx.membership FILE dataset=phantom --runs 16

What has been trained is in cache=FOLDER and is not trained again.

exit code: 0 where nothing speaks against a claim, 1 where something does, 2
where this command line is wrong.
"""


TABLE_FILE = "table.md"
NEED = ("test AUC", "of one replaced", "by pairs", "claimed ε", "AUC", "at 1 %")  # the first may go first
NOTE = (
    "TPR: of records that were trained on, how many are told where 1 in 1000, or 1 in 100, of the others is wrongly "
    "accused; luck tells as many. A bound is a lower bound for ε at 95 %, of the most that so many trials could prove."
)


class Settings(Record):
    """A file: overrides of every setting by its name, beside those of all."""

    title: str
    runs: int
    overrides: list[str]
    settings: dict[str, list[str]]


def main() -> None:
    """Parse, train, attack, write, tell."""
    output.take_all()
    parser = Parser.of("medx.membership", __doc__, EPILOG)
    parser.add_argument("file", type=Path, help="settings.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for all settings")
    parser.add_argument("--runs", type=int, help="of each setting, in place of the file's")
    parser.add_argument("--jobs", type=int, help="runs at once; by default what suits the machine")
    parser.add_argument("--out", type=Path, default=Path("membership"), help="folder of what is written (membership)")
    options = parser.parse_intermixed_args()
    output.shown_by(output.Line())
    with refusing():
        chosen = read(options.file)
        found = dict(attacked(chosen, options.overrides, options.runs or chosen.runs, options.jobs))
        write(options.out, chosen.title, found)
    say("")
    width = get_terminal_size().columns
    print("\n".join([*Table.of(list(rows(found)), NEED).plain(width), *wrap(plain_text(NOTE), width)]))
    print(f"Output: {options.out}; {TABLE_FILE} there has every column, and hospitals")
    sys.exit(1 if any(each.refutes for each in found.values()) else 0)


def read(file: Path) -> Settings:
    """The settings in a file; raises ConfigError where they are none."""
    try:
        return Settings.model_validate(yaml.safe_load(file.read_text()))
    except (ValidationError, yaml.YAMLError) as error:
        raise ConfigError(
            f"{file}: {str(error).splitlines()[0]}; accepted: title, runs, overrides, settings"
        ) from error


def attacked(chosen: Settings, more: Sequence[str], runs: int, at_once: int | None) -> Iterator[tuple[str, Membership]]:
    """Every setting's attacks, one after the other."""
    for name, overrides in chosen.settings.items():
        shadows = Shadows([*chosen.overrides, *overrides, *more], runs)
        shadows.train(at_once)
        say(f"attacking: {name}")
        yield name, attack(shadows.observed())


def write(folder: Path, title: str, found: Mapping[str, Membership]) -> None:
    """All numbers as JSON, the tables, and a figure for each attack."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / STUDY_FILE, MembershipStudy(title=title, settings=dict(found)).model_dump_json() + "\n")
    write_text(folder / TABLE_FILE, f"{markdown(rows(found))}\n\n{markdown(rows_by_hospital(found))}\n")
    for name in ATTACKS:
        member_roc(name, title, found).save(folder)


def rows(found: Mapping[str, Membership]) -> Iterator[dict[str, str]]:
    """A row for each setting and attack, on all records and on the most exposed."""
    for name, each in found.items():
        claim = {"claimed ε": told(each.claimed), "of one replaced": told(each.replaced)}
        for row in each.found:
            if not row.whose.startswith("hospital"):
                yield {"setting": name, **claim, "test AUC": told(each.test_auc, 3), **figures(row)}


def rows_by_hospital(found: Mapping[str, Membership]) -> Iterator[dict[str, str]]:
    """A row for each setting and hospital, by the first attack."""
    for name, each in found.items():
        for row in each.found:
            if row.whose.startswith("hospital") and row.attack == next(iter(ATTACKS)):
                yield {"setting": name, **figures(row)}


def figures(row: Found) -> dict[str, str]:
    """An attack's figures as cells; a bound beside the most that it could be."""
    return {
        "attack": NAMES[row.attack],
        "records": f"{row.whose} ({row.records})",
        "AUC": f"{row.auc:.3f}",
        "TPR at 0.1 %": f"{row.true_at_0_1:.2%}",
        "at 1 %": f"{row.true_at_1:.2%}",
        "bound by rates": f"{row.by_rates.epsilon:.2f} of {row.by_rates.ceiling:.2f}",
        "by pairs": f"{row.by_pairs.epsilon:.2f} of {row.by_pairs.ceiling:.2f}",
    }


def markdown(given: Iterable[dict[str, str]]) -> str:
    """Rows of the same keys as a table."""
    every = list(given)
    lines = [[*every[0]], ["---"] * len(every[0]), *([*row.values()] for row in every)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def told(value: float | None, digits: int = 2) -> str:
    """A number, or that there is none."""
    return "none" if value is None else f"{value:.{digits}f}"


if __name__ == "__main__":
    main()
