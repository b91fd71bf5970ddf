"""A study of buffered rounds through kills, second answers and hospitals that stay away: no charge is lost."""

import json
import random
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import pytest
from flwr.app import Message

import medx.federation.hospital
from medx.federation.checkpoint import load_checkpoint
from medx.federation.hospital import Hospital
from medx.federation.setup import Job
from medx.results import ExperimentResult
from medx.site import coordinator
from medx.site.conduct import run_folder
from medx.site.study import Study
from medx.trainer.local_training import ClientUpdate
from medx.trainer.state import ModelState
from tests.site.consortium_example import LOCAL, NAMES, Example, Wire, study_of, wired
from tests.site.disturbance import Calm, Pulled, answer_like, charged, disturbed, prepared
from tests.site.soak import losses
from tests.site.test_going_on import killed_with_an_answer_on_its_way, restarting, second_thought
from tests.site.test_hospital import conduct_quickly, same_model

ANSWERS = 4
BUFFERED = (*LOCAL, "federation=fedbuff", "federation.buffer_size=2", f"federation.num_rounds={ANSWERS}")


def covered(example: Example, study: Study, result: ExperimentResult) -> None:
    """Finished; every ledger is covered by what the result states, and shows no more than its plan."""
    assert result.status == "finished", result.error
    assert losses(example, study, result, None) == []
    assert [client.steps for client in result.privacy.clients] == charged(example, study)


@dataclass
class Heard:
    """``sums`` are what hospitals released, by the key of its noise; ``models`` what they began from, by place."""

    sums: defaultdict[bytes, set[bytes]] = field(default_factory=lambda: defaultdict(set))
    models: defaultdict[tuple[int, int], set[bytes]] = field(default_factory=lambda: defaultdict(set))


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> Heard:
    """All releases while a test runs."""
    keyed, train, heard, last = medx.federation.hospital.secret_key, Hospital.train, Heard(), list[bytes]()

    def listening(job: Job, purpose: str, *keys: Any) -> bytes:
        key = keyed(job, purpose, *keys)
        if purpose == "noise":
            last[:] = [key]
        return key

    def telling(self: Hospital, state: ModelState, number: int) -> ClientUpdate:
        update = train(self, state, number)
        heard.sums[last[0]].add(update.state.hash())
        heard.models[self.client, number].add(state.hash())
        return update

    monkeypatch.setattr(medx.federation.hospital, "secret_key", listening)
    monkeypatch.setattr(Hospital, "train", telling)
    return heard


@pytest.mark.parametrize("source", ["seed", "system"])
def test_restarts_at_random_moments_lose_nothing_and_put_no_noise_on_two_sums(
    source: str, example: Example, monkeypatch: pytest.MonkeyPatch, heard: Heard
) -> None:
    """Executor, node, the run's server, or all of them, before or after an answer, in the middle of a buffer."""
    monkeypatch.setattr(coordinator, "AGAIN", 0.0)
    study = study_of(example, *BUFFERED, f"noise={source}", "privacy.spare_rounds=1")
    text = prepared(example, study)
    draw, faults, killed, receipts = random.Random(1), list[str](), 0, []
    result = None
    while result is None or result.status != "finished" or len(receipts) < len(NAMES):
        with wired(example, text) as grid:
            grid._app = restarting(example, grid, draw, faults, most=8)  # type: ignore[assignment]
            try:
                result = conduct_quickly(example, text, grid)
                receipts = json.loads((run_folder(example.coordinator, study) / "receipts.json").read_text())
                stated = [client.steps for client in result.privacy.clients]
                assert all(map(int.__le__, charged(example, study), stated)), "whether it has finished or not"
            except SystemExit:
                killed += 1
        assert killed < 20
    assert killed > 1
    covered(example, study, result)
    assert all(record.epsilon <= 10 for record in result.rounds), "no round states more than can have been begun"
    assert all(len(sums) == 1 for sums in heard.sums.values()), "one noise on two sums"
    if source == "seed":
        assert max(map(len, heard.models.values())) > 1, "one place in the plan with two models"
    else:
        assert len(heard.sums) * 2 == sum(charged(example, study)), "each release has a noise of its own"


def test_an_answer_that_comes_twice_or_again_later_counts_once(
    example: Example, calm: Callable[[tuple[str, ...]], Calm]
) -> None:
    """Before each answer the last one as if it were to this question, after it another; and all of it once more."""
    undisturbed = calm(BUFFERED)
    text = prepared(example, undisturbed.study)

    def twice(grid: Wire) -> Pulled:
        last: dict[int, Message] = {}

        def change(replies: list[Message]) -> Iterable[Message]:
            for reply in replies:
                if reply.metadata.message_type != "train":
                    yield reply
                    continue
                if (before := last.get(reply.metadata.src_node_id)) is not None:
                    yield before  # of an older model, to the message of then
                    yield answer_like(reply, before.content)  # and as if to this one
                yield reply
                yield second_thought(grid, undisturbed.study, reply)
                yield reply
                last[reply.metadata.src_node_id] = reply

        return change

    result = disturbed(example, text, twice)
    covered(example, undisturbed.study, result)
    assert same_model(undisturbed.folder, run_folder(example.coordinator, undisturbed.study))
    assert sum(record.failed for record in result.rounds) == 0


def test_a_hospital_that_was_asked_and_stays_away_is_counted_in_full_and_the_others_end(example: Example) -> None:
    """The server is killed with its answer on the way, and what its ledger shows is not told to it any more."""
    alone = ("federation.buffer_size=1", "federation.min_clients=1")  # its answers could fill a buffer, if it came
    study = study_of(example, *LOCAL, "federation=fedbuff", f"federation.num_rounds={ANSWERS}", *alone)
    text = prepared(example, study)
    killed_with_an_answer_on_its_way(example, text)
    assert load_checkpoint(run_folder(example.coordinator, study) / "checkpoints").charged[0] < 3 * 2
    with wired(example, text) as grid:
        grid.answers[0].answer = lambda message, context: 1 / 0  # type: ignore[assignment, method-assign, return-value]
        result = conduct_quickly(example, text, grid)
    assert result.status == "finished", result.error
    spent = charged(example, study)
    assert spent[0] == 3 * 2, "what was on the way is spent"
    assert losses(example, study, result, None) == ["north: no receipt"]
    assert [client.steps for client in result.privacy.clients] == [ANSWERS * 2, *spent[1:]]
