"""Compares rules that choose a threshold on validation; prints the tables of protocol4.md.

    python experiments/frontier2/thresholds.py OVERRIDE ... [--seeds 100,101] [--epsilons 1,5,10] [--test]

The overrides are those of a run with two classes whose records tell their patients. Without ``--test`` no test image is looked at.
"""

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import numpy as np
import torch
from scipy.stats import norm

import medx
from medx.federation.prepared import Prepared
from medx.measurement import predict
from medx.metrics import ThresholdRule, choose_threshold
from medx.randomness import derive_seed, numpy_generator

HALVINGS = 200
RESAMPLES = 200
POINTS = 2001  # at which a smooth curve is looked at
Scored = tuple[np.ndarray, np.ndarray, np.ndarray]  # log odds of class 1, labels, patients
Rule = Callable[[np.ndarray, np.ndarray, np.ndarray], float]


def log_odds(probabilities: np.ndarray) -> np.ndarray:
    share = np.clip(probabilities, 1e-12, 1 - 1e-12)
    return np.log(share) - np.log1p(-share)


def chosen_by(rule: ThresholdRule, scores: np.ndarray, labels: np.ndarray) -> float:
    """As a run chooses."""
    share = 1 / (1 + np.exp(-scores))
    return float(log_odds(np.array(choose_threshold(np.column_stack([1 - share, share]), labels, rule))))


def best(scores: np.ndarray, labels: np.ndarray, patients: np.ndarray) -> float:
    return chosen_by("best", scores, labels)


def smooth(scores: np.ndarray, labels: np.ndarray, below: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> float:
    """The cut between both classes' means at which their smooth distributions ``below`` are furthest apart."""
    negative, positive = scores[labels == 0], scores[labels == 1]
    cuts = np.linspace(*sorted((negative.mean(), positive.mean())), POINTS)
    return float(cuts[np.argmax(below(negative, cuts) - below(positive, cuts))])


def normal(scores: np.ndarray, labels: np.ndarray, patients: np.ndarray) -> float:
    return smooth(scores, labels, lambda own, cuts: norm.cdf(cuts, own.mean(), own.std(ddof=1)))


def kernel(scores: np.ndarray, labels: np.ndarray, patients: np.ndarray) -> float:
    def below(own: np.ndarray, cuts: np.ndarray) -> np.ndarray:
        low, high = np.percentile(own, [25, 75])
        width = 0.9 * min(own.std(ddof=1), (high - low) / 1.34) * len(own) ** -0.2
        return norm.cdf((cuts[:, None] - own) / width).mean(axis=1)

    return smooth(scores, labels, below)


def bagged(scores: np.ndarray, labels: np.ndarray, patients: np.ndarray) -> float:
    generator = numpy_generator(derive_seed(0, "thresholds", "bagged"))
    names, cuts = np.unique(patients), []
    rows_of = {name: np.flatnonzero(patients == name) for name in names}
    while len(cuts) < RESAMPLES:
        rows = np.concatenate([rows_of[name] for name in generator.choice(names, len(names))])
        if 0 < labels[rows].sum() < len(rows):
            cuts.append(best(scores[rows], labels[rows], patients[rows]))
    return float(np.mean(cuts))


def prior(scores: np.ndarray, labels: np.ndarray, patients: np.ndarray) -> float:
    return chosen_by("prior", scores, labels)


RULES: dict[str, Rule] = {each.__name__: each for each in (best, normal, kernel, bagged, prior)}


def balanced(scores: np.ndarray, labels: np.ndarray, cut: float) -> float:
    answers = scores >= cut
    return float((answers[labels == 1].mean() + 1 - answers[labels == 0].mean()) / 2)


def scored(overrides: list[str]) -> dict[str, Scored]:
    """What a run's last model says of validation and test, as the run itself asks it."""
    found: dict[str, Scored] = {}

    def asked(module: object, state: object, prepared: Prepared, inputs: torch.Tensor, device: str) -> torch.Tensor:
        given = predict(module, state, prepared, inputs, device)
        for name in ("validation", "test"):
            if inputs is prepared.inputs[name]:
                split = getattr(prepared.splits, name)
                odds = log_odds(given.numpy()[:, 1].astype(np.float64))
                found[name] = odds, prepared.labels[name].numpy(), np.asarray(split.patients)
        return given

    with TemporaryDirectory() as folder, patch("medx.measurement.predict", asked):
        medx.run(*overrides, folder=Path(folder) / "run", quiet=True)
    return found


def halves(labels: np.ndarray, patients: np.ndarray, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows of one half of the patients and of the other, again and again; both have both classes."""
    generator = numpy_generator(derive_seed(seed, "thresholds", "halves"))
    names, count = np.unique(patients), 0
    while count < HALVINGS:
        first = np.isin(patients, generator.permutation(names)[: len(names) // 2])
        if all(0 < labels[rows].sum() < rows.sum() for rows in (first, ~first)):
            count += 1
            yield first, ~first


def on_other_half(given: Scored, seed: int) -> dict[str, float]:
    scores, labels, patients = given
    values: dict[str, list[float]] = {name: [] for name in RULES}
    for one, other in halves(labels, patients, seed):
        for name, rule in RULES.items():
            cut = rule(scores[one], labels[one], patients[one])
            values[name].append(balanced(scores[other], labels[other], cut))
    return {name: float(np.mean(each)) for name, each in values.items()}


def on_test(found: dict[str, Scored]) -> dict[str, float]:
    scores, labels, _ = found["test"]
    return {name: balanced(scores, labels, rule(*found["validation"])) for name, rule in RULES.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="OVERRIDE")
    parser.add_argument("--seeds", default="100,101")
    parser.add_argument("--epsilons", default="1,5,10")
    parser.add_argument("--test", action="store_true", help="on test, with the whole of validation to choose on")
    chosen = parser.parse_args()
    print(f"| epsilon | {' | '.join(RULES)} |\n|{' --- |' * (len(RULES) + 1)}")
    every = []
    for epsilon in chosen.epsilons.split(","):
        rows = []
        for seed in chosen.seeds.split(","):
            found = scored([*chosen.overrides, f"privacy.epsilon={epsilon}", f"seed={seed}"])
            rows.append(on_test(found) if chosen.test else on_other_half(found["validation"], int(seed)))
        every += rows
        print(row_of(epsilon, rows), flush=True)
    print(row_of("all", every))


def row_of(title: str, rows: list[dict[str, float]]) -> str:
    values = np.array([list(row.values()) for row in rows])
    means, spread = values.mean(axis=0), values.std(axis=0, ddof=1)
    return f"| {title} | {' | '.join(f'{m:.4f} ± {s:.4f}' for m, s in zip(means, spread, strict=True))} |"


if __name__ == "__main__":
    main()
