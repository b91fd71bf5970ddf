"""Cut networks, late answers, kills and full disks at the coordinator: the study goes on, and no charge is lost."""

import errno
import json
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml
from flwr.app import ConfigRecord, Context, Message

import medx.model.cnn
import medx.model.storage
from medx.federation.checkpoint import checkpoints, load_checkpoint
from medx.results import ExperimentResult
from medx.runtime.in_process import copy_of
from medx.schema import ConfigError
from medx.site.answering import SIGNED, Answers, signed_part
from medx.site.conduct import conduct, run_folder
from medx.site.hospital import Site
from medx.site.study import Study
from medx.tracking import tracker
from tests.site.consortium_example import (
    LOCAL,
    NAMES,
    ROUNDS,
    SECURE,
    Example,
    Wire,
    fresh,
    study_of,
    wired,
)
from tests.site.disturbance import AGAIN, Calm, Pulled, answer_like, charged, disturbed, ended, ended_as, prepared
from tests.site.soak import losses
from tests.site.test_deployment import free_port
from tests.site.test_hospital import conduct_quickly, same_model


@pytest.mark.parametrize("own", [LOCAL, SECURE], ids=["local", "secure"])
def test_an_answer_that_comes_twice_or_again_later_counts_once(
    example: Example, calm: Callable[[tuple[str, ...]], Calm], own: tuple[str, ...]
) -> None:
    """Before each answer stands the hospital's last as if it were to this message, after it another that it signs."""
    undisturbed = calm(own)
    text = prepared(example, undisturbed.study)

    def twice(grid: Wire) -> Pulled:
        last: dict[tuple[int, str], Message] = {}

        def change(replies: list[Message]) -> Iterable[Message]:
            for reply in replies:
                key = (reply.metadata.src_node_id, reply.metadata.message_type)
                if key in last:
                    yield last[key]  # of the round before, to the message of then
                    yield answer_like(reply, last[key].content)  # and as if to this one
                yield reply
                yield second_thought(grid, undisturbed.study, reply)
                last[key] = reply

        return change

    ended_as(example, undisturbed, disturbed(example, text, twice))


def second_thought(grid: Wire, study: Study, reply: Message) -> Message:
    """Another answer to the same message, as well signed."""
    content, node = copy_of(reply.content), reply.metadata.src_node_id
    content.pop(SIGNED, None)
    if "reply" in content:
        content["reply"]["data"] = bytes(len(content["reply"]["data"]))  # type: ignore[index, arg-type, call-overload]
    for array in content["arrays"].values() if "arrays" in content else ():
        array.data = array.data[:-1] + bytes([array.data[-1] ^ 1])  # type: ignore[union-attr, index, operator]
    said = signed_part(study.digest, node, reply.metadata.reply_to_message_id, content)
    content[SIGNED] = ConfigRecord({"signature": grid.answers[node - 2].site.identity.sign(said)})
    return answer_like(reply, content)


def test_a_hospital_that_freezes_is_left_out_of_its_round_and_its_late_answer_of_the_next(
    example: Example, tmp_path: Path
) -> None:
    """It has charged itself for what came too late, and the result says so."""
    study = study_of(example, *LOCAL, "federation.min_clients=2")
    text = prepared(example, study)
    models = []
    for comes_later in (False, True):
        copy = fresh(example, tmp_path / f"later-{comes_later}")

        def frozen(grid: Wire, comes_later: bool = comes_later) -> Pulled:
            held: list[Message] = []
            rounds = [0]

            def change(replies: list[Message]) -> Iterable[Message]:
                for reply in replies:
                    if (reply.metadata.src_node_id, reply.metadata.message_type) == (2, "train"):
                        rounds[0] += 1
                        if rounds[0] == 2:
                            held.append(reply)
                            continue
                        if comes_later and held:
                            yield held.pop()
                    yield reply

            return change

        result = disturbed(copy, text, frozen)
        assert result.status == "finished", result.error
        assert [record.clients for record in result.rounds] == [3, 2, 3, 3, 3]
        assert [client.steps for client in result.privacy.clients] == [2 * ROUNDS] * 3
        assert losses(copy, study, result, ROUNDS) == []
        models.append(run_folder(copy.coordinator, study))
    assert same_model(*models)


def test_a_network_that_is_cut_in_a_secure_round_ends_it_and_healed_the_study_goes_on(example: Example) -> None:
    """With the model as it was, and after as many attempts as are made in one go: none of them is made twice."""
    study = study_of(example, *AGAIN)
    text = prepared(example, study)

    def cut_from_the_third_round(grid: Wire) -> Pulled:
        seen: Counter[str] = Counter()

        def change(replies: list[Message]) -> Iterable[Message]:
            for reply in replies:
                seen[reply.metadata.message_type] += reply.metadata.src_node_id == 2
                if seen["train.masked"] < 3 or reply.metadata.src_node_id == 4:
                    yield reply

        return change

    result = disturbed(example, text, cut_from_the_third_round)
    assert (result.status, len(result.rounds)) == ("aborted", 2)
    assert load_checkpoint(run_folder(example.coordinator, study) / "checkpoints").round == 2
    before = charged(example, study)
    assert before == [3, 3, 3], "of the third round one attempt came to words"
    with wired(example, text) as grid:
        ended(example, study, conduct_quickly(example, text, grid))
    assert charged(example, study) == [ROUNDS + 1] * 3


def test_a_receipt_that_was_lost_on_its_way_is_asked_for_again(example: Example, calm: Any) -> None:
    undisturbed = calm(LOCAL)
    text = prepared(example, undisturbed.study)
    lost = []

    def first_receipts(grid: Wire) -> Pulled:
        def change(replies: list[Message]) -> Iterable[Message]:
            for reply in replies:
                if reply.metadata.message_type == "query.receipt" and len(lost) < 4:
                    lost.append(reply)
                else:
                    yield reply

        return change

    ended_as(example, undisturbed, disturbed(example, text, first_receipts))
    assert len(lost) == 4


def fails_at_round_three(monkeypatch: pytest.MonkeyPatch, example: Example, text: str) -> ExperimentResult:
    """The study at a coordinator whose disk is full when the third round is to be kept."""
    save = medx.model.storage.save_file

    def full(tensors: Any, path: Path, metadata: Any) -> None:
        if "round_00003" in str(path):
            Path(path).write_bytes(b"half of it")
            raise OSError(errno.ENOSPC, "No space left on device")
        save(tensors, path, metadata)

    with monkeypatch.context() as patch, wired(example, text) as grid:
        patch.setattr(medx.model.storage, "save_file", full)
        result = conduct_quickly(example, text, grid)
    assert result.status == "failed"
    assert "No space left" in str(result.error)
    return result


def test_a_coordinator_whose_disk_is_full_or_whose_checkpoint_is_damaged_goes_on(
    example: Example, calm: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    undisturbed = calm(LOCAL)
    text = prepared(example, undisturbed.study)
    fails_at_round_three(monkeypatch, example, text)
    newest, before = checkpoints(run_folder(example.coordinator, undisturbed.study) / "checkpoints")
    assert (newest.name, before.name) == ("round_00002", "round_00001")
    (newest / "state.json").write_text("{")
    with wired(example, text) as grid:
        ended_as(example, undisturbed, conduct_quickly(example, text, grid))
    assert "falling back to the one before" in caplog.text


def test_a_tracking_server_that_is_down_stops_no_study(
    example: Example, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(example.folder)
    study = study_of(example, *LOCAL)
    text = prepared(example, study)
    store = {"option": "mlflow", "uri": f"http://127.0.0.1:{free_port()}", "request_timeout": 1, "final_wait": 1}
    (example.coordinator / "coordinator.yaml").write_text(yaml.safe_dump({"patience": 0, "tracking": store}))
    with wired(example, text) as grid:
        ended(example, study, conduct(example.coordinator, text, grid))
    folder = run_folder(example.coordinator, study)
    assert f"bring it there with: python -m medx.tracking sync {folder}" in caplog.text
    for place, follower in tracker._FOLLOWERS.items():
        if example.folder in place.parents:
            follower.kill()
            follower.wait()


def test_a_secure_sum_is_not_made_again_from_an_older_checkpoint(
    example: Example, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A round that was kept is never opened anew, and refusing it costs nothing; the one that was not is."""
    study = study_of(example, *AGAIN)
    text = prepared(example, study)
    fails_at_round_three(monkeypatch, example, text)
    newest, _ = checkpoints(run_folder(example.coordinator, study) / "checkpoints")
    shutil.copytree(newest, example.folder / "kept")
    (newest / "state.json").write_text("{")
    with wired(example, text) as grid:
        result = conduct_quickly(example, text, grid)
    assert (result.status, len(result.rounds)) == ("aborted", 1)
    assert "replay" in str(result.error)
    assert charged(example, study) == [3, 3, 3]
    shutil.rmtree(newest)
    (example.folder / "kept").rename(newest)
    with wired(example, text) as grid:
        ended(example, study, conduct_quickly(example, text, grid))
    assert charged(example, study) == [ROUNDS + 1] * 3, "the third round was released twice"


def test_an_interrupt_ends_a_study_as_killed_and_it_is_not_run_twice_at_once(example: Example) -> None:
    study = study_of(example, *AGAIN)
    text = prepared(example, study)
    asked = []
    with wired(example, text) as grid:
        deliver = grid.deliver

        def stopped(message: Message, context: Context) -> Message:
            asked.append(message.metadata.message_type)
            if asked.count("train.masked") == 5:
                with pytest.raises(ConfigError, match="this study is running; accepted: to wait for its end"):
                    conduct(example.coordinator, text, grid)
                raise KeyboardInterrupt
            return deliver(message, context)

        grid._app = stopped  # type: ignore[assignment]
        result = conduct_quickly(example, text, grid)
    assert (result.status, len(result.rounds)) == ("killed", 1)
    with wired(example, text) as grid:
        ended(example, study, conduct_quickly(example, text, grid))


def killed_with_an_answer_on_its_way(example: Example, text: str) -> None:
    """A study whose server is gone when the first hospital has trained for the third time."""
    trained: Counter[int] = Counter()
    with wired(example, text) as grid:
        deliver = grid.deliver

        def killed(message: Message, context: Context) -> Message:
            reply = deliver(message, context)
            trained[context.node_id] += message.metadata.message_type == "train"
            if trained[2] == 3:
                raise SystemExit
            return reply

        grid._app = killed  # type: ignore[assignment]
        with pytest.raises(SystemExit):
            conduct_quickly(example, text, grid)


def test_what_an_absent_hospital_may_have_spent_is_counted(example: Example) -> None:
    """It was asked just before the server was killed, and is away when the study is gone on with: nobody knows."""
    study = study_of(example, *LOCAL, "federation.min_clients=2")
    text = prepared(example, study)
    killed_with_an_answer_on_its_way(example, text)
    with wired(example, text) as grid:
        grid.answers[0].answer = lambda message, context: 1 / 0  # type: ignore[assignment, method-assign, return-value]
        result = conduct_quickly(example, text, grid)
    assert result.status == "finished"
    spent = charged(example, study)
    assert spent[0] == 2 * 3
    assert losses(example, study, result, ROUNDS) == ["north: no receipt"]
    assert [client.steps for client in result.privacy.clients] == [2 * ROUNDS, *spent[1:]], "all that it has reserved"


@pytest.mark.parametrize("own", [LOCAL, AGAIN], ids=["local", "secure"])
def test_twenty_restarts_at_random_moments_lose_nothing(example: Example, own: tuple[str, ...]) -> None:
    """Executor, node, the run's server, or all of them, before or after an answer; ``tests.site.soak`` kills them."""
    study = study_of(example, *own)
    text = prepared(example, study)
    draw, faults = random.Random(7), list[str]()
    statuses, receipts = list[str](), list[Any]()
    while (statuses[-1:] != ["finished"] or len(receipts) < len(NAMES)) and len(statuses) < 60:
        with wired(example, text) as grid:
            grid._app = restarting(example, grid, draw, faults)  # type: ignore[assignment]
            try:
                result = conduct_quickly(example, text, grid)
                statuses.append(result.status)
                receipts = json.loads((run_folder(example.coordinator, study) / "receipts.json").read_text())
            except SystemExit:
                statuses.append("killed")
    assert len(faults) == 20
    assert set(faults) == {"executor", "node", "server", "all"}
    assert "killed" in statuses
    ended(example, study, result)


def restarting(
    example: Example, grid: Wire, draw: random.Random, faults: list[str], most: int = 20
) -> Callable[[Message, Context], Message]:
    """The delivery of messages with faults between them, ``most`` in all."""

    def deliver(message: Message, context: Context) -> Message:
        number, late = context.node_id - 2, draw.random() < 0.5
        struck = len(faults) < most and draw.random() < 0.3
        if not struck:
            return grid.deliver(message, context)
        if late:
            grid.deliver(message, context)
        what = draw.choice(("executor", "node", "server", "all"))
        faults.append(what)
        for each in grid.answers if what == "all" else [number]:
            if what in ("executor", "all"):
                grid.answers[each].site.close()
                grid.answers[each] = Answers(Site(example.kit(NAMES[each])))
            if what in ("node", "all"):
                grid.forget(each)
        if what in ("server", "all"):
            raise SystemExit
        raise ConnectionError("no answer has come")

    return deliver
