"""What breaks at hospitals, on the way and at the coordinator: refused or left out, and no charge is lost."""

import errno
import json
import random
import shutil
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from flwr.app import Context, Message, RecordDict
from torch import nn

import medx.model.cnn
import medx.model.storage
from medx.aggregation.roster import read_identity
from medx.federation.checkpoint import checkpoints, load_checkpoint
from medx.federation.replies import Code
from medx.federation.summed_rounds import TRIES
from medx.privacy.ledger import PrivacyLedger
from medx.results import ExperimentResult
from medx.schema import ConfigError
from medx.site.answering import SPENT, Answers
from medx.site.audit import AuditError, AuditLog, entries
from medx.site.conduct import conduct, run_folder
from medx.site.declaring import described, own_dataset, sign_declaration
from medx.site.hospital import Site
from medx.site.site_config import SiteConfig
from medx.site.study import Study
from medx.site.submitting import new_study
from medx.tracking import tracker
from tests.site.consortium_example import (
    LOCAL,
    NAMES,
    ROUNDS,
    SECURE,
    Example,
    Wire,
    approve,
    fresh,
    overrides_of,
    signed,
    study_of,
    wired,
)
from tests.site.soak import losses
from tests.site.test_deployment import free_port
from tests.site.test_hospital import ask, changed, conduct_quickly, same_model, trusting, with_config

# What was begun once is begun again as a release of its own, with other noise.
AGAIN = (*SECURE, "aggregation.max_attempts=30", "privacy.spare_rounds=60")


@dataclass(frozen=True)
class Calm:
    """A study that nothing disturbed, and where its model lies."""

    study: Study
    text: str
    folder: Path


@pytest.fixture(scope="module")
def calm(pristine: Example, tmp_path_factory: pytest.TempPathFactory) -> Callable[[tuple[str, ...]], Calm]:
    """The study of these overrides, which ended undisturbed in a copy of the consortium; once a module."""
    known: dict[tuple[str, ...], Calm] = {}

    def of(own: tuple[str, ...]) -> Calm:
        if own not in known:
            example = fresh(pristine, tmp_path_factory.mktemp("calm") / "lungs")
            study = study_of(example, *own)
            text = prepared(example, study)
            with wired(example, text) as grid:
                assert conduct_quickly(example, text, grid).status == "finished"
            known[own] = Calm(study, text, run_folder(example.coordinator, study))
        return known[own]

    return of


def prepared(example: Example, study: Study) -> str:
    """The signed text of a study that all hospitals have approved."""
    trusting(example)
    approve(example, study)
    return signed(example, study)


def ended(example: Example, study: Study, result: ExperimentResult) -> None:
    """Finished, with nothing lost."""
    assert result.status == "finished", result.error
    assert losses(example, study, result, ROUNDS) == []


def ended_as(example: Example, calm: Calm, result: ExperimentResult) -> None:
    """The same, to the bit as if nothing had happened."""
    ended(example, calm.study, result)
    assert same_model(calm.folder, run_folder(example.coordinator, calm.study))


def charged(example: Example, study: Study) -> list[int]:
    """The releases that each hospital's ledger shows as begun."""
    counts = []
    for number, name in enumerate(example.names):
        path = example.kit(name) / "ledger" / f"client_{number:04d}.sqlite"
        with closing(PrivacyLedger(path, create=False)) as ledger:
            counts.append(sum(count for _, count in ledger.executed(study.run)))
    return counts


OUT_OF_RANGE: list[tuple[str, dict[str, Any]]] = [
    ("privacy", {"epsilon": 0}),
    ("privacy", {"epsilon": -1.0}),
    ("privacy", {"epsilon": "much"}),
    ("privacy", {"delta": 0}),
    ("privacy", {"delta": 0.02}),  # more than 1/N of a hospital
    ("privacy", {"clip_norm": 0}),
    ("trainer", {"sampling_probability": 0}),
    ("trainer", {"sampling_probability": 1.01}),
    ("trainer", {"epsilno": 1}),
    ("federation", {"num_rounds": 0}),
]


def test_a_study_that_cannot_be_is_refused_though_the_coordinator_signed_it(
    example: Example, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ranges hold at the hospital too, before an image is read: who signs need not use ``medx submit``."""
    read: list[object] = []
    monkeypatch.setattr("medx.site.hospital.prepare_own", lambda *given: read.append(given))
    honest = study_of(example, *SECURE)
    site = Site(example.kit("north"))
    for group, values in OUT_OF_RANGE:
        study = with_config(honest, group, **values)
        approve(example, study, "north")
        assert ask(site, signed(example, study)).error.code == Code.REFUSED, values
    for text in (signed(example, honest).replace('"seed":0', f'"seed":{odd}') for odd in ("NaN", "1e999", "[]")):
        assert ask(site, text).error.code == Code.REFUSED
    assert not read
    assert not (example.kit("north") / "ledger").exists()


def at_north(example: Example, **changes: Any) -> Site:
    """The first hospital with another configuration."""
    path = example.kit("north") / "site.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | changes))
    return Site(example.kit("north"))


def test_what_a_hospital_cannot_train_on_is_refused_by_its_kind_alone(
    example: Example, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its log says which file or key; the coordinator hears no path, and nothing is charged."""
    study = study_of(example, *SECURE)
    text = prepared(example, study)
    own = dict(Site(example.kit("north")).config.dataset)
    fewer = example.folder / "fewer"
    shutil.copytree(str(own["path"]), fewer)
    lines = (fewer / "labels.csv").read_text().splitlines(keepends=True)
    (fewer / "labels.csv").write_text("".join(lines[:40]))
    faults = {
        "no such file": {"dataset": own | {"path": "/nowhere/secret"}},
        "not what it declared": {"dataset": own | {"path": str(fewer)}},
        "no such device": {"device": "cuda"},
    }
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    said = {name: ask(at_north(example, **changes), text).error for name, changes in faults.items()}
    at_north(example, dataset=own, device="cpu")

    def batch_norm(*_: object) -> nn.Module:
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 26 * 26, 1))

    with monkeypatch.context() as patch:
        patch.setattr(medx.model.cnn.Cnn, "build", batch_norm)
        other = changed(study, nonce="1" * 64, seed=9)  # a module is built once a seed
        approve(example, other, "north")
        said["a layer that couples"] = ask(Site(example.kit("north")), signed(example, other)).error
    assert {name: (error.code, error.reason) for name, error in said.items()} == {
        "no such file": (Code.REFUSED, "DataError"),
        "not what it declared": (Code.REFUSED, "DataError"),
        "no such device": (Code.REFUSED, "ConfigError"),
        "a layer that couples": (Code.REFUSED, "PrivacyError"),
    }
    assert not (example.kit("north") / "ledger").exists()
    why = " ".join(str(entry.details["why"]) for entry in entries(example.kit("north") / "audit.jsonl"))
    assert all(words in why for words in ("/nowhere/secret", "that this hospital declared", "cuda", "BatchNorm2d"))


def test_a_ledger_that_is_corrupt_or_locked_lets_no_study_begin(
    example: Example, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = prepared(example, study_of(example, *SECURE))
    path = example.kit("north") / "ledger" / "client_0000.sqlite"
    path.parent.mkdir()
    path.write_bytes(b"garbage" * 1000)
    corrupt = ask(Site(example.kit("north")), text)
    assert (corrupt.error.code, corrupt.error.reason) == (Code.LEDGER, SPENT)
    assert path.read_bytes() == b"garbage" * 1000, "it is kept, and none begins anew beside it"
    path.unlink()
    PrivacyLedger(path, create=True).close()
    monkeypatch.setitem(PrivacyLedger.__init__.__kwdefaults__, "timeout", 0.2)  # type: ignore[index]
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    site = Site(example.kit("north"))
    assert ask(site, text).error.code == Code.LEDGER
    holder.close()
    assert ask(site, text).has_content()


def test_two_studies_at_once_never_overspend_together(example: Example) -> None:
    """As by two executors that were started on one kit."""
    for name in example.names:
        example.set_policy(name, total_epsilon=6.0)
    studies = [study_of(example, *SECURE, "privacy.epsilon=5") for _ in range(4)]
    for study in studies:
        approve(example, study, "north")
    replies: list[Message] = []
    threads = [
        threading.Thread(target=lambda text: replies.append(ask(Site(example.kit("north")), text)), args=(text,))
        for text in [signed(example, study) for study in studies]
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(reply.error.code if reply.has_error() else 0 for reply in replies) == [0, *[Code.LEDGER] * 3]


def test_a_log_that_cannot_be_written_lets_nothing_happen_and_is_an_answer(
    example: Example, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The refusal itself cannot be noted then, and is given all the same: silence would be waited for."""
    text = prepared(example, study_of(example, *SECURE))
    site = Site(example.kit("north"))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(AuditLog, "_append", full)
        reply = ask(site, text)
        assert (reply.error.code, reply.error.reason) == (Code.REFUSED, "AuditError")
        assert ask(site, "no study").error.code == Code.REFUSED
    assert not (example.kit("north") / "ledger").exists()
    assert ask(site, "no study").has_error()
    assert [entry.event for entry in entries(site.config.audit)] == ["refused"], "noted once there is space"
    assert ask(site, text).has_content()


def test_what_is_lost_is_found(example: Example, calm: Any) -> None:
    """The judgement of every trial here, and of ``tests.site.soak``, rejects what is not right."""
    undisturbed = calm(SECURE)
    study, text = undisturbed.study, prepared(example, undisturbed.study)
    with wired(example, text) as grid:
        result = conduct_quickly(example, text, grid)
    assert losses(example, study, result, ROUNDS) == []
    assert losses(example, study, result, ROUNDS + 1) == [f"{ROUNDS} rounds of {ROUNDS + 1}"]
    less = result.privacy.model_copy(update={"epsilon": result.privacy.epsilon * 0.999})  # type: ignore[operator]
    assert len(losses(example, study, result.model_copy(update={"privacy": less}), ROUNDS)) == len(NAMES)
    ledger = example.kit("north") / "ledger" / "client_0000.sqlite"
    with closing(sqlite3.connect(ledger, isolation_level=None)) as database:
        database.execute("UPDATE rounds SET steps = steps - 1 WHERE round = 3")
    fewer = ["north: its receipt has 5 steps, its ledger 4", "north: it has answered for 5 steps, its ledger has 4"]
    assert losses(example, study, result, ROUNDS) == fewer
    (run_folder(example.coordinator, study) / "receipts.json").write_text("[]")
    assert "south: no receipt" in losses(example, study, result, ROUNDS)
    log = example.kit("west") / "audit.jsonl"
    log.write_bytes(b"".join(log.read_bytes().splitlines(keepends=True)[1:]))
    with pytest.raises(AuditError, match="line 1"):
        losses(example, study, result, ROUNDS)


Pulled = Callable[[list[Message]], Iterable[Message]]


def disturbed(example: Example, text: str, pulled: Callable[[Wire], Pulled]) -> ExperimentResult:
    """The study with a network between that gives out what ``pulled`` makes of the answers."""
    (example.coordinator / "coordinator.yaml").write_text("patience: 0\ntimeout: 1.5\n")
    with wired(example, text) as grid:
        change, pull = pulled(grid), grid.pull_messages
        grid.pull_messages = lambda ids: list(change(list(pull(ids))))  # type: ignore[method-assign]
        return conduct(example.coordinator, text, grid)


def answer_like(reply: Message, content: RecordDict) -> Message:
    """An answer to the same message with another content."""
    other = Message(content, reply_to=Message(RecordDict(), 1, reply.metadata.message_type))
    other.metadata.__dict__.update(reply.metadata.__dict__)
    return other


@pytest.mark.parametrize("own", [LOCAL, SECURE], ids=["local", "secure"])
def test_an_answer_that_comes_twice_or_again_later_counts_once(
    example: Example, calm: Callable[[tuple[str, ...]], Calm], own: tuple[str, ...]
) -> None:
    """Before each answer stands the hospital's last one as if it were to this message, and after it the same anew."""
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
                yield answer_like(reply, reply.content)
                last[key] = reply

        return change

    ended_as(example, undisturbed, disturbed(example, text, twice))


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


def test_what_an_absent_hospital_may_have_spent_is_counted(example: Example) -> None:
    """It was asked just before the server was killed, and is away when the study is gone on with: nobody knows."""
    study = study_of(example, *LOCAL, "federation.min_clients=2")
    text = prepared(example, study)
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
    example: Example, grid: Wire, draw: random.Random, faults: list[str]
) -> Callable[[Message, Context], Message]:
    """The delivery of messages with faults between them, twenty in all."""

    def deliver(message: Message, context: Context) -> Message:
        number, late = context.node_id - 2, draw.random() < 0.5
        struck = len(faults) < 20 and draw.random() < 0.3
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


def test_a_study_has_places_for_attempts_after_those_that_failed(example: Example) -> None:
    """As many as a person sets, else more than are made in one go."""
    for name in example.names:
        site = SiteConfig.load(example.kit(name))
        identity = read_identity(example.kit(name) / "identity.pem")
        said = sign_declaration(described(name, own_dataset(site, size=28).load()), example.consortium, identity)
        (example.coordinator / "declarations" / f"{name}.json").write_text(said)
    given = [part for part in overrides_of(example, *SECURE) if part.split("=")[0] not in ("partition", "tracking")]
    attempts = [
        new_study(example.coordinator, [*given, *own]).config["aggregation"].get("max_attempts")
        for own in ((), ("aggregation.max_attempts=4",))
    ]
    assert attempts == [30, 4]
    assert attempts[0] > 3 * TRIES  # type: ignore[operator]
