"""Metrics against scikit-learn on random, tied and degenerate inputs, and what is undefined."""

import time
from collections.abc import Callable

import numpy as np
import pytest
from sklearn import metrics as oracle

from medx.dataset import Task
from medx.metrics import (
    bootstrap,
    choose_threshold,
    curve_data,
    evaluate,
    is_degenerate,
    majority_accuracy,
    metric_names,
)


def draw(n: int, num_classes: int, seed: int, decimals: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities that lean towards the label, rounded to ``decimals`` so that scores tie."""
    generator = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(num_classes), generator.integers(0, num_classes, n - num_classes)])
    logits = generator.normal(size=(n, num_classes)) + 0.8 * np.eye(num_classes)[labels]
    scores = np.maximum(np.round(np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True), decimals), 0.0)
    if num_classes == 2:
        scores[:, 0] = 1 - scores[:, 1]
    else:
        scores /= scores.sum(axis=1, keepdims=True)
    return scores, labels


def expected(p: np.ndarray, y: np.ndarray, task: Task, threshold: float) -> dict[str, float]:
    """The same metrics by scikit-learn."""
    k = p.shape[1]
    answers, average = p.argmax(axis=1), "binary" if k == 2 else "macro"
    specificities = [oracle.recall_score(y != c, answers != c) for c in range(k)]
    values = {
        "loss": oracle.log_loss(y, p, labels=range(k)),
        "accuracy": oracle.accuracy_score(y, answers),
        "balanced_accuracy": oracle.balanced_accuracy_score(y, answers),
        "auc": oracle.roc_auc_score(y, p[:, 1] if k == 2 else p, multi_class="ovr"),
        "sensitivity": oracle.recall_score(y, answers, average=average),
        "specificity": specificities[1] if k == 2 else float(np.mean(specificities)),
        "f1": oracle.f1_score(y, answers, average=average),
        "mcc": oracle.matthews_corrcoef(y, answers),
        "brier": oracle.brier_score_loss(y, p[:, 1]) if k == 2 else oracle.brier_score_loss(y, p),
    }
    if task == "ordinal":
        values["quadratic_kappa"] = oracle.cohen_kappa_score(y, answers, weights="quadratic")
    chosen = (p[:, 1] >= threshold).astype(int) if k == 2 else answers
    values["accuracy_at_threshold"] = oracle.accuracy_score(y, chosen)
    values["balanced_accuracy_at_threshold"] = oracle.balanced_accuracy_score(y, chosen)
    values["sensitivity_at_threshold"] = oracle.recall_score(y, chosen, average=average)
    recalls = oracle.recall_score(y, answers, average=None)
    return values | {f"recall_{c}": float(recalls[c]) for c in range(k)}


@pytest.mark.parametrize("decimals", [12, 1, 0])
@pytest.mark.parametrize(("num_classes", "task"), [(2, "binary"), (3, "multiclass"), (5, "ordinal")])
def test_agrees_with_scikit_learn(num_classes: int, task: Task, decimals: int) -> None:
    for seed in range(5):
        p, y = draw(83, num_classes, seed, decimals if num_classes == 2 else max(decimals, 1))
        measured = evaluate(p, y, task, 0.3)
        wanted = expected(p, y, task, 0.3)
        assert {name: measured[name] for name in wanted} == pytest.approx(wanted, abs=1e-9)
        assert list(measured)
        assert set(measured) == set(metric_names(num_classes, task))


def test_calibration_error_by_hand() -> None:
    p = np.array([[0.35, 0.65], [0.35, 0.65], [0.1, 0.9], [0.1, 0.9]])
    measured = evaluate(p, np.array([1, 0, 1, 1]), "binary")
    assert measured["ece"] == pytest.approx(0.5 * 0.15 + 0.5 * 0.1)


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_leaves_metrics_undefined_and_not_zero(label: int) -> None:
    p, _ = draw(20, 2, 0)
    y = np.full(20, label)
    for name in ("auc", "balanced_accuracy", "mcc", "sensitivity" if label == 0 else "specificity"):
        assert evaluate(p, y, "binary", 0.5)[name] is None, name
        interval = bootstrap(p, y, "binary", 0.5, np.random.default_rng(0), resamples=10)[name]
        assert (interval.value, interval.low, interval.high) == (None, None, None)
    assert evaluate(p, y, "binary")["accuracy"] is not None
    assert "accuracy_at_threshold" not in evaluate(p, y, "binary")
    assert (
        bootstrap(p, y, "binary", None, np.random.default_rng(0), resamples=10)["accuracy_at_threshold"].value is None
    )
    kappa = evaluate(draw(9, 5, 0)[0], np.full(9, 3), "ordinal")
    assert kappa["quadratic_kappa"] is None
    assert kappa["auc"] is None
    assert kappa["recall_3"] is not None


def test_empty_and_not_finite_inputs_are_undefined_throughout() -> None:
    p, y = draw(20, 2, 0)
    p[3] = np.nan
    assert set(evaluate(p, y, "binary", 0.5).values()) == {None}
    assert set(evaluate(p[:0], y[:0], "binary").values()) == {None}
    assert choose_threshold(p, y) is None
    assert curve_data(p, y).roc == {}


def test_constant_predictions() -> None:
    p, y = np.tile([0.7, 0.3], (8, 1)), np.array([0, 0, 0, 0, 0, 1, 1, 1])
    measured = evaluate(p, y, "binary", 0.5)
    assert (measured["auc"], measured["mcc"], measured["balanced_accuracy"]) == (0.5, 0.0, 0.5)
    assert is_degenerate(p.argmax(axis=1))
    assert not is_degenerate(y)
    assert majority_accuracy(np.array([1, 1, 0]), y) == pytest.approx(3 / 8)


def best_balanced_accuracy(p: np.ndarray, y: np.ndarray) -> float:
    """By trying every cut."""
    cuts = [-1.0, 2.0, *p[:, 1]]
    return max(float(oracle.balanced_accuracy_score(y, p[:, 1] >= cut)) for cut in cuts)


@pytest.mark.parametrize("decimals", [12, 1])
def test_threshold_is_the_best_cut(decimals: int) -> None:
    for seed in range(10):
        p, y = draw(60, 2, seed, decimals)
        threshold = choose_threshold(p, y)
        assert evaluate(p, y, "binary", threshold)["balanced_accuracy_at_threshold"] == pytest.approx(
            best_balanced_accuracy(p, y)
        )


def test_threshold_ties_go_to_the_middle() -> None:
    scores = np.array([0.1, 0.2, 0.8, 0.9])
    p = np.column_stack([1 - scores, scores])
    assert choose_threshold(p, np.array([0, 0, 1, 1])) == pytest.approx(0.5)
    # Cuts at .15 and .85 share the best value .75; of two in the middle the lower one is taken.
    assert choose_threshold(p, np.array([0, 1, 0, 1])) == pytest.approx(0.15)
    assert choose_threshold(p, np.array([1, 1, 1, 1])) is None
    same = np.full((4, 2), 0.5)
    assert choose_threshold(same, np.array([0, 1, 0, 1])) is not None


def test_the_prior_s_threshold_is_the_best_of_calibrated_probabilities_and_takes_nothing_of_the_scores() -> None:
    generator = np.random.default_rng(3)
    share = generator.beta(2.0, 0.7, 40_000)
    p, y = np.column_stack([1 - share, share]), (generator.random(40_000) < share).astype(np.int64)
    threshold = choose_threshold(p, y, "prior")
    assert threshold == y.mean()
    assert threshold == choose_threshold(p[::-1], y, "prior")
    reached = evaluate(p, y, "binary", threshold)["balanced_accuracy_at_threshold"]
    best = evaluate(p, y, "binary", choose_threshold(p, y))["balanced_accuracy_at_threshold"]
    assert best - 0.002 < reached <= best
    assert evaluate(p, y, "binary", 0.5)["balanced_accuracy_at_threshold"] < best - 0.02
    assert choose_threshold(p, np.ones(len(y)), "prior") is None
    p[0] = np.nan
    assert choose_threshold(p, y, "prior") is None


def looped(p: np.ndarray, y: np.ndarray, metric: Callable[[np.ndarray, np.ndarray], float]) -> np.ndarray:
    """The bootstrap distribution by an honest loop over scikit-learn."""
    generator = np.random.default_rng(7)
    rows = [generator.integers(0, len(y), len(y)) for _ in range(400)]
    return np.array([metric(p[row], y[row]) for row in rows])


def test_bootstrap_agrees_with_a_loop_and_is_reproducible() -> None:
    p, y = draw(150, 2, 3, 1)
    intervals = bootstrap(p, y, "binary", 0.4, np.random.default_rng(1))
    assert intervals == bootstrap(p, y, "binary", 0.4, np.random.default_rng(1))
    functions: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
        "auc": lambda q, t: oracle.roc_auc_score(t, q[:, 1]),
        "mcc": lambda q, t: oracle.matthews_corrcoef(t, q.argmax(axis=1)),
    }
    for name, metric in functions.items():
        low, high = np.quantile(looped(p, y, metric), [0.025, 0.975])
        measured = intervals[name]
        assert measured.value == pytest.approx(metric(p, y))
        assert measured.low is not None
        assert measured.high is not None
        width = high - low
        assert abs(measured.low - low) < 0.2 * width
        assert abs(measured.high - high) < 0.2 * width
        # An interval at two thirds of the width, the planted fault, is told apart.
        assert abs((measured.high - measured.low) / width - 1) < 0.25
    assert all(interval.low is not None for interval in intervals.values())


def test_bootstrap_with_more_classes_covers_every_metric() -> None:
    p, y = draw(120, 5, 4)
    intervals = bootstrap(p, y, "ordinal", None, np.random.default_rng(0), resamples=200)
    for name, interval in intervals.items():
        assert interval.low is not None, name
        assert interval.high is not None, name
        assert interval.low < interval.high, name


def test_fast_enough() -> None:
    p, y = draw(1100, 2, 0)
    evaluate(p, y, "binary", 0.5)
    start = time.perf_counter()
    for _ in range(20):
        evaluate(p, y, "binary", 0.5)
    assert (time.perf_counter() - start) / 20 < 0.01  # measured .5 ms; the rest is room for a busy machine
    start = time.perf_counter()
    bootstrap(p[:624], y[:624], "binary", 0.5, np.random.default_rng(0))
    assert time.perf_counter() - start < 1.5


@pytest.mark.parametrize("num_classes", [2, 4])
def test_curves(num_classes: int) -> None:
    p, y = draw(300, num_classes, 2, 2)
    curves = curve_data(p, y)
    assert np.array_equal(curves.confusion_matrix, oracle.confusion_matrix(y, p.argmax(axis=1)))
    assert set(curves.roc) == ({"1"} if num_classes == 2 else {"0", "1", "2", "3"})
    for name, points in curves.roc.items():
        x, height = np.array(points).T
        assert np.trapezoid(height, x) == pytest.approx(oracle.roc_auc_score(y == int(name), p[:, int(name)]), abs=2e-3)
    gap = sum(bin_["count"] * abs(bin_["confidence"] - bin_["accuracy"]) for bin_ in curves.calibration)
    assert gap / len(y) == pytest.approx(evaluate(p, y, "multiclass")["ece"])
    assert sum(bin_["count"] for bin_ in curves.calibration) == len(y)
