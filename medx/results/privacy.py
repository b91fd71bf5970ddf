"""What a run says of its privacy, as records."""

from typing import Literal

from pydantic import Field

from medx.released import Named, Owner, Public, Record

STUDY_ONLY = "epsilon holds only while the seed is secret; study only"
NONE_FROM = 1000  # an epsilon from here on is called none


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


def told_epsilon(value: float) -> str:
    """Three digits after the point, as far as it protects at all."""
    return f"{value:.3f}" if value < NONE_FROM else f"above {NONE_FROM} (none)"
