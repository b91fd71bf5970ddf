"""A run's chapters in their order, and where the matter of each belongs in what others ask for."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from medx.dossier.answer import ANSWER, FIRST, in_full
from medx.dossier.attacked import ATTACKS, attack_tables, material
from medx.dossier.bounds import MEANING, meaning_tables
from medx.dossier.observers import OBSERVERS, UNCOVERED, observer_tables
from medx.dossier.operating import operating_points
from medx.dossier.origin import ORIGIN, SITES, origin_tables, site_tables
from medx.dossier.people import PEOPLE, TRAINING, people_tables
from medx.dossier.quality import QUALITY, quality_tables
from medx.dossier.record import Chapter, Rule, RunDossier, Sentence, Standards, Tabled, items, told
from medx.dossier.subject import Subject
from medx.dossier.use import USE
from medx.figures import Picture, confusion_figure, run_figures
from medx.report.attacks import canary_figure
from medx.report.cells import Table
from medx.report.meaning import meaning_figure
from medx.report.words import listed


def no_tables(run: Subject) -> Iterator[Table]:
    """Of a chapter of words alone."""
    yield from ()


def no_pictures(run: Subject) -> Iterator[Picture]:
    """Of a chapter without any."""
    yield from ()


@dataclass(frozen=True)
class Kind:
    """A chapter that every dossier can have: its rules, tables and pictures are made of a run."""

    key: str
    title: str
    standards: Standards
    rules: Sequence[Rule]
    tables: Callable[[Subject], Iterator[Table]] = no_tables
    pictures: Callable[[Subject], Iterator[Picture]] = no_pictures


CAPTIONS = {
    "roc": "Upwards how much of a class is found, to the right how much else is taken for it; the diagonal is luck.",
    "calibration": "Below the diagonal the model is surer than it is right, above it less sure.",
    "confusion_matrix": "Test images by what they are and what the model answers.",
    "meaning": "Upwards how many that were used are found, to the right how many others are named; none is above.",
    "attacks": "By who looks: what is claimed, what the plan's noise leaves to be found this way, and what was found.",
}


def quality_pictures(run: Subject) -> Iterator[Picture]:
    """Answers at the point at which the model answers, ROC and calibration."""
    points = operating_points(run.result)
    for drawn in run_figures(run.result):
        each = drawn
        if each.name == "confusion_matrix" and run.positive is not None and points:
            of, names = points[0], run.result.dataset.class_names
            counts = [[of.true_negative, of.false_positive], [of.false_negative, of.true_positive]]
            each = confusion_figure(each.name, each.title, counts, names, "")
        yield replace(each, caption=CAPTIONS[each.name])


def meaning_pictures(run: Subject) -> Iterator[Picture]:
    """What any test finds at most, as curves."""
    if run.private:
        made = material(run)
        for each in meaning_figure(made.frame, {run.number: run.meanings}):
            yield replace(each, caption=CAPTIONS[each.name])


def attack_pictures(run: Subject) -> Iterator[Picture]:
    """Claim and finding, by who looks."""
    if run.result.attacks:
        for each in canary_figure(material(run)):
            yield replace(each, caption=CAPTIONS[each.name])


KINDS: tuple[Kind, ...] = (
    Kind("training", "What was trained, and on whose data",
         Standards(model_card=["Model Details", "Training Data"], tripod_ai=items("5a", "6a", "12c"),
                   nist_sp_800_226=["Data Collection Exposure"]), TRAINING),
    Kind("people", "Who is in it",
         Standards(model_card=["Factors", "Training Data", "Evaluation Data"], tripod_ai=items("12a", "20b", "21"),
                   nist_sp_800_226=["Bias"]), PEOPLE, people_tables),
    Kind("quality", "How good it is",
         Standards(model_card=["Metrics", "Quantitative Analyses"], tripod_ai=items("12e", "15", "23a", "23b"),
                   nist_sp_800_226=["Utility"]), QUALITY, quality_tables, quality_pictures),
    Kind("meaning", "What epsilon and delta mean here",
         Standards(model_card=["Ethical Considerations"], nist_sp_800_226=["Privacy Parameters", "Unit of Privacy"]),
         MEANING, meaning_tables, meaning_pictures),
    Kind("attacks", "Attacks that were tried",
         Standards(model_card=["Ethical Considerations"],
                   nist_sp_800_226=["Algorithms and Correctness", "Auditing and Empirical Measures of Privacy"]),
         ATTACKS, attack_tables, attack_pictures),
    Kind("observers", "Who learns what",
         Standards(nist_sp_800_226=["Trust Models", "Data Security and Access Control"]), OBSERVERS, observer_tables),
    Kind("uncovered", "What is not covered",
         Standards(model_card=["Caveats and Recommendations"],
                   nist_sp_800_226=["Side Channels", "Mixing Differential Privacy With Other Data Releases"]),
         UNCOVERED),
    Kind("use", "Intended use and limits of this run",
         Standards(model_card=["Intended Use", "Caveats and Recommendations"], tripod_ai=items("3b", "26")), USE),
    Kind("origin", "Digests, date, versions",
         Standards(model_card=["Model Details"], tripod_ai=items("18f", "22")), ORIGIN, origin_tables),
    Kind("sites", "Annex: the hospitals",
         Standards(tripod_ai=items("6a"), nist_sp_800_226=["Privacy Budget"]), SITES, site_tables),
)  # fmt: skip


def make_run(run: Subject) -> RunDossier:
    """All that a run's dossier says."""
    return RunDossier(
        number=run.number,
        name=run.name,
        run=run.result.run,
        view=run.result.view,
        answer=told("answer", ANSWER, run),
        first=told("first", FIRST, run),
        chapters=[_chapter(kind, run) for kind in KINDS],
    )


def _chapter(kind: Kind, run: Subject) -> Chapter:
    stated = {"Privacy statement": run.result.privacy.statement} if kind.key == "observers" else {}
    return Chapter(
        key=kind.key,
        title=kind.title,
        standards=kind.standards,
        sentences=told(kind.key, kind.rules, run),
        tables=[Tabled.of(table) for table in kind.tables(run) if table.rows],
        statements=stated,
    )


def together(runs: Sequence[Subject]) -> list[Sentence]:
    """What a reader must know of several runs beside each other: of the same data, what they spend adds up."""
    known = (
        "Runs {} are of the same data, and the epsilon of each is its own alone. For whoever sees all of them it adds "
        "up, to {} for one {}."
    )
    unknown = (
        "Nothing here tells whether runs {} are of images of the same people. Where they are, their epsilons add up "
        "for whoever sees all of them, to {} for one {}."
    )
    return [*_added(runs, True, "together.adds_up", known), *_added(runs, None, "together.may_add_up", unknown)]


def _added(runs: Sequence[Subject], verdict: bool | None, key: str, words: str) -> Iterator[Sentence]:
    """A sentence for each group of runs that are of the same data, or (None) may be."""
    seen: set[int] = set()
    for one in runs:
        same = [each for each in runs if each is one or _same_data(one, each) is verdict]
        if len(same) > 1 and one.number not in seen:
            seen |= {each.number for each in same}
            epsilon = sum(each.result.privacy.epsilon or 0.0 for each in same)
            delta = sum(each.result.privacy.delta or 0.0 for each in same)
            spent = f"{epsilon:.3f} at delta {in_full(delta)}"
            yield Sentence(key=key, text=words.format(listed(each.number for each in same), spent, one.unit))


def _same_data(one: Subject, other: Subject) -> bool | None:
    """Whether both spend on the same data: the same images, or a published data set of one name; None: not told.

    Images of one data set differ by their size or split. Of own images whose classes differ nothing is asked.
    """
    mine, its = one.result.dataset, other.result.dataset
    if not (one.private and other.private and one.unit == other.unit) or mine.synthetic or its.synthetic:
        return False
    if one.result.run is not None and one.result.run == other.result.run:
        return False  # one run that was named twice
    if mine.content_hash is not None and mine.content_hash == its.content_hash:
        return True
    if one.published or other.published:
        return (mine.name, mine.title) == (its.name, its.title)
    return None if (mine.class_names, mine.num_channels) == (its.class_names, its.num_channels) else False
