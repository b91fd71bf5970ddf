"""A server that sends every message at every stage, and changes every field: a client does what it is configured to."""

import copy
import math
from contextlib import suppress
from dataclasses import fields, replace

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict

from medx.aggregation import messages
from medx.federation.exchange import Summed, secure_sum
from medx.federation.flower import from_record, to_array, to_record
from medx.federation.hospital_sums import allowed_clip_norm, words_of
from medx.federation.ledgers import ledger_path, recorded_steps
from medx.federation.plain_rounds import RoundAborted
from medx.federation.replies import AbstainedError
from medx.federation.sums import CLIP, STAGES
from medx.schema import LedgerError, MedxError, PrivacyError
from medx.trainer.state import ModelState
from tests.federation.sum_examples import Position, forget, grid_of, make, model_of, run, same, site_of, words
from tests.federation.test_sums import at_round_one, ledger_rows

TYPES = ("train", "train.sum", *(f"train.{stage}" for stage in STAGES), "train.other", "evaluate", "query.other")
WAYS = {
    ("none", False): {"train"},
    ("local_dp", False): {"train"},
    ("distributed_dp", False): {"train.sum"},
    ("central_dp", False): {"train.sum"},
    **{(privacy, True): {"train.keys"} for privacy in ("none", "local_dp", "distributed_dp", "central_dp")},
}
MECHANISM = {"central_dp": {"target_quantile": 0.5, "clip_norm": 1.0}}
REQUESTS = dict(
    zip(
        STAGES,
        (messages.Begin, messages.KeyList, messages.Inbox, messages.Survivors, messages.UnmaskRequest),
        strict=True,
    )
)


def job_of(folder, privacy, secure, **changes):
    mechanism = MECHANISM.get(privacy, {}) | changes.pop("mechanism", {})
    return make(folder, privacy=privacy, secure=secure, clients=3, mechanism=mechanism, **changes)


def honest(job, position=Position(1, 0)):  # noqa: B008
    """What a server that follows the plan sends first, to whatever way of answering."""
    state = model_of(job)
    roster = job.sums.roster if job.sums else None
    begin = b""
    if roster is not None:
        start = state.hash(1.0 if job.sums.kind == "clipped_update" else None)
        begin = messages.Begin(position.round - 1, position.attempt, roster.digest, start).to_bytes()
    config = {"data": begin, "position": list(position), "server-round": position.round, CLIP: 1.0, "proximal-mu": 0.0}
    return RecordDict({"arrays": to_record(state), "config": ConfigRecord(config)})


def told(grid, content, kind, client=1):
    (reply,) = grid.deliver([Message(content, client + 2, kind)])
    return reply


@pytest.mark.parametrize(("privacy", "secure"), WAYS)
def test_a_client_answers_in_the_way_of_its_own_configuration_alone(tmp_path, privacy, secure):
    job = job_of(tmp_path, privacy, secure)
    with grid_of(job) as grid:
        answered = {kind for kind in TYPES if not told(grid, honest(job), kind).has_error()}
        assert answered == WAYS[privacy, secure]
        # All that it charged is the one answer that it gave, if that one left.
        releases = {"train": job.plan.clients[1].steps_per_round, "train.sum": 1}.get(*answered, 0)
        keeps = privacy != "none" and not (privacy == "central_dp" and not secure)
        assert sum(steps for _, steps, _ in ledger_rows(job, 1)) == (releases if keeps else 0)


OTHER = {  # fields of a message's settings, changed to what is no plan's: refused before anything is charged
    "server-round": (0, -1, 4, 2**40, True, 1.0, "1", None),
    "position": ([0, 0], [-1, 0], [4, 0], [1, -1], [1, 3], [2**40, 0], [1], [1, 0, 0], [1.0, 0.0], "10", b"", None),
    CLIP: (0.0, -1.0, math.nan, math.inf, 1e-9, 1e9, 0.99, 1.01, 1, "1", None),
}


@pytest.mark.parametrize(("privacy", "secure"), [way for way in WAYS if not way[1]])
def test_another_setting_is_refused_and_a_pull_ignored(tmp_path, privacy, secure):
    job = job_of(tmp_path, privacy, secure, mechanism={"noise_source": "seed"} if privacy != "none" else {})
    (kind,) = WAYS[privacy, secure]
    relevant = {"train": {"server-round"}, "train.sum": {"position"}}[kind] | (
        {CLIP} if privacy == "central_dp" else set()
    )
    with grid_of(job) as grid:
        for name in relevant:
            for value in OTHER[name]:
                content = honest(job)
                del content["config"][name]
                if value is not None:
                    content["config"][name] = value
                assert told(grid, content, kind).has_error(), (name, value)
        for content in other_models(job):
            assert told(grid, content, kind).has_error()
        assert ledger_rows(job, 1) == []
        right = told(grid, honest(job), kind).content
        pulled = honest(job)
        for name, value in (("proximal-mu", 1e4), ("local-steps", 9), ("clip_norm", 1e9), *((n, -3) for n in OTHER)):
            if name not in relevant:
                pulled["config"][name] = value
        assert same_content(job, told(grid, pulled, kind).content, right)


def same_content(job, one, other):
    """The same tensors and the same protocol bytes."""
    if "reply" in one:
        return dict(one["reply"]) == dict(other["reply"])
    models = (from_record(each["arrays"], job.layout, momentum=job.sends_momentum) for each in (one, other))
    return same(*models)


def other_models(job):
    """Messages whose model is not the one that is configured: one more, less, of another shape or type, or none.

    And one of as many numbers, whose names or shapes are others.
    """
    state = model_of(job)
    tensors = state.parameter_tensors()
    name, other = tensors
    for changed in (
        tensors | {"more": tensors[name]},
        {other: tensors[other]},
        tensors | {name: tensors[name][..., :-1].clone()},
        {key: value.double() for key, value in tensors.items()},
        tensors | {name: tensors[name].flatten()},
        {"renamed": tensors[name], other: tensors[other]},
    ):
        content = honest(job)
        momentum = {f"momentum/{key}": value for key, value in changed.items()} if job.sends_momentum else {}
        content["arrays"] = to_record(ModelState.of_tensors(changed | momentum))
        yield content
    right = to_record(state)
    for changed in (
        dict(right) | {"more": to_array(state.parameters)},
        dict(list(right.items())[1:]),
        dict(right) | {next(iter(right)): to_array(state.parameters.astype("f8"))},
    ):
        content = honest(job)
        content["arrays"] = ArrayRecord(changed)
        yield content
    content = honest(job)
    content["arrays"] = ArrayRecord()
    yield content
    content = honest(job)
    del content["arrays"]
    yield content


@pytest.mark.parametrize("stage", STAGES)
def test_every_message_at_every_stage_but_the_next_one_is_refused(tmp_path, stage):
    """Client 1 gets, in place of its own message, one of each other type, of this very attempt."""
    job = job_of(tmp_path, "none", True, rounds=20)
    kinds = [kind for kind in TYPES if kind not in ("train", "train.sum") and kind != f"train.{stage}"]
    with grid_of(job) as grid:
        for number, kind in enumerate(kinds, start=1):
            sent: dict[str, RecordDict] = {}
            seen = []

            def interfere(at, client, message, *, sent=sent, seen=seen, kind=kind):
                if client == 1:
                    sent[f"train.{at}"] = message.content
                    if at == stage:
                        seen.append(told(grid, copy.deepcopy(sent.get(kind, message.content)), kind))
                return message

            grid.rewrite = interfere
            with suppress(MedxError):
                secure_sum(job.sums, replace(at_round_one(job, grid), position=Position(number, 0)), Summed())
            assert [reply.has_error() for reply in seen] == [True], kind


def mutations(kind, data):
    """The message with each field changed, one at a time."""
    message = kind.from_bytes(data, "server")
    for field in fields(message):
        value = getattr(message, field.name)
        if isinstance(value, int):
            changes = [value + 1, -1, 2**40]
        elif isinstance(value, bytes):
            changes = [b"", bytes([value[0] ^ 1]) + value[1:], value + b"x"]
        elif isinstance(value, tuple):
            changes = [(), value[:-1], (*value, 9)] if value else [(0,), (9,)]
        else:
            key = next(k for k in value if k != 1)
            changes = [{}, {k: v for k, v in value.items() if k != key}, value | {9: value[key]}]
            changes += [value | {key: value[key][:-1]}, value | {key: bytes([value[key][-1] ^ 1]) * len(value[key])}]
        for change in changes:
            yield field.name, replace(message, **{field.name: change}).to_bytes()
    yield "kind", b"XXXX" + data[4:]
    yield "length", data[:-1]
    yield "more", data + b"\0"


@pytest.mark.parametrize("stage", STAGES)
def test_every_field_of_the_protocol_changed_alone_is_refused(tmp_path, stage):
    """And the attempt is over for the client that was told so: it signs, masks and opens nothing more."""
    job = job_of(tmp_path, "none", True, rounds=60)
    number, tried, more = -1, 0, True
    with grid_of(job) as grid:
        while more:
            number, result, asked = number + 2, Summed(), {}

            def change(at, client, message, tried=tried, asked=asked):
                if client == 1:
                    asked[at] = asked.get(at, 0) + 1
                    if at == stage:
                        changed = list(mutations(REQUESTS[at], message.content["config"]["data"]))
                        asked["count"] = len(changed)
                        asked["field"], message.content["config"]["data"] = changed[tried]
                return message

            grid.rewrite = change
            with suppress(MedxError):
                secure_sum(job.sums, replace(at_round_one(job, grid), position=Position(number, 0)), result)
            answers = [reply for at, client, reply in grid.seen if (at, client) == (stage, 1)]
            if asked["field"] in ("round", "attempt") and not answers[-1].has_error():
                # Another place in the plan: its keys are for that one alone, and no sum of this one has its part.
                assert answers[-1].content["reply"]["position"] != [number, 0]
                assert 1 not in result.survivors
            else:
                assert answers[-1].has_error(), asked["field"]
            tried += 1
            more = tried < asked["count"]


@pytest.mark.parametrize("privacy", ["none", "local_dp", "distributed_dp", "central_dp"])
def test_settings_beside_the_protocol_move_no_word(tmp_path, privacy):
    """At every stage after the first: other settings, positions and models than those that the keys are signed over."""
    mechanism = {} if privacy == "none" else {"noise_source": "seed"}
    job = job_of(tmp_path, privacy, True, rounds=3, mechanism=mechanism, trainer={"learning_rate": 0.01})
    settings = {CLIP: 1.0} if privacy == "central_dp" else {}
    right = np.sum([words(job, client, 1, **settings) for client in range(3)], axis=0, dtype=np.uint32)

    def lie(stage, client, message):
        more = {"proximal-mu": 1e4, "local-steps": 7, "server-round": 3}
        for name, value in (more | ({} if stage == "keys" else {CLIP: 1e-9, "position": [3, 2]})).items():
            message.content["config"][name] = value
        if stage != "keys":
            state = model_of(job)
            message.content["arrays"] = to_record(replace(state, parameters=state.parameters + 1))
        return message

    with grid_of(job) as grid:
        grid.rewrite = lie
        result = Summed()
        secure_sum(job.sums, replace(at_round_one(job, grid), settings=settings), result)
    assert np.array_equal(result.total, right)


def test_two_clip_norms_in_one_round_end_before_any_words(tmp_path):
    job = job_of(tmp_path, "central_dp", True, rounds=30)
    reached = []

    def lie(stage, client, message):
        reached.append(stage)
        if stage == "keys" and client == 2:  # both are what the configured rule could have reached by round 20
            config = message.content["config"]
            config[CLIP] = 0.5
            begin = messages.Begin.from_bytes(config["data"], "server")
            config["data"] = replace(begin, model_hash=model_of(job).hash(0.5)).to_bytes()
        return message

    with grid_of(job) as grid:
        grid.rewrite = lie
        attempt = replace(at_round_one(job, grid), settings={CLIP: 1.0}, position=Position(20, 0))
        with pytest.raises(MedxError, match="left after stage keys"):
            secure_sum(job.sums, attempt, Summed())
    assert set(reached) == {"keys"}


def test_the_clip_norm_stays_within_the_configured_rule(tmp_path):
    job = job_of(tmp_path, "central_dp", True, mechanism={"target_quantile": 0.75, "clip_learning_rate": 0.2})
    for number in (1, 2, 30):
        low, high = math.exp(-0.2 * 0.25 * (number - 1)), math.exp(0.2 * 0.75 * (number - 1))
        for right in (low, 1.0, high):
            assert allowed_clip_norm(job, number, right) == right
        for wrong in (0.999 * low, 1.001 * high):
            with pytest.raises(PrivacyError, match=rf"round {number}: accepted with privacy.clip_norm=1 is"):
                allowed_clip_norm(job, number, wrong)
    fixed = job_of(tmp_path / "f", "central_dp", True, mechanism={"target_quantile": None})
    assert allowed_clip_norm(fixed, 30, 1.0) == 1.0
    with pytest.raises(PrivacyError):
        allowed_clip_norm(fixed, 30, 1.001)


def test_an_update_beyond_the_bound_abstains(tmp_path):
    job = job_of(tmp_path, "none", True, aggregation={"update_bound": 1e-3})
    with pytest.raises(AbstainedError, match=r"coordinates beyond the bound 0\.001 of the sum"):
        words(job, 0, 1)
    forget(job)
    with pytest.raises(RoundAborted, match=r"0 usable answers, 2 needed; the first failure: AbstainedError"):
        run(job)


@pytest.mark.parametrize("source", ["seed", "system"])
def test_each_client_charges_itself_under_central_dp_and_stops_at_its_reservation(tmp_path, source):
    """Three rounds are reserved: whatever the server asks, three releases leave, and the fourth is refused."""
    job = job_of(tmp_path, "central_dp", True, rounds=3, mechanism={"noise_source": source, "spare_rounds": 0})
    opened, refused = [], []
    with grid_of(job) as grid:
        for position in (Position(number, attempt) for number in (1, 2) for attempt in range(4)):
            attempt = replace(at_round_one(job, grid), settings={CLIP: 1.0}, position=position)
            result = Summed()
            try:
                secure_sum(job.sums, attempt, result)
                opened.append(position)
            except MedxError as error:
                refused.append((position, f"{error} {result.failures}"))
    assert opened == [(1, 0), (1, 1), (1, 2)]
    reasons = ["of 3 rounds with 3 attempts", *["3 of the 3 reserved are spent"] * 3, "of 3 rounds with 3 attempts"]
    assert all(reason in text for reason, (_, text) in zip(reasons, refused, strict=True)), refused
    assert [ledger_rows(job, client) for client in range(3)] == [[(0, 1, 1), (1, 1, 1), (2, 1, 1)]] * 3
    assert not ledger_path(job, 0).with_name("server.sqlite").exists()
    assert recorded_steps(job, dict.fromkeys(range(3), 3)) == dict.fromkeys(range(3), 3)
    with pytest.raises(LedgerError):
        words_of(site_of(job).hospital(0), model_of(job), Position(3, 0), 1.0)
    forget(job)


def test_a_node_that_finds_an_old_memory_again_gives_no_second_vector_and_no_second_share(tmp_path):
    job = job_of(tmp_path, "none", True)
    kept, again = {}, {}
    with grid_of(job) as grid:

        def restore(stage, client, message):
            if client == 1:
                kept[stage] = copy.deepcopy(dict(grid.state_of(1)))
                again[stage] = copy.deepcopy(message)
            return message

        grid.rewrite = restore
        secure_sum(job.sums, at_round_one(job, grid), Summed())
        for stage in STAGES:
            for memory in (kept[stage], {}):
                state = grid.state_of(1)
                for name in list(state):
                    del state[name]
                for name, record in memory.items():
                    state[name] = copy.deepcopy(record)
                assert told(grid, again[stage].content, f"train.{stage}").has_error(), stage
    assert ledger_rows(job, 1) == []
