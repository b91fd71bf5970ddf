"""Compares how a personal model's open choices may be made, on validation images; prints the table of choices.md.

    python experiments/personal/compare.py OVERRIDE ... [--seeds 100,101,102]

The overrides are those of a run. Trained is as a run does; no test image is looked at.
"""

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import numpy as np
import torch

import medx
from medx.federation.prepared import Prepared
from medx.federation.setup import Job
from medx.metrics import evaluate
from medx.personal import STEPS_ALONE, Home, best_of, dealt_alike
from medx.personalisation import Afterwards
from medx.randomness import derive_seed, numpy_generator
from medx.trainer.state import ModelState, Tensors

OPTIONS = ("fine_tune", "interpolate", "ditto")
RULES = tuple((rule, folds) for folds in (3, 5) for rule in ("loss", "metric"))
Scores = dict[str, float]  # alone, shared, and each option under each rule


def rows_of(prepared: Prepared, seed: int) -> dict[int, np.ndarray]:
    """Each hospital's validation rows: its own where the data tell hospitals, else dealt by the classes that it has."""
    train, validation = prepared.splits.train.hospitals, prepared.splits.validation
    if prepared.test_rows(0) is None or train is None:
        generator = numpy_generator(derive_seed(seed, "personal", "tune"))
        return dealt_alike(prepared, validation.labels, generator)
    return {c: np.flatnonzero(validation.hospitals == train[part][0]) for c, part in enumerate(prepared.parts)}


def scores_of(home: Home, rows: np.ndarray, options: list[Afterwards], metric: str) -> Scores | None:
    """One hospital's; None where it has no such metric."""
    everything, labels = np.arange(len(home.records[1])), home.prepared.labels["validation"].numpy()[rows]
    inputs = home.prepared.inputs["validation"][torch.from_numpy(rows)]

    def measured(state: ModelState) -> float | None:
        return evaluate(home.probabilities(state, inputs), labels, home.prepared.spec.task)[metric]

    alone = measured(home.trained(everything, home.initial, STEPS_ALONE, key="all"))
    if alone is None:
        return None
    found = {"alone": alone, "shared": measured(home.shared)}
    for option in options:
        values = [measured(state) for _, state in home.candidates(option, everything, "all")]
        for rule, folds in RULES:
            seen = home.held_out(replace(option, folds=folds))
            chooses = metric if rule == "metric" else rule
            best = 0 if seen is None else best_of(*seen, home.prepared.spec.task, chooses)
            found[f"{type(option).__name__} {rule} {folds}"] = values[best]
    assert None not in found.values()
    return found  # type: ignore[return-value]


def means(overrides: list[str], seed: int) -> Iterator[Scores]:
    """Every hospital's scores in one run."""
    options: list[Afterwards] = []
    for name in OPTIONS:
        option = medx.compose(f"personalisation={name}").personalisation
        assert isinstance(option, Afterwards)
        options.append(option)
    heard: list[Scores] = []

    def listen(job: Job, prepared: Prepared, average: Tensors) -> list[object]:
        shared = ModelState(job.layout, job.layout.join(average))
        metric = "auc" if prepared.spec.task == "binary" else "balanced_accuracy"
        for client, rows in rows_of(prepared, seed).items():
            found = scores_of(Home(job, prepared, client, shared), rows, options, metric) if len(rows) else None
            heard.extend([] if found is None else [found])
        return []

    with TemporaryDirectory() as place, patch("medx.outcome.personal_models", listen):
        own = ("noise=seed", "tracking=none", "personalisation=fine_tune")
        medx.run(*own, *overrides, f"seed={seed}", folder=Path(place) / "run", quiet=True)
    yield from heard


def main() -> None:
    """All seeds, and the best option by rule."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--seeds", default="100,101,102")
    told = parser.parse_args()
    runs = [found for seed in told.seeds.split(",") if (found := list(means(told.overrides, int(seed))))]
    mean = {name: float(np.mean([np.mean([each[name] for each in run]) for run in runs])) for name in runs[0][0]}
    print("hospitals with the metric, by run:", *map(len, runs))
    print(*(f"{name} {value:.4f}" for name, value in mean.items()), sep="\n")
    for rule, folds in RULES:
        best = max(value for name, value in mean.items() if name.endswith(f" {rule} {folds}"))
        print(f"{rule} {folds}: best option - better of both {best - max(mean['alone'], mean['shared']):+.4f}")


if __name__ == "__main__":
    main()
