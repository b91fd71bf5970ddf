"""What a dossier is made of: a run's result, and what else its folder holds. Nothing there is changed."""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from medx.folder import CONFIG_FILE, RESULT_FILE, read_result
from medx.privacy.ledger import PrivacyLedger
from medx.privacy.meaning import meanings_of, observers_of
from medx.report.study import option_name
from medx.results import ExperimentResult, Meaning
from medx.schema import ConfigError, MedxError

MODEL_FILE, RELEASED_FILE, RECEIPTS_FILE = "model.safetensors", "released.json", "receipts.json"
PUBLISHED = ("medx.dataset.medmnist.", "medx.dataset.pneumoniamnist.")  # classes that read a benchmark's files


@dataclass(frozen=True)
class Ledger:
    """A hospital's ledger in the run's folder: steps that this run has entered, and how many runs are in it.

    ``client`` is None for the one ledger of a trusted server, and ``steps`` where the ledger does not know the run.
    """

    client: int | None
    steps: int | None
    runs: int

    @property
    def whose(self) -> str:
        """For a reader."""
        return "the server" if self.client is None else f"hospital {self.client}"


@dataclass(frozen=True)
class Receipt:
    """What a hospital has signed for; ``signed`` says whether its signature holds, None where no key is at hand."""

    hospital: str
    steps: int
    epsilon: float | None
    signed: bool | None


@dataclass(frozen=True)
class Verdict:
    """One entry of a hospital's log on this run's study."""

    hospital: str
    time: str
    event: str
    said: str


@dataclass(frozen=True)
class Kit:
    """What a hospital's kit says: ``verdicts`` on this study, of ``entries`` in its log, and rules of its policy."""

    hospital: str
    verdicts: tuple[Verdict, ...]
    entries: int
    policy: dict[str, str]


@dataclass(frozen=True)
class Subject:
    """One run of a dossier by its ``number`` and the ``name`` it was given.

    ``digests`` are SHA-256 by the name of the file, ``written`` when its configuration was (UTC), where the result
    does not say when it began. ``seeds`` counts the runs in the dossier that differ from this one by their seed alone,
    itself included.
    """

    number: int
    name: str
    result: ExperimentResult
    digests: dict[str, str] = field(default_factory=dict)
    written: str | None = None
    ledgers: tuple[Ledger, ...] = ()
    receipts: tuple[Receipt, ...] = ()
    kits: tuple[Kit, ...] = ()
    seeds: int = 1

    @property
    def owner(self) -> bool:
        """Whether the owner's figures are here."""
        return self.result.view == "owner"

    @property
    def private(self) -> bool:
        """Whether there is any guarantee."""
        return self.result.privacy.epsilon is not None

    @property
    def deployed(self) -> bool:
        """Whether hospitals had machines of their own."""
        return self.result.config.get("runtime") == "deployment"

    @property
    def published(self) -> bool:
        """Whether the images are a benchmark's, in its official file or in another."""
        target = str(self.result.config.get("dataset", {}).get("_target_", ""))
        return not self.result.dataset.synthetic and (self.result.dataset.public or target.startswith(PUBLISHED))

    @property
    def secure(self) -> bool:
        """Whether single updates were hidden from the server."""
        return self.result.privacy.aggregation is not None and self.result.privacy.aggregation.secure

    @property
    def unit(self) -> str:
        """Whom the guarantee protects, as a reader calls it."""
        return {"patient": "patient", "client": "hospital"}.get(self.result.privacy.unit or "", "image")

    @property
    def num_clients(self) -> int:
        """Hospitals."""
        return len(self.result.privacy.clients)

    @property
    def positive(self) -> str | None:
        """The class that an answer of yes stands for; None unless there are two."""
        return self.result.dataset.class_names[1] if self.result.dataset.task == "binary" else None

    @cached_property
    def meanings(self) -> dict[str, Meaning]:
        """What epsilon leaves possible for one image, and one patient where that is bounded."""
        return meanings_of(self.result.privacy)

    @cached_property
    def observers(self) -> dict[str, Meaning]:
        """The same of one unit, where it differs by who looks."""
        return observers_of(self.result.privacy)

    def differing(self) -> list[Ledger]:
        """Ledgers that have other releases of this run on record than the result counts."""
        counted: dict[int | None, int] = {each.client: each.steps for each in self.result.privacy.clients}
        counted[None] = max(counted.values(), default=0)  # a trusted server's releases are of all
        return [each for each in self.ledgers if each.steps is not None and each.steps != counted.get(each.client)]

    def of_unit(self) -> Meaning:
        """What epsilon leaves possible for one unit."""
        return self.meanings["patient" if self.unit == "patient" else "image"]

    def option(self, group: str) -> str | None:
        """The chosen option of a group; None where the configuration does not tell."""
        known = self.result.config.get(group)
        return option_name(self.result.config, group) if isinstance(known, dict) and "_target_" in known else None


def read(texts: Sequence[str], *, released: bool) -> list[Subject]:
    """The runs in folders or files; raises MedxError. ``released`` leaves out what is the owner's alone."""
    subjects = [_read(number, text, released=released) for number, text in enumerate(texts, start=1)]
    alike = [_configured(each.result) for each in subjects]
    seeded = [
        len({each.result.seed for each, other in zip(subjects, alike, strict=True) if other == mine}) for mine in alike
    ]
    return [replace(each, seeds=count) for each, count in zip(subjects, seeded, strict=True)]


def _configured(result: ExperimentResult) -> str:
    return result.config_hash or json.dumps([result.config, result.run], sort_keys=True, default=str)


def _read(number: int, text: str, *, released: bool) -> Subject:
    path = Path(text)
    result = read_result(path)
    result = result.released() if released else result
    folder = path if path.is_dir() else path.parent
    owner = result.view == "owner"
    read_file = RESULT_FILE if path.is_dir() else path.name
    names = [read_file, CONFIG_FILE, MODEL_FILE] if owner else [RELEASED_FILE, MODEL_FILE]
    config = folder / CONFIG_FILE
    subject = Subject(
        number=number,
        name=path.name or text,
        result=result,
        digests={name: _digest(folder / name) for name in names if (folder / name).is_file()},
        written=_when(config.stat().st_mtime) if owner and not result.started and config.exists() else None,
        ledgers=tuple(ledgers_in(folder / "ledger", result)) if owner else (),
        receipts=tuple(_receipts(folder)) if owner else (),
    )
    try:
        _ = subject.meanings, subject.observers
    except MedxError as error:
        raise ConfigError(f"{text}: {error}") from error
    return subject


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _when(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")


def ledgers_in(folder: Path, result: ExperimentResult) -> Iterator[Ledger]:
    """What the ledgers say, read in copies: to open one makes files beside it."""
    for path in sorted(folder.glob("*.sqlite")):
        with tempfile.TemporaryDirectory() as place:
            for ending in ("", "-wal"):
                if (part := path.with_name(path.name + ending)).exists():
                    shutil.copyfile(part, Path(place) / part.name)
            with closing(PrivacyLedger(Path(place) / path.name, create=False)) as ledger:
                run = result.run or ""
                events = ledger.executed(run) if ledger.knows(run) else None
                steps = None if events is None else sum(count for _, count in events)
                number = path.stem.removeprefix("client_")
                yield Ledger(int(number) if number.isdigit() else None, steps, len(ledger.entries()))


def _receipts(folder: Path) -> Iterator[Receipt]:
    """What hospitals have signed for, in the folder of a coordinator's run; raises ConfigError."""
    path = folder / RECEIPTS_FILE
    if not path.exists():
        return
    identities = _identities(folder.absolute().parents[1])
    try:
        for each in json.loads(path.read_text()):
            said, name = each["receipt"], str(each["receipt"]["hospital"])
            signed = None if identities is None else _is_signed(identities.get(name), said, str(each["signature"]))
            yield Receipt(name, int(said["steps"]), said["epsilon"], signed)
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: no receipts ({error}); accepted: the file as the coordinator wrote it") from error


def _identities(coordinator: Path) -> dict[str, str | None] | None:
    """Public keys by hospital, from the consortium in the coordinator's folder, where it is there."""
    from medx.site.consortium import FILE, Consortium

    if not (coordinator / FILE).exists():
        return None
    return {member.name: member.identity for member in Consortium.load(coordinator).hospitals}


def _is_signed(identity: str | None, said: dict[str, Any], signature: str) -> bool:
    from medx.site.consortium import canonical, is_signed

    return identity is not None and is_signed(identity, canonical("receipt", said), signature)
