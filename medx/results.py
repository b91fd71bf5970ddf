"""What a run leaves behind, to and from JSON. ``docs/results.md`` describes every field."""

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Status = Literal["finished", "failed", "killed", "budget_exhausted", "aborted"]


class Record(BaseModel):
    """Base of all records: unknown fields are an error, so that a typo cannot pass for a result."""

    model_config = ConfigDict(extra="forbid")


class Interval(Record):
    """A metric with its 95 % bootstrap interval over images; all None where the metric is undefined."""

    value: float | None
    low: float | None = None
    high: float | None = None


class RoundRecord(Record):
    """One round. Metrics are named ``validation/auc``, ``test/auc``, ...; epsilon is what was spent so far.

    ``seconds`` by phase: ``train``, ``aggregate``, ``evaluate``, ``total``. Bytes are over all clients.
    """

    round: int
    epsilon: float | None
    metrics: dict[str, float | None]
    seconds: dict[str, float]
    bytes_up: int = 0
    bytes_down: int = 0
    clients: int
    abstained: int = 0
    failed: int = 0
    saturated: int = 0


class ClientEvents(Record):
    """What one client executed: ``steps`` subsampled Gaussian releases with these parameters.

    ``noise_multiplier`` is the noise's standard deviation over the clip norm; None and 0 steps when not private.
    ``epsilon`` is composed over exactly these events.
    """

    client: int
    num_records: int
    sampling_probability: float | None
    noise_multiplier: float | None
    clip_norm: float | None
    steps: int
    epsilon: float | None


class AggregationResult(Record):
    """How updates were summed, and what the protocol stands against; everything but ``secure`` is None in the clear.

    ``tolerated_colluders`` has ``curious`` and ``lying``: clients that may collude with a server that follows the
    protocol, and with one that does not. ``trust_domain`` is ``one`` in a simulation: nothing is hidden there.
    """

    secure: bool
    roster_hash: str | None = None
    num_clients: int | None = None
    threshold: int | None = None
    minimum_survivors: int | None = None
    tolerated_colluders: dict[str, int] | None = None
    trust_domain: Literal["one", "separate"] | None = None


class PrivacyResult(Record):
    """The guarantee of a run. ``epsilon`` is the maximum over clients; None means no guarantee at all.

    ``epsilon_by_accountant`` has ``prv``, ``pld`` and ``rdp``; ``epsilon_by_observer`` names who sees what.
    """

    mechanism: str
    epsilon: float | None
    epsilon_by_accountant: dict[str, float] = Field(default_factory=dict)
    epsilon_by_observer: dict[str, float] = Field(default_factory=dict)
    delta: float | None = None
    target_epsilon: float | None = None
    unit: str | None = None
    adjacency: str | None = None
    noise_source: str | None = None
    clients: list[ClientEvents] = Field(default_factory=list)
    aggregation: AggregationResult | None = None
    statement: str


class DatasetInfo(Record):
    """Which data: ``sizes`` and ``class_counts`` by split; ``synthetic`` is true for phantoms."""

    name: str
    title: str
    task: str
    md5: str | None
    content_hash: str
    synthetic: bool
    sizes: dict[str, int]
    class_names: list[str]
    class_counts: dict[str, list[int]]
    image_size: int
    num_channels: int


class CurveData(Record):
    """Points behind the figures of the test split: what ROC, calibration and confusion plots draw."""

    confusion_matrix: list[list[int]]
    roc: dict[str, list[list[float]]] = Field(default_factory=dict)
    calibration: list[dict[str, float]] = Field(default_factory=list)


class ClientResult(Record):
    """One hospital at the end: its records by class, and the final model's metrics on its own training rows.

    These metrics are computed by the study, which holds all data; they are not covered by epsilon.
    """

    client: int
    num_records: int
    class_counts: list[int]
    metrics: dict[str, float | None]


class ExperimentResult(Record):
    """Everything about one run; written as ``result.json`` in its output folder.

    ``run`` is the id in that folder; None in a result of an earlier version.
    """

    run: str | None = None
    status: Status
    error: str | None = None
    seed: int
    config_hash: str
    dataset: DatasetInfo
    model: dict[str, Any]
    validation: dict[str, Interval]
    test: dict[str, Interval]
    threshold: float | None = None
    majority_accuracy: float
    degenerate: bool
    curves: CurveData | None = None
    clients: list[ClientResult] = Field(default_factory=list)
    baselines: dict[str, dict[str, Interval]] = Field(default_factory=dict)
    privacy: PrivacyResult
    rounds: list[RoundRecord]
    timing: dict[str, float]
    checkpoint: str | None = None
    tracking: dict[str, str] = Field(default_factory=dict)
    environment: dict[str, str] = Field(default_factory=dict)
    config: dict[str, Any] = Field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write JSON beside the target and move it into place, so that a reader never sees half a file."""
        temporary = path.with_suffix(".tmp")
        temporary.write_text(self.model_dump_json(indent=1))
        temporary.replace(path)

    @classmethod
    def load(cls, path: Path) -> "ExperimentResult":
        """Read ``result.json``; raises pydantic's ValidationError on another layout."""
        return cls.model_validate_json(path.read_text())
