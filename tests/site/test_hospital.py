"""A study with hospitals apart is the simulation's to the bit, and who lies or asks too much is refused by name."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict

from medx.aggregation.roster import simulated_roster, write_identity
from medx.federation.replies import Code
from medx.model.storage import read_tensors
from medx.privacy.accounting import epsilon_spent
from medx.privacy.ledger import PrivacyLedger
from medx.schema import LedgerError
from medx.site.answering import SPENT, Answers
from medx.site.audit import entries, verify
from medx.site.conduct import conduct
from medx.site.consortium import canonical
from medx.site.hospital import Site
from medx.site.study import Study, StudyError, read_study
from tests.site.consortium_example import (
    LOCAL,
    NAMES,
    ROUNDS,
    SECURE,
    SQUARES,
    Example,
    approve,
    signed,
    simulated,
    study_of,
    wired,
)


def trusting(example: Example) -> None:
    """Every hospital lets the coordinator see its noised updates one by one."""
    for name in NAMES:
        example.set_policy(name, secure_aggregation=False, trusted_server=example.consortium.coordinator)


def same_model(one: Path, other: Path) -> bool:
    first, second = (read_tensors(path / "model.safetensors")[0] for path in (one, other))
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("own", [LOCAL, SECURE, SQUARES], ids=["local", "secure", "least squares"])
def test_the_model_is_the_simulations_and_each_hospital_signs_what_it_spent(
    example: Example, tmp_path: Path, own: tuple[str, ...]
) -> None:
    trusting(example)
    expected = simulated(example, tmp_path / "simulation", *own)
    study = study_of(example, *own)
    approve(example, study)
    with wired(example, signed(example, study)) as grid:
        result = conduct(example.coordinator, signed(example, study), grid)
    folder = example.coordinator / "runs" / study.digest[:16]
    assert result.status == "finished", result.error
    assert same_model(tmp_path / "simulation", folder)
    assert [record.epsilon for record in result.rounds] == [record.epsilon for record in expected.rounds]
    assert result.privacy.epsilon == expected.privacy.epsilon
    receipts = json.loads((folder / "receipts.json").read_text())
    for number, each in enumerate(receipts):
        plan = result.privacy.clients[number]
        said = each["receipt"]
        assert said["hospital"] == NAMES[number]
        assert said["steps"] == plan.steps == (1 if own is SQUARES else ROUNDS) * (2 if own is LOCAL else 1)
        ledger = PrivacyLedger(example.kit(NAMES[number]) / "ledger" / f"client_{number:04d}.sqlite", create=False)
        executed = ledger.executed(study.run)
        ledger.close()
        assert sum(count for _, count in executed) == said["steps"]
        assert epsilon_spent(executed, 1e-5).value == pytest.approx(said["epsilon"], rel=1e-9)
    reports = json.loads((folder / "reports.json").read_text())
    assert set(reports) == set(NAMES)
    assert all(report["counts"] == {"validation": 20, "test": 20} for report in reports.values())
    if own is not LOCAL:
        assert result.privacy.aggregation is not None
        assert result.privacy.aggregation.trust_domain == "separate"
    for name in NAMES:
        events = [entry.event for entry in entries(example.kit(name) / "audit.jsonl")]
        assert events == ["admitted", "reserved", "receipt", "reported"]
        verify(example.kit(name) / "audit.jsonl")


def ask(site: Site, text: str, kind: str = "query", node: int = 2, **config: Any) -> Message:
    """The hospital's answer to one message."""
    return ask_of(Answers(site), text, kind, node, **config)


def ask_of(answers: Answers, text: str, kind: str = "query", node: int = 2, **config: Any) -> Message:
    content = RecordDict({"config": ConfigRecord({"challenge": bytes(32), "charged": [0, 0, 0], **config})})
    context = Context(run_id=1, node_id=node, node_config={}, state=RecordDict(), run_config={"study": text})
    from medx.federation.flower import become_a_server, name_message

    become_a_server()
    message = Message(content, node, kind)
    name_message(message, "1")
    return answers.answer(message, context)


def changed(study: Study, **changes: Any) -> Study:
    return Study.model_validate(study.model_dump(mode="json") | changes)


def with_config(study: Study, group: str, **values: Any) -> Study:
    config = study.model_dump(mode="json")["config"]
    return changed(study, config=config | {group: config[group] | values})


CLEAR = (
    "privacy=distributed_dp",
    "aggregation=plain",
    "privacy.trusted_aggregator=true",
    "trainer.sampling_probability=0.3",
)
ASKS_TOO_MUCH: dict[str, tuple[Callable[[Study], Study], str]] = {
    "epsilon": (lambda study: with_config(study, "privacy", epsilon=50.0), "max_epsilon"),
    "rounds": (lambda study: with_config(study, "federation", num_rounds=100_000), "maximum_rounds"),
    "in the clear": (lambda study: study, "secure_aggregation"),
    "another version": (lambda study: changed(study, version="0.6.9"), "version"),
    "other numbers": (lambda study: changed(study, numerics=study.numerics + 1), "version"),
    "another consortium": (lambda study: changed(study, consortium="0" * 64), "another list of hospitals"),
    "not approved": (lambda study: changed(study, nonce="1" * 64), "approval"),
}


@pytest.mark.parametrize("name", ASKS_TOO_MUCH)
def test_a_study_that_the_policy_does_not_allow_is_refused_by_name_and_nothing_is_spent(
    example: Example, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[object] = []
    monkeypatch.setattr("medx.site.hospital.prepare_own", lambda *given: read.append(given))
    change, rule = ASKS_TOO_MUCH[name]
    study = study_of(example, *(CLEAR if name == "in the clear" else SECURE))
    asked = change(study)
    approve(example, study)
    if rule != "approval":
        approve(example, asked)
    site = Site(example.kit("north"))
    reply = ask(site, signed(example, asked))
    assert reply.has_error()
    assert reply.error.code == Code.REFUSED
    assert rule in str(reply.error.reason)
    assert not (example.kit("north") / "ledger").exists()
    assert not read, "no image was read"
    (entry,) = entries(site.config.audit)
    assert entry.event == "refused"
    assert rule in str(entry.details["why"])


def test_only_the_coordinators_signature_makes_a_study(example: Example, tmp_path: Path) -> None:
    study = study_of(example, *SECURE)
    text = signed(example, study)
    other = write_identity(tmp_path, "other")
    for forged in (
        study.signed(other),
        text.replace('"epsilon":', '"epsilon": 1'),
        text.replace(study.nonce, "2" * 64),
        text[:-20],
        "[]",
        "[" * 100_000,
        None,
    ):
        with pytest.raises(StudyError):
            read_study(forged, example.consortium.coordinator)
        assert ask(Site(example.kit("north")), forged).has_error()  # type: ignore[arg-type]


def test_a_study_holds_no_path_and_no_class(example: Example) -> None:
    study = study_of(example, *SECURE)
    for group, values in (
        ("privacy", {"ledger": "/tmp/elsewhere"}),
        ("aggregation", {"roster": "roster.json"}),
        ("model", {"_target_": "os.system"}),
        ("model", {"option": "../../cnn"}),
        ("model", {"option": "resnet18", "weights": "/etc/passwd"}),
    ):
        with pytest.raises(ValueError, match=r"accepted|did you mean"):
            with_config(study, group, **values)


def test_a_node_is_a_hospital_by_its_signature_alone(example: Example, caplog: pytest.LogCaptureFixture) -> None:
    """A stolen node key, or a partition id that lies, is worth nothing without the identity."""
    study = study_of(example, *SECURE)
    text = signed(example, study)
    approve(example, study)
    with wired(example, text) as grid:
        honest = grid.answers[0].answer

        def claims_to_be_another(message: Message, context: Context) -> Message:
            reply = honest(message, context)
            if reply.has_content() and "client" in reply.content:
                reply.content["client"] = ConfigRecord({"client": 1})
            return reply

        grid.answers[0].answer = claims_to_be_another  # type: ignore[method-assign]
        grid.answers[1].answer = lambda message, context: 1 / 0  # type: ignore[assignment, method-assign, return-value]
        assert conduct_quickly(example, text, grid).status == "aborted"
    assert "no signature of hospital south" in caplog.text


def test_a_node_that_others_took_over_answers_for_nobody(example: Example, caplog: pytest.LogCaptureFixture) -> None:
    """Once the hospital has proved itself, whoever has its node's key alone sends what is dropped."""
    trusting(example)
    study = study_of(example, *LOCAL, "federation.min_clients=2")
    text = signed(example, study)
    approve(example, study)
    with wired(example, text) as grid:
        honest = grid.answers[0].answer

        def tampers(message: Message, context: Context) -> Message:
            reply = honest(message, context)
            if message.metadata.message_type == "train":
                (vector,) = (array for name, array in reply.content["arrays"].items() if "momentum" not in name)  # type: ignore[union-attr]
                vector.data = vector.data[:-1] + bytes([vector.data[-1] ^ 1])
            return reply

        grid.answers[0].answer = tampers  # type: ignore[method-assign]
        result = conduct_quickly(example, text, grid)
    assert "it is not signed by north" in caplog.text
    assert {record.clients for record in result.rounds} == {2}
    assert result.privacy.clients[0].steps == ROUNDS * 2, "what was asked of it is counted by its ledger"


def test_a_budget_holds_whatever_size_a_study_reads_images_at(example: Example) -> None:
    for name in NAMES:
        example.set_policy(name, total_epsilon=6.0)
    site = Site(example.kit("north"))
    reserved = []
    for size in (28, 27, 29):
        study = changed(study_of(example, *SECURE, "privacy.epsilon=5"), image_size=size)
        approve(example, study)
        reply = ask(site, signed(example, study))
        reserved.append(reply.error.code if reply.has_error() else "reserved")
    assert reserved == ["reserved", Code.LEDGER, Code.LEDGER]
    assert [entry.event for entry in entries(site.config.audit)] == [
        "admitted",
        "reserved",
        *["admitted", "refused"] * 2,
    ]


def test_a_study_whose_ledger_the_server_would_keep_is_refused(example: Example) -> None:
    for name in NAMES:
        policy = {"mechanisms": ["central_dp"], "units": ["client"], "max_delta": 0.9, "max_epsilon": 1000}
        server = example.consortium.coordinator
        example.set_policy(name, **policy, total_epsilon=1000, secure_aggregation=False, trusted_server=server)
    study = study_of(example, "privacy=central_dp", "aggregation=plain", "privacy.epsilon=100", "privacy.delta=0.1")
    approve(example, study)
    reply = ask(Site(example.kit("north")), signed(example, study))
    assert "the server would keep the ledger" in str(reply.error.reason)


def test_a_hospital_reports_once_and_only_when_the_study_has_ended_there(example: Example) -> None:
    """Asked as often as anybody likes, rounded or not, metrics of chosen models tell of images one by one."""
    study = study_of(example, *SECURE)
    text = signed(example, study)
    approve(example, study)
    site = Site(example.kit("north"))
    assert "after its receipt" in str(ask(site, text, "evaluate").error.reason)
    ask(site, text)
    ask(site, text, "query.receipt")
    assert "ProtocolError" in str(ask(site, text, "evaluate").error.reason), "this message has no model"
    site.mark(study, "reported")
    assert "once a study" in str(ask(Site(example.kit("north")), text, "evaluate").error.reason)


def test_a_hospital_counts_its_abstentions_itself(example: Example, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each tells the server something of the data that epsilon does not cover, and the server need not stop asking."""
    from medx.federation.replies import AbstainedError, error_of

    trusting(example)
    study = study_of(example, *LOCAL, "privacy.max_abstentions=1")
    text = signed(example, study)
    approve(example, study)
    replies = []
    for _ in range(2):  # an executor that restarts has not forgotten
        site = Site(example.kit("north"))
        answers = Answers(site)
        admitted = site.admit(text)
        assert "before the hospital was asked" in str(ask_of(answers, text, "train").error.reason) or replies
        assert ask_of(answers, text).has_content()

        def abstains(message: Message, context: Context) -> Message:
            return Message(error_of(AbstainedError("not finite"), Code.ABSTAINED), reply_to=message)

        object.__setattr__(admitted, "app", abstains)
        replies += [ask_of(answers, text, "train") for _ in range(2)]
    assert [reply.error.code for reply in replies] == [Code.ABSTAINED, Code.ABSTAINED, Code.REFUSED, Code.REFUSED]
    assert "maximum_abstentions" in str(replies[-1].error.reason)


def test_a_refusal_reaches_a_study_that_is_under_way_and_tells_nothing_of_the_house(example: Example) -> None:
    study = study_of(example, *SECURE)
    text = signed(example, study)
    approve(example, study)
    answers = Answers(Site(example.kit("north")))
    assert ask_of(answers, text).has_content()
    answers.site.approvals.decide(study.digest, False, "the Smith family objected")
    reason = str(ask_of(answers, text).error.reason)
    assert "approval" in reason
    assert "Smith" not in reason
    approve(example, study, "north")
    assert ask_of(answers, text).has_content()
    (example.kit("north") / "policy.yaml").write_text("total_epsilon: -7\n")
    assert ask_of(answers, text).error.reason == "PolicyError"


def test_nothing_is_worked_out_for_a_study_that_nobody_has_approved(
    example: Example, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = Site(example.kit("north"))
    worked: list[object] = []
    monkeypatch.setattr(site, "job", lambda *given: worked.append(given))
    study = study_of(example, *SECURE)
    for number in range(130):
        ask(site, signed(example, changed(study, nonce=f"{number:064x}")))
    assert not worked
    assert len(list(site.config.approvals.glob("*.study"))) == 100, "and what it keeps of them is bounded"


def test_an_answer_to_another_challenge_or_of_another_node_proves_nothing(example: Example) -> None:
    study = study_of(example, *SECURE)
    text = signed(example, study)
    approve(example, study)
    with wired(example, text) as grid:
        honest = grid.answers[0].answer

        def replays(message: Message, context: Context) -> Message:
            if message.metadata.message_type == "query":
                message.content["config"] = ConfigRecord({"challenge": bytes(32), "charged": [0, 0, 0]})
            return honest(message, context)

        grid.answers[0].answer = replays  # type: ignore[method-assign]
        assert conduct_quickly(example, text, grid).status == "aborted"
    with wired(example, text) as grid:
        honest = grid.answers[0].answer

        def of_another_node(message: Message, context: Context) -> Message:
            context.node_id += 100
            try:
                return honest(message, context)
            finally:
                context.node_id -= 100

        grid.answers[0].answer = of_another_node  # type: ignore[method-assign]
        assert conduct_quickly(example, text, grid).status == "aborted"


def conduct_quickly(example: Example, text: str, grid: Any) -> Any:
    """A study whose server does not wait for hospitals that do not come."""
    (example.coordinator / "coordinator.yaml").write_text("patience: 0\ntimeout: 60\n")
    return conduct(example.coordinator, text, grid)


def test_a_kit_with_another_hospitals_identity_does_not_start(example: Example) -> None:
    (example.kit("north") / "identity.pem").write_bytes((example.kit("south") / "identity.pem").read_bytes())
    with pytest.raises(Exception, match=r"identity\.pem: not the identity of north"):
        Site(example.kit("north"))


def test_a_ledger_that_was_lost_or_set_back_is_missed(example: Example) -> None:
    study = study_of(example, *SECURE)
    text = signed(example, study)
    approve(example, study)
    site = Site(example.kit("north"))
    assert not ask(site, text).has_error()
    site.close()
    late = ask(Site(example.kit("north")), text, charged=[2, 0, 0])
    assert late.error.code == Code.LEDGER
    assert late.error.reason == SPENT, "neither its path nor what is spent goes out"
    for path in (example.kit("north") / "ledger").iterdir():
        path.unlink()
    again = ask(Site(example.kit("north")), text)
    assert again.error.code == Code.LEDGER


def test_a_receipt_and_an_abandoned_study_give_back_what_was_not_begun(example: Example) -> None:
    for finish in ("receipt", "close"):
        study = study_of(example, *SECURE)
        text = signed(example, study)
        approve(example, study)
        first = Site(example.kit("north"))
        assert ask(first, text).has_content()
        first.close()
        again = Site(example.kit("north"))  # whose executor has no ledger open
        if finish == "receipt":
            assert ask(again, text, "query.receipt").has_content()
        else:
            again.end(text)
        ledger = PrivacyLedger(example.kit("north") / "ledger" / "client_0000.sqlite", create=False)
        assert [entry.event[1] for entry in ledger.entries() if entry.run_id == study.run] == [0], finish
        ledger.close()


def test_all_studies_of_a_hospital_share_its_budget(example: Example) -> None:
    """The total is the hospital's own, whatever a study says; what does not fit is refused before the first round."""
    for name in NAMES:
        example.set_policy(name, total_epsilon=6.0)
    refused = []
    for _ in range(2):
        study = study_of(example, *SECURE, "privacy.epsilon=5")
        approve(example, study)
        with wired(example, signed(example, study)) as grid:
            try:
                refused.append(conduct_quickly(example, signed(example, study), grid).status)
            except LedgerError as error:
                refused.append(str(error))
    assert refused[0] == "finished"
    assert refused[1] != "finished"


def test_a_server_that_was_stopped_goes_on_against_the_same_ledgers(
    example: Example, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = simulated(example, tmp_path / "simulation", *SECURE)
    study = study_of(example, *SECURE)
    text = signed(example, study)
    approve(example, study)
    with wired(example, text) as grid:
        deliver = grid.deliver

        def dies(message: Message, context: Context) -> Message:
            if message.metadata.message_type == "train.keys" and seen(context) == 3:
                raise SystemExit
            return deliver(message, context)

        counts: dict[int, int] = {}

        def seen(context: Context) -> int:
            counts[context.node_id] = counts.get(context.node_id, 0) + 1
            return counts[context.node_id]

        grid._app = dies  # type: ignore[assignment]
        with pytest.raises(SystemExit):
            conduct_quickly(example, text, grid)
    with wired(example, text) as grid:  # the hospitals' executors were restarted too
        result = conduct_quickly(example, text, grid)
    assert result.status == "finished", result.error
    assert same_model(tmp_path / "simulation", example.coordinator / "runs" / study.digest[:16])
    assert result.privacy.epsilon == expected.privacy.epsilon


def test_a_receipt_of_another_signer_or_study_is_not_taken(example: Example) -> None:
    from medx.federation.replies import ReplyError
    from medx.site.coordinator import read_receipt

    study = study_of(example, *SECURE)
    identity = Site(example.kit("north")).identity
    public = identity.public_key().public_bytes_raw().hex()
    said = {"study": study.digest, "hospital": "north", "steps": 3, "epsilon": 1.5}

    def record(said: dict[str, Any], signer: Any = identity) -> ConfigRecord:
        signature = signer.sign(canonical("receipt", said)).hex()
        return ConfigRecord({"receipt": json.dumps(said), "signature": signature})

    assert read_receipt(record(said), study, 0, public, 5).steps == 3
    _, others = simulated_roster_of(3)
    for wrong in (
        record(said, others[0]),
        record(said | {"study": "0" * 64}),
        record(said | {"hospital": "south"}),
        record(said | {"steps": -1}),
        record(said | {"steps": True}),
        record(said | {"steps": 6}),
        record(said | {"steps": 10**30}),
        record(said | {"epsilon": "0"}),
        record(said | {"epsilon": math.inf}),
        ConfigRecord({"receipt": "[" * 100_000, "signature": ""}),
        ConfigRecord({"receipt": "{}", "signature": ""}),
        ConfigRecord({}),
    ):
        with pytest.raises(ReplyError):
            read_receipt(wrong, study, 0, public, 5)


def simulated_roster_of(count: int) -> Any:
    from medx.aggregation.roster import Parameters

    parameters = Parameters(
        run_id="x", dimension=1, scale=1.0, bound=1.0, num_rounds=1, noise_stddev=0,
        noise_multiplier=None, clip_norm=None, sampling_probability=None,
    )  # fmt: skip
    return simulated_roster(parameters, count)
