"""Sentences and notes that were once untrue of a run that somebody looked at."""

from medx.dossier.chapters import make_run, together
from medx.privacy.spending import TRUSTED
from tests.dossier.examples import (
    BASE,
    BENCHMARK,
    PATIENTS,
    SECURE,
    THREE,
    TWO_GROUPS,
    Changes,
    meaning,
    ready,
    sentences,
    subject,
)


def test_runs_on_own_images_are_never_called_of_the_same_data_by_a_name_that_all_own_images_have() -> None:
    other = {".number": 2, "run": "cd" * 16}
    hidden: Changes = {"dataset.content_hash": None, "dataset.title": "own images", "view": "released"}
    resized: Changes = {"dataset.content_hash": "0" * 64}
    for mine, its in ((hidden, hidden), (BASE, resized)):
        (said,) = together([subject(mine), subject({**other, **its})])
        assert said.key == "together.may_add_up"
        assert "Nothing here tells whether runs 1 and 2 are of images of the same people" in said.text
        assert "9.800 at delta 0.00002" in said.text
    benchmark: Changes = {"config.dataset": {"_target_": BENCHMARK}}
    (said,) = together([subject(benchmark), subject({**other, **benchmark, **resized})])
    assert said.key == "together.adds_up", "a published data set at another size is the same people"


def test_what_was_cut_is_of_the_unit() -> None:
    for mechanism in ("local_dp", "distributed_dp"):
        one: Changes = {"privacy.mechanism": mechanism}
        assert "cut what any image can change" in sentences(one)
        assert "cut what any patient can change" in sentences(one, PATIENTS, {"privacy.unit": "patient"})
    assert "cut what any image" not in sentences({"privacy.mechanism": "central_dp", "privacy.unit": "client"})


def test_nothing_is_said_to_be_cut_where_a_ridge_bounds_what_an_image_can_change() -> None:
    trained: Changes = {"config.trainer": {"_target_": "medx.trainer.output_perturbation.OutputPerturbation"}}
    for mechanism in ("local_dp", "distributed_dp"):
        said = sentences({"privacy.mechanism": mechanism}, trained)
        assert "bounded what any image can change" in said
        assert "cut what" not in said


def test_the_noise_of_a_sum_is_not_called_a_hospitals() -> None:
    def note(changes: Changes) -> str:
        (sites,) = [each for each in make_run(ready(changes)).chapters if each.key == "sites"]
        return sites.tables[0].note

    assert "Noise: its standard deviation" in note(BASE)
    for mechanism in ("distributed_dp", "central_dp"):
        assert "on the hospitals' sum from which epsilon is computed" in note({"privacy.mechanism": mechanism})


def test_where_nobody_has_several_images_an_image_has_its_patients_bound() -> None:
    said = sentences(PATIENTS, {"privacy.unit": "patient", "privacy.patient_images": 1})
    assert "a patient's bound, which is tighter, is the image's too" in said
    assert "the opposite" not in said
    assert "the opposite" in sentences(PATIENTS, {"privacy.unit": "patient"})


def test_a_page_names_as_uncovered_what_is_on_it_and_nothing_else() -> None:
    assert "measured on test images, counts by class and a digest of the data." in sentences()
    assert "counts by group of people" in sentences(TWO_GROUPS)
    assert "counts by class and" not in sentences({"dataset.class_counts": {}})
    everything: Changes = {"dataset.class_counts": {}, "test": {}, "dataset.content_hash": None}
    assert "without any noise:" not in sentences(everything)


def test_intervals_are_said_to_be_what_they_are() -> None:
    assert "those of PPV and NPV and rates of none or of all by Wilson" in sentences()
    assert "those of PPV and NPV, specificity and rates of none or of all by Wilson" in sentences(THREE)


def test_who_learns_what_in_this_runs_own_numbers() -> None:
    def row(assumed: int) -> str:
        changes = {"privacy.mechanism": "distributed_dp", "privacy.aggregation": SECURE,
                   "config.privacy": {"assumed_colluders": assumed}}  # fmt: skip
        (observers,) = [each for each in make_run(ready(changes)).chapters if each.key == "observers"]
        return observers.tables[0].rows[0][1]

    assert row(0) == "the noised sum and nobody's part: epsilon"
    assert row(2) == f"{row(0)}, also where 2 of the hospitals tell it their own part"
    one: Changes = {
        "privacy.aggregation": SECURE.model_copy(update={"tolerated_colluders": {"curious": 1, "lying": 1}})
    }
    assert "with up to 1 colluding hospital, and" in sentences(one)
    trusting: Changes = {"privacy.meaning_by_observer": {TRUSTED: meaning(9.0)}}
    own = {"privacy.statement": "Privacy statement\nWho sees what: the server sees all and is trusted with it.\n"}
    assert "The server is trusted: what it sees" in sentences(trusting)
    assert "The server is trusted: what it sees" not in sentences(trusting, own), "the statement has said so"
