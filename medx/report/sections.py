"""The parts of a report in their order. Words and pictures are made when they are asked for."""

from collections.abc import Callable, Iterator

from medx.report import effects, figures, meaning, tables, words
from medx.report.attacks import attacks
from medx.report.cells import runs_text
from medx.report.frontier import frontier_figures
from medx.report.personal import personal_best_table, personal_hospitals_table, personal_table
from medx.report.section import Material, Section

SPENT = "What has been spent after each of these rounds. One accountant composes all of a run's steps; it never starts "
SPENT += "afresh."


def sections(made: Material) -> Iterator[Section]:
    """All that a report can have."""
    return (make(made) for make in SECTIONS)


def claim(made: Material) -> Section:
    """What was published, beside what was measured."""
    stated = made.study.claim
    found = [] if stated is None else [tables.claim_table(made.frame, stated, made.results)]
    return Section("claim", "The claim", words.claim_words(made.frame, made.study), found)


def convergence(made: Material) -> Section:
    """Utility by round."""
    return Section(
        "convergence", "Efficacy and convergence", words.convergence_words(made.known, made.study),
        [tables.by_round("convergence", made.known, made.results)],
        made.drawn(lambda name: figures.convergence_figures(made.known, made.results, name)),
    )  # fmt: skip


def utility(made: Material) -> Section:
    """What every epsilon costs in utility."""
    frame, names = made.frame, made.names
    found = [tables.utility_table("utility", frame, name, len(names[name])) for name in names]
    found += [tables.ordinal_table(frame, names), tables.selection_table(frame)]
    found += [tables.utility_table("baselines", frame, name, len(names[name])) for name in names]
    found += [effects.images_table(frame), effects.paired_table(frame)]
    return Section(
        "utility", "Privacy and utility", words.utility_words(frame, {table.name for table in found if table.rows}),
        found, made.drawn(lambda name: frontier_figures(frame, name, len(names[name]), made.study.claim)),
    )  # fmt: skip


def overhead(made: Material) -> Section:
    """What it costs in time and bytes."""
    steps, sums = effects.step_overhead_table(made.frame), effects.sum_overhead_table(made.frame)
    return Section(
        "overhead", "What privacy costs", words.overhead_words(made.study, bool(sums.rows)), [steps, sums],
        figures.overhead_figures(steps.data, sums.data),
    )  # fmt: skip


def budget(made: Material) -> Section:
    """Epsilon by round."""
    return Section("budget", "Privacy budget by round", [SPENT], [tables.by_round("budget", made.known, made.results)])


def bounds(made: Material) -> Section:
    """What epsilon leaves possible."""
    found = meaning.meanings_by_run(made.known, made.results)
    return Section(
        "meaning", "What the bounds mean", [meaning.WORDS], [meaning.meaning_table(made.known, found)],
        meaning.meaning_figure(made.known, found),
    )  # fmt: skip


def hospitals(made: Material) -> Section:
    """Who is served how well."""
    frame, results = made.known, made.results
    return Section(
        "hospitals", "Hospitals and classes", words.hospital_words(made.frame),
        [
            effects.hospital_table(made.frame),
            effects.site_table(frame, results),
            personal_best_table(frame, results),
            personal_table(frame, results),
            personal_hospitals_table(frame, results),
            effects.subgroup_table(frame, results),
            effects.class_table(made.frame, made.names),
        ],
        made.drawn(lambda name: figures.hospital_figures(frame, results, name)),
    )  # fmt: skip


def calibration(made: Material) -> Section:
    """What a probability is worth."""
    return Section(
        "calibration", "Calibration and errors",
        ["Whether the model's probabilities can be believed" + (", and what it confuses." if made.runs else ".")],
        [effects.calibration_table(made.frame)],
        made.drawn(lambda name: figures.curve_figures(made.known, made.results, name)),
    )  # fmt: skip


def statement(made: Material) -> Section:
    """What the runs with the largest epsilon state."""
    frame = made.known
    largest = frame.sort_values(["epsilon", "run"], ascending=[False, True], na_position="first").groupby("mode")["run"]
    numbers = {mode: int(largest.first()[mode]) for mode in dict.fromkeys(frame["mode"])}
    stated = {f"{mode} (run {run})": made.results[run].privacy.statement for mode, run in numbers.items()}
    what = "For each mode what its run with the largest ε states, from the steps that were executed."
    return Section("statement", "Privacy statement", [what], statements=stated)


def limits(made: Material) -> Section:
    """What all this does not show."""
    points = words.limits(made.frame, made.results, made.study) if made.committed is None else made.committed.limits
    return Section("limits", "Limits", ["What this report does not show."], points=points)


def appendix(made: Material) -> Section:
    """Every run, and the machines and versions that they were made with, each once."""
    found: dict[str, list[int]] = {}
    for run in made.runs:
        facts = [f"{name} {value}" for name, value in run.result.environment.items() if name != "git"]
        found.setdefault("\n".join(facts), []).append(run.number)
    environments = {f"Environment of runs {runs_text(numbers)}": text for text, numbers in found.items() if text}
    what = "Every number above names its runs; this is what they are."
    table = effects.appendix_table(made.runs, made.frame, made.where)
    return Section("appendix", "Appendix: runs", [what], [table], statements=environments)


SECTIONS: tuple[Callable[[Material], Section], ...] = (
    claim, convergence, utility, overhead, budget, bounds, attacks, hospitals, calibration, statement, limits, appendix,
)  # fmt: skip
