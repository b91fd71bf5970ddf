"""Sums over Flower messages: plain against secure, drop-outs at every stage, retries, and what the ledgers say."""

import copy
import itertools
import math
import sqlite3
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, RecordDict

from medx.aggregation.integer_noise import NoiseStream
from medx.aggregation.journal import ParticipantState, Party
from medx.aggregation.messages import Context, Inbox, Stage, Survivors
from medx.experiment import run_rounds
from medx.federation import hospital_sums
from medx.federation.exchange import Attempt, Summed, plain_sum, secure_sum
from medx.federation.flower import to_record
from medx.federation.ledgers import ledger_path
from medx.federation.plain_rounds import RoundAborted
from medx.federation.sums import STAGES
from medx.privacy.spending import client_epsilon
from medx.randomness import derive_key
from medx.schema import LedgerError, MedxError
from tests.federation.sum_examples import (
    Pixels,
    Position,
    grid_of,
    make,
    model_of,
    run,
    same,
    server_of,
    site_of,
    words,
)

AT_ONE = Position(1, 0)
MAJORITY = {"threshold": 3, "minimum_survivors": 3}


def summed(job, collect, lost=lambda *_: False, position=AT_ONE):
    """One attempt from the initial model."""
    result = Summed()
    with grid_of(job, lost) as grid:
        collect(job.sums, replace(at_round_one(job, grid), position=position), summed=result)
    return result


def at_round_one(job, grid):
    nodes = {client: client + 2 for client in range(job.setup.num_clients)}
    return Attempt(grid, nodes, model_of(job), {}, Position(1, 0), None)


def client_state(grid, client):
    return ParticipantState.from_bytes(grid.state_of(client)["secure"]["state"], client)


@pytest.mark.parametrize("privacy", ["distributed_dp", "local_dp", "none"])
def test_a_secure_sum_is_the_sum_of_the_words(tmp_path, privacy):
    job = make(tmp_path / "s", privacy=privacy)
    secure = summed(job, secure_sum)
    assert secure.survivors == (0, 1, 2, 3, 4)
    parts = [words(job, client, 1) for client in range(5)]
    assert np.array_equal(secure.total, np.sum(parts, axis=0, dtype=np.uint32))
    assert not np.array_equal(secure.total, summed(make(tmp_path / "t", privacy=privacy, seed=1), secure_sum).total)
    if privacy == "distributed_dp":
        trusted = make(tmp_path / "p", secure=False)
        plain = summed(trusted, lambda plan, attempt, summed: plain_sum(plan, attempt, 5, summed))
        assert plain.survivors == secure.survivors
        assert np.array_equal(secure.total, plain.total)


def test_a_trusted_sum_ends_in_the_same_model_as_a_secure_one(tmp_path):
    secure = run(make(tmp_path / "secure"))
    plain = run(make(tmp_path / "plain", secure=False))
    assert all(same(a.state, b.state) for a, b in zip(secure, plain, strict=True))
    assert not same(secure[0].state, secure[1].state)
    assert secure[-1].records[-1].metrics == plain[-1].records[-1].metrics
    assert [record.epsilon for record in secure[-1].records] == [record.epsilon for record in plain[-1].records]
    other = run(make(tmp_path / "other", secure=False, aggregation={"minimum_survivors": 3}))
    assert not same(plain[1].state, other[1].state)  # another minimum is other noise


@pytest.mark.parametrize(
    "federation",
    [{}, {"name": "fedprox", "proximal_mu": 5.0}, {"name": "fedadam"}],
    ids=["fedavg", "fedprox", "fedadam"],
)
def test_secure_updates_follow_the_strategy(tmp_path, federation):
    """FedProx's pull reaches the hospitals, and a server optimiser gets the same mean, within the grid."""
    changes = {"privacy": "none", "federation": federation, "rounds": 4}
    secure = run(make(tmp_path / "secure", **changes))
    plain = run(make(tmp_path / "plain", secure=False, **changes))
    assert np.allclose(secure[-1].state.flat(), plain[-1].state.flat(), atol=1e-4)
    assert secure[-1].records[-1].metrics == pytest.approx(plain[-1].records[-1].metrics, abs=1e-3)
    if federation.get("name") == "fedprox":
        without = run(make(tmp_path / "without", privacy="none", rounds=4))
        assert not np.allclose(without[-1].state.parameters, plain[-1].state.parameters, atol=1e-3)


def test_a_noised_step_goes_through_the_strategy(tmp_path, monkeypatch):
    def noise(job, who, position, *added_to, heard=None):
        return NoiseStream(derive_key(0, who, *position))  # whatever the model, whose last bits differ here

    monkeypatch.setattr(hospital_sums, "noise_stream", noise)

    def final(name: str, momentum: float, **federation: float):
        trainer = {"momentum": momentum}
        job = make(tmp_path / f"{name}{momentum}", trainer=trainer, federation={"name": name, **federation})
        return run(job)[-1].state.parameters

    plain = final("fedavg", 0.9)
    # Momentum by the server's step or by the strategy is one and the same; a single step leaves nothing to pull back.
    for state in (final("fedavgm", 0.0, server_momentum=0.9), final("fedprox", 0.9, proximal_mu=1.0)):
        assert np.allclose(plain, state, atol=1e-6)
    assert not np.array_equal(plain, final("fedadam", 0.0))


def test_every_drop_out_gives_the_sum_of_the_survivors(tmp_path):
    """Each stage and each set of one or two of five, the rest above the minimum of three; then two stages at once."""
    job = make(tmp_path / "secure", rounds=150, aggregation=MAJORITY)
    sets = [set(ids) for size in (1, 2) for ids in itertools.combinations(range(5), size)]
    cases = [{stage: ids} for stage in STAGES for ids in sets]
    cases += [{first: {0}, second: {4}} for first, second in itertools.combinations(STAGES, 2)]
    for number, case in enumerate(cases, start=1):
        parts = [words(job, client, number) for client in range(5)]
        gone = {client for stage, ids in case.items() for client in ids if STAGES.index(stage) < 3}
        expected = np.sum([parts[client] for client in range(5) if client not in gone], axis=0, dtype=np.uint32)
        lost = lambda stage, client, _, case=case: client in case.get(stage, ())  # noqa: E731
        result = summed(job, secure_sum, lost, Position(number, 0))
        assert set(result.survivors) == set(range(5)) - gone
        assert np.array_equal(result.total, expected), case
        assert not np.array_equal(result.total, expected + parts[0])


@pytest.mark.parametrize("stage", STAGES)
def test_the_model_after_a_drop_out_is_that_of_a_plain_round_with_the_survivors(tmp_path, stage):
    """The reply is lost, not the request: the client has spent its budget, and its words do not count."""
    job = make(tmp_path / "secure", rounds=1, aggregation=MAJORITY)
    counted = STAGES.index(stage) > 2
    secure = run(job, mute=lambda at, client, _: at == stage and client in (1, 3))
    plain_job = make(tmp_path / "plain", rounds=1, secure=False, aggregation={"minimum_survivors": 3})
    plain = run(plain_job, lost=lambda at, client, _: at == "sum" and client in (1, 3) and not counted)
    assert same(secure[1].state, plain[1].state)
    record = secure[1].records[0]
    assert (record.clients, record.failed) == ((5, 0) if counted else (3, 2))
    entries = {client: ledger_rows(job, client) for client in range(5)}
    assert entries[0] == [(0, 1, 1)]
    # Charged before the masked words leave; committed by its own first share, which a lost client never sent.
    silent = {"keys": [], "shares": [], "masked": [(0, 1, 0)], "confirm": [(0, 1, 0)], "unmask": [(0, 1, 1)]}
    assert entries[1] == silent[stage]


def ledger_rows(job, client):
    """(entry, steps, committed) of everything that a client's ledger shows as begun."""
    if not ledger_path(job, client).exists():
        return []
    with sqlite3.connect(ledger_path(job, client)) as database:
        return database.execute("SELECT round, steps, committed FROM rounds ORDER BY round").fetchall()


def test_a_retry_is_a_new_release_and_is_charged(tmp_path):
    lost = {0: {0, 1, 2}, 1: {4}}  # in attempt 0 of round 2 three of five are silent: too few; then one
    job = make(tmp_path, aggregation=MAJORITY, rounds=4)
    engine = server_of(job)
    with grid_of(
        job, mute=lambda stage, client, at: stage == "masked" and at.round == 2 and client in lost.get(at.attempt, ())
    ) as grid:
        rounds = engine.rounds(grid, engine.initial_state())
        states = [next(rounds) for _ in range(3)]
        with pytest.raises(LedgerError, match="4 of the 4 reserved are spent"):
            next(rounds)
    assert [record.epsilon for record in states[-1].records] == pytest.approx(
        [epsilon(job, steps) for steps in (1, 3, 4)]
    )
    assert ledger_rows(job, 0) == [(0, 1, 1), (3, 1, 0), (4, 1, 1), (6, 1, 1)]
    assert ledger_rows(job, 4) == [(0, 1, 1), (3, 1, 0), (4, 1, 0), (6, 1, 1)]
    first, second = (words(make(tmp_path / "n", rounds=4), 0, 2, attempt) for attempt in (0, 1))
    assert not np.any(first == second)  # the planted fault would be equal: noise of the first attempt again


def epsilon(job, steps):
    return client_epsilon(job.plan, job.plan.clients[0], steps)


def test_beyond_the_reservation_the_run_stops_as_exhausted(tmp_path):
    job = make(tmp_path, aggregation=MAJORITY, rounds=2)

    class Failing:
        timeout = None

        def speeds_of(self, num_clients):
            return None

        def run(self, app, num_clients, serve):
            with grid_of(job, mute=lambda stage, _, at: stage == "masked" and at == (1, 0)) as grid:
                serve(grid)

    outcome = run_rounds(SimpleNamespace(runtime=Failing()), site_of(job), lambda _: None)
    assert outcome.status == "budget_exhausted"
    assert "2 of the 2 reserved are spent" in outcome.error
    assert outcome.server.round == 1
    assert all(sum(steps for _, steps, _ in ledger_rows(job, client)) == 2 for client in range(5))


def test_below_the_minimum_the_run_aborts_with_the_model_as_it_was(tmp_path):
    job = make(tmp_path, aggregation=MAJORITY, rounds=5)
    engine = server_of(job)
    with grid_of(job, mute=lambda stage, client, at: stage == "masked" and at.round == 2 and client < 3) as grid:
        rounds = engine.rounds(grid, engine.initial_state())
        first = next(rounds)
        before = first.state.tensors()
        with pytest.raises(RoundAborted, match="round 2: 0 usable answers"):
            next(rounds)
    assert same(first.state, before)
    # Three attempts, each with words that others could have unmasked: all are charged, none is committed.
    assert ledger_rows(job, 0) == [(0, 1, 1), (3, 1, 0), (4, 1, 0), (5, 1, 0)]


@pytest.mark.parametrize("source", ["seed", "system"])
def test_a_resumed_run_repeats_its_noise_or_pays_again(tmp_path, source):
    mechanism = {"noise_source": source, "spare_rounds": 0}
    job = make(tmp_path, rounds=4, aggregation=MAJORITY, mechanism=mechanism)
    states = run(job)
    resumed = replace(make(tmp_path, rounds=4, aggregation=MAJORITY, mechanism=mechanism), resumed=True)
    server = server_of(resumed)
    with grid_of(resumed) as grid:
        rounds = server.rounds(grid, states[2])
        if source == "seed":
            assert same(list(rounds)[-1].state, states[-1].state)
        else:  # the repeated round draws new noise, which the reservation does not cover
            with pytest.raises(LedgerError, match="4 of the 4 reserved are spent"):
                next(rounds)
    assert sum(steps for _, steps, _ in ledger_rows(resumed, 0)) == 4


def test_a_round_that_failed_goes_on_at_the_first_attempt_that_enough_can_answer(tmp_path):
    """Three are made in one go; a client that says it is at the last one keeps the others back from none."""
    job = make(tmp_path, rounds=2, aggregation=MAJORITY | {"max_attempts": 6})
    with grid_of(job, mute=lambda stage, client, _: stage == "keys" and client > 1) as grid:
        engine = server_of(job)
        with pytest.raises(RoundAborted, match="round 1: "):
            next(engine.rounds(grid, engine.initial_state()))
        assert [stage for stage, _, _ in grid.seen] == ["query"] * 5 + ["keys"] * 15
        grid.mute = lambda *_: False
        forgetful = server_of(job)
        with pytest.raises(RoundAborted, match="replay"):
            next(forgetful.rounds(grid, forgetful.initial_state()))
        informed = server_of(job)
        reached = [Position(*site_of(job).journal().reached(Party(job.sums.roster.digest, n))) for n in range(5)]
        assert reached == [(0, 2)] * 5, "as the journal counts rounds"
        informed.engine.reached = dict.fromkeys(range(4), Position(1, 2)) | {4: Position(1, 5)}
        states = list(informed.rounds(grid, informed.initial_state()))
        assert len(states) == 2
        assert [number for number, *_ in ledger_rows(job, 0)] == [3, 6], "attempt 3 of round 1, attempt 0 of round 2"
        spent = server_of(job)
        spent.engine.reached = dict.fromkeys(range(5), Position(1, 5))
        with pytest.raises(RoundAborted, match=r"round 1: all aggregation\.max_attempts=6 were made"):
            next(spent.rounds(grid, spent.initial_state()))


def test_a_trusted_sum_of_too_few_shares_is_not_used(tmp_path):
    """Below the minimum the shares do not make the planned noise, so the sum must not become a model."""
    job = make(tmp_path, secure=False, rounds=2)
    assert len(run(job, mute=lambda stage, client, _: stage == "sum" and client == 4)) == 3
    job = make(tmp_path / "fewer", secure=False, rounds=2)
    with pytest.raises(RoundAborted, match="round 1: 0 usable answers"):
        run(job, mute=lambda stage, client, _: stage == "sum" and client > 2)


def test_words_follow_the_signed_position_and_not_what_a_message_says(tmp_path):
    """A server that names an earlier attempt would get the same noise twice, the second time for free."""
    job = make(tmp_path, rounds=3)

    def lie(stage, client, message):
        if stage == "masked":
            message.content["config"]["position"] = [1, 0]
        return message

    with grid_of(job) as grid:
        grid.rewrite = lie
        engine = server_of(job)
        list(itertools.islice(engine.rounds(grid, engine.initial_state()), 1))
        result = Summed()
        secure_sum(job.sums, replace(at_round_one(job, grid), position=Position(2, 1)), result)
        expected = np.sum([words(job, client, 2, 1) for client in range(5)], axis=0, dtype=np.uint32)
    assert np.array_equal(result.total, expected)
    assert ledger_rows(job, 0) == [(0, 1, 1), (4, 1, 1)]


def test_a_refused_message_ends_the_attempt_and_charges_nothing(tmp_path):
    """On Flower too, where the client's state lies in its context: no secret is left after a refusal."""
    job = make(tmp_path, rounds=3)

    def flip(stage, client, message):
        if stage == "masked" and client == 2:
            inbox = Inbox.from_bytes(message.content["config"]["data"], "server")
            spoilt = {n: bytes([data[0] ^ 1]) + data[1:] for n, data in inbox.ciphertexts.items()}
            message.content["config"]["data"] = Inbox(inbox.context, spoilt).to_bytes()
        return message

    with grid_of(job) as grid:
        grid.rewrite = flip
        result = Summed()
        secure_sum(job.sums, at_round_one(job, grid), result)
        assert result.survivors == (0, 1, 3, 4)
        assert any("client 0 (ciphertext)" in str(reason) for reason in result.failures)
        assert client_state(grid, 2) == ParticipantState.fresh(Stage.ENDED, 0, 0)
        assert client_state(grid, 1).stage == Stage.UNMASKED
        assert ledger_rows(job, 2) == []


def test_a_second_survivor_set_ends_the_attempt(tmp_path):
    job = make(tmp_path, rounds=3)
    with grid_of(job) as grid:

        def put_another_set_to(stage, client, message):
            if stage == "unmask" and client == 0:
                roster, state = job.sums.roster, client_state(grid, 0)
                bound = Context(roster.run_id, state.round, state.attempt, roster.digest, state.model_hash).digest
                other = Survivors(bound, (0, 1, 2, 3), (4,)).to_bytes()
                content = RecordDict({"config": ConfigRecord({"data": other, "position": [1, 0]})})
                (reply,) = grid.deliver([Message(content, 2, "train.confirm")])
                assert "survivor_sets" in str(reply.error.reason)
            return message

        grid.rewrite = put_another_set_to
        result = Summed()
        secure_sum(job.sums, at_round_one(job, grid), result)
        assert result.survivors == (0, 1, 2, 3, 4)  # four shares are enough, and client 0 sent none
        assert any("out of order" in str(failure) for failure in result.failures)
        assert client_state(grid, 0).shares == {}


def test_late_second_and_foreign_answers_are_dropped(tmp_path):
    honest = summed(make(tmp_path, secure=False), lambda plan, attempt, summed: plain_sum(plan, attempt, 5, summed))
    job = make(tmp_path / "again", secure=False)
    with grid_of(job) as grid:
        attempt = at_round_one(job, grid)
        late = list(grid.deliver([request(attempt.state, node, Position(2, 0)) for node in attempt.nodes.values()]))
        foreign = copy.deepcopy(late[0])
        foreign.metadata.__dict__["_src_node_id"] = 99

        def unruly(messages, *, timeout=None):
            replies = list(grid.deliver(messages))
            yield from (*late, foreign)
            for reply in replies:
                yield copy.deepcopy(reply)
                reply.content["reply"]["data"] = bytes(len(reply.content["reply"]["data"]))
                yield reply

        grid.send_and_receive = unruly
        result = Summed()
        plain_sum(job.sums, attempt, 5, result)
    assert np.array_equal(result.total, honest.total)


def request(state, node, position):
    config = ConfigRecord({"data": b"", "position": list(position)})
    return Message(RecordDict({"arrays": to_record(state), "config": config}), node, "train.sum")


def test_a_client_that_is_not_finite_abstains_and_too_many_stop_the_run(tmp_path):
    job = make(tmp_path, rounds=3, aggregation=MAJORITY, mechanism={"max_abstentions": 1})
    engine = server_of(job)
    with grid_of(job) as grid:
        rounds = engine.rounds(grid, engine.initial_state())
        next(rounds)
        site_of(job).hospital(3).inputs[0, 0] = math.nan
        second = next(rounds)
        assert (second.records[-1].clients, second.records[-1].abstained) == (4, 1)
        with pytest.raises(RoundAborted, match="max_abstentions=1"):
            next(rounds)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"clients": 2}, "federation.num_clients=2: aggregation=secure takes at least 3"),
        ({"federation": {"fraction_clients": 0.95}}, "federation.fraction_clients=0.95: aggregation=secure takes 1"),
        ({"federation": {"name": "krum"}}, "federation=krum"),
        ({"trainer": {"optimizer": "adam"}}, "trainer.optimizer=adam: accepted with privacy=distributed_dp is sgd"),
        ({"secure": False, "federation": {"name": "fedmedian"}}, "federation=fedmedian"),
        ({"secure": False, "mechanism": {"trusted_aggregator": False}}, "privacy.trusted_aggregator=true"),
        ({"secure": False, "aggregation": {"minimum_survivors": 6}}, "aggregation.minimum_survivors=6: accepted are"),
        ({"aggregation": {"minimum_survivors": 6}}, "minimum_survivors=6: accepted are at most the 5"),
        (  # each would have added its share of a noise that nobody completes
            {"secure": False, "clients": 2, "aggregation": {"minimum_survivors": 3}},
            "minimum_survivors=3: accepted are at most the 2",
        ),
        ({"aggregation": {"threshold": 5, "minimum_survivors": 4}}, "minimum_survivors = 4; accepted: 5 to 5"),
        ({"mechanism": {"assumed_colluders": 4}}, "privacy.assumed_colluders=4: accepted are 0 to 3"),
        ({"aggregation": {"scale": 1e9}}, r"aggregation.scale = 1e\+09: .* below 2\^31"),
        ({"aggregation": {"scale": 1.0}}, "aggregation.scale=1: the noise's grid is too coarse"),
        ({"trainer": {"local_steps": 2}}, "trainer.local_steps=2"),
        ({"privacy": "central_dp", "trainer": {"share_momentum": True}}, "trainer.share_momentum=true"),
        ({"privacy": "central_dp", "mechanism": {"delta": 0.2}}, "privacy.delta=0.2: must be below 1/num_clients"),
        (
            {"privacy": "central_dp", "mechanism": {"target_quantile": 0.5, "quantile_noise": 0.1}},
            "privacy.quantile_noise=0.1: accepted is more than half",
        ),
    ],
)
def test_what_a_sum_cannot_give_is_refused(tmp_path, changes, text):
    with pytest.raises(MedxError, match=text) as refusal:
        make(tmp_path, **changes)
    assert "\n" not in str(refusal.value)


def test_many_clients_fit_into_the_ring(tmp_path):
    """Weights and counts have room for more than 127 clients."""
    job = make(tmp_path, privacy="none", clients=60, rounds=1)
    assert run(job)[1].records[0].clients == 60
    make(tmp_path / "more", privacy="none", clients=300, dataset=Pixels(num_train=300))
