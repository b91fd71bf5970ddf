"""The report's words. Each sentence is made from the runs that are shown, or left out where they do not bear it."""

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
from scipy import stats

from medx.report.rows import BASELINES, Results, seeds_by_setting, with_role
from medx.report.study import Study, dataset_name, option_name
from medx.results import ExperimentResult, PrivacyResult

MIXES = {
    "dirichlet": "dirichlet(α) draws each hospital's mix of classes, the more one-sided the smaller α",
    "iid": "iid gives all the same mix",
    "quantity": "quantity(α) gives all the same mix and unequal numbers of images, the more unequal the smaller α",
    "label": "label(n) gives each hospital about n classes",
}
LABELS = {"local_only": "hospitals that train alone", "centralized": "all records in one place",
          "phantoms_alone": "drawn phantoms alone"}  # fmt: skip
RADIOLOGY = 512  # pixels along an edge: a physician reads images of thousands


def listed(words: Iterable[object], last: str = "and") -> str:
    """``a, b and c``."""
    *head, tail = [str(word) for word in words]
    return f"{', '.join(head)} {last} {tail}" if head else tail


def claim_words(frame: pd.DataFrame, study: Study) -> Iterable[str]:
    """What stands beside the published figure."""
    if study.claim is None:
        return
    ours = frame[frame["dataset"] == study.claim.dataset]
    if ours.empty:
        yield f"The published report's figure. No run here is of {study.claim.dataset}, so nothing stands beside it."
        return
    measured = with_role(ours, "utility", "convergence")["target_epsilon"].notna().any()
    yield "The published report's figure beside the majority class of the same test images" + (
        ", and beside this work at a true ε." if measured else "."
    )
    yield "An accuracy that equals the majority's says that the model may have learnt nothing."


def convergence_words(frame: pd.DataFrame, study: Study) -> Iterable[str]:
    """How many rounds the runs have."""
    rows = with_role(frame, "utility", "convergence")
    counts = sorted({int(count) for count in rows["rounds"]})
    yield f"Runs of {listed(counts)} round{'' if counts == [1] else 's'}."
    if study.claim is not None and study.claim.rounds in counts:
        yield f"The published report had {study.claim.rounds}."
    if rows["target_epsilon"].notna().any() and counts != [1]:
        yield (
            "The whole run's noise is planned before its first round, so more rounds mean more noise in each and not "
            "more ε."
        )


def utility_words(frame: pd.DataFrame, shown: set[str]) -> Iterable[str]:
    """Over how many seeds, and beside what."""
    rows = with_role(frame, "utility")
    beside = ["the majority class"] if not rows.empty else []
    beside += [LABELS[name] for name in BASELINES if rows[f"{name}_auc"].notna().any()]
    if not rows.empty:
        yield f"Every setting over {seed_count(rows)}, beside {listed(beside)}."
    if "paired_modes" in shown:
        yield "Nothing is set in bold: where two modes differ by more than noise, the paired test says so."
    if "selection" in shown:
        yield "Settings that were chosen inside the guarantee have a table of their own."
    if any(name.startswith("baselines_") for name in shown):
        shared = with_role(frame, "baselines")["epsilon"].notna().any()
        yield (
            "Runs that share their ε with the models they are compared with have a table of their own, and are noisier "
            "for it."
            if shared
            else "Runs beside which others were trained to compare with have a table of their own."
        )


def seed_count(rows: pd.DataFrame) -> str:
    """``5 seeds``, ``one seed``, ``3 to 5 seeds``."""
    counts = seeds_by_setting(rows)
    if counts == [1]:
        return "one seed"
    return f"{counts[0]} to {counts[-1]} seeds" if len(counts) > 1 else f"{counts[0]} seeds"


def overhead_words(study: Study, sums: bool) -> Iterable[str]:
    """What was measured, with ``sums`` bytes too, and whether anything ran beside it."""
    timed = [grid.alone for grid in study.grids if grid.role.endswith("overhead")]
    alone = bool(timed) and all(timed)
    what = "Time and bytes" if sums else "Time"
    yield f"{what}, on the machine that the appendix names{', each run with nothing beside it' if alone else ''}."


def hospital_words(frame: pd.DataFrame) -> Iterable[str]:
    """Which partitions there are, and what each means."""
    rows = with_role(frame, "skew")
    names = list(dict.fromkeys(rows["partition"]))
    if not names:
        return
    yield f"How utility depends on what each hospital sees: {listed(names)}."
    kinds = dict.fromkeys(name.partition("(")[0] for name in names)
    meant = [MIXES[kind] for kind in kinds if kind in MIXES]
    if meant:
        yield f"Of these names, {'; '.join(meant)}."


def limits(frame: pd.DataFrame, results: Results, study: Study) -> list[str]:
    """What these runs do not show: the study's own limits, and what holds wherever there are such runs."""
    every = list(results.values())
    private = [result.privacy for result in every if result.privacy.epsilon is not None]
    points = [*study.limits, *(privacy_limits(frame, private) if private else [])]
    points += [f"{text}{'; ε does not cover them' if private else ''}." for text in whose_metrics(every)]
    return [*points, *leaks(every), *interval_limits(frame), image_limit(every)]


def whose_metrics(every: Sequence[ExperimentResult]) -> Iterable[str]:
    """Who has computed them, on whose data."""
    apart = [_deployed(result) for result in every]
    if not all(apart):
        yield "Validation and test metrics, and metrics by hospital, are computed by the study on data it holds"
    if any(apart):
        yield "Metrics of hospitals on machines of their own are computed there, or by the coordinator on public data"


def _deployed(result: ExperimentResult) -> bool:
    return bool(result.config.get("runtime") == "deployment")


def leaks(results: Sequence[ExperimentResult]) -> Iterable[str]:
    """Splits that share patients with train, each once: what is measured or chosen there is too good."""
    for split in ("validation", "test"):
        found = [(dataset_name(one.config), one.dataset) for one in results if one.dataset.shared_patients.get(split)]
        for name, shared, size in dict.fromkeys((n, d.shared_patients[split], d.sizes[split]) for n, d in found):
            yield (
                f"{shared} of {size} {split} images of {name} are of patients who are in train too, so {split} figures "
                "are too good, and what is chosen by them may be."
            )


def privacy_limits(frame: pd.DataFrame, private: list[PrivacyResult]) -> Iterable[str]:
    """What the ε of these runs does not cover."""
    yield "What it costs to choose settings by their results is not covered by ε."
    counts = sorted({int(count) for count in frame["candidates"].dropna()})
    if counts:
        yield f"Rows that were chosen privately pay for their own choice among {listed(counts)}, and for no other."
    units = {spent.unit for spent in private}
    if "record" in units:
        where = " where its unit is a record" if len(units) > 1 else ""
        yield f"ε protects one image{where}. A patient with several images is protected less."
    if "patient" in units:
        yield "Where the unit of ε is a patient, all images of one are protected together."
    if "client" in units:
        yield "Where the unit of ε is a client, what is protected is all that one hospital holds."
    seeded = sum(spent.noise_source == "seed" for spent in private)
    if seeded:
        which = "Runs use noise" if seeded == len(private) else f"{seeded} of {len(private)} private runs use noise"
        yield f"{which} drawn from the seed, so that they can be made again. A model for release needs `noise=system`."


def interval_limits(frame: pd.DataFrame) -> Iterable[str]:
    """What the intervals speak of, and how wide they are at so few seeds."""
    several = [count for count in seeds_by_setting(frame) if count > 1]
    seeds = "Intervals over seeds speak of retraining on these images. " if several else "There is one seed of each "
    seeds += "" if several else "setting, so nothing tells what another seed would change. "
    if frame["auc_images_low"].notna().any():
        seeds += "Bootstrap intervals speak of other test images of the same kind. "
    yield f"{seeds}Nothing here speaks of other hospitals, scanners or patients."
    if several and several[0] < 10:
        width = float(stats.t.ppf(0.975, several[0] - 1))
        yield (
            f"With few seeds the t interval is wide (at {several[0]} it reaches {width:.1f} standard errors to each "
            "side), and only large differences can be shown."
        )


def image_limit(every: Sequence[ExperimentResult]) -> str:
    """Where the images come from and how small they are."""
    sizes = sorted({result.dataset.image_size for result in every if not result.dataset.synthetic})
    small = [size for size in sizes if size < RADIOLOGY]
    physician = f" Images of {listed(small)} pixels along an edge are not what a physician reads." if small else ""
    dealt = dict.fromkeys(_hospitals(result) for result in every)
    return f"Hospitals are {listed(dealt, 'or')}.{physician} Nothing here is fit for diagnosis."


def _hospitals(result: ExperimentResult) -> str:
    if _deployed(result):
        return "on machines of their own"
    if option_name(result.config, "partition") == "site":
        return "those that the data name, on one machine"
    return "simulated by dealing out a data set"


def synthetic_warning(frame: pd.DataFrame) -> str | None:
    """What a reader must know where images were drawn: of all, or of which data."""
    synthetic = frame["synthetic"].astype(bool)
    if not synthetic.any():
        return None
    drawn = frame["dataset"][synthetic].unique()
    which = "these images" if synthetic.all() else f"the images of {listed(drawn)}"
    return f"{which} were drawn by a program and show no patient; their figures say nothing of medicine"


def over_seeds(rows: pd.DataFrame) -> str:
    """What the cells of a table over seeds hold."""
    if seeds_by_setting(rows) in ([], [1]):
        return "One seed of each setting, so there is no spread."
    return "Mean ± standard deviation over seeds [95 % t interval of the mean]."


def deltas(rows: pd.DataFrame) -> str:
    """``, at δ = 1e-05``, or nothing without privacy."""
    known = sorted({float(value) for value in rows["delta"] if value is not None and not np.isnan(value)})
    return f", at δ = {listed(f'{value:g}' for value in known)}" if known else ""
