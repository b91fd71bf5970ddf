"""Sensitivity, specificity and predictive values at the point at which a model answers, each with its interval.

Counts come from the result: of two classes, those of true answers are a rate times the images of a class, which is a
whole number; of more, the confusion matrix has them. Intervals of sensitivity and specificity are the result's
bootstrap, where it has one of any width; all others are Wilson's (1927).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from scipy import stats

from medx.report.cells import Row, Table, number
from medx.results import ExperimentResult, Interval

WHOLE = 1e-6  # a rate times its images is off a whole number by no more


@dataclass(frozen=True)
class Operating:
    """How one class is told from all others: counts of test images, and the rates that they give."""

    name: str
    true_positive: int
    false_negative: int
    false_positive: int
    true_negative: int
    sensitivity: Interval
    specificity: Interval
    ppv: Interval
    npv: Interval

    @property
    def positives(self) -> int:
        """Test images of the class."""
        return self.true_positive + self.false_negative

    @property
    def prevalence(self) -> float:
        """Their share of all."""
        return self.positives / (self.positives + self.false_positive + self.true_negative)

    def ppv_at(self, prevalence: float) -> float | None:
        """How often an answer of yes is right where the class is as frequent as that (Bayes' rule)."""
        right = (self.sensitivity.value or 0.0) * prevalence
        wrong = (1 - (self.specificity.value or 0.0)) * (1 - prevalence)
        return right / (right + wrong) if right + wrong else None


def wilson(hits: int, total: int) -> Interval:
    """A share with its 95 % interval (Wilson 1927); undefined of nothing."""
    if not total:
        return Interval(value=None)
    found = stats.binomtest(hits, total).proportion_ci(0.95, method="wilson")
    return Interval(value=hits / total, low=float(found.low), high=float(found.high))


def operating_points(result: ExperimentResult) -> list[Operating]:
    """Of two classes, that of class 1; of more, one each; none where the result does not tell the counts."""
    counts = result.dataset.class_counts.get("test", [])
    if result.dataset.task == "binary":
        found = _of_two(result, counts)
        return [] if found is None else [found]
    matrix = [] if result.curves is None else result.curves.confusion_matrix
    return [_of_many(result, matrix, index) for index in range(len(matrix))]


def _of_two(result: ExperimentResult, counts: list[int]) -> Operating | None:
    ending = "" if result.threshold is None else "_at_threshold"
    rates = [result.test.get(f"{name}{ending}") for name in ("specificity", "sensitivity")]
    if len(counts) != 2:
        return None
    true = [_whole(rate, count) for rate, count in zip(rates, counts, strict=True)]
    if true[0] is None or true[1] is None:
        return None
    name = result.dataset.class_names[1]
    known = (true[1], counts[1] - true[1], counts[0] - true[0], true[0])
    return _with(name, known, sensitivity=rates[1], specificity=rates[0])


def _whole(rate: Interval | None, count: int) -> int | None:
    """How many images a rate stands for; None where it is undefined, or of other images."""
    if rate is None or rate.value is None:
        return None
    hits = round(rate.value * count)
    return hits if abs(rate.value * count - hits) < WHOLE else None


def _of_many(result: ExperimentResult, matrix: list[list[int]], index: int) -> Operating:
    hits, own = matrix[index][index], sum(matrix[index])
    answered, total = sum(row[index] for row in matrix), sum(map(sum, matrix))
    recall = result.test.get(f"recall_{index}")
    name = result.dataset.class_names[index]
    counts = (hits, own - hits, answered - hits, total - own - answered + hits)
    return _with(name, counts, sensitivity=recall, specificity=None)


def _with(
    name: str, counts: tuple[int, int, int, int], *, sensitivity: Interval | None, specificity: Interval | None
) -> Operating:
    """Of the counts true positive, false negative, false positive and true negative."""
    tp, fn, fp, tn = counts
    return Operating(
        *(name, *counts),
        sensitivity=_wide(sensitivity) or wilson(tp, tp + fn),
        specificity=_wide(specificity) or wilson(tn, tn + fp),
        ppv=wilson(tp, tp + fp),
        npv=wilson(tn, tn + fn),
    )


def _wide(rate: Interval | None) -> Interval | None:
    """The bootstrap's interval, but of none or of all, where it has no width and would look certain."""
    return None if rate is None or rate.low == rate.high else rate


def operating_table(points: list[Operating]) -> Table:
    """A row a class, with its counts."""
    return Table.of("operating_point", "At the point at which it answers", NOTE, _rows(points))


NOTE = (
    "Found: of the images of the class, how many are answered so (sensitivity). Cleared: of all others, how many are "
    "not (specificity). PPV: of the answers of this class, how many are right; NPV: of the other answers. PPV and NPV "
    "are from the counts of these test images, so they hold at their prevalence."
)


def _rows(points: list[Operating]) -> Iterator[Row]:
    for each in points:
        counts = {
            "true_positive": each.true_positive, "false_negative": each.false_negative,
            "false_positive": each.false_positive, "true_negative": each.true_negative,
        }  # fmt: skip
        rates = {"sensitivity": each.sensitivity, "specificity": each.specificity, "ppv": each.ppv, "npv": each.npv}
        data: dict[str, Any] = {"class": each.name} | counts | {"prevalence": each.prevalence}
        data |= {f"{name}{part}": value for name, rate in rates.items()
                 for part, value in (("", rate.value), ("_low", rate.low), ("_high", rate.high))}  # fmt: skip
        told = [shown(rate) for rate in rates.values()]
        titles = ("sensitivity (found)", "specificity (cleared)", "PPV", "NPV")
        cells = {"class": each.name, **dict(zip(titles, told, strict=True)),
                 "found of": f"{each.true_positive:,} of {each.positives:,}",
                 "wrongly answered so": f"{each.false_positive:,} of {each.false_positive + each.true_negative:,}",
                 "prevalence in test": number(each.prevalence, True)}  # fmt: skip
        yield Row(data, cells)


def shown(rate: Interval, percent: bool = True) -> str:
    """A rate with its interval, as tables have it."""
    if rate.value is None or rate.low is None or rate.high is None:
        return number(rate.value, percent)
    scale, places = (100, 1) if percent else (1, 3)
    low, high = (f"{scale * value:.{places}f}" for value in (rate.low, rate.high))
    return f"{scale * rate.value:.{places}f} [{low}, {high}]" + (" %" if percent else "")


def spoken(rate: Interval, percent: bool = True) -> str:
    """The same in a sentence."""
    if rate.low is None or rate.high is None:
        return number(rate.value, percent)
    low, high = (number(value, percent).removesuffix(" %") for value in (rate.low, rate.high))
    return f"{number(rate.value, percent)} (95 % interval {low} to {high})"
