import json
import math

import pytest
from pydantic import TypeAdapter

from medx.privacy import SampledGaussian, accountants, accounting
from medx.privacy.accountants import gaussian_epsilon
from medx.privacy.accounting import (
    calibrate_noise_multiplier,
    epsilon_curve,
    epsilon_pld,
    epsilon_prv,
    epsilon_rdp,
    epsilon_spent,
)
from medx.privacy.base import ClientPlan, PrivacyPlan
from medx.privacy.executed import privacy_result
from medx.privacy.gaussian import Delta, Epsilon
from medx.results import ClientEvents
from medx.schema import PrivacyError
from tests.audit import recompute
from tests.privacy.examples import configured

DELTA = 1e-5


def release(q, sigma):
    return SampledGaussian(q, sigma, 1.0)


def test_known_values_of_each_accountant():
    events = [(release(256 / 4708, 1.0), 200)]
    assert epsilon_prv(events, DELTA) == pytest.approx(5.21, abs=0.01)
    assert epsilon_pld(events, DELTA) == pytest.approx(5.205, abs=0.005)
    assert epsilon_rdp(events, DELTA) == pytest.approx(5.85, abs=0.01)


@pytest.mark.parametrize(("epsilon", "sigma"), [(1, 64.6), (5, 15.4), (10, 8.66)])
def test_full_batches_have_a_closed_form_that_both_accountants_meet(epsilon, sigma):
    exact = gaussian_epsilon(math.sqrt(300) / sigma, DELTA)
    assert exact == pytest.approx(epsilon, rel=0.005)
    events = [(release(1.0, sigma), 300)]
    assert exact <= epsilon_pld(events, DELTA) <= exact * 1.002
    assert exact <= epsilon_prv(events, DELTA) <= exact + 0.011


@pytest.mark.parametrize(
    "events",
    [
        [(0.001, 0.6, 5000)],
        [(0.05, 30.0, 2000)],
        [(0.25, 5.0, 300)],
        [(0.05, 1.0, 100), (1.0, 20.0, 50)],
        [(1.0, 40.0, 60), (1.0, 10.0, 5)],
    ],
)
def test_prv_and_pld_agree_and_rdp_is_above(events):
    events = [(release(q, sigma), steps) for q, sigma, steps in events]
    prv, pld, rdp = (f(events, DELTA) for f in (epsilon_prv, epsilon_pld, epsilon_rdp))
    assert prv == pytest.approx(pld, rel=0.02)
    assert rdp > max(prv, pld)


def test_equal_events_are_merged_and_none_cost_nothing():
    step = release(0.1, 2.0)
    apart = [(step, 1)] * 50 + [(SampledGaussian(0.1, 2.0, 7.0), 0)]
    assert accountants.merge_events(apart) == ((0.1, 2.0, 50),)
    assert epsilon_prv(apart, DELTA) == epsilon_prv([(step, 50)], DELTA)
    assert epsilon_spent([], DELTA).value == epsilon_rdp([(step, 0)], DELTA) == 0


@pytest.mark.parametrize(
    ("epsilon", "q", "steps"),
    [
        (0.1, 0.001, 1),
        (0.1, 0.05, 1000),
        (0.1, 0.5, 200),
        (0.1, 1.0, 5000),
        (1.0, 0.001, 1000),
        (1.0, 0.05, 50),
        (1.0, 1.0, 1),
        (10.0, 0.001, 50),
        (10.0, 0.05, 5000),
        (10.0, 1.0, 300),
        (50.0, 0.001, 1),
        (50.0, 0.05, 50),
        (50.0, 0.5, 200),
        (50.0, 1.0, 50),
    ],
)
def test_calibration_spends_the_target_and_no_more(epsilon, q, steps):
    sigma = calibrate_noise_multiplier(epsilon, DELTA, q, steps)
    events = [(release(q, sigma), steps)]
    logged = epsilon_spent(events, DELTA)
    assert logged.accountant == "prv"
    assert logged.reason is None
    assert 0.985 * epsilon < max(logged.value, epsilon_pld(events, DELTA)) <= epsilon
    # And the window can tell: 3 % less noise spends more than the target.
    assert epsilon_pld([(release(q, 0.97 * sigma), steps)], DELTA) > epsilon


@pytest.mark.parametrize(
    "arguments",
    [
        (0.0, DELTA, 0.1, 10),
        (math.nan, DELTA, 0.1, 10),
        (math.inf, DELTA, 0.1, 10),
        (1.0, 0.0, 0.1, 10),
        (1.0, 1.0, 0.1, 10),
        (1.0, DELTA, 0.0, 10),
        (1.0, DELTA, 1.1, 10),
        (1.0, DELTA, 0.1, 0),
    ],
)
def test_calibration_refuses_what_is_out_of_range(arguments):
    with pytest.raises(PrivacyError, match="must be"):
        calibrate_noise_multiplier(*arguments)


def test_calibration_refuses_an_epsilon_that_nothing_spends():
    with pytest.raises(PrivacyError, match="smaller delta"):
        calibrate_noise_multiplier(10.0, 1e-3, 1e-4, 1)  # one step that sees a record less often than delta


def test_calibration_says_what_its_steps_can_spend_and_how_many_it_can_count(monkeypatch):
    with pytest.raises(PrivacyError, match=r"1000000000 noised steps in all.*accepted: at most 10000000"):
        calibrate_noise_multiplier(1.0, DELTA, 0.1, 10**9)
    monkeypatch.setattr(accountants, "pld", lambda releases, delta: 3.0)
    said = r"privacy\.epsilon=9\.97: 4 steps .*privacy\.delta=1e-05 spend 3 with as little noise as 0\.05.*below that"
    with pytest.raises(PrivacyError, match=said):
        accounting._search(10.0, DELTA, 0.1, 4)


@pytest.mark.parametrize(("epsilon", "delta"), [(1e-3, 1e-5), (100.0, 1e-5), (1.0, 1e-14)])
def test_the_ends_of_what_a_mechanism_accepts_can_be_certified(epsilon, delta):
    assert TypeAdapter(Epsilon).validate_python(epsilon) == epsilon
    assert TypeAdapter(Delta).validate_python(delta) == delta
    sigma = calibrate_noise_multiplier(epsilon, delta, 1.0, 50)
    assert 0.985 * epsilon < epsilon_spent([(release(1.0, sigma), 50)], delta).value <= epsilon


@pytest.mark.parametrize("step", [release(0.1, 0.0), release(1.5, 1.0), SampledGaussian(0.1, 1.0, 0.0)])
def test_events_without_a_guarantee_have_no_epsilon(step):
    with pytest.raises(PrivacyError, match=r"sampling_probability|positive"):
        epsilon_pld([(step, 1)], DELTA)


def test_where_prv_fails_pld_is_logged_with_the_reason(monkeypatch):
    def fail(releases, delta):
        raise PrivacyError("PRV gives up")

    events = [(release(0.0321, 1.5), 77)]
    monkeypatch.setattr(accountants, "prv", fail)
    monkeypatch.setattr(accounting, "cached", lambda name, arguments, compute: compute())
    accounting._epsilon.cache_clear()
    bound = epsilon_spent(events, DELTA)
    assert (bound.value, bound.accountant) == (epsilon_pld(events, DELTA), "pld")
    assert bound.reason == "PRV gives up"
    with pytest.raises(PrivacyError, match="gives up"):
        epsilon_prv(events, DELTA)
    accounting._epsilon.cache_clear()
    monkeypatch.setattr(accountants, "prv", lambda releases, delta: 0.5 * accountants.pld(releases, delta))
    bound = epsilon_spent(events, DELTA)
    assert bound.accountant == "pld"
    assert "disagree" in bound.reason
    accounting._epsilon.cache_clear()


@pytest.mark.parametrize("step", [release(1.0, 15.5), release(0.25, 5.0)])
def test_the_curve_bounds_every_round_and_ends_at_the_result(step):
    curve = epsilon_curve(step, 6, 50, DELTA)
    assert len(curve) == 50
    assert list(curve) == sorted(curve)
    assert curve[-1] == epsilon_spent([(step, 300)], DELTA).value
    for rounds in (1, 7, 30):
        pld = epsilon_pld([(step, 6 * rounds)], DELTA)
        assert pld - 1e-3 <= curve[rounds - 1] <= pld * 1.01 + 0.011
        if step.sampling_probability == 1:
            assert curve[rounds - 1] >= gaussian_epsilon(math.sqrt(6 * rounds) / step.noise_multiplier, DELTA)


def test_the_cache_answers_its_own_question_only(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDX_CACHE", str(tmp_path))
    calls = []

    def compute():
        calls.append(1)
        return [0.25, len(calls)]

    assert accounting.cached("a", {"q": 0.1}, compute) == accounting.cached("a", {"q": 0.1}, compute) == [0.25, 1]
    assert accounting.cached("a", {"q": 0.2}, compute) == [0.25, 2]
    (path,) = [p for p in accounting.cache_folder().iterdir() if json.loads(p.read_text())["answer"][1] == 1]
    path.write_text(path.read_text().replace("0.25", "0.20"))  # an answer that was not computed
    assert accounting.cached("a", {"q": 0.1}, compute) == [0.25, 3]
    path.write_text("{")
    assert accounting.cached("a", {"q": 0.1}, compute) == [0.25, 4]
    monkeypatch.setattr(accounting, "_code", lambda: {"opacus": "another version"})
    assert accounting.cached("a", {"q": 0.1}, compute) == [0.25, 5]


def client_events(client, steps, **changes):
    fields = {"num_records": 900, "sampling_probability": 0.05, "noise_multiplier": 1.1, "clip_norm": 0.1}
    return ClientEvents(client=client, steps=steps, epsilon=None, **(fields | changes))


def test_the_audit_takes_the_largest_client_and_refuses_bare_steps():
    found = recompute([client_events(0, 40), client_events(1, 80), client_events(2, 0)], DELTA)
    events = [(release(0.05, 1.1), 80)]
    assert found == {
        "prv": epsilon_prv(events, DELTA),
        "pld": epsilon_pld(events, DELTA),
        "rdp": epsilon_rdp(events, DELTA),
    }
    with pytest.raises(PrivacyError, match="client 3 took 4 steps without noise"):
        recompute([client_events(0, 40), client_events(3, 4, noise_multiplier=None)], DELTA)


def test_an_accountant_that_fails_has_no_figure_of_another_ones(monkeypatch):
    step = release(0.1, 1.03)
    client = ClientPlan(0, 100, 0.1, 10.0, 1, 51, step, 10.0)
    plan = PrivacyPlan(configured("local_dp"), (client,), DELTA, 10.0)

    def fails(*_):
        raise PrivacyError("PRV has no bound here")

    monkeypatch.setattr(accountants, "prv", fails)
    result = privacy_result(plan, {0: 51}, synthetic=False)
    assert list(result.epsilon_by_accountant) == ["pld", "rdp"]
    assert result.epsilon == result.epsilon_by_accountant["pld"] == epsilon_pld([(step, 51)], DELTA)
    assert "PRV has no bound here" in result.statement
