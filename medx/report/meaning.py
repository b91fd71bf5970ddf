"""What the bounds mean: a table of what any attack can find at most, and the trade-off curves behind it."""

from collections.abc import Iterator, Mapping

import numpy as np
import pandas as pd

from medx.figures import COLOURS, FAINT, INK, Picture, drawing, finish, legend
from medx.privacy.meaning import UNKNOWN, meanings_of, upwards
from medx.report.cells import Row, Table, number, runs_text, settled, spent, target
from medx.report.rows import WHO, Results, settings_of, with_role
from medx.report.words import deltas
from medx.results import Meaning
from medx.schema import MedxError

WORDS = (
    "What ε leaves possible to whoever sees what it covers: the most that any attack can find, whatever it knows and "
    "however it computes. What attacks really found is another matter, and stands in a section of its own."
)
UNITS = {"image": "image", "patient": "patient"}
Meanings = Mapping[int, dict[str, Meaning]]


def meanings_by_run(frame: pd.DataFrame, results: Results) -> Meanings:
    """By run, of those that the section shows; raises MedxError where a result does not agree with itself."""
    found = {}
    for run in map(int, shown(frame)["run"]):
        try:
            found[run] = meanings_of(results[run].privacy)
        except MedxError as error:
            raise MedxError(f"run {run}: {error}") from error
    return found


def shown(frame: pd.DataFrame) -> pd.DataFrame:
    """The runs with a guarantee whose utility is reported."""
    rows = with_role(frame, "utility", "convergence")
    return rows[rows["epsilon"].notna()]


def meaning_table(frame: pd.DataFrame, found: Meanings) -> Table:
    """By setting, the largest figure of any of its runs, of an image and where one is bounded of a patient."""
    rows = []
    chosen = shown(frame)
    for setting, part in settings_of(chosen):
        row = settled(setting, "dataset", *WHO) | spent(part)
        for unit in UNITS:
            known = [meaning for run in part["run"] if (meaning := found[int(run)].get(unit))]
            if known:
                row |= _largest(unit, known)
        rows.append(row)
    bounded = any("patient" in each for each in found.values())
    note = (
        f"Upper bounds, the largest of any seed{deltas(chosen)}. Found: of those that were trained on, how many any "
        "test tells at most that wrongly accuses 1 in 100 that were not; luck finds 1 %. Guessed: how often somebody "
        "is right at most who would be 1 time in 10 without the run. Advantage: the most by which the found exceed the "
        f"wrongly accused. {'A patient is all images of one.' if bounded else f'A patient is {UNKNOWN}.'}"
    )
    return Table.of("meaning", "What any attack finds at most", note, rows)


def _largest(unit: str, known: list[Meaning]) -> Row:
    figures = {
        "found at 1 %": max(each.detected["0.01"] for each in known),
        "guessed, from 10 %": max(each.reconstructed["0.1"] for each in known),
        "advantage": max(each.advantage for each in known),
    }
    names = ("detected_at_0.01", "reconstructed_from_0.1", "advantage")
    data = {f"{unit}_{name}": value for name, value in zip(names, figures.values(), strict=True)}
    return Row(data, {f"{unit}: {title}": number(upwards(value, 3), True) for title, value in figures.items()})


def meaning_figure(frame: pd.DataFrame, found: Meanings) -> Iterator[Picture]:
    """True- against false-positive rates on logarithmic axes, a line each target epsilon and unit."""
    rows = shown(frame)
    rows = rows[rows["target_epsilon"].notna()].sort_values("target_epsilon", kind="stable")
    if rows.empty:
        return
    with drawing(size=(4.7, 4.6)) as (figure, (axes,)):
        for index, (setting, part) in enumerate(settings_of(rows, ["target_epsilon"])):
            for unit, line in (("image", "-"), ("patient", "--")):
                curves = [found[int(run)][unit].curve for run in part["run"] if unit in found[int(run)]]
                if curves:
                    rate, power = np.array(curves).max(axis=0).T
                    axes.plot(rate, power, linestyle=line, color=COLOURS[index % len(COLOURS)],
                              label=f"{UNITS[unit]}, target ε {target(setting['target_epsilon'])}")  # fmt: skip
        axes.axhline(1, color=INK, linewidth=1, linestyle="-.", label="no privacy")
        axes.plot([1e-4, 1], [1e-4, 1], color=FAINT, linewidth=1, label="nothing to be found")
        axes.set(xscale="log", yscale="log", xlim=(1e-4, 1), ylim=(1e-4, 1.3))
        axes.set(xlabel="false positive rate (log scale)", ylabel="largest true positive rate (log scale)")
        legend(axes)
        both = any("patient" in each for each in found.values())
        caption = (
            f"No test of whether an image{', or a patient with all images,' if both else ''} was trained on is above "
            f"its line; the largest of any run with this target. Runs {runs_text(rows['run'])}."
        )
        yield finish(figure, "meaning", "What any test finds at most", caption)
