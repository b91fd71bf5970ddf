"""What a hospital or a study lacks is refused, in few words, and nothing is charged for it."""

import errno
import shutil
import sqlite3
import threading
from contextlib import closing
from typing import Any

import pytest
import yaml
from flwr.app import Message
from torch import nn

import medx.model.cnn
import medx.model.storage
from medx.aggregation.roster import read_identity
from medx.federation.replies import Code
from medx.federation.summed_rounds import TRIES
from medx.privacy.ledger import PrivacyLedger
from medx.site.answering import SPENT
from medx.site.audit import AuditError, AuditLog, entries
from medx.site.conduct import run_folder
from medx.site.declaring import described, own_dataset, sign_declaration
from medx.site.hospital import Site
from medx.site.site_config import SiteConfig
from medx.site.study import StudyError
from medx.site.submitting import new_study
from tests.site.consortium_example import (
    NAMES,
    ROUNDS,
    SECURE,
    Example,
    approve,
    overrides_of,
    signed,
    study_of,
    wired,
)
from tests.site.disturbance import prepared
from tests.site.soak import losses
from tests.site.test_hospital import ask, changed, conduct_quickly, with_config

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


@pytest.mark.parametrize("asked", ["attack=standard", "baseline=[local_only]", "select=loss", "threshold=prior"])
def test_what_a_simulation_alone_does_is_no_study(example: Example, asked: str) -> None:
    """It would be left out without a word."""
    with pytest.raises(StudyError, match=f"^{asked.partition('=')[0]}=.*: so far a simulation alone has it"):
        study_of(example, *SECURE, asked)


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
