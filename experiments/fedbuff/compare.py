"""Rounds that wait for everybody beside buffered ones, where one of five hospitals is ten times slower.

    python experiments/fedbuff/compare.py [OVERRIDE ...] [--into FOLDER]

Prints the table of README.md and draws time.svg beside the runs. Overrides are for all runs.
"""

import argparse
from pathlib import Path
from statistics import mean

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

import medx
from medx.results import ExperimentResult

SEEDS = (10, 11, 12)
COMMON = ("runtime.speeds=[1,1,1,1,10]", "noise=seed", "tracking=none", "jobs=2", f"seed={','.join(map(str, SEEDS))}")
WAYS = {
    "waits for all (fedavg)": ("federation=fedavg",),
    "buffer of 2": ("federation=fedbuff", "federation.buffer_size=2"),
    "buffer of 3": ("federation=fedbuff",),
    "buffer of 4": ("federation=fedbuff", "federation.buffer_size=4"),
}
CLOSE = 0.01


def course(run: ExperimentResult) -> tuple[list[float], list[float]]:
    """Virtual time and test AUC after each round."""
    known = [(each.seconds["virtual"], each.metrics["test/auc"] or 0.5) for each in run.rounds]
    return [when for when, _ in known], [auc for _, auc in known]


def reached(run: ExperimentResult, goal: float) -> float:
    """When the test AUC is at ``goal`` for the first time; infinite where it never is."""
    return min((when for when, auc in zip(*course(run), strict=True) if auc >= goal), default=float("inf"))


def main() -> None:
    """Runs them, one way after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="for all runs, such as dataset.md5=...")
    parser.add_argument("--into", type=Path, default=Path("multirun/fedbuff"))
    chosen = parser.parse_args()
    print("| ε | rounds | updates | ends at | final AUC | at the AUC of waiting less .01 | share of its time |")
    print("| --- " * 7 + "|")
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), sharey=True, layout="constrained")
    for axis, epsilon in zip(axes, (1, 10), strict=True):
        runs = {
            name: medx.sweep(
                *COMMON, *way, *chosen.overrides, f"privacy.epsilon={epsilon}",
                folder=chosen.into / f"{epsilon} {name.split(' (')[0].replace(' ', '_')}", quiet=True,
            )
            for name, way in WAYS.items()
        }  # fmt: skip
        waiting = runs[next(iter(WAYS))]
        goals = [course(run)[1][-1] - CLOSE for run in waiting]
        whole = [course(run)[0][-1] for run in waiting]
        for name, found in runs.items():
            times = [reached(run, goal) for run, goal in zip(found, goals, strict=True)]
            share = mean(time / end for time, end in zip(times, whole, strict=True))
            ends, last = mean(course(run)[0][-1] for run in found), mean(course(run)[1][-1] for run in found)
            known = all(time < float("inf") for time in times)
            when, part = (f"{mean(times):.0f}", f"{share:.2f}") if known else ("not by every seed", "–")
            rounds = mean(len(run.rounds) for run in found)
            print(f"| {epsilon} | {name} | {rounds:.0f} | {ends:.0f} | {last:.3f} | {when} | {part} |")
            axis.plot(*course(found[0]), label=name)
        axis.set(title=f"epsilon {epsilon}", xlabel="virtual time, in answers of a fast hospital", ylim=(0.8, 1))
    axes[0].set_ylabel("AUC on test")
    axes[1].legend(fontsize=8)
    figure.savefig(chosen.into / "time.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
