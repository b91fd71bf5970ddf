"""Real hospitals: one study across machines that do not trust each other, on Flower's SuperLink and SuperNodes."""

import argparse
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from medx import output
from medx.aggregation.roster import read_identity
from medx.output import Parser
from medx.schema import ConfigError, MedxError, one_line

EPILOG = """\
a consortium, on three machines or for a trial on one:
  medx site init consortium.yaml --folder lungs     kits and the coordinator's folder
  medx site declare lungs/kits/north                how many images there are: to the coordinator
  medx coordinator start lungs/coordinator
  medx site start lungs/kits/north                  at each hospital
  medx submit lungs/coordinator model=cnn privacy=distributed_dp privacy.epsilon=5
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, do, and end with 2 and one line where something is refused."""
    output.take_all()
    output.shown_by(output.Line())
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    given = sys.argv[1:] if arguments is None else list(arguments)
    options, rest = _parser().parse_known_args(given)
    if rest and options.do is not _submit:
        _parser().error(f"{rest[0]}: not known here")
    options.overrides = rest
    try:
        sys.exit(options.do(options))
    except (MedxError, OSError) as error:
        if (line := one_line(error)) is None:
            raise
        output.say("")
        print(f"medx: {' '.join(line.split())}", file=sys.stderr)
        sys.exit(2)


def _parser() -> Parser:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = Parser("medx", description=__doc__, epilog=EPILOG, formatter_class=formatter)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    _add_site(verbs.add_parser("site", help="kits, and a hospital's own commands"))
    coordinator = verbs.add_parser("coordinator", help="the coordinator's processes")
    start = coordinator.add_subparsers(dest="what", required=True).add_parser("start", help="SuperLink and SuperExec")
    start.add_argument("folder", type=Path)
    start.add_argument("--listen", default="0.0.0.0", metavar="ADDRESS", help="the address to listen on")
    start.set_defaults(do=_start_coordinator)
    submit = verbs.add_parser("submit", help="sign a study and run it; overrides as for medx run")
    submit.add_argument("folder", type=Path)
    submit.add_argument("--hospitals", metavar="A,B,C", help="some of the consortium's; default: all")
    submit.add_argument("--title", help="what people read")
    submit.add_argument("--draft", type=Path, metavar="FILE", help="write the signed study for approval; do not run it")
    submit.add_argument("--study", type=Path, metavar="FILE", help="a draft, or the study.json of a run to go on with")
    submit.set_defaults(do=_submit)
    for verb, words, what in (
        ("status", "runs, as Flower lists them", ("ls",)),
        ("logs", "what a run says", ("log",)),
        ("stop", "end a run", ("stop",)),
    ):
        own = verbs.add_parser(verb, help=words)
        own.add_argument("folder", type=Path)
        if verb != "status":
            own.add_argument("run", help="the run's number, which status tells")
        own.set_defaults(do=_flower(*what))
    return parser


def _add_site(site: argparse.ArgumentParser) -> None:
    verbs = site.add_subparsers(dest="what", required=True, metavar="VERB")

    def add(name: str, do: Callable[[argparse.Namespace], int], words: str, *places: str) -> argparse.ArgumentParser:
        own: argparse.ArgumentParser = verbs.add_parser(name, help=words)
        for place in places:
            own.add_argument(place, type=Path)
        own.set_defaults(do=do)
        return own

    init = add("init", _init, "the coordinator's folder and a kit for each hospital", "plan")
    init.add_argument("--folder", type=Path, help="where; default: the consortium's name")
    add("keys", _keys, "make a hospital's keys where it is, for a plan with keys: hospital", "kit")
    enrol = add("enrol", _enrol, "take hospitals' enrolments into the consortium", "folder")
    enrol.add_argument("enrolments", type=Path, nargs="+")
    declare = add("declare", _declare, "count the hospital's own images for the coordinator", "kit")
    declare.add_argument("--size", type=int, help="pixels, where site.yaml leaves them to the study")
    check = add(
        "check", _check, "keys, certificates, the way to the coordinator; with STUDY what the policy says", "kit"
    )
    check.add_argument("study", type=Path, nargs="?")
    start = add("start", _start, "the node and the executor", "kit")
    start.add_argument("--only", choices=["node", "executor"])
    start.add_argument("--node", metavar="HOST:PORT", help="of a node that is elsewhere")
    approve = add("approve", _approve, "show a study and approve it; without STUDY list all", "kit")
    approve.add_argument("study", nargs="?", help="its digest, or the beginning of it, or its file")
    approve.add_argument("--refuse", action="store_true")
    approve.add_argument("--note", default="", help="why, for the record")
    add("audit", _audit, "show the audit log, and check that no line was changed", "kit")
    close = add("close", _close, "give back what an abandoned study has reserved and not begun", "kit")
    close.add_argument("study", help="its digest, or the beginning of it")


def _init(options: argparse.Namespace) -> int:
    from medx.site.consortium import read_plan
    from medx.site.kits import init

    plan = read_plan(options.plan)
    folder = options.folder or Path(plan.name)
    init(plan, folder)
    print(f"{folder}/coordinator: the coordinator's folder, and how to go on: README.md in it")
    for name in plan.hospitals:
        print(f"{folder}/kits/{name}: the kit of {name}")
    return 0


def _keys(options: argparse.Namespace) -> int:
    from medx.site.kits import make_keys

    print(f"{make_keys(options.kit)}: to the coordinator; the private keys stay here")
    return 0


def _enrol(options: argparse.Namespace) -> int:
    from medx.site.kits import enrol

    consortium = enrol(options.folder, options.enrolments)
    missing = [member.name for member in consortium.hospitals if member.identity is None]
    print(
        f"still missing: {', '.join(missing)}" if missing else "all are enrolled: send consortium.json and .sig to each"
    )
    return 0


def _declare(options: argparse.Namespace) -> int:
    from medx.files import write_text
    from medx.site.consortium import Consortium
    from medx.site.declaring import described, own_dataset, sign_declaration
    from medx.site.site_config import SiteConfig

    site, consortium = SiteConfig.load(options.kit), Consortium.load(options.kit)
    os.environ["MEDX_CACHE"] = str(site.cache)
    found = described(site.name, own_dataset(site, size=options.size).load())
    path = options.kit / f"{site.name}.json"
    write_text(path, sign_declaration(found, consortium, read_identity(options.kit / "identity.pem")))
    own = found.declaration
    patients = "" if own.num_patients is None else f" of {own.num_patients} patients"
    print(f"{own.num_records} training images{patients}, {found.image_size} pixels, {', '.join(found.class_names)}")
    print(f"{path}: to the coordinator's folder declarations")
    return 0


def _check(options: argparse.Namespace) -> int:
    from medx.site.certificates import warnings_of
    from medx.site.hospital import Site
    from medx.site.processes import clock_warning, is_open

    site = Site(options.kit)
    if options.study is not None:
        print(site.look(options.study.read_text()), end="")
        return 0
    site.policy()
    problems = warnings_of(options.kit)
    if not is_open(options.kit, site.consortium.host, site.consortium.port):
        problems.append(
            f"{site.consortium.address}: no answer; the coordinator is not started, or a firewall is between"
        )
    elif late := clock_warning(options.kit, site.consortium.host, site.consortium.port):
        problems.append(late)
    print("\n".join(problems) or f"{site.config.name}: keys, certificates, policy and the coordinator: all in order")
    return 1 if problems else 0


def _start(options: argparse.Namespace) -> int:
    from medx.site.processes import start_site

    start_site(options.kit, options.only, options.node)
    return 0


def _approve(options: argparse.Namespace) -> int:
    from medx.site.hospital import Site

    site = Site(options.kit)
    if options.study is None:
        for known in site.approvals.listed():
            print(f"{known.study}  {known.state}  {known.time}")
        return 0
    digest, text = site.find(options.study)
    print(site.look(text), end="")
    site.approvals.decide(digest, not options.refuse, options.note)
    site.audit.write("decided", study=digest, approved=not options.refuse, note=options.note)
    print(f"{digest}: {'refused' if options.refuse else 'approved'}")
    return 0


def _audit(options: argparse.Namespace) -> int:
    from medx.site.audit import entries, head, verify
    from medx.site.site_config import SiteConfig

    path = SiteConfig.load(options.kit).audit
    for entry in entries(path):
        details = ", ".join(f"{key} {value}" for key, value in entry.details.items())
        print(output.plain_text(f"{entry.number:>5}  {entry.time}  {entry.event}  {details}"))
    verify(path)
    number, digest = head(path)
    print(f"{number} entries, unchanged; the last is {digest}: note it elsewhere, and a log cut short is seen")
    return 0


def _close(options: argparse.Namespace) -> int:
    from medx.site.hospital import Site

    site = Site(options.kit)
    digest, text = site.find(options.study)
    site.end(text)
    print(f"{digest}: what was reserved and not begun is given back")
    return 0


def _start_coordinator(options: argparse.Namespace) -> int:
    from medx.site.processes import start_coordinator

    start_coordinator(options.folder, options.listen)
    return 0


def _submit(options: argparse.Namespace) -> int:
    from medx.files import write_text
    from medx.site.submitting import new_study, signing_key, submit

    if options.study is not None:
        if options.overrides:
            raise ConfigError(f"{options.overrides[0]}: the study of --study is what it is; accepted: one of the two")
        text = options.study.read_text()
    else:
        names = options.hospitals.split(",") if options.hospitals else None
        study = new_study(options.folder, options.overrides, names, options.title)
        text = study.signed(signing_key(options.folder))
        print(f"study {study.digest}: {study.title}", flush=True)
    if options.draft is not None:
        write_text(options.draft, text)
        print(f"{options.draft}: for hospitals to look at (medx site check KIT FILE) and approve, then submit --study")
        return 0
    result = submit(options.folder, text)
    return 0 if result.status == "finished" else 1


def _flower(verb: str) -> Callable[[argparse.Namespace], int]:
    def do(options: argparse.Namespace) -> int:
        from medx.site.processes import LINK, environment_of, flower

        run = [options.run] if "run" in options else []
        command = flower(options.folder, verb, *run, LINK)
        return subprocess.run(command, env=environment_of(options.folder), check=False).returncode

    return do


if __name__ == "__main__":
    main()
