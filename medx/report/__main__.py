"""``python -m medx.report``: run what a study still lacks, then render it; or render what lies in a folder.

A folder is that of a run, of a sweep or of several sweeps, whose page goes to FOLDER/report; or a study's with its
results.csv, whose page, FOLDER/report.html, is made without any run. ``compare`` shows two runs side by side.
"""

import argparse
import shlex
import sys
import time
from pathlib import Path

from medx.output import Parser, take_all
from medx.report.study import STUDIES, Job, Study, load_study, parse_seeds, plan_jobs
from medx.results import ExperimentResult
from medx.schema import ConfigError, MedxError, one_line

HELP = """
examples:
  python -m medx.report                               the reference study, into report/index.html
  python -m medx.report --study phantom_report        in miniature, on synthetic images
  python -m medx.report --seeds 0-4                   other seeds
  python -m medx.report --set pneumoniamnist:dataset.md5=0123...   an override for one data set's jobs
  python -m medx.report multirun/DATE/TIME            the runs of a sweep, into multirun/DATE/TIME/report
  python -m medx.report experiments/reference_report  from what is committed of it, without any run
  python -m medx.report compare RUN RUN               two runs (output folders) side by side

A job is known by its configuration's hash and its seed, and is not run again while its result is in
STORE/STUDY/HASH-SEED and its run is in MLflow. Delete either, and the next call makes that one again.
"""


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0; 1 where a job failed; 2 for a refusal; 130 where the user stopped it."""
    given = sys.argv[1:] if arguments is None else arguments
    try:
        if given[:1] == ["compare"]:
            from medx.report import compare

            return compare.main(given[1:])
        return report(given)
    except (MedxError, OSError) as error:
        if (line := one_line(error)) is None:
            raise
        print(f"medx: {line}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here", file=sys.stderr)
        return 130


def report(given: list[str]) -> int:
    """Run and render the studies that were named."""
    parser = Parser.of("medx.report", __doc__, HELP)
    parser.add_argument("folder", nargs="?", type=Path, help="a run, a sweep, or a study with its results.csv")
    parser.add_argument("--study", help="names of experiments/NAME/study.yaml, by commas (default reference_report)")
    parser.add_argument("--seeds", type=str, help="in place of the study's: 0,1,2 or 0-4")
    parser.add_argument("--set", action="append", default=[], metavar="[DATASET:]KEY=VALUE", help="one more override")
    parser.add_argument("--workers", type=int, default=2, help="jobs at a time, in processes of their own (default 2)")
    parser.add_argument("--store", type=Path, default=Path("outputs"), help="where runs are kept (default outputs)")
    parser.add_argument("--out", type=Path, help="where the report goes (default report, or in the folder)")
    parser.add_argument("--list", action="store_true", help="show the jobs and what is missing; run nothing")
    parser.add_argument("--render-only", action="store_true", help="run nothing; render what there is")
    parser.add_argument("--publish", action="store_true", help="also write experiments/STUDY and the README's table")
    chosen = parser.parse_args(given)
    if chosen.folder is not None:
        return of_folder(chosen)
    chosen.study = "reference_report" if chosen.study is None else chosen.study
    chosen.out = chosen.out or Path("report")
    if chosen.workers < 1:
        raise ConfigError(f"workers={chosen.workers}: nobody would run a job; accepted: a number from 1")
    seeds = None if chosen.seeds is None else parse_seeds(chosen.seeds)
    studies = [load_study(name) for name in chosen.study.split(",")]
    planned = [plan_jobs(study, seeds, chosen.set) for study in studies]
    code = 0
    for index, (study, (jobs, gaps)) in enumerate(zip(studies, planned, strict=True)):
        out = chosen.out / study.name if index else chosen.out
        code = max(code, one_study(study, jobs, gaps, argparse.Namespace(**{**vars(chosen), "out": out})))
    return code


def of_folder(chosen: argparse.Namespace) -> int:
    """Render what lies in a folder, and say where the page is."""
    beside = {"--study": chosen.study, "--seeds": chosen.seeds, "--set": chosen.set, "--list": chosen.list,
              "--publish": chosen.publish}  # fmt: skip
    if unfit := [name for name, value in beside.items() if value not in (None, False, [])]:
        raise ConfigError(f"{unfit[0]}: goes with a study that is run; accepted beside {chosen.folder}: --out")
    from medx.report.committed import is_committed, read_committed
    from medx.report.page import report_of, write_page, write_report
    from medx.report.section import Material
    from medx.report.sweep import read_sweep

    began = time.monotonic()
    folder, out = chosen.folder, chosen.out
    command = f"medx report {folder}"
    if is_committed(folder):
        page = write_page(folder) if out is None else write_report(report_of(read_committed(folder), command, []), out)
    else:
        found = read_sweep(folder)
        made = Material(found.study, found.runs, where=f"A job is the run's folder in `{folder}`")
        page = write_report(report_of(made, command, found.gaps), out or folder / "report")
    print(f"{page} ({time.monotonic() - began:.1f} s)")
    return 0


def one_study(study: Study, jobs: list[Job], gaps: list[str], chosen: argparse.Namespace) -> int:
    """Run what is missing of one study, render, and say where the page is."""
    from medx.report.runner import collect, run_jobs

    began = time.monotonic()
    store = chosen.store.absolute() / study.name
    results = collect(jobs, store)
    missing = [job for job in jobs if job.folder not in results]
    print(f"{study.name}: {len(jobs)} jobs, {len(missing)} to run", flush=True)
    if chosen.list:
        for job in jobs:
            print(f"{'missing' if job in missing else 'done   '}  {job.folder}  {job.name}")
        return 0
    errors: dict[str, str] = {}
    if missing and not chosen.render_only:
        chosen.out.mkdir(parents=True, exist_ok=True)  # a place that cannot be is told now, and not after the last job
        errors = run_jobs(missing, store, chosen.workers)
        results = collect(jobs, store)
    if errors and not results:
        print(f"medx: study={study.name}: every job failed; each line above says why", file=sys.stderr)
        return 1
    gaps = gaps + [f"{job.name}: {errors.get(job.folder, 'not run')}" for job in jobs if job.folder not in results]
    gaps += unattacked(jobs, results, store)
    page = render(study, [job for job in jobs if job.folder in results], results, gaps, chosen)
    print(f"{page} ({time.monotonic() - began:.1f} s)")
    return 1 if errors else 0


def unattacked(jobs: list[Job], results: dict[str, ExperimentResult], store: Path) -> list[str]:
    """A line for every finished job whose attacks are lacking."""
    lacking = [job for job in jobs if job.folder in results and job.attacked and not results[job.folder].attacks]
    return [
        f"{job.name}: was not attacked: it was there before, or the attacks came to no end; it is run anew where "
        f"{store / job.folder} is deleted"
        for job in lacking
    ]


def render(
    study: Study, jobs: list[Job], results: dict[str, ExperimentResult], gaps: list[str], chosen: argparse.Namespace
) -> Path:
    """Write the report of finished jobs, and with ``--publish`` what is committed."""
    from medx.report.page import build_report, publish, write_report
    from medx.report.rows import Run

    if not jobs:
        raise MedxError(
            f"study={study.name}: no job has a result yet" + "".join(f"; {gap}" for gap in gaps[:1]) + "; what is "
            f"committed of it is rendered by: medx report experiments/{study.name}"
        )
    runs = [Run(index, job.name, job.roles, results[job.folder]) for index, job in enumerate(jobs, start=1)]
    made = build_report(study, command_of(study.name, chosen), runs, gaps)
    page = write_report(made, chosen.out)
    if chosen.publish:
        if gaps:
            raise MedxError(f"--publish: {len(gaps)} gaps, the first: {gaps[0]}")
        publish(made, STUDIES / study.name, STUDIES.parent / "README.md")
    return page


def command_of(name: str, chosen: argparse.Namespace) -> str:
    """The command that makes these runs again, with all that changes their numbers."""
    words = ["make report"]
    words += [] if name == "reference_report" else [f"STUDY={name}"]
    words += [f"SEEDS={chosen.seeds}"] if chosen.seeds else []
    sets = " ".join(f"--set {shlex.quote(text)}" for text in chosen.set)
    return " ".join([*words, *([f"ARGS={shlex.quote(sets)}"] if sets else [])])


if __name__ == "__main__":
    take_all()
    sys.exit(main())
