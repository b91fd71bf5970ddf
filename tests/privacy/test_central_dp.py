"""Client-level privacy: what one client moves, the noise on the sum, who is drawn, the clip norm, and epsilon."""

import math
from contextlib import closing
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
import yaml
from scipy import stats

from medx.federation.clipped_updates import drawn_clients
from medx.federation.exchange import Attempt, Summed, plain_sum, secure_sum
from medx.federation.hospital_sums import clipped_to_unit
from medx.federation.ledgers import ledger_path, recorded_steps, server_ledger
from medx.federation.replies import AbstainedError
from medx.federation.summed_rounds import SumRounds
from medx.privacy.executed import privacy_result
from medx.privacy.ledger import PrivacyLedger
from medx.privacy.mechanisms import CentralDP
from medx.schema import ConfigError, PrivacyError
from tests.audit import recompute
from tests.federation.sum_examples import (
    CONF,
    DIMENSION,
    Position,
    grid_of,
    make,
    model_of,
    prepared_of,
    run,
    same,
    server_of,
    words,
)

CLIP = 0.3
QUANTILE = {"target_quantile": 0.5, "quantile_noise": 2.0, "epsilon": 20.0}


def central(folder, **changes):
    changes["mechanism"] = {"clip_norm": CLIP, "delta": 1e-2, "target_quantile": None} | changes.get("mechanism", {})
    return make(folder, **({"privacy": "central_dp", "secure": False, "clients": 6} | changes))


def signed(total):
    return np.asarray(total).astype(np.uint32).view(np.int32).astype(np.int64)


def sum_of(job, clients, number=1, clip_norm=CLIP):
    """The engine's sum in grid units of these clients at the initial model, with its noise."""
    engine = SumRounds(job, prepared_of(job), None)
    result = Summed()
    with grid_of(job) as grid:
        engine.clipped.restore({})
        nodes = {client: client + 2 for client in clients}
        attempt = Attempt(grid, nodes, model_of(job), {"clip-norm": clip_norm}, Position(number, 0), None)
        engine.collect(attempt, result)
    return signed(result.total)


def quiet(job):
    """The same sums without any noise."""
    return replace(job, sums=replace(job.sums, noise_stddev=0, server_noise_stddev=0))


def update_of(job, client):
    """New minus old parameters of one client's local work, by a plain loop over its records."""
    inputs, labels = prepared_of(job).client(client)
    weight, bias = torch.zeros(DIMENSION - 1, dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    trainer, momentum = job.setup.trainer, torch.zeros(DIMENSION, dtype=torch.float64)
    for _ in range(trainer.local_steps):
        gradient = torch.zeros(DIMENSION, dtype=torch.float64)
        for x, y in zip(inputs.flatten(1).double(), labels, strict=True):
            error = torch.sigmoid(weight @ x + bias) - y
            gradient += torch.cat([error * x, error[None]]) / len(labels)
        momentum = trainer.momentum * momentum + gradient
        weight, bias = weight - trainer.learning_rate * momentum[:-1], bias - trainer.learning_rate * momentum[-1]
    return torch.cat([weight, bias[None]]).numpy()


@pytest.mark.parametrize("quantile", [{}, QUANTILE], ids=["fixed", "adaptive"])
def test_the_sum_is_that_of_a_naive_loop_over_clients(tmp_path, quantile):
    updates = [update_of(central(tmp_path), client) for client in range(6)]
    clip_norm = float(np.median([np.linalg.norm(update) for update in updates]))  # some are cut, some are not
    job = central(tmp_path / "at the median", mechanism=quantile | {"clip_norm": clip_norm})
    expected = sum(update * min(1.0, clip_norm / np.linalg.norm(update)) for update in updates)
    vector, scalars = job.sums.layout.decode(sum_of(quiet(job), range(6), clip_norm=clip_norm).astype(np.uint32))
    np.testing.assert_allclose(vector * clip_norm, expected, atol=1e-5)
    small = sum(np.linalg.norm(update) <= clip_norm for update in updates)
    assert scalars == ({"small": small - 3.0} if quantile else {})
    assert np.abs(vector * clip_norm - sum(updates)).max() > 1e-2
    engine = SumRounds(job, prepared_of(job), None)
    engine.clipped.clip_norm = clip_norm
    np.testing.assert_allclose(engine.clipped.mean(vector, scalars), expected / 6, atol=1e-5)


def test_one_client_moves_the_sum_by_no_more_than_the_sensitivity(tmp_path, monkeypatch):
    """A client with a huge update included; clients are not weighted by their records."""
    job = quiet(central(tmp_path, trainer={"learning_rate": 1e4}, mechanism=QUANTILE))
    layout, release = job.sums.layout, job.plan.client_release
    everybody = sum_of(job, range(6))
    for client in range(6):
        moved = everybody - sum_of(job, [other for other in range(6) if other != client])
        assert 0.999 * layout.scale < np.linalg.norm(moved[:-1]) <= layout.scale + math.sqrt(DIMENSION)
        assert abs(moved[-1]) == layout.fields[0].scale / 2
    # Update and count together are one Gaussian of the accounted noise multiplier, or less of a loss.
    noise = central(tmp_path).sums, central(tmp_path, mechanism=QUANTILE).sums.server_noise_stddev
    loss = math.hypot((layout.scale + math.sqrt(DIMENSION)) / noise[1], layout.fields[0].scale / 2 / noise[1])
    assert 0.99 / release.event.noise_multiplier < loss <= 1 / release.event.noise_multiplier
    triple = lambda delta, clip_norm: (3 * delta / np.linalg.norm(delta), True)  # noqa: E731
    monkeypatch.setattr("medx.federation.hospital_sums.clipped_to_unit", triple)
    wide = replace(job, sums=replace(job.sums, layout=replace(layout, bound=7.0)))
    planted = sum_of(wide, range(6)) - sum_of(wide, range(1, 6))  # the planted fault: clipped too late
    assert np.linalg.norm(planted[:-1]) > 2 * layout.scale


def test_clipping_refuses_what_bounds_nothing():
    assert clipped_to_unit(np.array([3.0, 4.0]), 10.0)[1]
    np.testing.assert_allclose(clipped_to_unit(np.array([3.0, 4.0]), 2.5)[0], [0.6, 0.8])
    for clip_norm in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(PrivacyError, match="clip-norm"):
            clipped_to_unit(np.ones(2), clip_norm)
    with pytest.raises(AbstainedError, match="not finite"):
        clipped_to_unit(np.array([math.nan, 1.0]), 1.0)


def consistent(samples, stddev):
    low, high = stats.chi2(samples.size).ppf([5e-7, 1 - 5e-7])
    return bool(low < np.sum(np.square(samples.astype(float))) / stddev**2 < high)


def shares_of(job):
    """Sums of the fewest survivors' shares, their updates being zero."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("medx.federation.hospital_sums._update", lambda *_: np.zeros(DIMENSION))
        contributors, rounds = range(job.plan.shared_noise.contributors), range(1, 1001)
        shares = [[words(job, client, number, **{"clip-norm": CLIP}) for number in rounds] for client in contributors]
    drawn = signed(np.array(shares).sum(axis=0, dtype=np.uint32))
    drawn[:, -1] -= round(len(shares) * job.sums.layout.fields[0].scale / 2)  # zero is below any clip norm
    return drawn


def server_noise_of(job):
    """What a trusted server adds to a sum of nothing."""
    engine = SumRounds(job, prepared_of(job), None)
    engine.clipped.restore({})
    drawn = np.zeros((1000, job.sums.layout.size), np.uint32)
    for number, total in enumerate(drawn, start=1):
        attempt = Attempt(None, {}, model_of(job), {}, Position(number, 0), None)
        engine.clipped.begin(attempt)
        engine.clipped.add_noise(total, attempt)
    return signed(drawn)


@pytest.mark.parametrize("secure", [False, True])
def test_noise_on_the_sum_has_the_planned_size(tmp_path, secure):
    """1000 sums of nothing: a trusted server's noise, or the shares of the fewest survivors."""
    job = central(tmp_path, secure=secure, rounds=1000, mechanism=QUANTILE | {"quantile_noise": 8.0})
    release, layout = job.plan.client_release, job.sums.layout
    drawn = shares_of(job) if secure else server_noise_of(job)
    promised = release.update_noise_multiplier * (layout.scale + math.sqrt(DIMENSION))
    assert consistent(drawn[:, :-1], promised)
    counts = drawn[:, -1] / layout.fields[0].scale
    assert consistent(counts, release.quantile.noise_stddev)
    for wrong in (2 / 3, 3 / 2):
        assert not consistent(drawn[:, :-1], wrong * promised)
        assert not consistent(counts, wrong * release.quantile.noise_stddev)
    lag = np.corrcoef(drawn[:-1, :-1].ravel(), drawn[1:, :-1].ravel())[0, 1]
    assert abs(lag) < 5 / math.sqrt(drawn.size)


def test_plain_and_secure_sums_of_clipped_updates_are_equal_without_noise(tmp_path):
    plain, secure = (central(tmp_path / str(s), secure=s, mechanism=QUANTILE | {"epsilon": 8.0}) for s in (False, True))
    scale = {"scale": min(plain.sums.layout.scale, secure.sums.layout.scale)}
    layouts = [replace(job.sums.layout, **scale) for job in (plain, secure)]
    fields = layouts[0].fields
    results = []
    for job, layout, collect in zip(
        (plain, secure), layouts, (lambda *a: plain_sum(*a[:2], 6, a[2]), secure_sum), strict=True
    ):
        shown = quiet(replace(job, sums=replace(job.sums, layout=replace(layout, fields=fields))))
        result = Summed()
        with grid_of(shown) as grid:
            nodes = {client: client + 2 for client in range(6)}
            attempt = Attempt(grid, nodes, model_of(shown), {"clip-norm": CLIP}, Position(1, 0), None)
            collect(shown.sums, attempt, result)
        results.append(result.total)
    assert np.array_equal(*results)


def test_each_client_is_drawn_on_its_own_coin(tmp_path):
    job = central(tmp_path, federation={"fraction_clients": 0.4})
    everybody = list(range(6))
    drawn = np.array([np.isin(everybody, drawn_clients(job, everybody, number)) for number in range(1, 3001)])
    assert abs(drawn.mean() - 0.4) < 5 * math.sqrt(0.24 / drawn.size)
    assert 0.85 < drawn.sum(axis=1).var() / (6 * 0.24) < 1.15  # a fixed number each round would have none
    assert np.abs(np.corrcoef(drawn.T.astype(float)) - np.eye(6)).max() < 0.1
    assert abs(np.corrcoef(drawn[:-1].ravel(), drawn[1:].ravel())[0, 1]) < 0.05
    system = central(tmp_path / "s", federation={"fraction_clients": 0.4}, mechanism={"noise_source": "system"})
    draws = {tuple(drawn_clients(system, list(range(6)), 1)) for _ in range(30)}
    assert len(draws) > 5  # who knows the seed does not know who was drawn


def test_a_run_accounts_for_every_round_of_every_client(tmp_path):
    """Epsilon again from what the result says was executed; records show expected counts, not who was drawn."""
    job = central(tmp_path, rounds=12, federation={"fraction_clients": 0.4, "min_clients": 1})
    states = run(job)
    steps = recorded_steps(job, states[-1].steps)
    assert steps == states[-1].steps == dict.fromkeys(range(6), 12)
    result = privacy_result(job.plan, steps, synthetic=True)
    assert result.unit == "client"
    assert recompute(result.clients, 1e-2)["prv"] == pytest.approx(result.epsilon)
    assert 9.8 < result.epsilon <= 10.0
    planted = [client.model_copy(update={"sampling_probability": 0.2}) for client in result.clients]
    assert recompute(planted, 1e-2)["prv"] < 0.9 * result.epsilon
    records = states[-1].records
    assert [record.epsilon for record in records] == sorted(record.epsilon for record in records)
    assert records[-1].epsilon == pytest.approx(result.epsilon)
    assert {record.clients for record in records} == {2}
    assert len({record.bytes_up for record in records}) == 1
    for said in ("one hospital with all its records", "not towards the server", "who was drawn is the server's secret"):
        assert said in result.statement
    with pytest.raises(PrivacyError, match="1/num_clients"):
        central(tmp_path / "x", mechanism={"delta": 0.2})


def test_the_clip_norm_follows_the_quantile_and_survives_a_resume(tmp_path):
    """With next to no noise the clip norm ends at the median of the updates' norms, from far below and above."""
    ends = []
    for start in (0.01, 50.0):
        job = central(
            tmp_path / str(start),
            rounds=40,
            trainer={"learning_rate": 1e-6},  # the model hardly moves, so the norms stay
            mechanism={
                "clip_norm": start * 1e-6,
                "target_quantile": 0.5,
                "clip_learning_rate": 0.6,
                "quantile_noise": 60.0,
                "epsilon": 1.0,
            },
        )
        still = replace(job, sums=replace(job.sums, server_noise_stddev=0))
        states = run(still)
        ends.append(float(states[-1].strategy["clipped_updates/clip_norm"]))
    norms = sorted(np.linalg.norm(update_of(job, client)) for client in range(6))
    assert all(norms[1] * 0.9 < end < norms[4] * 1.1 for end in ends)
    engine = SumRounds(still, prepared_of(still), None)
    engine.restore(states[10])
    assert engine.clipped.clip_norm == float(states[10].strategy["clipped_updates/clip_norm"]) != start * 1e-6
    fixed = central(tmp_path / "fixed", rounds=2)
    assert float(run(fixed)[-1].strategy["clipped_updates/clip_norm"]) == CLIP


def test_a_resumed_run_is_the_same_run_and_is_charged_once(tmp_path):
    job = central(tmp_path, rounds=6, federation={"fraction_clients": 0.5}, mechanism={"target_quantile": 0.5})
    states = run(job)
    resumed = replace(job, resumed=True)
    server = server_of(resumed)
    with grid_of(resumed) as grid:
        again = list(server.rounds(grid, states[3]))
    assert [state.round for state in again] == [4, 5, 6]
    assert same(again[-1].state, states[-1].state)
    assert same(again[-1].strategy, states[-1].strategy)
    assert set(recorded_steps(resumed, {}).values()) == {6}


def test_quantile_noise_is_a_part_of_epsilon(tmp_path):
    release = central(tmp_path, mechanism=QUANTILE).plan.client_release
    z, update, count = release.event.noise_multiplier, release.update_noise_multiplier, release.quantile.noise_stddev
    assert (update**-2 + (2 * count) ** -2) ** -0.5 == pytest.approx(z)
    assert update > z == replace(release, quantile=None).update_noise_multiplier
    automatic = central(tmp_path, mechanism={"target_quantile": 0.5, "epsilon": 1.0}).plan.client_release
    assert automatic.update_noise_multiplier < 1.04 * automatic.event.noise_multiplier


def test_a_budget_is_kept_in_the_servers_ledger(tmp_path):
    changes = {"mechanism": {"ledger": str(tmp_path / "ledger"), "budget": 12.0}, "rounds": 3}
    first = central(tmp_path / "one", **changes)
    run(first)
    assert not list((tmp_path / "ledger").glob("client*"))
    with closing(server_ledger(first)) as ledger:
        assert ledger.executed(first.run_id) == [(first.plan.client_release.event, 3)]
    with pytest.raises(PrivacyError, match="budget=12"):
        run(central(tmp_path / "two", **(changes | {"seed": 1})))


def test_secure_runs_take_all_clients_and_share_the_noise(tmp_path):
    job = central(tmp_path, secure=True, mechanism={"assumed_colluders": 1})
    assert job.sums.server_noise_stddev == 0
    states = run(job)
    with closing(PrivacyLedger(ledger_path(job, 0), create=False)) as ledger:
        assert [(entry.unit, entry.event[1]) for entry in ledger.entries()] == [("client", len(states) - 1)]
    assert not same(states[0].state, states[1].state)
    result = privacy_result(job.plan, states[-1].steps, synthetic=True)
    observers = list(result.epsilon_by_observer.values())
    outside, server, one, others = observers
    assert outside < server == result.epsilon == one < others
    assert "nobody's part of it" in result.statement
    with pytest.raises(ConfigError, match="fraction_clients"):
        central(tmp_path / "x", secure=True, federation={"fraction_clients": 0.9})
    with pytest.raises(ConfigError, match="assumed_colluders"):
        central(tmp_path / "y", secure=True, mechanism={"assumed_colluders": 5})


def test_a_model_is_learnt_through_clipping_and_noise(tmp_path):
    job = central(tmp_path, rounds=20, clients=30, mechanism={"clip_norm": 1.0, "epsilon": 20.0})
    state = run(job)[-1].average.tensors()
    prepared = prepared_of(job)
    outputs = prepared.inputs["test"].flatten(1) @ state["1.weight"].T + state["1.bias"]
    right = ((outputs[:, 0] > 0) == prepared.labels["test"].bool()).float().mean()
    assert right > 0.8


def test_yaml_holds_every_field():
    given = yaml.safe_load((CONF / "privacy" / "central_dp.yaml").read_text())["privacy"]
    given.pop("_target_")
    given["noise_source"] = "system"
    assert set(given) == {field.name for field in fields(CentralDP)}
    for name, value in (("epsilon", 0), ("clip_norm", -1), ("target_quantile", 1.0), ("budget", 5.0), ("delta", 0)):
        with pytest.raises(ValueError, match=name):
            CentralDP(**(given | {name: value}))
