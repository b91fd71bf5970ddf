"""Attacks on signals whose shift is set here, and on tiny runs: what shows is found, and else nothing is."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from medx import membership
from medx.attacks.membership import Gaussians, Membership, MembershipStudy, attack, left_out, lira, some
from medx.attacks.rates import Counts, Curve, Guesses, epsilons, threshold_for
from medx.attacks.shadows import Halves, Observed, halves, logits
from medx.configuration import typed
from medx.schema import ConfigError, MedxError
from medx.shadows import Shadows

TINY = (
    "dataset=phantom", "dataset.size=16", "dataset.num_train=121", "model=scatternet", "model.basis=none",
    "federation.num_clients=2", "federation.num_rounds=10", "noise=seed",
)  # fmt: skip


def observed(shift: float, *, records: int = 400, runs: int = 32, seed: int = 0) -> Observed:
    """Signals of unit deviation around each record's own mean, ``shift`` higher in runs that had the record."""
    generator = np.random.default_rng(seed)
    hospitals = np.arange(records) % 2
    parts = [np.flatnonzero(hospitals == hospital) for hospital in range(2)]
    inside = np.zeros((runs, records), bool)
    for number in range(runs):
        inside[number, np.concatenate(halves(parts, seed, number))] = True
    own = generator.normal(0, 3, records)
    signals = own + generator.standard_normal((runs, records)) + shift * inside
    others = generator.normal(0, 3, 300) + generator.standard_normal((runs, 300))
    return Observed(inside, signals, others, np.arange(records), hospitals)


@pytest.mark.parametrize("shift", [1.0, 2.0])
def test_a_known_shift_is_found_as_strongly_as_it_is(shift: float) -> None:
    """Against the best test of two normal distributions, which no attack on these signals exceeds."""
    found = attack(observed(shift, runs=96)).of("lira")
    best = stats.norm.cdf(shift / math.sqrt(2))
    assert best - 0.03 < found.auc < best + 0.01
    at_1 = stats.norm.cdf(shift - stats.norm.ppf(0.99))
    assert 0.7 * at_1 < found.true_at_1 < 1.1 * at_1
    # The most that any threshold on the true distributions gives, with no error of counting.
    cuts = np.linspace(-4, 4 + shift, 2000)
    most = max(stats.norm.logsf(cuts - shift) - stats.norm.logsf(cuts))
    assert 0.5 < found.by_rates.epsilon < most
    assert found.by_rates.epsilon < found.by_rates.ceiling
    assert 0 < found.by_pairs.epsilon < found.by_pairs.ceiling


def test_the_other_attack_finds_it_too_and_proves_no_more() -> None:
    found = attack(observed(2.0))
    assert 0.75 < found.of("rmia").auc < found.of("lira").auc
    assert found.of("rmia").by_rates.epsilon > 1


@pytest.mark.parametrize("seed", range(3))
def test_swapped_labels_find_nothing(seed: int) -> None:
    """The records' places in other runs than those which had them: nothing is left, and no bias makes up for it."""
    told = observed(2.0, seed=seed)
    other = replace(told, inside=observed(0.0, seed=seed + 100).inside)
    found = attack(other)
    for each in found.found:
        if each.whose != "most exposed":
            assert abs(each.auc - 0.5) < 0.02, each.whose
        assert each.by_rates.epsilon < 0.2
        assert each.by_pairs.epsilon < 0.2


def test_a_run_that_is_known_with_its_twin_tells_nothing_by_counts() -> None:
    """Were the twin left in, or the run itself, signals that hold nothing would be told apart from chance."""
    nothing = observed(0.0, runs=8, records=4000)
    assert abs(Curve.of(left_out(lira, nothing), nothing.inside).auc - 0.5) < 0.01
    itself = Gaussians.of(nothing.signals, nothing.inside).ratio(nothing.signals)
    assert Curve.of(itself, nothing.inside).auc > 0.6
    every = np.arange(8)
    with_twin = [lira(some(nothing, np.setdiff1d(every, [run])), some(nothing, np.array([run])))[0] for run in range(8)]
    assert abs(Curve.of(np.stack(with_twin), nothing.inside).auc - 0.5) > 0.02


def test_exposed_records_and_hospitals_are_told_apart() -> None:
    """Every fiftieth record shifts by four deviations, all of hospital 0; the others do not shift."""
    told = observed(0.0, records=800)
    open_ones = np.arange(0, 800, 50)
    signals = told.signals.copy()
    signals[:, open_ones] += 4 * told.inside[:, open_ones]
    found = attack(replace(told, signals=signals))
    assert {each.row for each in found.exposed} <= set(open_ones.tolist())
    assert found.of("lira", "most exposed").auc > 0.95
    assert found.of("lira").auc < 0.6
    one, other = (found.of("lira", f"hospital {hospital}") for hospital in range(2))
    assert one.true_at_0_1 > 5 * other.true_at_0_1
    assert one.by_rates.epsilon > 1 > other.by_rates.epsilon


def test_the_bound_holds_where_the_epsilon_is_known() -> None:
    """Randomised response of epsilon 1: bounds are below it, 19 in 20 of them, and refute two thirds of it."""
    generator = np.random.default_rng(3)
    found = []
    for _ in range(200):
        members = generator.random(20_000) < 0.5
        said = np.where(generator.random(20_000) < 1 / (1 + math.exp(-1)), members, ~members)
        found.append(Counts.at(0.5, said.astype(float), members).epsilon(0.0))
    assert np.mean(np.array(found) > 1) < 0.08
    assert np.mean(found) > 2 / 3 + 0.2


def test_counts_have_the_bounds_that_are_known() -> None:
    """Clopper and Pearson's interval of none among n, and of all, in closed form."""
    counts = Counts(100, 100, 0, 100)
    edge = 0.025 ** (1 / 100)
    assert counts.epsilon(0.0) == pytest.approx(math.log(edge / (1 - edge)))
    assert counts.epsilon(0.0) == counts.ceiling(0.0) > counts.ceiling(0.01)
    assert Counts(0, 100, 0, 100).epsilon(0.0) == 0 == Counts(50, 100, 50, 100).epsilon(0.0)
    # What is quiet tells as much: all members alarm, and half of the others.
    assert Counts(1000, 1000, 500, 1000).epsilon(0.0) > 4
    assert epsilons(np.array([0, 9]), np.array(9), np.array([9, 0]), np.array(9), 0.0)[0] == 0


def test_a_threshold_is_the_one_with_the_highest_bound() -> None:
    scores, inside = np.array([5.0] * 30 + [1.0] * 70 + [1.0] * 100), np.arange(200) < 100
    assert threshold_for(scores, inside, 0.0) == 5.0


def test_equal_scores_are_not_put_into_an_order() -> None:
    curve = Curve.of(np.zeros(100), np.arange(100) < 50)
    assert curve.auc == 0.5
    assert curve.true_at(0.5) == 0
    guesses = Guesses.of(np.zeros((1, 100)), np.arange(100)[None] < 50, np.zeros(100), np.random.default_rng(0))
    assert guesses.clearest(1.0) == (0, 50)


def test_logits_of_what_a_model_is_sure_of_stay_apart() -> None:
    probabilities = np.array([[1 - 1e-30, 1e-30], [1 - 1e-40, 1e-40]])
    assert logits(probabilities, np.array([0, 1])) == pytest.approx([30 * math.log(10), -40 * math.log(10)])


def test_every_record_is_in_half_of_the_runs_and_all_runs_have_as_many() -> None:
    shadows = Shadows((*TINY, "privacy=none"), 12)
    partitions = [typed(shadows.of(number)).experiment.partition for number in range(12)]
    labels = np.arange(121) % 2
    dealt = [each.split(labels, 2, 2, np.random.default_rng(number)) for number, each in enumerate(partitions)]
    assert all(isinstance(each, Halves) for each in partitions)
    assert {tuple(len(part) for part in parts) for parts in dealt} == {(30, 30)}
    for first, second in zip(dealt[::2], dealt[1::2], strict=True):
        assert all(not set(one) & set(other) for one, other in zip(first, second, strict=True))
    assert len({tuple(parts[0]) for parts in dealt}) == 12
    hospitals = [set().union(*(parts[hospital] for parts in dealt)) for hospital in range(2)]
    assert not hospitals[0] & hospitals[1]


def test_what_cannot_be_attacked_is_refused() -> None:
    with pytest.raises(ConfigError, match="runs=8"):
        Shadows((*TINY, "privacy=none"), 8)
    with pytest.raises(ConfigError, match="unit is a client"):
        Shadows((*TINY, "privacy=central_dp"), 12)


def attacked(runs: int, *overrides: str) -> Membership:
    shadows = Shadows((*TINY, *overrides), runs)
    with pytest.raises(MedxError, match="shadow 0 of"):
        shadows.observed()
    for job in shadows.jobs():
        job.work()
    return attack(shadows.observed())


@pytest.fixture
def cache(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("MEDX_CACHE", str(tmp_path))


def test_an_overfitted_model_is_found_out_and_one_with_privacy_is_not(cache) -> None:
    """Sixty records and a large step: without privacy the model knows them."""
    found = attacked(16, "privacy=none", "trainer.learning_rate=10")
    assert found.claimed is None
    assert found.of("lira").auc > 0.6
    assert found.of("lira").by_pairs.epsilon > 0.5
    private = attacked(12, "privacy=local_dp", "privacy.epsilon=1", "privacy.delta=0.001")
    assert private.claimed is not None
    assert 0.9 < private.claimed <= 1 < private.replaced
    assert private.of("lira").auc < 0.58
    assert not private.refutes
    assert all(max(each.by_rates.epsilon, each.by_pairs.epsilon) < private.claimed for each in private.found)


def test_what_has_finished_is_not_trained_again(cache, tmp_path, monkeypatch, capfd) -> None:
    """The command, in processes of their own; a second call with more runs trains those alone."""
    file, out = tmp_path / "settings.yaml", tmp_path / "out"
    quick = ["federation.num_rounds=2", "dataset.num_train=40", "privacy=none"]
    settings = {"title": "Tiny", "runs": 12, "overrides": list(TINY), "settings": {"none": quick}}
    file.write_text(json.dumps(settings))

    def command(*more: str) -> int:
        monkeypatch.setattr("sys.argv", ["x", str(file), "--out", str(out), "--jobs", "2", *more])
        with pytest.raises(SystemExit) as ended:
            membership.main()
        return ended.value.code

    monkeypatch.setenv("COLUMNS", "80")
    assert command() == 0
    shown = [line for line in capfd.readouterr().out.splitlines() if not line.startswith("job ")]
    assert shown[-1].startswith(f"Output: {out}")
    (heading,) = [line for line in shown if line.startswith("setting ")]
    assert "bound by rates" in heading
    assert max(map(len, shown[shown.index(heading) : -1])) <= 80
    folders = {path.parent: path.stat().st_mtime_ns for path in tmp_path.glob("shadows/*/result.json")}
    assert len(folders) == 12
    assert command("--runs", "16") == 0
    assert len(list(tmp_path.glob("shadows/*/result.json"))) == 16
    assert all((folder / "result.json").stat().st_mtime_ns == time for folder, time in folders.items())
    found = MembershipStudy.model_validate_json((out / "membership.json").read_text()).settings["none"]
    assert found.runs == 16
    assert (out / "membership_lira.svg").exists()
    assert "no such" not in (out / "table.md").read_text()
    assert command("--runs", "8") == 2
