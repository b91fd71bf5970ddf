"""A hospital whose disk is full: whatever it can still write, nothing leaves that its ledger does not show."""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from flwr.app import Context, Message

from medx.privacy.ledger import PrivacyLedger
from medx.site.audit import verify
from tests.site.consortium_example import NAMES, Example, Wire, approve, signed, study_of, wired
from tests.site.disturbance import AGAIN, charged
from tests.site.soak import losses
from tests.site.test_hospital import conduct_quickly

MEGABYTES = 2
KEPT = ("ledger", "audit", "state", "approvals")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system of its own."""
    place = tmp_path / "disk"
    place.mkdir()
    size = f"size={MEGABYTES}m"
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", size, "tmpfs", place], check=False, capture_output=True
    ).returncode:
        pytest.skip("a disk can be mounted by root alone")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


def moved_to(disk: Path, example: Example) -> None:
    """All that the first hospital keeps lies on this disk."""
    path = example.kit("north") / "site.yaml"
    site = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump(site | {key: str(disk / Path(site[key]).name) for key in KEPT}))
    for key in KEPT:
        (example.kit("north") / site[key]).parent.mkdir(exist_ok=True)
        (example.kit("north") / site[key]).unlink(missing_ok=True)
        (example.kit("north") / site[key]).symlink_to(disk / Path(site[key]).name)


def fill(disk: Path) -> None:
    """Until not a byte is left."""
    with (disk / "filler").open("wb", buffering=0) as file:
        for size in (1 << 16, 1 << 10, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue
    assert os.statvfs(disk).f_bavail == 0


CHARGE = "charge"  # and only then: what comes before and after, such as the journal, would refuse by itself


@pytest.mark.parametrize("stage", [CHARGE, "query", "train.keys", "train.masked", "train.confirm", "train.unmask"])
def test_a_full_disk_at_any_stage_refuses_and_with_room_the_study_goes_on(
    example: Example, disk: Path, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved_to(disk, example)
    study = study_of(example, *AGAIN)
    approve(example, study)
    text = signed(example, study)
    replies: list[tuple[str, Message]] = []
    with monkeypatch.context() as patch, wired(example, text) as grid:
        if stage == CHARGE:
            patch.setattr(PrivacyLedger, "begin_round", full_at_the_second_charge(disk))
        grid._app = full_from(grid, disk, stage, replies)  # type: ignore[assignment]
        result = conduct_quickly(example, text, grid)
    assert result.status != "finished"
    assert stage == CHARGE or (disk / "filler").exists(), "it was full"
    answered = [kind for kind, reply in replies if reply.has_content()]
    words = answered.count("train.masked")
    assert "/" not in " ".join(str(reply.error.reason) for _, reply in replies if reply.has_error()), "no path goes out"
    if "train.keys" in answered:
        assert charged(example, study)[0] >= words, "read while the disk is full"
    (disk / "filler").unlink(missing_ok=True)
    with wired(example, text) as grid:
        result = conduct_quickly(example, text, grid)
    assert result.status == "finished", result.error
    assert losses(example, study, result, 5) == []
    assert charged(example, study)[0] >= words + 1
    assert verify(example.kit("north") / "audit.jsonl") > 0


def full_at_the_second_charge(disk: Path) -> Callable[..., int]:
    """The ledger's own, with the first hospital's disk full when it is to charge its second round."""
    begin, seen = PrivacyLedger.begin_round, list[int]()

    def charge(ledger: PrivacyLedger, *given: Any, **named: Any) -> int:
        if ledger.path.name == "client_0000.sqlite":
            seen.append(1)
            if len(seen) == 2:
                fill(disk)
        try:
            return begin(ledger, *given, **named)
        finally:
            (disk / "filler").unlink(missing_ok=True)

    return charge


def full_from(grid: Wire, disk: Path, stage: str, replies: list[tuple[str, Message]]):  # type: ignore[no-untyped-def]
    """The delivery of messages, where the first hospital's disk is full from the second message of a kind on."""
    seen: list[str] = []

    def deliver(message: Message, context: Context) -> Message:
        kind = message.metadata.message_type
        if NAMES[context.node_id - 2] != "north":
            return grid.deliver(message, context)
        seen.append(kind)
        if seen.count(stage) == (1 if stage == "query" else 2) and not (disk / "filler").exists():
            fill(disk)
        replies.append((kind, grid.deliver(message, context)))
        return replies[-1][1]

    return deliver
