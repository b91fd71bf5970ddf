"""Noise that is added once: its size in the sum, what one record moves, who is sampled, and epsilon by observer."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from dp_accounting.pld import privacy_loss_distribution
from scipy import stats

from medx.aggregation.integer_noise import grid_sensitivity
from medx.privacy.executed import privacy_result
from medx.privacy.spending import Spending
from medx.privacy.statement import statement
from medx.trainer.batches import poisson_batches
from medx.trainer.gradients.record_loss import float32_slack
from tests.federation.sum_examples import DIMENSION, RECORDS, make, prepared_of, server_of, words

MAJORITY = {"threshold": 3, "minimum_survivors": 3}
SUMS = 1000
CLIP = 0.1


def signed(total):
    """Words as integers from -2^31."""
    return total.astype(np.uint32).view(np.int32).astype(np.int64)


def gradient_words(job, client, data=None):
    """One client's clipped sum, as numbers and on the grid, before any noise."""
    local, setup, prepared = job.plan.clients[client], job.setup, data or prepared_of(job)
    inputs, labels = prepared.client(client)
    sums = setup.trainer.clipped_gradient(
        module=server_of(job).network,
        objective=prepared.objective,
        inputs=inputs,
        labels=labels,
        plan=local,
        state=server_of(job).initial_state().state,
        sample_generator=torch.Generator().manual_seed(0),
        device=torch.device("cpu"),
    )
    vector = torch.cat([part.flatten().double() for part in sums]).numpy()
    return vector, job.sums.layout.encode(vector, {})[0]


@pytest.fixture(scope="module")
def noise(tmp_path_factory):
    """(job, ``int64 [client, round, coordinate]`` noise in grid units) of 1000 sums with every record sampled."""
    job = make(tmp_path_factory.mktemp("noise"), rounds=SUMS, aggregation=MAJORITY)
    bare = [gradient_words(job, client)[1] for client in range(5)]
    drawn = [[signed(words(job, c, r) - bare[c]) for r in range(1, SUMS + 1)] for c in range(5)]
    return job, np.array(drawn)


def promised(job):
    """The sum's noise in grid units: sigma times the sensitivity on the grid."""
    return job.plan.clients[0].step.noise_multiplier * sensitivity(job)


def sensitivity(job):
    """In grid units: a clip norm, what float32 adds to it, and a unit of rounding in every coordinate."""
    return grid_sensitivity(job.sums.layout.scale, CLIP * (1 + float32_slack(RECORDS // 5)), DIMENSION)


def consistent(samples, stddev):
    """Whether the sample variance lies where that of 17000 Gaussians of this standard deviation does, at 1e-6."""
    low, high = stats.chi2(samples.size).ppf([5e-7, 1 - 5e-7])
    return bool(low < np.sum(np.square(samples.astype(float))) / stddev**2 < high)


def test_the_sum_of_the_fewest_survivors_has_the_planned_noise(noise):
    job, drawn = noise
    for survivors in itertools.combinations(range(5), 3):
        total = drawn[list(survivors)].sum(axis=0)
        assert consistent(total, promised(job))
        for wrong in (2 / 3, 3 / 2):
            assert not consistent(total, wrong * promised(job))
        assert not consistent(total * 2 // 3, promised(job))  # the planted fault: less noise than promised


def test_after_every_allowed_drop_out_there_is_at_least_the_planned_noise(noise):
    job, drawn = noise
    for count in (3, 4, 5):
        for survivors in itertools.combinations(range(5), count):
            total = drawn[list(survivors)].sum(axis=0)
            assert consistent(total, promised(job) * math.sqrt(count / 3))
    two = drawn[:2].sum(axis=0)
    assert not consistent(two, promised(job))
    assert np.var(two) < 0.75 * promised(job) ** 2  # so two must never be released, and three is the minimum


def test_assumed_colluders_are_made_up_for(tmp_path):
    honest = make(tmp_path / "a", aggregation=MAJORITY)
    curious = make(tmp_path / "b", aggregation=MAJORITY, mechanism={"assumed_colluders": 1})
    shares = [job.sums.noise_stddev / job.sums.layout.scale for job in (honest, curious)]
    assert shares[1] / shares[0] == pytest.approx(math.sqrt(3 / 2), rel=1e-6)
    assert math.sqrt(2) * curious.sums.noise_stddev >= promised(curious)


def test_noise_is_new_for_every_client_round_and_attempt(noise, tmp_path):
    _, drawn = noise
    flat = drawn.reshape(5, -1).astype(float)
    correlations = np.corrcoef(flat)[np.triu_indices(5, 1)]
    assert np.all(np.abs(correlations) < 5 / math.sqrt(flat.shape[1]))
    between_rounds = np.corrcoef(drawn[0, :-1].ravel(), drawn[0, 1:].ravel())[0, 1]
    assert abs(between_rounds) < 5 / math.sqrt(flat.shape[1])
    planted = np.corrcoef(flat[0], flat[0])[0, 1]
    assert planted > 0.99
    system = make(tmp_path, rounds=9, mechanism={"noise_source": "system"})
    assert not np.any(words(system, 0, 1) == words(system, 0, 1))


def test_one_record_moves_the_sum_by_no_more_than_the_sensitivity(tmp_path):
    """A huge outlier included: its gradient is thousands of clip norms long."""
    job = make(tmp_path)
    prepared = prepared_of(job)
    spoilt = prepared.inputs["train"].clone()
    spoilt[prepared.parts[0][0]] *= 1e5
    prepared = replace(prepared, inputs=prepared.inputs | {"train": spoilt})
    limit = sensitivity(job)

    def moved(clip_norm):
        plan = replace(job.plan, clients=tuple(clipped(client, clip_norm) for client in job.plan.clients))
        shown = replace(job, plan=plan, sums=replace(job.sums, layout=replace(job.sums.layout, bound=7.0)))
        datasets = (prepared, *(cut(prepared, row) for row in range(len(prepared.parts[0]))))
        sums = [signed(gradient_words(shown, 0, data)[1]) for data in datasets]
        return [float(np.linalg.norm(one - sums[0])) for one in sums[1:]]

    distances = moved(CLIP)
    assert len(distances) == RECORDS // 5
    assert max(distances) <= limit
    assert distances[0] > 0.9999 * job.sums.layout.scale * CLIP  # the outlier is cut to the whole clip norm
    assert max(distances[1:]) > job.sums.layout.scale * CLIP  # rounding and float32 do take their allowance
    assert moved(1e9)[0] > 10 * limit  # the planted fault: nothing is clipped


def clipped(client, clip_norm):
    return replace(client, step=replace(client.step, clip_norm=clip_norm))


def cut(prepared, row):
    parts = (np.delete(prepared.parts[0], row), *prepared.parts[1:])
    return replace(prepared, parts=parts)


def test_the_sum_is_that_of_a_naive_loop(tmp_path):
    job = make(tmp_path, trainer={"micro_batch_size": 5})
    inputs, labels = prepared_of(job).client(0)
    total = np.zeros(DIMENSION)
    for x, y in zip(inputs.flatten(1).double().numpy(), labels.numpy(), strict=True):
        error = 0.5 - y  # of the logistic loss at zero weights
        gradient = error * np.append(x, 1.0)
        total += gradient * min(1.0, CLIP / np.linalg.norm(gradient))
    values, encoded = gradient_words(job, 0)
    np.testing.assert_allclose(values, total, atol=1e-6)
    np.testing.assert_allclose(signed(encoded) / job.sums.layout.scale, total, atol=1e-6)
    assert np.abs(values - total * CLIP / np.linalg.norm(total)).max() > 1e-3  # clipping the sum is another sum


def test_every_attempt_draws_its_own_poisson_sample(tmp_path, monkeypatch):
    drawn = []

    def recorded(num_records, q, steps, generator):
        for rows in poisson_batches(num_records, q, steps, generator):
            drawn.append(np.isin(np.arange(num_records), rows.numpy()))
            yield rows

    monkeypatch.setattr("medx.trainer.batches.poisson_batches", recorded)
    rounds, q = 400, 0.3
    job = make(tmp_path, rounds=2 * rounds, trainer={"sampling_probability": q})
    for round in range(1, rounds + 1):
        for attempt in (0, 1):
            words(job, 0, round, attempt)
    member = np.array(drawn).reshape(rounds, 2, -1)
    assert poisson(member, q)
    assert not poisson(np.repeat(member[:, :1], 2, axis=1), q)  # the planted fault: a retry with the same sample
    assert not poisson(member, 2 * q / 3)
    assert not poisson(fixed_size(member), q)


def poisson(member, q):
    """Whether records enter with probability ``q``, independently of attempt and of each other."""
    count = member.size
    share = abs(member.mean() - q) < 5 * math.sqrt(q * (1 - q) / count)
    pairs = member.all(axis=1)
    attempts = abs(pairs.mean() - q**2) < 5 * math.sqrt(q**2 / pairs.size)
    sizes = member.sum(axis=2)
    spread = sizes.var() / (member.shape[2] * q * (1 - q))
    return bool(share and attempts and 0.75 < spread < 1.3)


def fixed_size(member):
    """Batches of one size, as shuffling makes them: same share, no Poisson."""
    size = round(0.3 * member.shape[2])
    generator = np.random.default_rng(0)
    rows = np.zeros(member.shape, bool)
    for i, j in np.ndindex(member.shape[:2]):
        rows[i, j, generator.choice(member.shape[2], size, replace=False)] = True
    return rows


@pytest.mark.parametrize("q", [1.0, 0.3])
def test_a_second_accountant_confirms_epsilon_towards_each_observer(tmp_path, q):
    job = make(
        tmp_path,
        rounds=30,
        aggregation=MAJORITY,
        trainer={"sampling_probability": q},
        mechanism={"assumed_colluders": 1, "epsilon": 3.0},
    )
    sigma, delta = job.plan.clients[0].step.noise_multiplier, job.plan.delta
    result = privacy_result(job.plan, dict.fromkeys(range(5), 20), synthetic=True)
    # The outside knows no share of three; the server knows one of three, and one other hospital its own; all others
    # leave one hospital its own share.
    multipliers = {
        "the outside": sigma * math.sqrt(3 / 2),
        "the server and its assumed colluders": sigma,
        "one other hospital": sigma,
        "all other hospitals together": sigma / math.sqrt(2),
    }
    assert result.epsilon_by_observer.keys() == multipliers.keys()
    for observer, multiplier in multipliers.items():
        assert agree(result.epsilon_by_observer[observer], pld(multiplier, q, 20, delta))
        assert not agree(result.epsilon_by_observer[observer], pld(multiplier * 1.2, q, 20, delta))
    assert result.epsilon == result.epsilon_by_observer["the server and its assumed colluders"] < 3.0
    planned = Spending.planned(job.plan).by_observer()["the server and its assumed colluders"]
    assert 0.985 * 3.0 < planned <= 3.0
    assert "Towards all other hospitals together: epsilon" in result.statement


def pld(multiplier, q, steps, delta):
    """dp-accounting's own composition, with nothing of ours in between."""
    loss = privacy_loss_distribution.from_gaussian_mechanism(
        multiplier, value_discretization_interval=1e-3, sampling_prob=q
    )
    return loss.self_compose(steps).get_epsilon_for_delta(delta)


def agree(epsilon, other):
    return abs(epsilon - other) < 0.02 * other + 0.011


def test_a_trusted_aggregator_is_named_with_what_it_could_learn(tmp_path):
    job = make(tmp_path, secure=False)
    observers = Spending.planned(job.plan).by_observer()
    assert observers["the server (trusted)"] == observers["all other hospitals together"] > observers["the outside"]
    text = statement(job.plan)
    assert "is trusted with it" in text
    assert "nobody's part of it" not in text
    assert "nobody's part of it" in statement(make(tmp_path / "s").plan)
