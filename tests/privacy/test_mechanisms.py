import math

import pytest
from pydantic import ValidationError

from medx.privacy import Exposure
from medx.privacy.accounting import epsilon_pld, epsilon_spent
from medx.privacy.mechanisms import LocalDP, NoPrivacy
from medx.privacy.spending import Spending
from medx.privacy.statement import privacy_result, statement, summarise
from medx.schema import ConfigError, PrivacyError
from tests.privacy.examples import configured, keys_of


def exposure(records=(400, 900, 900), q=(0.5, 0.25, 0.25), steps=6, rounds=10):
    return Exposure(records, q, steps, rounds)


def test_options_build_and_hold_every_field():
    assert isinstance(configured("none"), NoPrivacy)
    mechanism = configured("local_dp")
    assert isinstance(mechanism, LocalDP)
    assert (mechanism.epsilon, mechanism.delta, mechanism.clip_norm, mechanism.noise_source) == (
        10,
        1e-5,
        0.1,
        "system",
    )
    with pytest.raises(Exception, match=r"epsilon"):
        configured("none", epsilon=1.0)


@pytest.mark.parametrize(
    "changes",
    [
        {"epsilon": 0.0},
        {"epsilon": -1.0},
        {"epsilon": math.nan},
        {"epsilon": math.inf},
        {"epsilon": "much"},
        {"delta": 0.0},
        {"delta": 1.0},
        {"clip_norm": 0.0},
        {"clip_norm": math.inf},
        {"noise_source": "time"},
        {"max_abstentions": -1},
        {"budget": 20.0},
        {"budget": 5.0, "ledger": "ledgers"},
        {"noise": 1.0},
    ],
)
def test_bad_settings_are_refused_at_construction(changes):
    given = keys_of("local_dp") | {"noise_source": "system"} | changes
    del given["_target_"]
    with pytest.raises(ValidationError, match=next(iter(changes))):
        LocalDP(**given)


def test_each_client_is_calibrated_for_itself():
    plan = configured("local_dp", epsilon=2.0, spare_rounds=0).plan(exposure())
    assert plan.private
    assert [c.expected_batch_size for c in plan.clients] == [200, 225, 225]
    assert plan.clients[0].step.noise_multiplier > plan.clients[1].step.noise_multiplier
    assert plan.clients[1].step == plan.clients[2].step
    for client in plan.clients:
        assert client.step.sampling_probability == client.sampling_probability
        events = [(client.step, client.total_steps)]
        assert 1.97 < max(epsilon_spent(events, 1e-5).value, epsilon_pld(events, 1e-5)) <= 2.0


def test_an_empty_client_adds_noise_of_the_others_size():
    plan = configured("local_dp", epsilon=2.0).plan(exposure(records=(400, 0, 900), q=(0.5, 0.0, 0.25)))
    empty = plan.clients[1]
    assert empty.num_records == 0
    assert empty.step == plan.clients[0].step
    assert empty.expected_batch_size == pytest.approx((200 + 225) / 2)
    with pytest.raises(ConfigError, match="every client is empty"):
        configured("local_dp").plan(exposure(records=(0, 0), q=(0.5, 0.5)))


@pytest.mark.parametrize("delta", [0.1, 1 / 900, 1 / 2200])
def test_delta_of_one_over_all_records_of_the_federation_is_refused(delta):
    with pytest.raises(PrivacyError, match=r"must be below 1/N = 0.000455 of the federation's N=2200"):
        configured("local_dp", delta=delta).plan(exposure())
    assert configured("local_dp", delta=0.99 / 2200).plan(exposure()).private


@pytest.mark.parametrize("option", ["local_dp", "distributed_dp", "central_dp"])
def test_noise_of_the_seed_is_asked_for_and_marked(option):
    seen = exposure(q=(0.5,) * 3, steps=1 if option == "distributed_dp" else 6)
    more = {"trusted_aggregator": True} if option == "distributed_dp" else {}
    default, seeded = (configured(option, **more, **noise).plan(seen) for noise in ({}, {"noise_source": "seed"}))
    assert (default.noise_source, default.warning) == ("system", None)
    assert "study only" in seeded.warning
    assert seeded.warning in statement(seeded)
    assert privacy_result(seeded, {}, False).warning == seeded.warning


def test_central_delta_fits_the_number_of_hospitals():
    plans = {n: configured("central_dp").plan(exposure((10,) * n, (0.5,) * n)) for n in (5, 100, 2000)}
    assert {n: plan.delta for n, plan in plans.items()} == {5: 1e-3, 100: 1e-3, 2000: 5e-5}


@pytest.mark.parametrize("option", ["none", "local_dp"])
@pytest.mark.parametrize("q", [0.0, -0.1, 1.28, math.nan])
def test_sampling_probabilities_out_of_range_are_refused(option, q):
    with pytest.raises(PrivacyError, match="client 1: sampling_probability"):
        configured(option).plan(exposure(q=(0.5, q, 0.25)))


def test_statement_says_what_holds_and_what_does_not():
    plan = configured("local_dp", epsilon=2.0, noise_source="seed").plan(exposure())
    text = statement(plan)
    said = (
        "one record",
        "zero-out",
        "How many records a hospital has is public",
        "delta 1e-05; target epsilon 2.",
        "PRV",
        "PLD",
        "RDP",
        "Abadi",
    )
    for words in (*said, "subtract it", "server", "Poisson", "Not covered", "other runs on the same data"):
        assert words in text
    assert len(text.splitlines()) <= 18
    assert "show nobody" in statement(plan, synthetic=True)
    assert "fit for release" in statement(configured("local_dp", epsilon=2.0).plan(exposure()))
    half = statement(plan, spent=Spending.of(plan, dict.fromkeys(range(3), 30)))
    assert "30 of 60" in half
    spent = max(epsilon_spent([(c.step, 30)], 1e-5).value for c in plan.clients)
    assert f"epsilon {spent:.3f} (PRV" in half
    bare = statement(configured("none").plan(exposure()))
    assert "There is no epsilon" in bare


def test_summary_has_one_row_for_clients_that_do_the_same():
    rows = summarise(configured("local_dp", epsilon=2.0, spare_rounds=0).plan(exposure()))
    assert [row["clients"] for row in rows] == ["0", "1, 2"]
    assert all(1.95 < row["epsilon"] <= 2.0 for row in rows)
    assert "epsilon" not in summarise(configured("none").plan(exposure()))[0]


def test_a_hospital_without_records_draws_nothing_and_refuses_no_sum():
    mechanism = configured("distributed_dp", trusted_aggregator=True)
    asked = exposure(records=(0, 400, 900), q=(1.0, 0.1, 0.1), steps=1)
    plan = mechanism.plan(asked)
    assert {client.step.sampling_probability for client in plan.clients} == {0.1}
    assert {client.sampling_probability for client in plan.clients} == {0.1}
    with pytest.raises(ConfigError, match="one sampling probability"):
        mechanism.plan(exposure(records=(100, 400, 900), q=(1.0, 0.1, 0.1), steps=1))
