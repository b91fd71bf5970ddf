"""Checkpoints: tensors in safetensors, the rest in JSON; written whole or not at all, the last two kept."""

import json
import logging
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from medx.model.storage import Tensors, read_tensors, write_tensors
from medx.results import RoundRecord, read_rounds
from medx.schema import CheckpointError, MedxError
from medx.trainer.state import ModelState

log = logging.getLogger(__name__)
KEEP = 2
RECORDS = "rounds.jsonl"


@dataclass
class ServerState:
    """Where a run stands after ``round``: the model, its running average, the strategy's buffers, the records.

    ``steps`` counts the releases that every client has executed. ``run`` is the run's id. ``charged`` are the clients
    that have reserved the run in their ledgers, each with the fewest releases that its ledger must show. ``data`` is
    the digest of the data that it trains on and of who has which; empty in a checkpoint of an earlier version.
    """

    round: int
    state: ModelState
    average: ModelState
    strategy: Tensors = field(default_factory=dict)
    steps: dict[int, int] = field(default_factory=dict)
    abstentions: int = 0
    records: list[RoundRecord] = field(default_factory=list)
    run: str = ""
    charged: dict[int, int] = field(default_factory=dict)
    data: str = ""


def save_checkpoint(folder: Path, server: ServerState) -> Path:
    """Write ``round_00012/`` beside its place and move it there; raises CheckpointError when the disk is full."""
    target = folder / f"round_{server.round:05d}"
    temporary = folder / f".{target.name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        groups = {
            "state": server.state.tensors(),
            "average": server.average.tensors(),
            "strategy": server.strategy,
        }
        tensors = {f"{group}/{name}": t for group, ts in groups.items() for name, t in ts.items()}
        write_tensors(temporary / "tensors.safetensors", tensors, {})
        text = {
            "run": server.run,
            "round": server.round,
            "steps": server.steps,
            "charged": server.charged,
            "data": server.data,
            "abstentions": server.abstentions,
            "tensors": list(tensors),
        }
        (temporary / "state.json").write_text(json.dumps(text))
        if target.exists():
            shutil.rmtree(target)
        os.replace(temporary, target)
    except (OSError, CheckpointError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise CheckpointError(f"checkpoint {target} could not be written: {error}") from error
    for old in checkpoints(folder)[KEEP:]:
        shutil.rmtree(old)
    return target


def append_record(folder: Path, record: RoundRecord) -> None:
    """Add one round's record to the folder's list: one line of JSON."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / RECORDS, "ab+") as file:
            if file.tell() and _last_byte(file) != b"\n":
                file.write(b"\n")  # a line that a crash cut off must not take this one with it
            file.write(record.model_dump_json().encode() + b"\n")
    except OSError as error:
        raise CheckpointError(f"round record in {folder} could not be written: {error}") from error


def _last_byte(file: BinaryIO) -> bytes:
    file.seek(-1, os.SEEK_END)
    return file.read(1)


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints that are there, the newest first."""
    return sorted(folder.glob("round_*"), reverse=True)


def resumed_state(folder: Path, run: str) -> ServerState | None:
    """Where the run stands by its newest readable checkpoint; None before the first one.

    Raises CheckpointError where the checkpoint is another run's, or none can be read.
    """
    if not checkpoints(folder):
        return None
    state = load_checkpoint(folder)
    if state.run != run:
        raise CheckpointError(
            f"resume: the checkpoints in {folder} are of run {state.run}, and the folder of run {run}"
        )
    return state


def load_checkpoint(folder: Path) -> ServerState:
    """The newest readable checkpoint; falls back to the one before, and says so."""
    candidates = checkpoints(folder)
    for candidate in candidates:
        try:
            return _read(candidate)
        except (OSError, ValueError, KeyError, MedxError) as error:
            log.warning("checkpoint %s cannot be read (%s); falling back to the one before", candidate, error)
    raise CheckpointError(f"resume: no readable checkpoint in {folder} ({len(candidates)} found)")


def _read(path: Path) -> ServerState:
    text = json.loads((path / "state.json").read_text())
    groups: dict[str, Tensors] = {"state": {}, "average": {}, "strategy": {}}
    tensors, _ = read_tensors(path / "tensors.safetensors")
    for name in text["tensors"]:  # safetensors sorts by name; a layout is in the module's order
        group, _, rest = name.partition("/")
        groups[group][rest] = tensors[name]
    return ServerState(
        round=text["round"],
        state=ModelState.of_tensors(groups["state"]),
        average=ModelState.of_tensors(groups["average"]),
        strategy=groups["strategy"],
        steps=_by_client(text["steps"]),
        abstentions=text["abstentions"],
        records=[record for record in read_rounds(path.parent / RECORDS) if record.round <= text["round"]],
        run=text["run"],
        charged=_by_client(text["charged"]),
        data=text.get("data", ""),
    )


def _by_client(counts: dict[str, int]) -> dict[int, int]:
    """Counts by client, whose numbers JSON has as text."""
    return {int(client): count for client, count in counts.items()}
