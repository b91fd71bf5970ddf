"""Runs killed at random moments, moved or linked, and gone on with: ``python -m tests.kill --runs 30 --seed 0``.

Of every run that leaves a result, the epsilon and the steps that it states are compared with what its ledgers hold,
read with plain SQL and composed anew. One line a run; exit code 1 where one states less.
"""

import argparse
import multiprocessing
import os
import random
import shutil
import signal
import sqlite3
import sys
import tempfile
import time
from contextlib import closing
from dataclasses import dataclass
from multiprocessing.context import ForkProcess
from pathlib import Path

import medx.job  # here once, and not in every fork
import medx.trainer.module  # noqa: F401
from medx.folder import CONFIG_FILE, read_config
from medx.privacy.accounting import epsilon_spent
from medx.privacy.base import SampledGaussian
from medx.results import ExperimentResult
from tests.program import TINY, Ran, call_plainly

DISTRIBUTED = ("privacy=distributed_dp", "trainer.local_steps=1", "trainer.sampling_probability=null")
CENTRAL = ("privacy=central_dp", "privacy.delta=0.1")
MECHANISMS = {
    "local_dp": ("privacy=local_dp",),
    "local_dp, secure sum": ("privacy=local_dp", "aggregation=secure"),
    "distributed_dp": DISTRIBUTED,
    "distributed_dp, trusted": (*DISTRIBUTED, "aggregation=plain", "privacy.trusted_aggregator=true"),
    "central_dp": CENTRAL,
    "central_dp, secure sum": (*CENTRAL, "aggregation=secure"),
    "local_dp, buffered": ("privacy=local_dp", "federation=fedbuff", "federation.buffer_size=2"),
}
ROUNDS = "federation.num_rounds=12"
SOURCES = ("seed", "system")
PLACES = ("where it was", "moved", "linked", "from within")
LONGEST = 120.0
CLOSE = 1e-6


@dataclass(frozen=True)
class Outcome:
    """What one run came to; ``problem`` is None where it states at the least what its ledgers hold."""

    told: str
    problem: str | None


def run_program(arguments: tuple[str, ...], folder: Path, cwd: Path, results: "multiprocessing.Queue[Ran]") -> None:
    """The program in a fork of its own, in its own working directory."""
    os.chdir(cwd)
    results.put(call_plainly(folder, *arguments))


def start(arguments: tuple[str, ...], folder: Path, cwd: Path) -> tuple[ForkProcess, "multiprocessing.Queue[Ran]"]:
    """The fork and where its answer comes."""
    context = multiprocessing.get_context("fork")
    results: multiprocessing.Queue[Ran] = context.Queue()
    process = context.Process(target=run_program, args=(arguments, folder, cwd, results))
    process.start()
    return process, results


def kill_one(overrides: tuple[str, ...], place: str, after: float, work: Path) -> Outcome:
    """Kill a run ``after`` so many seconds from its folder's beginning, move it, resume it, and judge its result."""
    own = {part.split("=", 1)[0] for part in overrides}
    base = [part for part in TINY if part.split("=", 1)[0] not in own]
    folder = work / "scratch"
    process, results = start((*base, *overrides, f"hydra.run.dir={folder}"), folder, work)
    until = time.monotonic() + LONGEST
    while process.is_alive() and not (folder / CONFIG_FILE).exists() and time.monotonic() < until:
        time.sleep(0.005)
    process.join(after)
    finished = not process.is_alive()
    if not finished:
        os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    if not (folder / CONFIG_FILE).exists():
        return Outcome("", f"it did not begin: {results.get(timeout=1).err}")
    run, _, _ = read_config(folder)
    reached = sorted(path.name for path in (folder / "checkpoints").glob("round_*"))
    stage = "after its end" if finished else reached[-1] if reached else "before a checkpoint"
    folder, cwd, named = placed(folder, place, work)
    process, results = start((f"resume={named}",), folder, cwd)
    ran = results.get(timeout=LONGEST)
    process.join()
    told = f"killed {stage}, {place}: exit {ran.code}"
    if not (folder / "result.json").exists():
        return Outcome(told, f"no result: {ran.err.strip().splitlines()[-1:]}")
    return judged(told, ExperimentResult.load(folder / "result.json"), run, folder)


def placed(folder: Path, place: str, work: Path) -> tuple[Path, Path, str]:
    """The folder after it was moved or linked, the working directory of the resume, and how it is named there."""
    if place == "moved":
        (work / "archive").mkdir()
        return Path(shutil.move(folder, work / "archive" / "run")), work, "archive/run"
    if place == "linked":
        (work / "link").symlink_to(folder)
        return folder, work, "link"
    return folder, (folder if place == "from within" else work), ("." if place == "from within" else "scratch")


def judged(told: str, result: ExperimentResult, run: str, folder: Path) -> Outcome:
    """Compare what the result states with every ledger below the folder."""
    if result.run != run:
        return Outcome(told, f"the result is of run {result.run}, the folder of {run}")
    held = {path.stem: spent(path, run) for path in sorted((folder / "ledger").glob("*.sqlite"))}
    assert result.privacy.delta is not None
    epsilon = max(epsilon_spent([event], result.privacy.delta).value if event[1] else 0.0 for event in held.values())
    stated = result.privacy.epsilon
    told += f", {result.status}: states {stated:.4f}, the ledgers hold {epsilon:.4f}"
    if stated is None or stated < epsilon - CLOSE:
        return Outcome(told, "it states less than the ledgers hold")
    for client in result.privacy.clients:
        _, steps = held.get("server") or held[f"client_{client.client:04d}"]
        if client.steps < steps:
            return Outcome(told, f"hospital {client.client}: states {client.steps} steps, its ledger holds {steps}")
    if epsilon == 0:
        return Outcome(told, "nothing was charged at all")
    return Outcome(told, None)


def spent(path: Path, run: str) -> tuple[SampledGaussian, int]:
    """The release and the steps that a ledger shows; all of them must be of this run."""
    import json

    with closing(sqlite3.connect(path)) as database:
        ((name, step),) = database.execute("SELECT run_id, step FROM runs").fetchall()
        (total,) = database.execute("SELECT total(steps) FROM rounds").fetchone()
    assert name == run, f"{path} is charged for run {name}"
    return SampledGaussian(**json.loads(step)), int(total)


def kill_many(runs: int, seed: int, longest: float) -> list[Outcome]:
    """Every mechanism with both sources in turn, each killed at a random moment of its ``longest`` seconds."""
    draw = random.Random(seed)
    cases = [(name, source) for name in MECHANISMS for source in SOURCES]
    outcomes = []
    for number in range(runs):
        name, source = cases[number % len(cases)]
        place, after = draw.choice(PLACES), draw.uniform(0, longest)
        with tempfile.TemporaryDirectory() as work:
            overrides = (*MECHANISMS[name], ROUNDS, f"privacy.noise_source={source}", f"seed={number}")
            outcome = kill_one(overrides, place, after, Path(work).resolve())
        print(f"{number + 1:3d} {name}, {source}: {outcome.told}: {outcome.problem or 'right'}", flush=True)
        outcomes.append(outcome)
    return outcomes


def main() -> int:
    """Kill as many as asked for."""
    parser = argparse.ArgumentParser(prog="python -m tests.kill", description=__doc__)
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--longest", type=float, default=1.5, help="seconds of a run within which it is killed")
    chosen = parser.parse_args()
    outcomes = kill_many(chosen.runs, chosen.seed, chosen.longest)
    wrong = sum(outcome.problem is not None for outcome in outcomes)
    print(f"{len(outcomes)} runs killed and gone on with, {wrong} of them wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
