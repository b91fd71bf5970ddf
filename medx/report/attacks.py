"""What attacks found, beside the claim and what it means; and what was not tried."""

import math
from collections.abc import Iterable, Iterator
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from scipy import stats

from medx.attacks.evidence import CONFIDENCE, gaussian_epsilon
from medx.figures import COLOURS, FAINT, INK, ROOM, Picture, Shown, drawing, finish, legend
from medx.privacy.meaning import meanings_of, upwards
from medx.report.attack_studies import read_all
from medx.report.cells import DASH, Row, Table, cited, number, runs_text, settled, target
from medx.report.rows import WHO, Setting, settings_of, with_role
from medx.report.section import Material, Section
from medx.report.words import deltas, listed
from medx.results import AttackResult

FALSE = 0.01  # rate of false positives at which claim and finding are told in people
NOTHING = (
    "Nothing was attacked here: `attack=standard` does so after each run, and `python -m medx.membership FILE` asks "
    "who was among the training records."
)
WORDS = (
    "What attacks really got. A bound that they found is a lower bound: above the claim, and not by chance, it refutes "
    "it, below it it proves nothing, as another attack may find more."
)
NOT_TRIED = (
    "Not tried: canaries where the unit is a patient, several hospitals that attack together, a server that does not "
    "keep to the protocol."
)


def attacks(made: Material) -> Section:
    """Canaries in copies of the runs, and the studies of attacks that the study names."""
    found, studies = attacked(made), read_all(made.study.attacks)
    words = [NOTHING] if found.empty and not studies else [WORDS, *_noise_words(made)]
    listing = [canary_table(made), *(table for study in studies for table in study.tables())]

    def pictures() -> Iterator[Shown]:
        yield from canary_figure(made)
        for study in studies:
            yield from study.pictures()

    points = [] if found.empty and not studies else list(_not_tried(made, {study.kind for study in studies}))
    return Section("attacks", "Attacks", words, listing, pictures(), points=points, always=True)


def attacked(made: Material) -> pd.DataFrame:
    """The runs that were."""
    chosen = [bool(made.results[int(run)].attacks) for run in made.known["run"]]
    return made.known[pd.Series(chosen, made.known.index, dtype=bool)]


def strongest(made: Material) -> Iterator[tuple[Setting, pd.DataFrame, int, AttackResult]]:
    """By setting and observer the run and the attack with the highest bound, and all runs that were attacked."""
    for setting, part in settings_of(attacked(made)):
        known = [(int(run), each) for run in part["run"] for each in made.results[int(run)].attacks]
        for observer in dict.fromkeys(each.observer for _, each in known):
            own = [(run, each) for run, each in known if each.observer == observer]
            yield setting, part, *max(own, key=lambda pair: math.inf if pair[1].found is None else pair[1].found)


def canary_table(made: Material) -> Table:
    """Claim, meaning and finding, by setting and observer."""
    rows = []
    for setting, part, run, each in strongest(made):
        against = "; ".join(_against(made, part, each.observer))
        meaning = meanings_of(made.results[run].privacy)["image"].detected[str(FALSE)]
        shown = _detected(each.at_least(CONFIDENCE))
        data = each.model_dump(exclude={"against", "attack", "seconds"}) | {"true_at_1_claimed": meaning,
                "true_at_1_found": shown, "against": against}  # fmt: skip
        cells = {
            "observer": each.observer,
            "claimed ε": _epsilon(each.claimed, "none"),
            "lower bound found": _epsilon(each.found, "any"),
            "as planned": DASH if each.planned is None else f"{gaussian_epsilon(each.planned, each.delta):.2f}",
            "by guesses alone": f"{each.one_run:.2f} of {each.ceiling:.2f}",
            "found at 1 %: allowed": f"≤ {number(upwards(meaning, 3), True)}",
            "found at 1 %: shown": f"≥ {number(math.floor(1000 * shown) / 1000, True)}",
            "canaries": str(each.trials),
            "against the claim": against or "nothing",
        }
        rows.append(settled(setting, "dataset", *WHO) | Row(data, cells) | cited(part))
    note = (
        f"The highest bound of any run{deltas(attacked(made))}, each at {100 * CONFIDENCE:.0f} % confidence: of many, "
        "one in twenty may be too high, and only what chance does not explain is said to be against the claim. As "
        "planned: the ε that the plan's noise leaves to this observer, so not much more was to be found this way. By "
        "guesses alone: a bound that takes nothing for granted, of the most that so many canaries could have shown. "
        "Found at 1 %: of records that were trained on (hospitals, where they are the unit), how many can be told "
        "where 1 in 100 that were not is wrongly accused, by the claim at most, and as shown at least; luck finds 1 %. "
        "Where no noise hides a record any bound is found."
    )
    return Table.of("attacks", "Claim, meaning, and what canaries found", note, rows)


def _against(made: Material, part: pd.DataFrame, observer: str) -> Iterable[str]:
    """What any run's attacks by this observer say against the claim, each once."""
    found = [each for run in part["run"] for each in made.results[int(run)].attacks if each.observer == observer]
    return dict.fromkeys(text for each in found for text in each.against)


def _epsilon(value: float | None, otherwise: str) -> str:
    return otherwise if value is None else f"{value:.2f}"


def _detected(shift: float) -> float:
    """The true-positive rate of whoever sees a record shifted so far (Dong, Roth and Su 2022)."""
    return float(stats.norm.cdf(shift + stats.norm.ppf(FALSE)))


def canary_figure(made: Material) -> Iterator[Picture]:
    """A line from nothing to the claim for each setting and observer, with what was found on it."""
    found = [(setting, part, each) for setting, part, _, each in strongest(made) if each.claimed is not None]
    if not found:
        return
    models = {setting["model"] for setting, *_ in found}
    names = []
    with drawing(size=(4.7, 1.3 + 0.42 * len(found))) as (figure, (axes,)):
        figure.set_layout_engine("constrained", w_pad=ROOM)
        for place, (setting, _, each) in enumerate(found):
            model = f"{setting['model']}, " if len(models) > 1 else ""
            names.append(f"{model}{setting['mode']}, ε {target(setting['target_epsilon'])}\n{each.observer}")
            _line(axes, place, each)
        axes.set_yticks(range(len(found)), names, fontsize=7.5)
        axes.grid(False, axis="y")
        axes.set(xlabel="ε", xlim=(0, None), ylim=(len(found) - 0.5, -0.5))
        legend(axes)
        runs = pd.concat([part["run"] for _, part, _ in found])
        caption = (
            "By who looks: what is claimed, what the plan's noise leaves to be found this way, and the highest lower "
            f"bound of any run. Runs {runs_text(runs)}."
        )
        yield finish(figure, "attacks", "What is claimed, and what canaries found", caption)


def _line(axes: Axes, place: int, each: AttackResult) -> None:
    """What one observer was to find at most, and what it found."""
    assert each.claimed is not None
    planned = None if each.planned is None else gaussian_epsilon(each.planned, each.delta)
    axes.plot([0, each.claimed], [place, place], color=FAINT, linewidth=1)
    marks: dict[str, tuple[float | None, dict[str, Any]]] = {
        "claimed": (each.claimed, {"marker": "|", "color": INK, "markersize": 13, "markeredgewidth": 2}),
        "as planned": (planned, {"marker": "o", "color": COLOURS[0], "fillstyle": "none"}),
        "lower bound found": (each.found, {"marker": "D", "color": COLOURS[1]}),
    }
    for label, (epsilon, style) in marks.items():
        if epsilon is not None:
            axes.plot(epsilon, place, linestyle="none", label=None if place else label, **style)


def _noise_words(made: Material) -> Iterator[str]:
    """Whether the noise was looked at as it was added."""
    heard = [run for run in made.runs if run.result.privacy.noise is not None]
    if heard:
        well = not any(_doubts(made))
        many = "one private run" if len(heard) == 1 else f"{len(heard)} private runs"
        yield f"The noise of {many} was looked at as it was added" + (
            ": chance explains all of it." if well else "; what chance does not explain stands on top of this page."
        )


def _doubts(made: Material) -> Iterator[str]:
    for run in made.runs:
        noise = run.result.privacy.noise
        if noise is not None and noise.doubts:
            yield f"run {run.number}: NOISE NOT AS PLANNED: {'; '.join(noise.doubts)}"


def speaking_against(made: Material) -> Iterator[str]:
    """What speaks against a claim, a line each: a reader must know it first."""
    yield from _doubts(made)
    for run in made.runs:
        for each in run.result.attacks:
            if each.against:
                yield f"run {run.number}: AGAINST THE CLAIM: {each.observer}: {'; '.join(each.against)}"


def _not_tried(made: Material, studied: set[str]) -> Iterator[str]:
    if made.committed is not None:
        yield "What canaries found in these runs is not in `results.csv`."
    reported = with_role(made.known, "utility", "convergence")
    tried = set(attacked(made)[["model", "mode"]].itertuples(index=False, name=None))
    every = dict.fromkeys(reported[["model", "mode"]].itertuples(index=False, name=None))
    left = [f"{model} with {mode}" for model, mode in every if (model, mode) not in tried]
    if left:
        yield f"Not tried: canaries in runs of {listed(left)} (`attack=standard`)."
    if "membership" not in studied:
        yield "Not tried: membership of real records (`python -m medx.membership FILE`)."
    if "reconstruction" not in studied:
        yield "Not tried: to find images again in what the server receives (`python -m experiments.reconstruction`)."
    yield NOT_TRIED
