"""A choice among runs is inside their common budget, and never looks at the test split."""

import json
from pathlib import Path

import pytest

from medx.results import ExperimentResult, Interval
from medx.schema import ConfigError
from medx.selection import by_seed, select, total_epsilon
from tests.program import call
from tests.report.examples import make_result

SELECTION = ("select=loss", "privacy.num_runs=3", "privacy.epsilon=2", "privacy.budget=2", "tracking=none")


def result(
    loss: float, auc: float = 0.9, seed: int = 0, epsilon: float | None = 1.0, num_runs: int = 4
) -> ExperimentResult:
    made = make_result("pneumoniamnist", epsilon, seed, auc)
    made.config["privacy"]["num_runs"] = num_runs
    return made.model_copy(update={"validation": {"loss": Interval(value=loss), "auc": Interval(value=auc)}})


def test_the_best_on_validation_wins_whatever_the_test_says() -> None:
    results = [result(0.4), result(0.3), result(0.3), result(0.5)]
    flattered = [r.model_copy(update={"test": {"auc": Interval(value=index / 4)}}) for index, r in enumerate(results)]
    assert select(results, "loss").winner == select(flattered, "loss").winner == 1
    assert select([result(0.4, auc=0.8), result(0.4, auc=0.9)], "auc").winner == 1
    with pytest.raises(ConfigError, match="select=magic: no finished run has it; accepted: auc, loss"):
        select(results, "magic")


def test_a_budget_for_fewer_runs_is_overdrawn() -> None:
    with pytest.raises(ConfigError, match=r"privacy\.num_runs=2: 3 runs of one seed"):
        select([result(0.3, num_runs=2)] * 3, "loss")


def test_a_run_that_stopped_early_is_paid_for_and_never_wins() -> None:
    stopped = result(0.1).model_copy(update={"status": "killed"})
    selection = select([stopped, result(0.3)], "loss")
    assert selection.winner == 1
    assert selection.epsilon == total_epsilon([result(0.3)] * 2)


def test_records_that_lie_elsewhere_do_not_share_a_budget() -> None:
    moved = result(0.3)
    moved.config["partition"]["alpha"] = 0.1
    with pytest.raises(ConfigError, match="select: partition differs"):
        select([result(0.3), moved], "loss")


@pytest.mark.parametrize("unlike", ["rounds", "steps", "noise"])
def test_unlike_runs_do_not_share_a_target(unlike: str) -> None:
    """Each would be calibrated as if all were like it, and together they would exceed it."""
    other = result(0.3)
    if unlike == "noise":
        clients = [client.model_copy(update={"noise_multiplier": 1.5}) for client in other.privacy.clients]
        other = other.model_copy(update={"privacy": other.privacy.model_copy(update={"clients": clients})})
    else:
        group, key = {"rounds": ("federation", "num_rounds"), "steps": ("trainer", "local_steps")}[unlike]
        other.config[group][key] += 1
    with pytest.raises(ConfigError, match="select: what is released"):
        select([result(0.3), other], "loss")


@pytest.mark.parametrize(("key", "values"), [("trainer.local_steps", "1,2"), ("trainer.expected_batch_size", "9,20")])
def test_a_sweep_of_unlike_candidates_does_not_start(tmp_path: Path, key: str, values: str) -> None:
    ran = call(tmp_path, *SELECTION[:3], "tracking=none", f"{key}={values}", "-m")
    assert ran.code == 2
    assert ran.err.startswith(f"medx: select: {key} differs between the jobs of this sweep")
    assert not list(tmp_path.glob("*/result.json"))


def test_another_seed_is_another_study() -> None:
    found = list(by_seed([result(0.4, seed=1), result(0.3, seed=1), result(0.2, seed=2)], "loss"))
    assert [(selection.result.seed, len(selection.results)) for selection in found] == [(1, 2), (2, 1)]


def test_all_candidates_are_paid_for() -> None:
    one, three = total_epsilon([result(0.3)]), total_epsilon([result(0.3)] * 3)
    assert one is not None
    assert three is not None
    assert three > 1.5 * one
    assert total_epsilon([result(0.3), result(0.3, epsilon=None)]) is None


def test_a_private_selection_spends_its_budget_and_the_ledger_refuses_one_run_more(tmp_path: Path) -> None:
    ledger = f"privacy.ledger={tmp_path / 'ledger'}"
    ran = call(tmp_path / "sweep", *SELECTION, ledger, "trainer.learning_rate=1,3,9", "-m")
    assert ran.code == 0, ran.err
    (selection,) = json.loads((tmp_path / "sweep" / "selection.json").read_text()).values()
    assert 0.985 * 2 < selection["epsilon"] <= 2
    runs = [ExperimentResult.load(path) for path in sorted((tmp_path / "sweep").glob("*/result.json"))]
    assert all(run.privacy.epsilon is not None and run.privacy.epsilon < 1.5 for run in runs)
    assert "2 for 3 runs together, of which this is one" in runs[0].privacy.statement
    assert f"Selected by validation loss among 3 runs of seed {runs[0].seed}" in ran.out
    assert selection["epsilon_towards_all_other_hospitals"] == selection["epsilon"], (
        "local noise is each hospital's own"
    )
    more = call(tmp_path / "more", *SELECTION, ledger, "trainer.learning_rate=2")
    assert more.code == 2
    assert "budget" in more.err


def test_a_sweep_of_too_many_candidates_does_not_start(tmp_path: Path) -> None:
    ran = call(tmp_path, *SELECTION[:3], "tracking=none", "trainer.learning_rate=1,3", "privacy.clip_norm=0.1,1", "-m")
    assert ran.code == 2
    assert ran.err.startswith("medx: privacy.num_runs=3: this sweep has 4 runs of one seed")
    assert not list(tmp_path.glob("*/result.json"))
