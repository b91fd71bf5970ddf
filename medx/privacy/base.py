"""The privacy plan: what every client will do in the whole run, worked out before any of it happens."""

from dataclasses import dataclass
from typing import Literal, Protocol

from medx.results import STUDY_ONLY

ZERO_OUT = "differ in one record's content, which is there or taken out (zero-out)"
ZERO_OUT_CLIENT = "differ in what one hospital holds, which is there or taken out (zero-out)"
NoiseSource = Literal["seed", "system"]


@dataclass(frozen=True)
class SampledGaussian:
    """One Poisson-subsampled Gaussian release (Abadi et al. 2016, algorithm 1; Mironov et al. 2019).

    The noise that is added and the event that is accounted both come from this object, so they cannot differ.
    Unit: a record, added or removed. Sensitivity of the released sum: ``clip_norm`` in the l2 norm.
    """

    sampling_probability: float
    noise_multiplier: float
    clip_norm: float

    @property
    def noise_stddev(self) -> float:
        """Standard deviation of the noise on every coordinate of the sum."""
        return self.noise_multiplier * self.clip_norm


@dataclass(frozen=True)
class ClientPlan:
    """What one client will execute: ``steps_per_round`` releases in each of ``num_rounds`` rounds.

    ``expected_batch_size`` is the public denominator of a step, sampling probability times *declared* records;
    it never follows the batch that was drawn. ``step`` is None where training is not private.
    ``federation_batch_size`` is the sum of the expected batches of all clients of the run. The noise covers
    ``spare_rounds`` more, for rounds that are begun again.
    """

    client: int
    num_records: int
    sampling_probability: float
    expected_batch_size: float
    steps_per_round: int
    num_rounds: int
    step: SampledGaussian | None
    federation_batch_size: float
    spare_rounds: int = 0

    @property
    def total_steps(self) -> int:
        """Steps over the whole run."""
        return self.steps_per_round * self.num_rounds

    @property
    def reserved_steps(self) -> int:
        """The same with the spare rounds: what the noise covers and a ledger reserves."""
        return self.steps_per_round * (self.num_rounds + self.spare_rounds)


@dataclass(frozen=True)
class Exposure:
    """What a mechanism must cover: the clients' declared sizes and how often each record may be touched.

    ``minimum_survivors`` clients at least are in every sum; ``secure_aggregation`` tells whether single updates are
    hidden from the server; ``fraction_clients`` of the clients are expected in a round.
    """

    num_records: tuple[int, ...]
    sampling_probability: tuple[float, ...]
    steps_per_round: int
    num_rounds: int
    minimum_survivors: int = 1
    secure_aggregation: bool = False
    fraction_clients: float = 1.0


@dataclass(frozen=True)
class SharedNoise:
    """Noise of a sum, made of the clients' shares (Kairouz, Liu and Steinke 2021).

    Each share has the standard deviation ``noise_multiplier * sensitivity / sqrt(contributors)``, where
    ``contributors`` = ``minimum_survivors`` - ``assumed_colluders``: any that many honest shares add up to the
    planned noise. With ``trusted_aggregator`` the server sees the shares' owners one by one and is trusted.
    """

    minimum_survivors: int
    assumed_colluders: int
    trusted_aggregator: bool

    @property
    def contributors(self) -> int:
        """How many honest shares make the planned noise."""
        return self.minimum_survivors - self.assumed_colluders


@dataclass(frozen=True)
class QuantileClipping:
    """A clip norm that follows the ``target`` quantile of the updates' norms (Andrew et al. 2021, section 2).

    A round's sum of ``[norm <= clip norm] - 1/2`` gets Gaussian noise of ``noise_stddev``; its sensitivity is 1/2.
    """

    target: float
    learning_rate: float
    noise_stddev: float


@dataclass(frozen=True)
class ClientRelease:
    """A round's noised sum of clipped updates, one release for all clients (McMahan et al. 2018, algorithm 1).

    Unit: a client, added or removed. ``event`` is what is accounted; its ``clip_norm`` is that of the first round.
    Updates are summed in units of the round's clip norm, where one client moves the sum by 1 at most, and
    ``update_noise_multiplier`` is the noise there: ``event``'s, or more where ``quantile`` takes a part of the budget.
    """

    event: SampledGaussian
    update_noise_multiplier: float
    quantile: QuantileClipping | None


@dataclass(frozen=True)
class PrivacyPlan:
    """The whole run's plan. ``clients`` are disjoint in records, so epsilon is the maximum over them.

    With a ``client_release`` the unit is a client: clients' own steps carry no noise, and each round is one release.
    ``target_epsilon`` is for ``num_runs`` runs like this one together, or for the run and its ``baselines`` together.
    """

    mechanism: str
    unit: str | None
    adjacency: str | None
    delta: float | None
    target_epsilon: float | None
    noise_source: NoiseSource
    clients: tuple[ClientPlan, ...]
    shared_noise: SharedNoise | None = None
    client_release: ClientRelease | None = None
    num_runs: int = 1
    baselines: tuple[str, ...] = ()

    def event_of(self, client: ClientPlan) -> SampledGaussian | None:
        """What is accounted for this client; None without a guarantee."""
        return self.client_release.event if self.client_release else client.step

    def events_per_round(self, client: ClientPlan) -> int:
        """How many of these events one round is."""
        return 1 if self.client_release else client.steps_per_round

    def reserved_events(self, client: ClientPlan) -> int:
        """How many of them the noise covers, spare rounds included."""
        return self.events_per_round(client) * (client.num_rounds + client.spare_rounds)

    @property
    def warning(self) -> str | None:
        """What a reader must know where the noise comes from the seed."""
        return STUDY_ONLY if self.private and self.noise_source == "seed" else None

    @property
    def private(self) -> bool:
        """Whether any guarantee is given."""
        return self.target_epsilon is not None


class PrivacyMechanism(Protocol):
    """A configured mechanism: one module and one yaml of the same name."""

    def plan(self, exposure: Exposure) -> PrivacyPlan:
        """Calibrate the noise once for the whole run; raises PrivacyError where no guarantee can be given."""
        ...
