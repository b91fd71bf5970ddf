"""Several labels a record: metrics against scikit-learn's, weights as repeated rows, labels that are not known."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, balanced_accuracy_score, roc_auc_score

from medx.metrics import bootstrap, choose_threshold, choose_thresholds, evaluate, majority_accuracy, metric_names
from medx.metrics.several import average_precision, measure_labels


def example(rows: int = 300, labels: int = 4) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    truth = (generator.random((rows, labels)) < [0.5, 0.2, 0.05, 0.3]).astype(np.int64)
    scores = np.clip(0.3 * truth + 0.7 * generator.random((rows, labels)), 0, 1).round(2)  # with ties
    truth[generator.random((rows, labels)) < 0.1] = -1
    return scores, truth


def test_every_label_is_measured_over_the_records_that_tell_it() -> None:
    scores, truth = example()
    found = evaluate(scores, truth, "multilabel", [0.3, 0.4, None, 0.6])
    assert list(found) == metric_names(4, "multilabel")
    known = [truth[:, index] >= 0 for index in range(4)]
    pairs = [(truth[rows, index], scores[rows, index]) for index, rows in enumerate(known)]
    areas = [roc_auc_score(*pair) for pair in pairs]
    precisions = [average_precision_score(*pair) for pair in pairs]
    assert [found[f"auc_{index}"] for index in range(4)] == pytest.approx(areas)
    assert [found[f"average_precision_{index}"] for index in range(4)] == pytest.approx(precisions)
    assert found["auc"] == pytest.approx(np.mean(areas))
    assert found["average_precision"] == pytest.approx(np.mean(precisions))
    for name, cuts in (("balanced_accuracy", [0.5] * 4), ("balanced_accuracy_at_threshold", [0.3, 0.4, 0.5, 0.6])):
        each = [balanced_accuracy_score(y, score >= cut) for (y, score), cut in zip(pairs, cuts, strict=True)]
        assert found[name] == pytest.approx(np.mean(each))
    surprise = [-np.log(np.clip(np.where(y == 1, score, 1 - score), 1e-15, 1)).sum() for y, score in pairs]
    assert found["loss"] == pytest.approx(sum(surprise) / len(truth), rel=1e-3)
    # The planted fault: what is not known counted as no.
    wrong = roc_auc_score(truth[:, 0] == 1, scores[:, 0])
    assert abs(wrong - areas[0]) > 1e-3


def test_a_weight_is_a_repeated_row() -> None:
    scores, truth = example(60)
    weights = np.random.default_rng(1).integers(0, 4, (3, 60)).astype(float)
    thresholds = np.full(4, 0.4)
    together = measure_labels(weights, scores, truth, thresholds)
    for row, counts in enumerate(weights.astype(int)):
        again = measure_labels(
            np.ones((1, counts.sum())), np.repeat(scores, counts, 0), np.repeat(truth, counts, 0), thresholds
        )
        for name, values in together.items():
            assert values[row] == pytest.approx(again[name][0], nan_ok=True), name


def test_what_cannot_be_said_is_undefined() -> None:
    scores, truth = example(40)
    truth[:, 1], truth[:, 2] = 0, -1
    found = evaluate(scores, truth, "multilabel")
    assert (found["auc_1"], found["average_precision_1"], found["auc_2"], found["recall_2"]) == (None,) * 4
    assert found["auc"] == pytest.approx(np.mean([found["auc_0"], found["auc_3"]]))
    assert "accuracy_at_threshold" not in found
    assert np.isnan(average_precision(np.ones((1, 0)), np.empty(0), np.empty(0, bool)))
    empty = evaluate(np.empty((0, 4)), np.empty((0, 4), np.int64), "multilabel")
    assert set(empty.values()) == {None}


def test_a_threshold_for_each_label_and_the_majority_of_each() -> None:
    scores, truth = example()
    thresholds = choose_thresholds(scores, truth)
    known = truth[:, 3] >= 0
    assert thresholds[3] == choose_threshold(np.column_stack([1 - scores[known, 3], scores[known, 3]]), truth[known, 3])
    train = np.array([[1, 0], [1, -1], [0, 0]])
    assert majority_accuracy(train, np.array([[1, 1], [0, -1], [1, 0]])) == pytest.approx((2 / 3 + 1 / 2) / 2)
    intervals = bootstrap(scores, truth, "multilabel", thresholds, np.random.default_rng(0), resamples=50)
    for name in ("auc", "average_precision_1", "balanced_accuracy_at_threshold"):
        found = intervals[name]
        assert found.low is not None
        assert found.high is not None
        assert found.value is not None
        assert found.low < found.value < found.high
