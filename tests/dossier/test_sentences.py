"""Every sentence stands for a condition: where that is flipped, the sentence goes, or says another thing."""

import pytest

from medx.dossier.answer import ANSWER, FIRST
from medx.dossier.chapters import KINDS, make_run, together
from medx.dossier.record import Rule, told
from medx.dossier.subject import Ledger
from medx.privacy.spending import OTHERS, SERVER, TRUSTED
from tests.dossier.examples import (
    ADMITTED,
    AGAINST,
    ALIKE,
    BASE,
    BENCHMARK,
    DEPLOYED,
    DRAWN,
    FORGED,
    LEDGERS,
    MULTI,
    NONE,
    OFF_BY_ONE,
    PATIENTS,
    RECEIPTS,
    REFUSED,
    RELEASED,
    SECURE,
    SEEDED,
    SILENT,
    SITE,
    THREE,
    TRIED,
    TWO_GROUPS,
    UNCHECKED,
    WEIGHTS,
    Changes,
    attack,
    client,
    events,
    group,
    interval,
    meaning,
    noise,
    ready,
    sentences,
    subject,
)

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


def test_a_cut_says_by_which_rule_it_came() -> None:
    assert "chosen on 50 validation images for the best mean" in sentences({"dataset.sizes": {"validation": 50}})
    prior = sentences({"config.threshold": "prior", "dataset.sizes": {"validation": 50}})
    assert "The cut is the share of" in prior
    assert "for the best mean" not in prior


def test_a_hospital_that_the_data_name_goes_by_its_name() -> None:
    named = [client(0, 0.6).model_copy(update={"name": "north"}), client(1, 0.9)]
    assert "Hospital 0 north is served worst" in sentences({"clients": named})


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
