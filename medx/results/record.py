"""What a run leaves behind, to and from JSON. ``docs/results.md`` describes every field.

Every field says by its type who may see it (``medx.released``): the owner's view is ``result.json``, what may leave
the house is ``released.json``.
"""

import logging
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from medx.files import write_text
from medx.released import Covered, Named, Owner, Public, Record, released
from medx.results.attack import AttackResult
from medx.results.privacy import PrivacyResult

log = logging.getLogger(__name__)
# Not released: the seed, checksums, names of columns, and where things lie.
KEPT_BACK = ("seed", "cache", "resume")
KEPT_BACK_OF = {
    "dataset": ("md5", "path", "csv", "columns", "subgroups", "root"),
    "tracking": ("uri",),
    "model": ("weights",),
    "privacy": ("ledger",),
    "aggregation": ("roster",),
}
Status = Literal["finished", "failed", "killed", "budget_exhausted", "aborted"]


class Interval(Record):
    """A metric with its 95 % bootstrap interval over images; all None where the metric is undefined."""

    value: float | None
    low: float | None = None
    high: float | None = None


class RoundRecord(Record):
    """One round. Metrics are named ``validation/auc``, ``test/auc``, ...; epsilon is what was spent so far.

    ``seconds`` by phase: ``train``, ``aggregate``, ``evaluate``, ``total``. Bytes are over all clients.
    """

    round: Public[int]
    epsilon: Named[float | None]
    metrics: Owner[dict[str, float | None]] = Field(default_factory=dict)
    seconds: Owner[dict[str, float]] = Field(default_factory=dict)
    bytes_up: Named[int] = 0
    bytes_down: Named[int] = 0
    clients: Named[int]
    abstained: Named[int] = 0
    failed: Named[int] = 0


class DatasetInfo(Record):
    """Which data: ``sizes`` and ``class_counts`` by split; ``synthetic`` is true for phantoms.

    ``shared_patients``: by split, the images of patients who are in train too; empty where patients are not known.
    """

    name: Public[str]
    title: Public[str]
    task: Public[str]
    md5: Owner[str | None] = None
    content_hash: Owner[str | None] = None
    synthetic: Public[bool]
    public: Public[bool] = False
    sizes: Public[dict[str, int]]
    class_names: Public[list[str]]
    class_counts: Owner[dict[str, list[int]]] = Field(default_factory=dict)
    shared_patients: Owner[dict[str, int]] = Field(default_factory=dict)
    image_size: Public[int]
    num_channels: Public[int]


class CurveData(Record):
    """Points behind the figures of the test split: what ROC, calibration and confusion plots draw."""

    confusion_matrix: list[list[int]]
    roc: dict[str, list[list[float]]] = Field(default_factory=dict)
    calibration: list[dict[str, float]] = Field(default_factory=list)


class HospitalResult(Record):
    """Whose a result is: its number, and its name where the data tell one."""

    client: int
    name: str | None = None

    @property
    def title(self) -> str:
        """What a person reads."""
        return " ".join([str(self.client), *(self.name or "").split()])


class ClientResult(HospitalResult):
    """One hospital at the end: its records by class, and the final model's metrics on its own training rows.

    ``test`` is told of hospitals that the data have: on its own test images, ``test_counts`` of them by class; by
    ``baselines`` too, of which ``local_only`` is the hospital's own model. All this is computed by the study, which
    holds all data; epsilon does not cover it.
    """

    num_records: int
    class_counts: list[int]
    metrics: dict[str, float | None]
    test_counts: list[int] | None = None
    test: dict[str, Interval] = Field(default_factory=dict)
    baselines: dict[str, dict[str, Interval]] = Field(default_factory=dict)


class SubgroupResult(Record):
    """The final model on the test images of one group of people: ``value`` in the data's own column ``column``."""

    column: str
    value: str
    class_counts: list[int]
    metrics: dict[str, Interval]


class PersonalResult(HospitalResult):
    """One hospital's own model beside the shared one and what it would have alone, all on the same images.

    ``own`` tells whether these are its own test images, or ones dealt to it by its classes. ``chosen`` is what was left
    open. ``local_only`` is trained without noise on its records, ``shared`` is the run's model.
    """

    method: str
    chosen: dict[str, float]
    own: bool
    test_counts: list[int]
    local_only: dict[str, Interval]
    shared: dict[str, Interval]
    personal: dict[str, Interval]


class ExperimentResult(Record):
    """Everything about one run: ``result.json`` is its owner's view, ``released.json`` what may leave the house.

    ``run`` is the id in its folder, ``started`` when it first began, in UTC by ISO 8601; None in a result of an earlier
    version.
    """

    view: Public[Literal["owner", "released"]] = "owner"
    run: Public[str | None] = None
    started: Public[str | None] = None
    status: Named[Status]
    error: Owner[str | None] = None
    seed: Owner[int | None] = None
    config_hash: Owner[str | None] = None
    dataset: DatasetInfo
    model: Public[dict[str, Any]]
    validation: Owner[dict[str, Interval]] = Field(default_factory=dict)
    test: Owner[dict[str, Interval]] = Field(default_factory=dict)
    threshold: Named[float | None] = None
    thresholds: Named[list[float | None] | None] = None
    majority_accuracy: Owner[float | None] = None
    degenerate: Owner[bool | None] = None
    curves: Owner[CurveData | None] = None
    clients: Owner[list[ClientResult]] = Field(default_factory=list)
    attacks: Owner[list[AttackResult]] = Field(default_factory=list)
    subgroups: Owner[list[SubgroupResult]] = Field(default_factory=list)
    baselines: Owner[dict[str, dict[str, Interval]]] = Field(default_factory=dict)
    personal: Owner[list[PersonalResult]] = Field(default_factory=list)
    privacy: PrivacyResult
    rounds: list[RoundRecord]
    timing: Owner[dict[str, float]] = Field(default_factory=dict)
    checkpoint: Covered[str | None] = None
    tracking: Public[dict[str, str]] = Field(default_factory=dict)
    environment: Public[dict[str, str]] = Field(default_factory=dict)
    config: Public[dict[str, Any]] = Field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write JSON beside the target and move it into place, so that a reader never sees half a file."""
        write_text(path, self.model_dump_json(indent=1))

    def released(self) -> "ExperimentResult":
        """What may leave the house: the owner's fields are at their defaults, the configuration is without secrets."""
        model = None if self.checkpoint is None else Path(self.checkpoint).name
        shown = {"view": "released", "config": released_config(self.config), "checkpoint": model}
        return released(self).model_copy(update=shown)

    @classmethod
    def load(cls, path: Path) -> "ExperimentResult":
        """Read ``result.json``; raises pydantic's ValidationError on another layout."""
        return cls.model_validate_json(path.read_text())


def read_rounds(path: Path) -> list[RoundRecord]:
    """The rounds on record, the later one where a round was done again; a line cut off by a crash is dropped."""
    records: dict[int, RoundRecord] = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            record = RoundRecord.model_validate_json(line)
        except ValueError:
            log.warning("a line of %s is incomplete and was dropped", path)
            continue
        records[record.round] = record
    return [records[number] for number in sorted(records)]


def released_config(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration without the seed, which may undo the noise, and without what tells of files and folders."""
    return {
        key: {name: each for name, each in value.items() if name not in KEPT_BACK_OF.get(key, ())}
        if isinstance(value, dict)
        else value
        for key, value in config.items()
        if key not in KEPT_BACK
    }
