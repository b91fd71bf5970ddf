"""Command line: make a hospital's identity, and pin the roster of a run.

Each hospital makes its own identity and sends only the public key; whoever sets up the run lists the public keys in a
roster and sends it to all, and everybody compares its hash before the first round.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from medx.aggregation.roster import (
    Parameters,
    Roster,
    flag,
    make_roster,
    public_key_of,
    simulated_roster,
    write_identity,
)
from medx.output import Parser, take_all
from medx.schema import ConfigError, MedxError, one_line

EPILOG = """examples:
  at each hospital:   python -m medx.aggregation identity --name north --folder keys
  whoever sets it up: python -m medx.aggregation roster --output roster.json --run-id study-1 \\
                        --public-key keys/north.pub --public-key keys/south.pub --public-key keys/west.pub \\
                        --dimension 1001 --scale 1048576 --bound 90 --rounds 300
  a rehearsal:        add --clients 5 --folder keys in place of --public-key (all identities in one trust domain)
  everybody:          python -m medx.aggregation show roster.json
"""


# Of what a roster need not say; everything else must be given.
DEFAULTS = {
    "max_attempts": 3,
    "noise_stddev": 0,
    "noise_multiplier": None,
    "clip_norm": None,
    "sampling_probability": None,
}


def _parser() -> argparse.ArgumentParser:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = Parser("python -m medx.aggregation", description=__doc__, epilog=EPILOG, formatter_class=formatter)
    commands = parser.add_subparsers(dest="command", required=True)
    identity = commands.add_parser("identity", help="make one identity: private key (mode 0600) and public key")
    identity.add_argument("--name", required=True, help="file name of the identity, e.g. the hospital's")
    identity.add_argument("--folder", type=Path, required=True, help="where NAME.pem and NAME.pub go")
    show = commands.add_parser("show", help="check a roster and print its hash, to compare by telephone")
    show.add_argument("path", type=Path)
    _add_roster(commands.add_parser("roster", help="pin who takes part and under which parameters"))
    return parser


def _add_roster(roster: argparse.ArgumentParser) -> None:
    add = roster.add_argument
    add("--output", type=Path, required=True, help="the roster file to write (JSON)")
    who = roster.add_mutually_exclusive_group(required=True)
    who.add_argument("--public-key", type=Path, action="append", help="a .pub file, once per client, in client order")
    who.add_argument("--clients", type=int, help="make this many identities here: a rehearsal, one trust domain")
    add("--folder", type=Path, help="with --clients: where the identities go")
    for name, field in Parameters.model_fields.items():
        needed = name not in DEFAULTS
        add(flag(name), dest=name, required=needed, default=DEFAULTS.get(name), help=field.description)
    add("--threshold", type=int, help="shares that open a secret (default: floor(2n/3) + 1, the least)")
    add("--minimum-survivors", type=int, help="clients below which a round aborts (default: max(threshold, 3))")


def _public_keys(options: argparse.Namespace) -> list[bytes]:
    for path in options.public_key:
        if not path.is_file():
            raise ConfigError(f"--public-key {path}: no such file; accepted: a .pub of `medx.aggregation identity`")
    return [public_key_of(path.read_text(errors="replace")) for path in options.public_key]


def _parameters(options: argparse.Namespace) -> Parameters:
    try:
        return Parameters(**{name: getattr(options, name) for name in Parameters.model_fields})
    except ValidationError as error:
        fault = error.errors()[0]
        raise ConfigError(f"{flag(str(fault['loc'][0]))} = {fault['input']!r}: {fault['msg']}") from None


def _roster(options: argparse.Namespace) -> Roster:
    parameters, counts = _parameters(options), (options.threshold, options.minimum_survivors)
    if options.public_key:
        roster = make_roster(parameters, _public_keys(options), *counts, "separate")
    elif options.folder is None:
        raise ConfigError("--clients without --folder; accepted: a folder for the identities")
    else:
        # Checked before anything is written: identities are never overwritten, so a second try would fail on them.
        roster, identities = simulated_roster(parameters, options.clients, *counts)
        for number, identity in enumerate(identities):
            write_identity(options.folder, f"client{number}", identity)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    roster.save(options.output)
    return roster


def _describe(roster: Roster) -> str:
    colluders = roster.tolerated_colluders
    return (
        f"run {roster.run_id}: {roster.num_clients} clients, threshold {roster.threshold}, at least "
        f"{roster.minimum_survivors} survivors, trust domain {roster.trust_domain}\n"
        f"colluding clients tolerated: {colluders['curious']} beside a server that follows the protocol, "
        f"{colluders['lying']} beside one that lies\nsha256 {roster.digest.hex()}"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; 2 and one line on stderr where a person can act on the error."""
    options = _parser().parse_args(arguments)
    try:
        if options.command == "identity":
            identity = write_identity(options.folder, options.name)
            print(f"{options.folder / options.name}.pem\npublic key {identity.public_key().public_bytes_raw().hex()}")
        elif options.command == "show":
            print(_describe(Roster.load(options.path)))
        else:
            print(_describe(_roster(options)))
    except (MedxError, OSError) as error:
        line = one_line(error)
        if line is None:
            raise
        print(f"medx: {line}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    take_all()
    sys.exit(main())
