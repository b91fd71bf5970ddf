"""Every sentence stands for a condition: where that is flipped, the sentence goes, or says another thing."""

from typing import Any

import pytest

from medx.dossier.answer import ANSWER, FIRST
from medx.dossier.chapters import KINDS, make_run, together
from medx.dossier.record import Rule, told
from medx.dossier.subject import Kit, Ledger, Receipt, Verdict
from medx.privacy.spending import OTHERS, SERVER, TRUSTED
from tests.dossier.examples import BENCHMARK, SECURE, attack, client, events, group, interval, meaning, noise, subject

Changes = dict[str, Any]
NONE: Changes = {"privacy.epsilon": None, "privacy.mechanism": "none", "privacy.noise_source": None}
DRAWN: Changes = {"dataset.synthetic": True}
DEPLOYED: Changes = {"config.runtime": "deployment"}
SITE: Changes = {"config.partition": {"_target_": "medx.partition.Site"}}
SEEDED: Changes = {"privacy.noise_source": "seed"}
RELEASED: Changes = {"view": "released", "test": {}, "dataset.class_counts": {}}
AGAINST: Changes = {"attacks": [attack(against=["more was found than claimed"])]}
TRIED: Changes = {"attacks": [attack()]}
PATIENTS: Changes = {
    "privacy.patient_images": 3,
    "privacy.meaning": {"image": meaning(4.9), "patient": meaning(20.0, 0.8)},
}
MULTI: Changes = {"dataset.task": "multilabel"}
THREE: Changes = {
    "dataset.task": "multiclass", "threshold": None, "dataset.class_names": ["a", "b", "c"],
    "curves": {"confusion_matrix": [[9, 1, 0], [2, 8, 0], [3, 2, 0]]},
}  # fmt: skip
LEDGERS: Changes = {".ledgers": (Ledger(0, 6, 1), Ledger(1, 6, 1))}
OFF_BY_ONE: Changes = {".ledgers": (Ledger(0, 6, 1), Ledger(1, 7, 1))}
RECEIPTS: Changes = {".receipts": (Receipt("north", 6, 4.9, True), Receipt("south", 6, 4.9, True))}
FORGED: Changes = {".receipts": (Receipt("north", 6, 4.9, True), Receipt("south", 6, 4.9, False))}
UNCHECKED: Changes = {".receipts": (Receipt("north", 6, 4.9, None), Receipt("south", 6, 4.9, None))}
ADMITTED: Changes = {".kits": (Kit("north", (Verdict("north", "2031", "admitted", "epsilon 4.9"),), 7, {}),)}
REFUSED: Changes = {".kits": (Kit("north", (Verdict("north", "2031", "refused", "why max_epsilon"),), 7, {}),)}
WEIGHTS: Changes = {
    "privacy.statement": "Privacy statement\nPublic weights: a net, declared to be trained on others.\n"
}
TWO_GROUPS: Changes = {"subgroups": [group("f", 0.6), group("m", 0.9)]}
ALIKE: Changes = {"subgroups": [group("f", 0.89), group("m", 0.9)]}
BASE: Changes = {}
SILENT: Changes = {"test.sensitivity_at_threshold": interval(0.0), "test.specificity_at_threshold": interval(1.0)}
# By sentence: a run of which it is true, and one of which it is not.
FLIPS: dict[str, tuple[Changes, Changes]] = {
    "answer.what": (BASE, DRAWN),
    "answer.quality": (BASE, {"majority_accuracy": 0.95}),
    "answer.privacy": (BASE, NONE),
    "first.unfinished": ({"status": "killed"}, BASE),
    "first.synthetic": (DRAWN, BASE),
    "first.seeded": (SEEDED, BASE),
    "first.noise": ({"privacy.noise": noise("its size is off")}, {"privacy.noise": noise()}),
    "first.against": (AGAINST, TRIED),
    "first.degenerate": ({"degenerate": True}, BASE),
    "first.overspent": ({"privacy.target_epsilon": 4.0}, BASE),
    "first.ledgers": (OFF_BY_ONE, LEDGERS),
    "first.receipts": (FORGED, RECEIPTS),
    "training.task": (BASE, THREE),
    "training.drawn": (DRAWN, BASE),
    "training.published": ({"config.dataset": {"_target_": BENCHMARK}}, BASE),
    "training.own": (BASE, {"dataset.public": True}),
    "training.simulated": (BASE, DEPLOYED),
    "training.deployed": (DEPLOYED, BASE),
    "training.sites": (SITE, BASE),
    "training.dealt": (BASE, SITE),
    "training.rounds": (BASE, {"rounds": []}),
    "training.noise": (BASE, {"privacy.mechanism": "mine"}),
    "training.pixels": (BASE, {"dataset.image_size": 224}),
    "people.patients": (PATIENTS, BASE),
    "people.no_patients": (BASE, PATIENTS),
    "people.mix": (BASE, {"dataset.class_counts": {"train": [50, 50]}}),
    "people.unequal": ({"privacy.clients": [events(0), events(1, 5)]}, BASE),
    "people.shared": ({"dataset.shared_patients": {"test": 7}}, {"dataset.shared_patients": {"test": 0}}),
    "people.no_groups": (BASE, TWO_GROUPS),
    "people.no_counts": ({"dataset.class_counts": {}}, BASE),
    "people.held_back": (RELEASED, BASE),
    "quality.cut": (BASE, {"threshold": None}),
    "quality.no_cut": ({"threshold": None}, BASE),
    "quality.most_probable": (THREE, BASE),
    "quality.labels": (MULTI, BASE),
    "quality.found": (BASE, {"dataset.class_counts": {}}),
    "quality.prevalence": (BASE, SILENT),
    "quality.rarer": (BASE, {"dataset.class_counts": {"test": [400, 20]}}),
    "quality.majority": (BASE, {"majority_accuracy": 0.95}),
    "quality.worst_hospital": ({"clients": [client(0, 0.6), client(1, 0.9)]}, BASE),
    "quality.worst_group": (TWO_GROUPS, {"subgroups": [group("f", 0.6)]}),
    "quality.few": (BASE, {"dataset.class_counts": {"test": [40, 40]}}),
    "quality.calibrated": (BASE, {"test.ece": interval(0.2)}),
    "quality.intervals": (BASE, {"test": {}}),
    "quality.unmeasured": ({"test": {}}, BASE),
    "quality.held_back": (RELEASED, BASE),
    "meaning.epsilon": (BASE, NONE),
    "meaning.delta": (BASE, NONE),
    "meaning.large_delta": ({"privacy.delta": 0.02}, BASE),
    "meaning.image": (BASE, NONE),
    "meaning.image_of_patient": (PATIENTS | {"privacy.unit": "patient"}, PATIENTS),
    "meaning.patient": (PATIENTS, BASE),
    "meaning.unbounded": (BASE, PATIENTS),
    "meaning.no_limit": ({"privacy.meaning": {"image": meaning(80.0, 1.0)}}, BASE),
    "meaning.several": (BASE, PATIENTS),
    "meaning.nothing": (NONE, BASE),
    "meaning.nobody": (DRAWN, BASE),
    "meaning.accountants": (BASE, {"privacy.epsilon_by_accountant": {"pld": 4.8}}),
    "meaning.heard": ({"privacy.noise": noise()}, {"privacy.noise": noise("its size is off")}),
    "meaning.seeded": (SEEDED, BASE),
    "attacks.untried": (BASE, TRIED),
    "attacks.tried": (TRIED, BASE),
    "attacks.below": (TRIED, AGAINST),
    "attacks.beyond": (AGAINST, TRIED),
    "attacks.unclaimed": ({"attacks": [attack(claimed=None)]}, TRIED),
    "attacks.lower": (TRIED, BASE),
    "attacks.left": (TRIED, BASE),
    "attacks.attacks_held": (RELEASED, BASE),
    "observers.in_simulation": (BASE, DEPLOYED),
    "observers.server": (BASE, {"privacy.statement": "Privacy statement\n"}),
    "observers.colluders": ({"privacy.aggregation": SECURE}, BASE),
    "observers.trusted": ({"privacy.meaning_by_observer": {TRUSTED: meaning(9.0)}}, BASE),
    "observers.public": (BASE, {"privacy.clients": []}),
    "uncovered.statement": (BASE, NONE),
    "uncovered.all_uncovered": (NONE, BASE),
    "uncovered.figures": (BASE, RELEASED),
    "uncovered.traffic": ({"privacy.aggregation": SECURE}, BASE),
    "uncovered.abstained": ({"rounds": [subject().result.rounds[0].model_copy(update={"abstained": 1})]}, BASE),
    "uncovered.weights": (WEIGHTS, BASE),
    "use.for_trying": (DRAWN, BASE),
    "use.for_method": ({"dataset.public": True}, BASE),
    "use.for_judging": (BASE, {"dataset.public": True}),
    "use.not_for_release": (NONE, BASE),
    "use.seeded": (SEEDED, BASE),
    "use.unfinished": ({"status": "aborted"}, BASE),
    "use.no_gain": ({"majority_accuracy": 0.88}, BASE),
    "use.misses": (BASE, {"test.sensitivity_at_threshold": interval(1.0)}),
    "use.never": (THREE, BASE),
    "use.unequal_groups": (TWO_GROUPS, ALIKE),
    "use.small": (BASE, {"dataset.image_size": 1024}),
    "use.not_real": (BASE, SITE),
    "use.internal": (BASE, DEPLOYED),
    "use.one_seed": (BASE, {".seeds": 3}),
    "use.price": ({"baselines": {"centralized": {"accuracy_at_threshold": interval(0.95)}}}, BASE),
    "origin.began": ({"started": "2026-11-27T06:57:27Z"}, BASE),
    "origin.when": (BASE, {".written": None}),
    "origin.dirty": ({"environment": {"git": "0123456789ab-dirty"}}, BASE),
    "origin.no_code": ({"environment": {"git": "not a git checkout"}}, BASE),
    "origin.again": (BASE, SEEDED),
    "origin.held_back": (RELEASED, BASE),
    "sites.agrees": (LEDGERS, OFF_BY_ONE),
    "sites.differs": (OFF_BY_ONE, LEDGERS),
    "sites.others": ({".ledgers": (Ledger(0, 6, 2), Ledger(1, 6, 1))}, LEDGERS),
    "sites.no_ledger": (BASE, LEDGERS),
    "sites.admitted": (RECEIPTS, BASE),
    "sites.signed": (RECEIPTS, FORGED),
    "sites.unchecked": (UNCHECKED, RECEIPTS),
    "sites.logged": (ADMITTED, BASE),
    "sites.refused": (REFUSED, ADMITTED),
    "sites.no_receipt": (DEPLOYED, DEPLOYED | RECEIPTS),
}  # fmt: skip
RULES: dict[str, Rule] = {
    f"{key}.{rule.__name__.strip('_')}": rule
    for key, rules in (("answer", ANSWER), ("first", FIRST), *((kind.key, kind.rules) for kind in KINDS))
    for rule in rules
}


def test_every_sentence_has_its_condition_here() -> None:
    assert set(FLIPS) == set(RULES)


def ready(changes: Changes) -> Any:
    made = subject(changes)
    if isinstance(made.result.curves, dict):
        from medx.results import CurveData

        made.result.curves = CurveData(**made.result.curves)
    return made


@pytest.mark.parametrize("key", list(FLIPS))
def test_a_sentence_goes_with_its_condition(key: str) -> None:
    true, untrue = (RULES[key](ready(changes)) for changes in FLIPS[key])
    assert true, f"{key} is said where it is true"
    assert true != untrue, f"{key} is said where it is not"
    assert true[0].isupper() or not true[0].isalpha(), true
    assert true.endswith((".", ")")), true
    always = {"answer.what", "answer.quality", "answer.privacy", "training.task", "training.pixels", "quality.majority",
              "quality.calibrated"}  # fmt: skip
    assert (untrue is not None) == (key in always), "these say another thing instead"


def sentences(*changes: Changes) -> str:
    made = make_run(ready({key: value for part in changes for key, value in part.items()}))
    every = [*made.answer, *made.first, *(each for chapter in made.chapters for each in chapter.sentences)]
    return " ".join(each.text for each in every)


def test_the_third_sentence_says_towards_whom() -> None:
    def said(*changes: Changes) -> str:
        return told("answer", ANSWER, ready({k: v for part in changes for k, v in part.items()}))[2].text

    assert "whoever gets the model and, were the hospitals on machines of their own, the server and all other" in said()
    assert "whoever gets the model and the server and all other hospitals" in said(DEPLOYED)
    trusting = {"privacy.meaning_by_observer": {TRUSTED: meaning(9.0)}}
    assert "not towards the server, which is trusted" in said(trusting)
    shared = {"privacy.meaning_by_observer": {SERVER: meaning(4.9), OTHERS: meaning(11.0)}}
    assert "(all other hospitals together can learn more)" in said(shared)
    assert "can learn more" not in said({"privacy.meaning_by_observer": {SERVER: meaning(4.9), OTHERS: meaning(4.9)}})
    assert "as long as the seed of its noise stays secret" in said(SEEDED)
    assert "finds at most 10 of 100" in said()
    assert "epsilon 4.900 at delta 0.00001" in said()
    assert "of 100 patients with all their images it finds at most 80" in said(PATIENTS)
    assert "What all training images of a patient at a hospital show is" in said({"privacy.unit": "patient"}, PATIENTS)
    assert "What all training images of a hospital show is" in said({"privacy.unit": "client"})
    assert "(no limit)" in said({"privacy.meaning": {"image": meaning(90.0, 1.0)}})
    assert said().endswith("; for a patient with several images nothing is bounded.")
    assert "nothing is bounded" not in said(PATIENTS) + said({"privacy.unit": "client"}) + said(DRAWN)


def test_the_second_sentence_never_calls_luck_learning() -> None:
    above, within, below = (sentences({"majority_accuracy": share}) for share in (0.5, 0.9, 0.99))
    assert "has learnt something" in above
    assert "has learnt something" not in within + below
    assert "not shown to be better" in within
    assert "which is right more often" in below


def test_a_trusted_servers_one_ledger_counts_for_all() -> None:
    told = sentences({".ledgers": (Ledger(None, 6, 1),)})
    assert "The server's ledger has as many noisy releases" in told
    assert "No ledger" not in told
    assert "LEDGER AND RESULT DIFFER: the server" in sentences({".ledgers": (Ledger(None, 7, 1),)})


def test_what_a_part_was_for_is_told_where_it_was_so() -> None:
    def note(changes: Changes) -> str:
        (people,) = [each for each in make_run(ready(changes)).chapters if each.key == "people"]
        return people.tables[0].note

    assert (
        note(BASE) == "The model learnt from train. Where it answers was chosen on validation. It is measured on test."
    )
    assert note({"threshold": None, "test": {}}) == "The model learnt from train."
    assert "several labels" in note(MULTI)


def test_own_images_are_never_called_published_and_drawn_ones_never_a_patients() -> None:
    assert "published data set" not in sentences()
    assert "owner" not in told("answer", ANSWER, ready(DRAWN))[0].text
    drawn = sentences(DRAWN, NONE)
    assert "show nobody" in drawn
    assert "one patient" not in drawn
    assert "not for release" not in drawn


def test_runs_of_the_same_data_add_up_and_no_others() -> None:
    other = {".number": 2, "run": "cd" * 16}
    one, two = subject(), subject(other)
    (said,) = together([one, two])
    assert "Runs 1 and 2" in said.text
    assert "9.800 at delta 0.00002" in said.text
    assert together([one]) == []
    assert together([one, subject({".number": 2})]) == [], "one run, named twice"
    for changes in (NONE, {"privacy.unit": "patient"} | PATIENTS, {"dataset.content_hash": "0" * 64} | THREE):
        assert together([one, subject({**other, **changes})]) == []
    assert together([subject(DRAWN), subject({**other, **DRAWN})]) == []


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
