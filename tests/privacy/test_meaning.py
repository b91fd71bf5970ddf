"""What an epsilon leaves possible, against closed forms, dp-accounting alone, and a test that is really made."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from dp_accounting.pld import privacy_loss_distribution
from scipy.stats import norm

from medx.privacy.accountants import Event, Release, gaussian_mu
from medx.privacy.accounting import calibrate_noise_multiplier
from medx.privacy.base import ClientPlan, ClientRelease, PrivacyPlan, SampledGaussian, SharedNoise
from medx.privacy.executed import privacy_result
from medx.privacy.meaning import in_words, meanings, meanings_of, nothing_kept, observers_of
from medx.privacy.spending import OTHERS, SERVER, TRUSTED, Spending
from medx.privacy.tradeoff import (
    EVERYTHING,
    LEVELS,
    NOTHING,
    advantage,
    detected,
    gaussian,
    group_profile,
    of_epsilon,
    profile_of,
    replaced,
    worst,
)
from medx.privacy.units import PATIENT
from medx.results import PrivacyResult
from medx.schema import PrivacyError
from tests.privacy.examples import configured

DELTA = 1e-5
RATES = (0.001, 0.01, 0.1)


def gaussian_power(rate: float, mu: float) -> float:
    return float(norm.cdf(norm.ppf(rate) + mu))


@pytest.mark.parametrize(("epsilon", "at_1", "at_10"), [(1, 2.0, 15), (2, 3.4, 22), (5, 11, 44), (10, 37, 76)])
def test_the_known_figures_of_a_gaussian(epsilon: float, at_1: float, at_10: float) -> None:
    profile = gaussian(gaussian_mu(epsilon, DELTA))
    assert 100 * detected(profile, 0.01) == pytest.approx(at_1, rel=0.04)
    assert 100 * detected(profile, 0.1) == pytest.approx(at_10, rel=0.04)


@pytest.mark.parametrize("mu", [0.05, 0.5, 1.12, 2.0, 6.0])
def test_full_batches_leave_what_the_gaussian_leaves(mu: float) -> None:
    profile = profile_of([(SampledGaussian(1.0, 10 / mu, 0.1), 100)])
    for rate in RATES:
        exact = gaussian_power(rate, mu)
        assert exact - 1e-12 <= detected(profile, rate) <= exact * 1.001
    assert advantage(profile) == pytest.approx(2 * norm.cdf(mu / 2) - 1, rel=1e-9)
    twice = replaced(profile)
    for rate in RATES:
        assert gaussian_power(rate, 2 * mu) - 1e-9 <= detected(twice, rate) <= gaussian_power(rate, 2 * mu) * 1.002


def power_by_library(q: float, sigma: float, steps: int, rate: float) -> float:
    """From another grid of losses and of epsilons, one direction after the other, by solving for the best epsilon."""
    loss = privacy_loss_distribution.from_gaussian_mechanism(
        sigma, value_discretization_interval=3e-4, sampling_prob=q
    ).self_compose(steps)
    levels = np.linspace(0, 9, 4001)
    deltas = np.array([loss.get_delta_for_epsilon(level) for level in levels[::10]])
    kept = 1 - np.interp(levels, levels[::10], deltas)
    return float(1 - max((kept - np.exp(levels) * rate).max(), (np.exp(-levels) * (kept - rate)).max()))


@pytest.mark.parametrize(("q", "sigma", "steps"), [(0.05, 1.0, 200), (0.25, 4.0, 300), (0.01, 0.8, 1000)])
def test_sampled_steps_leave_what_dp_accounting_says(q: float, sigma: float, steps: int) -> None:
    profile = profile_of([(SampledGaussian(q, sigma, 1.0), steps // 2), (SampledGaussian(q, sigma, 1.0), steps // 2)])
    for rate in RATES:
        assert detected(profile, rate) == pytest.approx(power_by_library(q, sigma, steps, rate), rel=3e-3)


@pytest.mark.parametrize("q", [0.3, 0.05])
def test_no_test_of_one_sampled_step_does_better_and_the_best_nearly_as_well(q: float) -> None:
    sigma = 0.7
    profile = profile_of([(SampledGaussian(q, sigma, 1.0), 1)])
    x = np.linspace(-9, 9, 200_001)
    there = q * norm.sf(x, 1, sigma) + (1 - q) * norm.sf(x, 0, sigma)
    away = norm.sf(x, 0, sigma)  # the record is told by values above x; and its absence by values below
    for rate in RATES:
        found = max(np.interp(-rate, -away, there), np.interp(rate, 1 - there, 1 - away))
        assert found <= detected(profile, rate) + 1e-9
        assert detected(profile, rate) <= 1.15 * found, "what the worse direction and its mirror image share"


def test_more_epsilon_leaves_more_and_less_noise_does() -> None:
    sigmas = [calibrate_noise_multiplier(epsilon, DELTA, 0.1, 100) for epsilon in (0.5, 1, 3, 8)]
    profiles = [profile_of([(SampledGaussian(0.1, sigma, 1.0), 100)]) for sigma in sigmas]
    for rate in RATES:
        found = [rate, *(detected(profile, rate) for profile in profiles), 1]
        assert found == sorted(found)
        assert len(set(found)) == len(found)
    assert [detected(NOTHING, rate) for rate in RATES] == pytest.approx(RATES)
    assert [detected(EVERYTHING, rate) for rate in RATES] == [1, 1, 1]
    assert advantage(NOTHING) == 0
    assert (worst(profiles) == profiles[-1]).all()


def test_one_figure_alone_leaves_more_than_the_curve_behind_it() -> None:
    epsilon = 2.0
    alone, curve = of_epsilon(epsilon, DELTA), gaussian(gaussian_mu(epsilon, DELTA))
    assert (alone >= curve - 1e-12).all()
    assert detected(alone, 0.01) == pytest.approx(DELTA + np.exp(epsilon) * 0.01, rel=1e-3)
    assert (of_epsilon(50.0, DELTA)[LEVELS < 9] > 0.999).all()


def test_a_group_is_between_one_record_and_full_batches() -> None:
    releases = (Release(0.1, 2.0, 100),)
    one, five = group_profile([(releases, 1)]), group_profile([(releases, 5)])
    full = gaussian(5 * 10 / 2.0)
    single = profile_of([(SampledGaussian(0.1, 2.0, 1.0), 100)])
    for rate in RATES:
        assert detected(one, rate) == pytest.approx(detected(single, rate), rel=0.02)
        assert detected(one, rate) < detected(five, rate) < detected(full, rate) + 1e-12


def client(number: int, q: float, sigma: float, records: int = 50) -> ClientPlan:
    return ClientPlan(number, records, q, q * records, 10, 10, SampledGaussian(q, sigma, 1.0), 2 * q * records)


def plan_of(*clients: ClientPlan, option: str = "local_dp", **changes: object) -> PrivacyPlan:
    return PrivacyPlan(configured(option), clients, DELTA, 10.0, "system", **changes)  # type: ignore[arg-type]


EVENTS: list[Event] = [(SampledGaussian(0.1, 2.0, 1.0), 100)]


def test_a_runs_meaning_is_of_what_was_executed_by_the_worst_off_hospital_with_its_baselines() -> None:
    plan = plan_of(client(0, 0.1, 2.0), client(1, 0.2, 2.0))
    ran = privacy_result(plan, {0: 100, 1: 40}, False, baselines={0: EVENTS})
    both = profile_of([*EVENTS, *EVENTS])
    assert ran.meaning["image"].detected["0.01"] == pytest.approx(detected(both, 0.01), rel=1e-4)
    assert meanings_of(without_meaning(ran)) == ran.meaning, "of an earlier version, with its baselines"
    less = privacy_result(plan, {0: 10, 1: 4}, False)
    assert less.meaning["image"].detected["0.01"] < ran.meaning["image"].detected["0.01"]
    assert less.meaning["image"].epsilon == less.epsilon
    idle = privacy_result(plan, {}, False).meaning["image"]
    assert (idle.detected["0.01"], idle.advantage, idle.mu) == (0.01, 0, 0)
    assert idle.reconstructed == {"0.01": 0.01, "0.1": 0.1}


def test_a_patient_is_bounded_where_patients_are_known_and_nowhere_else() -> None:
    plan = plan_of(client(0, 1.0, 30.0), client(1, 1.0, 30.0))
    known = replace(plan, patient_images=(((0, 3),), ((0, 1), (1, 4))))
    steps = {0: 100, 1: 100}
    told = privacy_result(known, steps, False)
    mu = 10 / 30 * np.hypot(1, 4)  # of the second, whose hospitals' noises are apart
    assert told.meaning["patient"].detected["0.01"] == pytest.approx(gaussian_power(0.01, mu), rel=1e-3)
    assert told.meaning["patient"].mu == pytest.approx(mu, rel=1e-3)
    assert told.meaning["image"].detected["0.01"] == pytest.approx(gaussian_power(0.01, 10 / 30), rel=1e-3)
    assert "patient" not in privacy_result(plan, steps, False).meaning
    assert "for one patient: not bounded" in privacy_result(plan, steps, False).statement


def test_where_a_patient_is_the_unit_an_image_is_one_patient_replaced() -> None:
    plan = PrivacyPlan(
        configured("local_dp", unit="patient"), (replace(client(0, 1.0, 30.0), num_patients=20),), DELTA, 10.0, "system"
    )
    assert plan.unit is PATIENT
    found = meanings(Spending.of(plan, {0: 100}))
    assert found["patient"].detected["0.01"] == pytest.approx(gaussian_power(0.01, 1 / 3), rel=1e-3)
    assert found["image"].detected["0.01"] == pytest.approx(gaussian_power(0.01, 2 / 3), rel=1e-3)
    assert found["image"].reconstructed == found["patient"].reconstructed
    old = without_meaning(privacy_result(plan, {0: 100}, False))
    assert meanings_of(old)["image"].reconstructed == found["patient"].reconstructed
    assert meanings_of(without_meaning(privacy_result(plan, {0: 100}, False))) == found


def without_meaning(result: PrivacyResult) -> PrivacyResult:
    """As an earlier version wrote it."""
    return PrivacyResult.model_validate_json(result.model_dump_json(exclude={"meaning", "meaning_by_observer"}))


@pytest.mark.parametrize("q", [1.0, 0.1])
def test_an_earlier_result_means_the_same(q: float) -> None:
    plan = replace(plan_of(client(0, q, 30.0 * q), client(1, q, 30.0 * q)), patient_images=(((0, 3),),))
    told = privacy_result(plan, {0: 100, 1: 100}, False)
    found = meanings_of(without_meaning(told))
    assert found["image"] == told.meaning["image"]
    now, then = (each["patient"].detected["0.01"] for each in (told.meaning, found))
    if q == 1:
        assert then == pytest.approx(now, rel=1e-3)
    else:
        assert then > 1.2 * now, "of one figure alone, looser and not below"
    assert meanings_of(told) is told.meaning


def test_a_hospital_without_records_has_none_to_lose_in_an_earlier_result_either() -> None:
    empty = replace(client(1, 0.1, 2.0), num_records=0)
    told = privacy_result(plan_of(client(0, 0.1, 2.0), empty), {0: 20, 1: 100}, False)
    assert meanings_of(without_meaning(told)) == told.meaning


def test_events_that_do_not_give_the_epsilon_are_refused() -> None:
    told = without_meaning(privacy_result(plan_of(client(0, 0.1, 2.0)), {0: 100}, False))
    for changed in (
        told.model_copy(update={"epsilon": 0.9 * (told.epsilon or 0)}),
        told.model_copy(update={"epsilon": 1.1 * (told.epsilon or 0)}),
        told.model_copy(update={"clients": []}),
    ):
        with pytest.raises(PrivacyError, match=r"the events of its clients give epsilon .*, and the result says"):
            meanings_of(changed)


def test_without_a_guarantee_everything_is_possible() -> None:
    plan = PrivacyPlan(configured("none"), (replace(client(0, 0.1, 1.0), step=None),))
    told = privacy_result(plan, {}, False)
    assert told.meaning == nothing_kept() == meanings_of(without_meaning(told))
    for each in told.meaning.values():
        assert {*each.detected.values(), *each.reconstructed.values(), each.advantage} == {1.0}
        assert (each.epsilon, each.mu) == (None, None)


def test_the_statement_says_it_for_whoever_does_not_know_epsilon() -> None:
    plan = plan_of(client(0, 1.0, 1 / gaussian_mu(10.0, DELTA)))
    told = privacy_result(plan, {0: 1}, False)
    assert told.meaning["image"].detected["0.01"] == pytest.approx(0.37225, abs=2e-4)
    assert (
        "In other words, for one image: an attacker who wrongly flags 1 in 100 unused images as used in training "
        "rightly flags at most 38 of 100 used ones; pure luck gives 1. An attacker who would guess what an image "
        "shows 1 time in 10 without this run does so at most 77 times in 100 with all that the guarantee covers."
        in told.statement
    ), "upwards, as these are bounds"
    assert "at most 100 (no limit) of 100" in next(iter(in_words(nothing_kept())))


@pytest.mark.parametrize("q", [1.0, 0.2])
def test_observers_of_shared_noise_take_off_the_shares_that_they_know(q: float) -> None:
    step = client(0, q, 30.0 * q).step
    assert step is not None
    clients = tuple(replace(client(i, q, 30.0 * q), steps_per_round=1) for i in range(2))
    shared = SharedNoise(4, 0, trusted_aggregator=False)
    plan = PrivacyPlan(configured("distributed_dp"), clients, DELTA, 10.0, "system", shared_noise=shared)
    told = privacy_result(plan, {0: 100, 1: 100}, False)
    found = {observer: meaning.detected["0.01"] for observer, meaning in told.meaning_by_observer.items()}
    assert list(found) == list(told.epsilon_by_observer)
    assert found[SERVER] == found["the outside"] == told.meaning["image"].detected["0.01"]
    for observer, shares in (("one other hospital", 3), (OTHERS, 1)):
        noise = step.noise_multiplier * (shares / 4) ** 0.5
        one = profile_of([(replace(step, noise_multiplier=noise), 100)])
        assert found[observer] == pytest.approx(detected(one, 0.01), rel=1e-4)
    assert f"Towards {OTHERS}: epsilon {told.epsilon_by_observer[OTHERS]:.3f}, that is at most " in told.statement
    old = observers_of(without_meaning(told))
    for observer, meaning in old.items():
        assert meaning.detected["0.01"] >= 0.999 * found[observer]
        if q == 1:
            assert meaning.detected["0.01"] == pytest.approx(found[observer], rel=0.01)
    assert observers_of(told) is told.meaning_by_observer


def test_a_server_that_adds_the_noise_itself_is_bounded_by_nothing() -> None:
    release = ClientRelease(SampledGaussian(1.0, 4.0, 1.0), None)
    clients = tuple(replace(client(i, 1.0, 4.0), step=None) for i in range(2))
    plan = PrivacyPlan(configured("central_dp"), clients, DELTA, 10.0, "system", client_release=release)
    told = privacy_result(plan, {0: 30, 1: 30}, False)
    assert list(told.meaning_by_observer) == [TRUSTED]
    assert told.meaning_by_observer[TRUSTED].advantage == 1 > told.meaning["image"].advantage
    assert f"Towards {TRUSTED}: no epsilon, that is at most 100 (no limit) of 100 found" in told.statement
    assert observers_of(without_meaning(told)) == told.meaning_by_observer
    summed = replace(plan, shared_noise=SharedNoise(2, 0, trusted_aggregator=False))
    assert TRUSTED not in privacy_result(summed, {0: 30, 1: 30}, False).meaning_by_observer


def test_the_documented_table_is_this() -> None:
    text = (Path(__file__).parents[2] / "docs" / "meaning.md").read_text()
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if re.match(r"\| \d+ \|", line)]
    assert [row[0] for row in rows] == ["1", "2", "5", "10"]
    for epsilon, *shown in rows:
        profile = gaussian(gaussian_mu(float(epsilon), DELTA))
        shares = [*(detected(profile, rate) for rate in (0.001, 0.01, 0.01, 0.1)), advantage(profile)]
        assert [float(cell.removesuffix(" %")) for cell in shown] == pytest.approx([100 * s for s in shares], abs=0.06)
        assert float(shown[0].removesuffix(" %")) == pytest.approx(100 * shares[0], abs=0.006)
