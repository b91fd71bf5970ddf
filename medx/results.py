"""What a run leaves behind, to and from JSON, and who is told of it. ``docs/results.md`` describes every field.

Every field says by its type who may see it (``medx.released``): the owner's view is ``result.json``, what may leave
the house is ``released.json``.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any, Literal, Protocol

from pydantic import Field

from medx.files import write_text
from medx.released import Covered, Named, Owner, Public, Record, released

log = logging.getLogger(__name__)
STUDY_ONLY = "epsilon holds only while the seed is secret; study only"
# Not released: the seed, checksums, names of columns, and where things lie.
KEPT_BACK = ("seed", "cache", "resume")
KEPT_BACK_OF = {
    "dataset": ("md5", "path", "csv", "columns", "subgroups", "root"),
    "tracking": ("uri",),
    "model": ("weights",),
    "privacy": ("ledger",),
    "aggregation": ("roster",),
}
NONE_FROM = 1000  # an epsilon from here on is called none
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


class ClientEvents(Record):
    """What one client executed: ``steps`` subsampled Gaussian releases with these parameters.

    ``noise_multiplier`` is the noise's standard deviation over the clip norm; None and 0 steps when not private.
    ``epsilon`` is composed over exactly these events. ``num_patients`` is told where patients are what is drawn.
    """

    client: Public[int]
    num_records: Public[int]
    num_patients: Public[int | None] = None
    sampling_probability: Public[float | None]
    noise_multiplier: Public[float | None]
    clip_norm: Public[float | None]
    steps: Named[int]
    epsilon: Named[float | None]


class AggregationResult(Record):
    """How updates were summed, and what the protocol stands against; everything but ``secure`` is None in the clear.

    ``tolerated_colluders`` has ``curious`` and ``lying``: clients that may collude with a server that follows the
    protocol, and with one that does not. ``trust_domain`` is ``one`` in a simulation: nothing is hidden there.
    """

    secure: Public[bool]
    roster_hash: Public[str | None] = None
    num_clients: Public[int | None] = None
    threshold: Public[int | None] = None
    minimum_survivors: Public[int | None] = None
    tolerated_colluders: Public[dict[str, int] | None] = None
    trust_domain: Public[Literal["one", "separate"] | None] = None


class NoiseMeasured(Record):
    """The noise as it was added, over ``values`` numbers: ``size`` in planned ones, all else in standard deviations.

    ``tail`` is how many are far out; ``coordinates``, ``rounds`` and ``hospitals`` are what those have in common (None:
    there was nothing to compare). ``doubts`` says what chance does not explain.
    """

    values: Owner[int]
    size: Owner[float]
    tail: Owner[float | None]
    coordinates: Owner[float | None]
    rounds: Owner[float | None]
    hospitals: Owner[float | None]
    doubts: Owner[list[str]]


class Meaning(Record):
    """What an epsilon leaves possible, by the whole trade-off behind it; all 1 without a guarantee.

    ``detected``: by false-positive rate, the largest true-positive rate of any test of membership; ``advantage``:
    their largest difference. ``reconstructed``: by the chance of a guess without the run, the largest one with it.
    ``mu`` is that of the Gaussian mechanism with this epsilon (None at a large epsilon). ``curve`` has pairs of a
    false-positive rate and the largest true-positive rate.
    """

    epsilon: float | None
    mu: float | None
    detected: dict[str, float]
    advantage: float
    reconstructed: dict[str, float]
    curve: list[tuple[float, float]]


class PrivacyResult(Record):
    """The guarantee of a run. ``epsilon`` is the maximum over clients; None means no guarantee at all.

    ``epsilon_by_accountant`` has ``prv`` (unless it fails), ``pld`` and ``rdp``; ``epsilon_by_observer`` names who sees
    what. ``baselines`` is what they executed on the records of each client: ``epsilon`` composes it with ``clients``.
    ``epsilon_by_unit`` has ``image``, ``patient`` (where patients are known) and ``hospital``: what the same run comes
    to for all that one of them has; ``patient_images`` is the most that a patient has at one hospital. ``meaning`` has
    ``image``, and ``patient`` where a bound for one is known; it is empty in a result of an earlier version.
    ``meaning_by_observer`` is the same of the ``unit``, where it differs by who looks.
    """

    mechanism: Public[str]
    epsilon: Named[float | None]
    epsilon_by_accountant: Named[dict[str, float]] = Field(default_factory=dict)
    epsilon_by_observer: Named[dict[str, float]] = Field(default_factory=dict)
    delta: Public[float | None] = None
    target_epsilon: Public[float | None] = None
    epsilon_by_group: Named[dict[str, float]] = Field(default_factory=dict)
    epsilon_replace: Named[float | None] = None
    epsilon_by_unit: Named[dict[str, float]] = Field(default_factory=dict)
    patient_images: Public[int | None] = None
    meaning: Named[dict[str, Meaning]] = Field(default_factory=dict)
    meaning_by_observer: Named[dict[str, Meaning]] = Field(default_factory=dict)
    warning: Public[str | None] = None
    unit: Public[str | None] = None
    adjacency: Public[str | None] = None
    noise_source: Public[str | None] = None
    clients: list[ClientEvents] = Field(default_factory=list)
    baselines: list[ClientEvents] = Field(default_factory=list)
    aggregation: AggregationResult | None = None
    noise: Owner[NoiseMeasured | None] = None
    statement: Named[str]


class PublicWeights(Record):
    """Weights that a run took from elsewhere, by the SHA-256 of their file, and what is declared of them."""

    backbone: str
    sha256: str
    licence: str
    trained_on: list[str]

    def line(self) -> str:
        """For a privacy statement."""
        return (
            f"Public weights: {self.backbone} (SHA-256 {self.sha256}, licence {self.licence}), declared to be trained "
            f"on {', '.join(self.trained_on)}. Epsilon covers the hospitals' training records, not the public images "
            "behind these weights: whoever is among those has no guarantee from this run."
        )


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


class ClientResult(Record):
    """One hospital at the end: its records by class, and the final model's metrics on its own training rows.

    ``test`` is told of hospitals that the data have: on its own test images, ``test_counts`` of them by class; by
    ``baselines`` too, of which ``local_only`` is the hospital's own model. All this is computed by the study, which
    holds all data; epsilon does not cover it.
    """

    client: int
    num_records: int
    class_counts: list[int]
    metrics: dict[str, float | None]
    test_counts: list[int] | None = None
    test: dict[str, Interval] = Field(default_factory=dict)
    baselines: dict[str, dict[str, Interval]] = Field(default_factory=dict)


class AttackResult(Record):
    """What one attack got for one observer of a copy of the run, beside the claim: a lower bound, and no more.

    ``found`` is the lower bound for epsilon at ``delta`` with 95 % confidence, None where nothing hides a record; by
    ``shift``, that of a record that is there in standard deviations of the noise, with its ``error``; ``planned`` is
    the shift that the plan's noise gives. ``one_run`` is a bound without assumptions, of at most ``ceiling``.
    ``against`` says what speaks against the claim.
    """

    attack: str
    observer: str
    claimed: float | None
    delta: float
    found: float | None
    shift: float
    error: float
    planned: float | None
    one_run: float
    ceiling: float
    trials: int
    seconds: float
    against: list[str]

    def at_least(self, confidence: float) -> float:
        """A shift that is exceeded with this confidence."""
        return max(0.0, self.shift - NormalDist().inv_cdf(confidence) * self.error)

    def line(self) -> str:
        """For a person."""
        claimed = "nothing" if self.claimed is None else f"ε {self.claimed:.2f}"
        found = "no noise to speak of" if self.found is None else f"lower bound found {self.found:.2f}"
        planned = "" if self.planned is None else f", planned {self.planned:.3f}"
        return (
            f"{self.attack}, {self.observer}: claimed {claimed}, {found} (shift {self.shift:.3f} ± {self.error:.3f}"
            f"{planned}; by guesses {self.one_run:.2f} of at most {self.ceiling:.2f}; {self.trials} canaries)"
        )


class SubgroupResult(Record):
    """The final model on the test images of one group of people: ``value`` in the data's own column ``column``."""

    column: str
    value: str
    class_counts: list[int]
    metrics: dict[str, Interval]


class ExperimentResult(Record):
    """Everything about one run: ``result.json`` is its owner's view, ``released.json`` what may leave the house.

    ``run`` is the id in its folder; None in a result of an earlier version.
    """

    view: Public[Literal["owner", "released"]] = "owner"
    run: Public[str | None] = None
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


def told_epsilon(value: float) -> str:
    """Three digits after the point, as far as it protects at all."""
    return f"{value:.3f}" if value < NONE_FROM else f"above {NONE_FROM} (none)"


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


@dataclass(frozen=True)
class RunContext:
    """What observers hear before the first round. ``warning`` is None, or what a reader must know of the noise."""

    title: str
    dataset: str
    run: str
    config_hash: str
    folder: Path
    config: dict[str, Any]
    num_rounds: int
    resumed: bool
    synthetic: bool
    public: bool
    warning: str | None
    statement: str
    plan_rows: list[dict[str, Any]]
    partition_rows: list[dict[str, Any]]


class Observer(Protocol):
    """Who is told how a run goes: the screen, the tracking store."""

    def on_start(self, context: RunContext) -> None:
        """Before the first round; the plan stands, nothing is trained."""
        ...

    def on_round(self, record: RoundRecord) -> None:
        """After every round."""
        ...

    def on_end(self, result: ExperimentResult) -> None:
        """With the result, whatever its status."""
        ...

    def on_error(self, error: BaseException) -> None:
        """Instead of ``on_end``, where a run that was announced ends without a result."""
        ...
