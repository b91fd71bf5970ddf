"""``python -m medx.audit [key=value ...]``: audit a configuration by canaries, or the reference grid.

The configuration runs on data with canaries in them; what each observer can prove stands beside what is claimed.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from shutil import get_terminal_size
from typing import Any

from medx import output
from medx.api import composed
from medx.attacks.audit import Finding, audit, unit_of
from medx.files import write_text
from medx.job import cache_at
from medx.output import Parser, plain_text, refusing, say
from medx.tables import Table

EPILOG = """\
examples:
  python -m medx.audit privacy=distributed_dp privacy.epsilon=5
  python -m medx.audit model=cnn federation.num_rounds=20 --seeds 3
  python -m medx.audit --reference --json audit.json

Without dataset=NAME images are drawn. A lower bound found by these attacks is
no upper bound: others may find more.

exit code: 0 where nothing speaks against a claim, 1 where something does, 2
where this command line is wrong.
"""
CANARIES, HOSPITALS = 400, 40  # where the unit is an image, and where it is a hospital
ROUNDS = ("federation.num_clients=3", "federation.num_rounds=12")
CNN = (
    "model=cnn",
    "model.widths=[8,16,16,16]",
    "dataset.num_train=900",
    "trainer.expected_batch_size=null",
    "trainer.sampling_probability=null",
)
# Audited by `make audit`: (name, overrides, canaries or None for the default, runs).
REFERENCE: tuple[tuple[str, tuple[str, ...], int | None, int], ...] = (
    ("scatternet, none", ("privacy=none", *ROUNDS), None, 1),
    ("scatternet, local 1", ("privacy=local_dp", "privacy.epsilon=1", *ROUNDS), None, 10),
    ("scatternet, local 10", ("privacy=local_dp", *ROUNDS), None, 10),
    ("scatternet, distributed 1", ("privacy=distributed_dp", "privacy.epsilon=1", *ROUNDS), None, 10),
    ("scatternet, distributed 10", ("privacy=distributed_dp", *ROUNDS), None, 10),
    ("scatternet, central 10", ("privacy=central_dp", "federation.num_rounds=12"), None, 10),
    ("cnn, none", ("privacy=none", *CNN, *ROUNDS), None, 1),
    ("cnn, local 1", ("privacy=local_dp", "privacy.epsilon=1", *CNN, *ROUNDS), None, 3),
    ("cnn, local 10", ("privacy=local_dp", *CNN, *ROUNDS), None, 3),
    ("cnn, local 10, batches", ("privacy=local_dp", *CNN[:3], "trainer.expected_batch_size=64", *ROUNDS), None, 3),
    ("cnn, distributed 1", ("privacy=distributed_dp", "privacy.epsilon=1", *CNN, *ROUNDS), None, 3),
    ("cnn, distributed 10", ("privacy=distributed_dp", *CNN, *ROUNDS), None, 3),
    ("cnn, central 10", ("privacy=central_dp", *CNN, "federation.num_rounds=12"), None, 3),
)


@dataclass(frozen=True)
class Audited:
    """One configuration's findings."""

    name: str
    findings: Sequence[Finding]

    def rows(self) -> Iterator[dict[str, Any]]:
        """One for each observer."""
        for each in (finding.result() for finding in self.findings):
            bound = None if each.found is None else f"{each.found:.2f}"
            yield {
                "audit": self.name,
                "observer": each.observer,
                "claimed ε": "none" if each.claimed is None else f"{each.claimed:.2f}",
                "found ε": bound or "any",
                "shift": f"{each.shift:.3f} ± {each.error:.3f}" if bound else "no noise",
                "planned": None if each.planned is None else f"{each.planned:.3f}",
                "guesses": f"{each.one_run:.2f} of {each.ceiling:.2f}",
                "canaries": str(each.trials),
                "s": f"{each.seconds:.0f}",
                "against the claim": "; ".join(each.against) or "nothing",
            }


def main() -> None:
    """Parse, audit, tell."""
    output.take_all()
    parser = Parser.of("medx.audit", __doc__, EPILOG)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="a configuration, as for a run")
    parser.add_argument("--reference", action="store_true", help="every mechanism, two models, two budgets")
    parser.add_argument("--canaries", type=int, help="in each run (400, or 40 hospitals)")
    parser.add_argument("--seeds", type=int, help="runs, each with coins of its own (1)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to it")
    options = parser.parse_intermixed_args()
    output.shown_by(output.Line())
    with refusing():
        audits = []
        for each in audits_of(options):
            audits.append(each)
            if options.reference:  # it takes long, so each is told when it ends
                say("")
                for finding in each.findings:
                    print(plain_text(f"{each.name}: {finding.result().line()}"), flush=True)
        if options.json is not None:
            write_text(options.json, json.dumps([row for each in audits for row in each.rows()], indent=1))
    say("")
    rows = [row for each in audits for row in each.rows()]
    need = ("s", "canaries", "guesses", "planned", "shift", "against the claim", "observer")
    print("\n".join(Table.of(rows, need).plain(get_terminal_size().columns)))
    sys.exit(1 if any(finding.raised for each in audits for finding in each.findings) else 0)


def audits_of(options: argparse.Namespace) -> Iterator[Audited]:
    """What the command line asks for, one after the other."""
    given = list(options.overrides)
    if not options.reference:
        yield audited("this", given, options.canaries, options.seeds or 1)
        return
    for name, overrides, canaries, runs in REFERENCE:
        yield audited(name, [*overrides, *given], options.canaries or canaries, options.seeds or runs)


def audited(name: str, overrides: Sequence[str], canaries: int | None, runs: int) -> Audited:
    """Audit one configuration; where it names no data set, images are drawn."""
    drawn = [] if any(part.startswith("dataset=") for part in overrides) else ["dataset=phantom"]
    given = [*drawn, *overrides]
    plain, _ = composed(given, None, Path())
    count = canaries or (HOSPITALS if unit_of(plain) == "client" else CANARIES)
    say(f"auditing: {name}")
    with tempfile.TemporaryDirectory() as folder, cache_at(Path(plain["cache"]).expanduser()):
        return Audited(name, audit(plain, Path(folder), canaries=count, seeds=range(runs)))


if __name__ == "__main__":
    main()
