"""The privacy plan, worked out before any of it happens, and what every mechanism can be asked."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, Self

from medx.privacy.units import CLIENT, Unit
from medx.results import STUDY_ONLY
from medx.schema import ConfigError, PrivacyError, identity_of

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


# For one set of hospitals that patients are at: each with the most images of one of them there.
PatientImages = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class ClientPlan:
    """What one client will execute: ``steps_per_round`` releases in each of ``num_rounds`` rounds.

    What is drawn and clipped are records, or where ``num_patients`` is told, patients. ``expected_batch_size`` is the
    public denominator of a step, sampling probability times *declared* units; it never follows the batch that was
    drawn. ``step`` is None where training is not private.
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
    num_patients: int | None = None

    @property
    def num_units(self) -> int:
        """Of how many records, or patients, a batch is drawn."""
        return self.num_records if self.num_patients is None else self.num_patients

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
    hidden from the server; ``fraction_clients`` of the clients are expected in a round. ``num_patients`` is told where
    a patient is what is drawn and clipped, ``patient_images`` wherever patients are known.
    """

    num_records: tuple[int, ...]
    sampling_probability: tuple[float, ...]
    steps_per_round: int
    num_rounds: int
    minimum_survivors: int = 1
    secure_aggregation: bool = False
    fraction_clients: float = 1.0
    num_patients: tuple[int, ...] | None = None
    patient_images: tuple[PatientImages, ...] = ()

    @property
    def num_units(self) -> tuple[int, ...]:
        """Of how many records, or patients, each client draws."""
        return self.num_records if self.num_patients is None else self.num_patients


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

    def __post_init__(self) -> None:
        if self.contributors < 1:
            raise ConfigError(
                f"privacy.assumed_colluders={self.assumed_colluders}: accepted are 0 to {self.minimum_survivors - 1}, "
                f"fewer than the {self.minimum_survivors} minimum survivors"
            )

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
    Updates are summed in units of the round's clip norm, where one client moves the sum by 1 at most.
    """

    event: SampledGaussian
    quantile: QuantileClipping | None

    def __post_init__(self) -> None:
        noise, accounted = self.quantile.noise_stddev if self.quantile else math.inf, self.event.noise_multiplier
        if 2 * noise <= accounted:
            raise ConfigError(
                f"privacy.quantile_noise={noise:g}: accepted is more than half the noise multiplier "
                f"{accounted:g}, or null"
            )

    @property
    def update_noise_multiplier(self) -> float:
        """The noise on the sum: with that of ``quantile``, which takes a part of the budget, it is ``event``'s.

        ``z = (z_update^-2 + (2 quantile_noise)^-2)^(-1/2)`` (Andrew et al. 2021, theorem 1).
        """
        if self.quantile is None:
            return self.event.noise_multiplier
        return 1 / math.sqrt(self.event.noise_multiplier**-2 - (2 * self.quantile.noise_stddev) ** -2)


@dataclass(frozen=True)
class PrivacyPlan:
    """The whole run's plan. ``clients`` are disjoint in records, so epsilon is the maximum over them.

    With a ``client_release`` the unit is a client: clients' own steps carry no noise, and each round is one release.
    ``target_epsilon`` is for ``num_runs`` runs like this one together, or for the run and its ``baselines`` together.
    ``ledger`` is the folder of ledgers that runs share (None: the run's own), ``budget`` the most epsilon that they may
    reach, ``max_abstentions`` how many updates may be left out as not finite (None: any, as nothing leaks by it).
    ``patient_images`` are those of the exposure; where a patient is the unit, a step's gradient of one is the mean over
    at most ``max_records_per_patient`` drawn images (None: all).

    Raises PrivacyError where a record would be used otherwise than it is accounted.
    """

    mechanism: "PrivacyMechanism"
    clients: tuple[ClientPlan, ...]
    delta: float | None = None
    target_epsilon: float | None = None
    noise_source: NoiseSource = "seed"
    shared_noise: SharedNoise | None = None
    client_release: ClientRelease | None = None
    num_runs: int = 1
    baselines: tuple[str, ...] = ()
    ledger: Path | None = None
    budget: float | None = None
    max_abstentions: int | None = None
    patient_images: tuple[PatientImages, ...] = ()
    max_records_per_patient: int | None = None

    def __post_init__(self) -> None:
        if self.private and (self.client_release is not None) != (self.unit is CLIENT):
            raise PrivacyError(f"privacy={self.mechanism.name}: a release of clients' sums goes with the unit client")
        steps = {(client.step, client.steps_per_round) for client in self.clients}
        if self.shared_noise and not self.client_release and steps != {(self.clients[0].step, 1)}:
            raise PrivacyError(f"privacy={self.mechanism.name}: a sum is one release a round, the same at all clients")
        for client in self.clients:
            if self.private and client.num_records and self.event_of(client) is None:
                raise PrivacyError(f"privacy={self.mechanism.name}: client {client.client} would train without noise")
            if client.step is not None and client.step.sampling_probability != client.sampling_probability:
                raise PrivacyError(
                    f"privacy={self.mechanism.name}: client {client.client} samples with "
                    f"{client.sampling_probability:g} but accounts {client.step.sampling_probability:g}"
                )

    @property
    def private(self) -> bool:
        """Whether any guarantee is given."""
        return self.delta is not None

    @property
    def unit(self) -> Unit | None:
        """Whom the guarantee protects."""
        return self.mechanism.protected

    @property
    def warning(self) -> str | None:
        """What a reader must know where the noise comes from the seed."""
        return STUDY_ONLY if self.private and self.noise_source == "seed" else None

    def event_of(self, client: ClientPlan) -> SampledGaussian | None:
        """What is accounted for this client; None without a guarantee."""
        return self.client_release.event if self.client_release else client.step

    def events_per_round(self, client: ClientPlan) -> int:
        """How many of these events one round is."""
        return 1 if self.client_release else client.steps_per_round

    def planned_events(self, client: ClientPlan) -> int:
        """How many of them the client is going to execute."""
        return self.events_per_round(client) * client.num_rounds

    def reserved_events(self, client: ClientPlan) -> int:
        """How many of them the noise covers, spare rounds included."""
        return self.events_per_round(client) * (client.num_rounds + client.spare_rounds)

    def history(self, client: ClientPlan, events: int) -> "list[tuple[SampledGaussian, int]]":
        """So many of the client's events; none where it has no record to protect, unless it is itself the unit."""
        event = self.event_of(client)
        return [(event, events)] if event and events and (client.num_records or self.client_release) else []


class PrivacyMechanism(ABC):
    """What a run asks a configured mechanism, and what the mechanism says of itself; defaults promise nothing.

    The statement quotes whom it ``protects`` (None: nobody), ``what`` it is, with its paper, and who ``sees``
    what (with updates in the clear, and under secure aggregation). ``optimizers`` are those accepted (None: all),
    ``shares_momentum`` tells whether ``trainer.share_momentum`` may be on, ``calibrated`` whether the noise follows
    from an epsilon that was asked for, ``no_baselines`` why no other model may be trained on the records (None: may).
    All else is in the plan: how noise is drawn and summed, and where it is booked.
    """

    protects: ClassVar[Unit | None] = None
    what: ClassVar[str] = "none"
    sees: ClassVar[tuple[str, str]] = (
        "the server sees every hospital's exact model of every round",
        "the server sees the exact sum of the hospitals' updates of every round",
    )
    optimizers: ClassVar[tuple[str, ...] | None] = None
    shares_momentum: ClassVar[bool] = True
    calibrated: ClassVar[bool] = False
    no_baselines: ClassVar[str | None] = None

    @property
    def name(self) -> str:
        """The option that the class declares; of a class that declares none, its module's name."""
        declared = identity_of(type(self)).partition("/")[2]
        return declared or type(self).__module__.rpartition(".")[2]

    @property
    def protected(self) -> Unit | None:
        """Whom it protects as it is configured."""
        return self.protects

    @abstractmethod
    def plan(self, exposure: Exposure) -> PrivacyPlan:
        """Work out the noise once for the whole run; raises PrivacyError where no guarantee can be given."""

    def shared_by(self, models: int) -> Self:
        """The mechanism whose epsilon is for so many models together, all trained on the same records; itself here."""
        return self

    def check_baselines(self, names: Sequence[str]) -> None:
        """Raise ConfigError where these baselines may not be trained on the run's records."""
        if names and self.no_baselines:
            raise ConfigError(
                f"baseline={','.join(names)}: privacy={self.name} {self.no_baselines}; accepted: baseline=null"
            )

    def alone(self) -> Self:
        """The mechanism of a baseline, whose one client has nobody to hide from; itself here."""
        return self
