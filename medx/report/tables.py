"""Tables of privacy and utility: the claim, by data set, round and class, and chosen privately."""

import re
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from medx.report.cells import (
    DASH,
    PERCENT,
    TITLES,
    Row,
    Table,
    cited,
    number,
    patients_known,
    settled,
    spent,
    spreads,
    summarise,
)  # fmt: skip
from medx.report.rows import (
    BASELINES,
    EVERYBODY,
    HEADLINE,
    OPERATING,
    PHANTOMS,
    WHO,
    Results,
    class_count,
    of_two_classes,
    seeds_by_setting,
    settings_of,
    with_phantoms,
    with_role,
)
from medx.report.study import Claim, Role
from medx.report.words import deltas, over_seeds

CLAIM_METRICS = ("accuracy", "accuracy_at_threshold", "balanced_accuracy_at_threshold", "auc")
SHOWN_ROUNDS = (1, 2, 5, 10, 25, 50, 100, 300)
PUBLISHED_BY = ("dataset", *WHO)


def claim_table(frame: pd.DataFrame, claim: Claim, results: Results) -> Table:
    """The claim, the majority class, and this work at each target epsilon, the largest first."""
    frame = frame[frame["dataset"] == claim.dataset]
    rows = [_claimed(claim)] + ([] if frame.empty else [_claim_s_majority(frame, results)])
    if patients_known(frame):  # the column stands beside the other epsilon's
        claimed = Row({}, {**_until(rows[0], "true ε"), "ε of a patient": "not told"})
        rows[0] = claimed | rows[0]
        rows[1] |= Row({}, {"ε of a patient": "0"})
    ours = with_role(frame, "utility", "convergence")
    private = ours[ours["target_epsilon"].notna()].sort_values("target_epsilon", ascending=False, kind="stable")
    for setting, part in settings_of(private):
        who = f"this work: {setting['model']}, {setting['mode']}, {setting['rounds']} rounds"
        stated = Row({}, {"stated ε": f"{setting['target_epsilon']:g}"})
        rows.append(Row({"row": "this work"}, {"row": who}) | settled(setting) | stated | spent(part)
                    | spreads(part, CLAIM_METRICS, digits=2))  # fmt: skip
    measured = f"Of this work, true ε composes every noisy step of every round (the largest of any run){deltas(ours)}. "
    note = (
        (measured if len(rows) > 2 else "")
        + ("Accuracy and balanced accuracy use the threshold chosen on validation. " if not frame.empty else "")
        + claim.note
    )
    return Table.of("claim", "The claim, and what was measured", note, rows)


def _until(row: Row, title: str) -> dict[str, str]:
    """The cells of a row up to this one."""
    titles = list(row.shown)
    return {each: row.shown[each] for each in titles[: titles.index(title) + 1]}


def _claimed(claim: Claim) -> Row:
    data = {"row": "published report", "target_epsilon": claim.epsilon, "epsilon": claim.composed_epsilon,
            "rounds": claim.rounds, "accuracy_mean": claim.accuracy}  # fmt: skip
    start = {"row": f"published report, {claim.rounds} rounds", "stated ε": f"{claim.epsilon:g}",
             "true ε": f"about {claim.composed_epsilon:g}"}  # fmt: skip
    metrics = dict.fromkeys((TITLES[metric] for metric in CLAIM_METRICS), "not reported")
    return Row(
        data, start | metrics | {TITLES["accuracy"]: number(claim.accuracy, True, 2), "seeds": "1", "runs": DASH}
    )


def _claim_s_majority(frame: pd.DataFrame, results: Results) -> Row:
    result = results.get(int(frame["run"].iloc[0]))  # None where the runs are elsewhere
    counts = [] if result is None else result.dataset.class_counts.get("test", [])
    share = float(frame["majority_accuracy"].astype(float).iloc[0])
    told = f" ({round(share * sum(counts))} of {sum(counts)})" if counts and not np.isnan(share) else ""
    balanced = number(majority_scores(frame, len(counts) or class_count(frame))[2], True, 2)
    values = (number(share, True, 2), number(share, True, 2), balanced, number(0.5))
    cells = dict(zip((TITLES[metric] for metric in CLAIM_METRICS), values, strict=True))
    shown = {"row": f"always the majority class{told}", "stated ε": "0", "true ε": "0"} | cells
    return Row({"row": "majority", "epsilon": 0.0, "accuracy_mean": share}, shown | cited(frame.head(1)).shown)


def by_round(name: str, frame: pd.DataFrame, results: Results) -> Table:
    """Test AUC (``convergence``) or epsilon spent (``budget``) after chosen rounds."""
    title, metric, note = {
        "convergence": ("Test AUC by round", "auc", "The number of rounds is fixed before a run starts; no round is "
                        "chosen by it."),
        "budget": ("ε spent by round", None, "Largest ε of any hospital and seed, composed over all steps so far."),
    }[name]  # fmt: skip
    chosen = with_role(frame, "utility", "convergence")
    if metric is not None and seeds_by_setting(chosen) not in ([], [1]):
        note = f"Mean over seeds. {note}"
    if metric is None:
        chosen = chosen[chosen["target_epsilon"].notna()]
    last = {int(count) for count in chosen["rounds"]}
    rows = []
    for setting, part in settings_of(chosen):
        values = round_values(part, results, metric)
        if not values:
            continue
        row = settled(setting, "dataset", *WHO, "rounds") | cited(part)
        for wanted in sorted(last | {one for one in SHOWN_ROUNDS if one <= max(last, default=0)}):
            # Epsilon is a bound, so the largest counts; a metric is averaged.
            known = values.get(wanted, [])
            value = max(known, default=np.nan) if metric is None else summarise(known).mean
            row |= Row({f"round_{wanted}": value}, {f"after {wanted}": number(value)})
        rows.append(row)
    return Table.of(name, title, note, rows)


def round_values(rows: pd.DataFrame, results: Results, metric: str | None) -> dict[int, list[float]]:
    """By round, the values over seeds of a test metric, or of epsilon spent where ``metric`` is None."""
    values: dict[int, list[float]] = {}
    for run in rows["run"]:
        for record in results[int(run)].rounds:
            value = record.epsilon if metric is None else record.metrics.get(f"test/{metric}")
            if value is not None:
                values.setdefault(record.round, []).append(value)
    return values


def utility_table(role: Role, frame: pd.DataFrame, dataset: str, class_count: int) -> Table:
    """Privacy and utility of one data set, beside the majority class (``utility``).

    Or hospitals together, alone, and all records in one place, where these models share one epsilon (``baselines``).
    """
    chosen = with_role(frame[frame["dataset"] == dataset], role)
    metrics = (*HEADLINE, *OPERATING) if of_two_classes(chosen) else HEADLINE
    rows = [
        Row({"row": kind}, {"row": kind}) | settled(setting, *WHO) | spent(part) | spreads(part, metrics)
        for setting, every in settings_of(chosen)
        for kind, part in _with_baselines(every)
    ]
    note = _utility_note(chosen, class_count, {row.data["row"] for row in rows})
    rows += _phantoms(chosen, metrics)
    if rows and role == "utility":
        rows.append(_majority(chosen, class_count))
    title = "Privacy and utility" if role == "utility" else "Together, alone, in one place"
    return Table.of(re.sub(r"[^\w.]+", "_", f"{role}_{dataset}"), f"{title}: {dataset}", note, rows)


def _with_baselines(rows: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """The runs of a setting, and the same with the metrics of each of their baselines in place of their own."""
    yield "federated", rows
    for baseline in BASELINES:
        known = rows[rows[f"{baseline}_auc"].notna()]
        if not known.empty:
            measured = {metric: known.get(f"{baseline}_{metric}", np.nan) for metric in (*HEADLINE, *OPERATING)}
            yield baseline, known.assign(**measured)


def _phantoms(rows: pd.DataFrame, metrics: Sequence[str]) -> Iterator[Row]:
    """What a head comes to that was fitted to drawn phantoms alone: once for each model, whatever the runs' epsilon."""
    for setting, part in settings_of(with_phantoms(rows), ["model"]):
        row = Row({"row": PHANTOMS, "epsilon": 0.0}, {"row": PHANTOMS, "model": setting["model"], "true ε": "0"})
        yield row | spreads(part.drop_duplicates("seed"), metrics) | cited(part)


def _majority(rows: pd.DataFrame, class_count: int) -> Row:
    row = Row({"row": "always the majority", "epsilon": 0.0}, {"row": "always the majority", "true ε": "0"})
    for metric, value in zip(HEADLINE, majority_scores(rows, class_count), strict=True):
        row |= Row({f"{metric}_mean": value}, {TITLES[metric]: number(value, metric in PERCENT)})
    return row


def majority_scores(rows: pd.DataFrame, class_count: int) -> tuple[float, float, float]:
    """AUC, accuracy and balanced accuracy of always answering the most frequent class; of no where there are labels."""
    balanced = 0.5 if "task" in rows and (rows["task"] == "multilabel").any() else 1 / class_count
    return 0.5, float(rows["majority_accuracy"].astype(float).iloc[0]), balanced


def _utility_note(rows: pd.DataFrame, class_count: int, kinds: set[str]) -> str:
    """How to read the table of these runs, which has rows of these kinds."""
    baselines = {
        "local_only": "local_only is the mean over hospitals that train alone",
        "centralized": "centralized pools all records",
    }
    private = rows["target_epsilon"].notna().any()
    answer = _answer(rows, class_count)
    found = [words for name, words in baselines.items() if name in kinds]
    sentences = [over_seeds(rows), f"Test split; {answer}."]
    if rows["mode"].str.contains(EVERYBODY, regex=False).any():
        sentences.append(
            "All must answer: shares of the noise are made for all hospitals, and no drop-out is tolerated."
        )
    sentences += ["True ε is the largest of any run."] if private else []
    if not with_phantoms(rows).empty:
        sentences.append(f"{PHANTOMS} is a head fitted to drawn phantoms and to no record, so its ε is 0.")
    sentences += [", ".join(found) + (". A run's ε covers its baselines too." if private else ".")] if found else []
    return " ".join(sentences)


def _answer(rows: pd.DataFrame, class_count: int) -> str:
    """What is counted as a right answer."""
    if (rows["task"] == "multilabel").any():
        return "accuracies are means over labels, each with the threshold chosen for it on validation"
    if class_count == 2:
        return "accuracies, sensitivity (of the second class) and specificity use the threshold chosen on validation"
    return "accuracy and balanced accuracy count the most probable class"


def ordinal_table(frame: pd.DataFrame, class_names: dict[str, list[str]]) -> Table:
    """Recall of every class, of data sets with more than two, and kappa where they are grades."""
    rows = []
    for setting, part in settings_of(with_role(frame, "utility")):
        names = class_names[setting["dataset"]]
        if len(names) == 2 or (part["task"] == "multilabel").any():  # of labels there is no most probable one
            continue
        titles = {name: TITLES[name] for name in ("quadratic_kappa", "accuracy")}
        titles |= {
            f"recall_{index}": f"recall: {name}" for index, name in enumerate(names) if f"recall_{index}" in part
        }
        means = {name: float(part[name].astype(float).mean()) for name in titles}
        shown = {title: number(means[name], name != "quadratic_kappa") for name, title in titles.items()}
        if np.isnan(list(means.values())).all():
            continue
        if np.isnan(means["quadratic_kappa"]):
            del shown[TITLES["quadratic_kappa"]]
        seeds = Row({"seeds": part["seed"].nunique()}, {})
        rows.append(settled(setting, "dataset", *WHO) | Row(means, shown) | seeds | cited(part))
    note = "Means over seeds on the test split."
    if any(TITLES["quadratic_kappa"] in row.shown for row in rows):
        note += " Kappa is Cohen's with quadratic weights: it counts how far off a grade is."
    return Table.of("many_classes", "More than two classes", note, rows)


def selection_table(frame: pd.DataFrame) -> Table:
    """Settings chosen inside the guarantee: what the winners reach, and what all candidates spent."""
    chosen = with_role(frame, "selection")
    rows = []
    for setting, part in settings_of(chosen[chosen["candidates"].notna()], PUBLISHED_BY):
        epsilon, count = part["selection_epsilon"].astype(float).max(), part["candidates"].astype(int).max()
        data = {"candidates": count, "epsilon": epsilon, "seeds": len(part)}
        shown = {"candidates": str(count), "true ε of all": number(epsilon), "seeds": str(len(part))}
        winners = Row({}, cited(part).shown)
        rows.append(settled(setting, "dataset", "model", "mode") | Row(data, shown) | spreads(part, HEADLINE) | winners)
    note = (
        "In each seed the candidates share one budget and the lowest validation loss is chosen. ε composes every step "
        "of every candidate, so for training records the choice is inside it, towards the server too; validation "
        "records, which decide, have no guarantee. The figure is one seed's: several add up. `runs` "
        "names the winners."
    )
    return Table.of("selection", "Chosen inside the guarantee", note, rows)
