"""``python -m medx.dossier RUN ...``: a page of finished runs for a board or a data protection officer."""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from medx import output
from medx.output import Parser, refusing

HELP = """
RUN is the output folder of a run, its result.json or its released.json; this
machine need not have made it. Nothing is trained and no image is read. A
coordinator's run folder shows the hospitals' receipts too; a hospital adds with
--site what its own log, policy and ledger say of the study.

The page begins with three sentences: what was trained on whose data, how good it
is, what privacy holds and towards whom. A sentence is in it only where the run
bears it out. It is the owner's view; --released leaves out what epsilon does not
cover, as released.json does.

examples:
  python -m medx.dossier outputs/2031-01-01/12-00-00
  python -m medx.dossier RUN RUN --html board.html --json board.json
  python -m medx.dossier RUN --released --markdown -

The JSON is described by medx/dossier/schema.json.

exit code: 0, or 2 where a run cannot be read.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Read, write, say where."""
    parser = Parser.of("medx.dossier", __doc__, HELP)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="output folder of a run, or its result.json")
    parser.add_argument("--html", type=Path, metavar="FILE", help="default: dossier.html, unless another is asked for")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="the same words and tables; - is standard output")
    parser.add_argument("--json", type=Path, metavar="FILE", help="the same for programs; - is standard output")
    parser.add_argument(
        "--site", type=Path, action="append", default=[], metavar="KIT", help="a hospital's own kit: its log"
    )
    parser.add_argument("--released", action="store_true", help="without what is the owner's alone")
    chosen = parser.parse_args(arguments)
    with refusing():
        write(chosen)


def write(chosen: argparse.Namespace) -> None:
    """Write what was asked for; raises MedxError."""
    from medx.dossier.page import as_html, as_json, as_markdown, make_dossier
    from medx.dossier.subject import read
    from medx.files import write_text
    from medx.schema import ConfigError

    wanted = {"--html": chosen.html, "--markdown": chosen.markdown, "--json": chosen.json}
    if not any(wanted.values()):
        wanted["--html"] = Path("dossier.html")
    for name, path in wanted.items():
        if path is not None and path != Path("-") and not path.parent.is_dir():
            raise ConfigError(f"{name}={path}: there is no such folder; accepted: a file in one that is")
    runs = read(chosen.runs, released=chosen.released)
    if chosen.site:
        from medx.dossier.kit import with_kits  # brings all that a node needs

        if chosen.released:
            raise ConfigError(f"--site={chosen.site[0]}: a hospital's log is its own; accepted: without --released")
        runs = with_kits(runs, chosen.site)
    dossier = make_dossier(runs, time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()))
    makers = {"--html": lambda: as_html(dossier, runs), "--markdown": lambda: as_markdown(dossier),
              "--json": lambda: as_json(dossier)}  # fmt: skip
    for name, path in wanted.items():
        if path == Path("-"):
            sys.stdout.write(makers[name]())
        elif path is not None:
            write_text(path, makers[name]())
            print(f"{path}: {dossier.view} view of {len(runs)} run{'s' * (len(runs) > 1)}")


if __name__ == "__main__":
    output.take_all()
    main()
