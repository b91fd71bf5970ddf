import math
from dataclasses import fields

import pytest
from pydantic import ValidationError

from medx.privacy import CalibratedMechanism, Exposure, GaussianMechanism, SampledGaussian
from medx.privacy.accounting import epsilon_pld, epsilon_spent
from medx.privacy.base import ClientRelease, QuantileClipping, SharedNoise
from medx.privacy.executed import privacy_result
from medx.privacy.mechanisms import LocalDP, NoPrivacy
from medx.privacy.plan_table import summarise
from medx.privacy.spending import Spending
from medx.privacy.statement import statement
from medx.schema import ConfigError, PrivacyError, component
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


def own(base, **attributes):
    """A mechanism of somebody's own, as its option would build it."""
    kind = component("privacy/own")(type("Own", (base,), {"__annotations__": {}} | attributes))
    keys = keys_of("local_dp") | {"noise_source": "system", "epsilon": 2.0}
    given = {field.name: keys[field.name] for field in fields(kind)}
    return kind(**given)


def test_a_mechanism_is_held_to_what_it_promises():
    plan = own(CalibratedMechanism).plan(exposure())
    assert plan.clients == configured("local_dp", epsilon=2.0).plan(exposure()).clients
    assert "privacy/own" not in statement(plan)
    assert privacy_result(plan, {}, False).mechanism == "own"
    calibrated = CalibratedMechanism.noise_for
    quiet = own(CalibratedMechanism, noise_for=lambda self, *asked: 0.9 * calibrated(self, *asked))
    with pytest.raises(PrivacyError, match=r"privacy=own: its noise comes to epsilon 2\.\d+, above the 2 that"):
        quiet.plan(exposure())
    given = own(GaussianMechanism, noise_for=lambda self, *asked: 4.0)  # promises nothing: epsilon is what it comes to
    plan = given.plan(exposure())
    covered = 6 * 11  # steps of ten rounds and a spare one
    assert plan.target_epsilon == epsilon_spent([(SampledGaussian(0.5, 4.0, 0.1), covered)], 1e-5).value
    assert f"the noise was given, and covers no more than epsilon {plan.target_epsilon:.4g}" in statement(plan)
    assert "more noise" not in statement(plan)


def test_what_is_executed_and_what_is_accounted_may_not_differ():
    def rarer(self, asked, delta):
        return [SampledGaussian(q / 2, 9.0, 0.1) for q in asked.sampling_probability]

    with pytest.raises(PrivacyError, match=r"privacy=own: client 0 samples with 0.5 but accounts 0.25"):
        own(CalibratedMechanism, _steps=rarer).plan(exposure())
    with pytest.raises(PrivacyError, match=r"privacy=own: client 0 would train without noise"):
        own(CalibratedMechanism, _steps=lambda self, *asked: [None] * 3).plan(exposure())
    event = SampledGaussian(1.0, 2.0, 0.1)
    with pytest.raises(ConfigError, match=r"privacy\.quantile_noise=1: accepted is more than half .* 2, or null"):
        ClientRelease(event, QuantileClipping(0.5, 0.2, 1.0))
    release = ClientRelease(event, None)
    said = {"what": "sums", "sees": ("all", "the sum"), "client_release": lambda self, *asked: release}
    with pytest.raises(PrivacyError, match="goes with the unit client"):
        own(CalibratedMechanism, **said).plan(exposure())
    shared = {"what": "sums", "sees": ("all", "the sum"), "shared_noise": lambda self, asked: SharedNoise(2, 0, True)}
    for seen in (exposure(steps=1), exposure(q=(0.5,) * 3)):  # drawn at several rates, or in several steps a round
        with pytest.raises(PrivacyError, match="a sum is one release a round, the same at all clients"):
            own(CalibratedMechanism, **shared).plan(seen)
    assert own(CalibratedMechanism, **shared).plan(exposure(q=(0.5,) * 3, steps=1)).shared_noise
    with pytest.raises(TypeError, match="Own releases something else than its base"):
        own(CalibratedMechanism, client_release=said["client_release"])


def test_baselines_are_refused_where_no_epsilon_covers_them():
    for mechanism, why in (
        (configured("central_dp"), "central_dp hides a hospital among many"),
        (configured("local_dp", num_runs=2), "num_runs: baselines train on the same records"),
        (configured("local_dp", ledger="ledgers"), r"privacy\.ledger would not show"),
        (own(GaussianMechanism, noise_for=lambda self, *asked: 4.0), "own has no epsilon that models .* could share"),
    ):
        mechanism.check_baselines([])
        with pytest.raises(ConfigError, match=rf"baseline=.*local_only.*{why}.*accepted: baseline=null"):
            mechanism.check_baselines(["local_only"])
    configured("none").check_baselines(["local_only"])
    assert configured("local_dp").shared_by(3).num_runs == 3
