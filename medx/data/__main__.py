"""``python -m medx.data check DIR``: what there is, what is wrong with it, and whether a run would take it."""

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from medx import output
from medx.configuration import build
from medx.data.findings import Findings, find, nothing
from medx.data.look import Records, look_at_folder, look_at_splits
from medx.data.page import as_page
from medx.data.words import as_text
from medx.dataset import Dataset
from medx.dataset.checks import check_splits
from medx.dataset.folder import Folder
from medx.files import write_text
from medx.hints import NO_OVERRIDE, nearest, option, options_of
from medx.output import Parser, refusing
from medx.schema import ConfigError, MedxError

EPILOG = """\
examples:
  python -m medx.data check DIR
  python -m medx.data check DIR dataset.columns.label=diagnosis --html check.html
  python -m medx.data check dataset=pneumoniamnist

exit code: 0 where a run would take the data, 1 where it would be refused, 2
where this command line is wrong.
"""


def main() -> None:
    """Parse, look, tell."""
    output.take_all()
    parser = Parser.of("medx.data", __doc__, EPILOG)
    parser.add_argument("verb", choices=["check"])
    words = "a folder of images, or dataset=NAME; and\ndataset.key=value as for a run"
    parser.add_argument("what", nargs="+", metavar="DIR | key=value", help=words)
    parser.add_argument("--json", action="store_true", help="all findings, with the names of files")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write one page with a contact sheet")
    options = parser.parse_intermixed_args()
    if not options.json:
        output.shown_by(output.Line())
    with refusing():
        name, dataset = configured(options.what)
        found, records = examine(dataset)
        if options.html is not None:
            if not options.html.parent.is_dir():
                raise ConfigError(f"--html={options.html}: there is no such folder; accepted: a file in one that is")
            write_text(options.html, as_page(f"Data check: {name}", found, records))
    output.say("")
    print(json.dumps(found, indent=1) if options.json else as_text(f"Data check: {name}", found), end="")
    sys.exit(1 if found["refusal"] else 0)


def configured(given: list[str]) -> tuple[str, Dataset]:
    """The data set that a command line names, as a run would build it."""
    places = [part for part in given if "=" not in part]
    overrides = values_of(part for part in given if "=" in part)
    if len(places) > 1:
        raise ConfigError(f"{places[1]}: accepted: one folder")
    name = str(overrides.pop("dataset", "folder"))
    if name not in options_of("dataset"):
        raise ConfigError(f"dataset={name} is unknown; {nearest(name, options_of('dataset'))}")
    config = OmegaConf.create({"dataset": option("dataset", name)})
    for key in overrides:
        if not key.startswith("dataset."):
            raise ConfigError(f"{key}: accepted: dataset=NAME and dataset.key=value")
    try:
        for key, value in overrides.items():
            OmegaConf.update(config, key, value)
        merged = OmegaConf.to_container(config, resolve=True)
    except (OmegaConfBaseException, ValueError) as error:
        raise ConfigError(str(error).splitlines()[0]) from error
    assert isinstance(merged, dict)
    if places:
        merged["dataset"]["path"] = places[0]
    return name, build({str(key): value for key, value in merged.items()}, "dataset")


def values_of(overrides: Iterable[str]) -> dict[str, Any]:
    """Values by key, read as a run reads them; raises ConfigError where a run would not."""
    parser, found = OverridesParser.create(), {}
    for part in overrides:
        try:
            override = parser.parse_override(part)
        except HydraException:
            raise ConfigError(NO_OVERRIDE.format(part)) from None
        if override.is_sweep_override() or override.is_delete():
            raise ConfigError(f"{part}: accepted: one value; a list as [a,b]")
        found[override.key_or_group] = override.value()
    return found


def examine(dataset: Dataset) -> tuple[Findings, Records | None]:
    """Findings, and the records where they could be looked at; the refusal is the very one of a run."""
    records = None
    try:
        if isinstance(dataset, Folder):
            records = look_at_folder(dataset)
        splits = dataset.load()
        records = records or look_at_splits(splits)
        check_splits(splits)
        refusal = None
    except MedxError as error:
        refusal = " ".join(str(error).split())
    if records is None:
        return nothing(refusal), None
    return find(records, refusal), records


if __name__ == "__main__":
    main()
