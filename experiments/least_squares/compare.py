"""Runs a round of least squares, one of output perturbation and 300 steps side by side; prints the table of README.md.

    python experiments/least_squares/compare.py [SET ...] [--heads NAME ...] [--set SET:KEY=VALUE ...] [--into FOLDER]

A set that is not at hand is left out by naming the others. ``--set`` is an override for one set's runs; ``--heads`` are
those whose names begin so.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from statistics import mean, stdev

import medx
from medx.results import ExperimentResult

COMMON = (
    "privacy=distributed_dp",
    "privacy.epsilon=0.5,1,10",
    "seed=10,11,12",
    "noise=seed",
    "tracking=none",
    "jobs=2",
)
# As in experiments/reference_report/study.yaml and experiments/dermatology_sites/study.yaml.
SETS = {
    "pneumoniamnist": (("dataset=pneumoniamnist",), ()),
    "breastmnist": (("dataset=breastmnist", "model.phantom_start=0"), ()),
    "retinamnist": (
        ("dataset=retinamnist", "model.phantom_start=0", "model.colour_weight=0.6"),
        ("trainer.learning_rate_noise=0.1",),
    ),
    "dermatology": (("dataset=folder", "partition=site", "dataset.size=28"), ()),
}
STEPS, OUTPUT, COMPONENTS = "300 steps", "output perturbation", (500, 200, 100)


def methods(of_steps: tuple[str, ...]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The name of each way to train a head, and its overrides."""
    yield STEPS, (*of_steps, "federation.evaluate_every=300")
    yield OUTPUT, ("trainer=output_perturbation",)
    for number in COMPONENTS:
        yield f"least squares, {number} components", ("trainer=least_squares", f"model.num_components={number}")


def row(name: str, method: str, epsilon: float, runs: list[ExperimentResult]) -> str:
    """Means over seeds; bytes are one hospital's over all rounds."""
    rounds, hospitals = runs[0].rounds, runs[0].config["federation"]["num_clients"]
    up, down = (sum(getattr(each, key) for each in rounds) / hospitals for key in ("bytes_up", "bytes_down"))
    measured = ("auc", "balanced_accuracy_at_threshold", "ece")
    auc, balanced, ece = ([run.test[key].value for run in runs] for key in measured)
    return (
        f"| {name} | {epsilon:g} | {method} | {mean(auc):.3f} ± {stdev(auc):.3f} | {mean(balanced):.3f} | "
        f"{mean(ece):.3f} | {len(rounds)} | {up / 1e3:,.0f} | {down / 1e3:,.0f} |"
    )


def main() -> None:
    """Runs what was named, one set after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="*", default=list(SETS), metavar="SET", help=", ".join(SETS))
    parser.add_argument("--heads", nargs="+", default=[""], metavar="NAME", help="such as 'output perturbation'")
    parser.add_argument("--set", action="append", default=[], dest="more", metavar="SET:KEY=VALUE")
    parser.add_argument("--into", type=Path, default=Path("multirun/least_squares"))
    chosen = parser.parse_args()
    print(
        "| set | target ε | head | test AUC | balanced accuracy | ECE | rounds | kB up | kB down |\n"
        + "| --- " * 9
        + "|"
    )
    for name in chosen.sets:
        overrides, of_steps = SETS[name]
        more = [text.partition(":")[2] for text in chosen.more if text.startswith(f"{name}:")]
        for method, own in methods(of_steps):
            if not method.startswith(tuple(chosen.heads)):
                continue
            place = chosen.into / name / method.replace(", ", "-").replace(" ", "_")
            runs = medx.sweep(*COMMON, *overrides, *own, *more, folder=place, quiet=True)
            for epsilon in (0.5, 1.0, 10.0):
                alike = [run for run in runs if run.privacy.target_epsilon == epsilon]
                print(row(name, method, epsilon, alike), flush=True)


if __name__ == "__main__":
    main()
