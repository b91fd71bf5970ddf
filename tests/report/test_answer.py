"""What a page begins with is computed from the runs at hand, and has no sentence that they do not bear."""

from collections.abc import Sequence
from typing import Any

import pytest

from medx.report.answer import answer, facts
from medx.report.rows import Run
from medx.report.section import Material
from medx.report.study import Claim, Grid, Role, Study, job_name
from medx.results import ExperimentResult
from tests.report.examples import make_result

STUDY = Study(name="other", title="Other", question="Why?", seeds=[0], grids=[Grid(role="utility", overrides={})])
CLAIM = Claim(dataset="pneumoniamnist", accuracy=0.625, epsilon=9.99, composed_epsilon=17, rounds=5, note="")
UTILITY: tuple[Role, ...] = ("utility",)


def made_of(*results: ExperimentResult, study: Study = STUDY, roles: Sequence[Role] = UTILITY) -> Material:
    return Material(study, [Run(i, job_name(each.config), tuple(roles), each) for i, each in enumerate(results, 1)])


def told(*results: ExperimentResult, **more: Any) -> str:
    return " ".join(answer(made_of(*results, **more)))


def patients(result: ExperimentResult, epsilon: float) -> ExperimentResult:
    privacy = result.privacy.model_copy(update={"epsilon_by_unit": {"patient": epsilon}})
    return result.model_copy(update={"privacy": privacy})


def test_one_private_setting() -> None:
    text = told(make_result("pneumoniamnist", 1.0, 0, 0.9))
    assert text.startswith("pneumoniamnist: test AUC 0.900 at ε 1; 0.500 for always the majority class, whose accuracy")
    assert "62.5 % (one seed)." in text
    for phrase in ("best", "Best", "without privacy", "alone", "Without an ε", "published", "No "):
        assert phrase not in text, phrase
    assert text.endswith("ε is an image's. Who the patients of pneumoniamnist are is not known, nor is their ε.")


def test_the_best_of_several_is_said_to_be_chosen() -> None:
    runs = [make_result("pneumoniamnist", e, s, 0.9 + e / 200 + s / 100, mode=mode)
            for e in (1.0, 10.0) for s in (0, 1) for mode in ("local_dp", "distributed_dp")]  # fmt: skip
    worse = make_result("pneumoniamnist", 1.0, 0, 0.6, model="cnn")
    text = told(*runs, worse)
    assert "best test AUC 0.910 at ε 1 and 0.955 at ε 10" in text, "means over seeds, of the best mode"
    assert "of up to 3 settings, so it is somewhat too good" in text
    assert "1 to 2 seeds" in text


def test_without_privacy_alone_nothing_is_said_of_epsilon() -> None:
    text = told(make_result("retinamnist", None, 0, 0.7, baselines=True))
    assert "test AUC 0.700 without privacy; 0.650 for hospitals that train alone without privacy" in text
    assert "Without an ε nothing bounds what its model tells of a record." in text
    assert "ε is" not in text
    assert "ε 1" not in text


def test_hospitals_alone_stand_beside_under_the_epsilon_that_they_share() -> None:
    runs = [make_result("pneumoniamnist", e, 0, auc, baselines=True) for e, auc in ((1.0, 0.8), (10.0, 0.9))]
    assert "0.850 for hospitals that train alone within the same ε 10" in told(*runs)


def test_whose_epsilon_it_is() -> None:
    image = patients(make_result("pneumoniamnist", 1.0, 0, 0.9), 46.6)
    text = told(image, patients(make_result("pneumoniamnist", 10.0, 0, 0.9), 4000.0))
    assert "An image's ε of 1 and 10 comes to 46.600 and above 1000 (none) for a patient of pneumoniamnist" in text
    assert "not known" not in text
    config = image.config | {"privacy": image.config["privacy"] | {"unit": "patient"}}
    whole = image.model_copy(update={"config": config, "config_hash": "p"})
    assert "ε is a patient's, with all images." in told(whole)
    assert "An image's" not in told(whole)
    assert "ε is an image's or a patient's, with all images, as the mode says." in told(image, whole)
    assert "ε is a hospital's, with all that it holds." in told(
        make_result("pneumoniamnist", 1.0, 0, 0.9, mode="central_dp")
    )


@pytest.mark.parametrize(("accuracy", "said"), [(0.625, "is what always answering"), (0.7, "stands beside 62.50 % of")])
def test_the_claim_is_compared_with_the_majority(accuracy: float, said: str) -> None:
    study = STUDY.model_copy(update={"claim": CLAIM.model_copy(update={"accuracy": accuracy})})
    assert said in told(make_result("pneumoniamnist", 1.0, 0, 0.9), study=study)
    assert "published" not in told(make_result("retinamnist", 1.0, 0, 0.9), study=study), "of other data"


def test_a_study_of_something_else_is_told_by_what_it_has() -> None:
    assert "test AUC 0.900 at ε 1" in told(make_result("pneumoniamnist", 1.0, 0, 0.9), roles=("skew",))
    assert told(make_result("pneumoniamnist", 1.0, 0, 0.9), roles=("step_overhead",)) == ""


def test_when_and_with_what() -> None:
    first, second = (make_result("pneumoniamnist", 1.0, seed, 0.9) for seed in (0, 1))
    text = " ".join(facts(made_of(first, second)))
    assert text == (
        "2 runs, at δ = 1e-05. Begun from 2026-11-01 09:30 to 2026-11-02 09:30 UTC. Versions: medx 1.2.3, torch 2.0. "
        "Code: 0123abcd."
    )
    before = second.model_copy(update={"started": None})
    assert "Begun 2026-11-01 09:30 UTC; of 1 it is not on record." in " ".join(facts(made_of(first, before)))
    assert "When they began is not on record." in " ".join(facts(made_of(before)))
    plain = make_result("pneumoniamnist", None, 0, 0.9).model_copy(update={"environment": {}})
    text = " ".join(facts(made_of(plain)))
    assert text.startswith("1 run. ")
    assert "Versions of the packages are not on record here." in text
