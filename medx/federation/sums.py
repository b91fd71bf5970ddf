"""What clients put into a sum: a noised gradient, a weighted or a clipped update, as words on a public grid."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from medx.aggregation import PlainAggregation, SecureAggregation
from medx.aggregation.integer_noise import NoiseStream, accounting_gap, client_noise_stddev
from medx.aggregation.ring import Layout, ScalarField, largest_scale
from medx.aggregation.roster import Parameters, Roster
from medx.federation.fedbuff import FedBuff
from medx.federation.setup import Job, Setup, SumPlan, secret_key
from medx.federation.strategies import Federation
from medx.privacy.base import ClientRelease, SampledGaussian, SharedNoise
from medx.randomness import Key, derive_key
from medx.results import AggregationResult
from medx.schema import ConfigError, PrivacyError
from medx.trainer.gradients.record_loss import float32_slack
from medx.trainer.local_training import Trainer

STAGES = ("keys", "shares", "masked", "confirm", "unmask")
CLIP = "clip-norm"
WEIGHT, SMALL = "weight", "small"
UPDATE_BOUND = 64.0
NEGLIGIBLE_GAP = 1e-4


class Position(NamedTuple):
    """Which attempt at which round; ``round`` counts from 1."""

    round: int
    attempt: int


# The roster of a run with these parameters, and the identities in it that this process has, by client.
Enrol = Callable[[Parameters], tuple[Roster, Mapping[int, bytes]]]


def with_sums(job: Job, enrol: Enrol | None = None) -> Job:
    """The job with its sums worked out, ready for clients and server; None enrols everybody, as a simulation does."""
    return replace(job, sums=_sum_plan(job, enrol))


def _sum_plan(job: Job, enrol: Enrol | None) -> SumPlan | None:
    """The sums of this job; None where updates go to a Flower strategy in the clear."""
    aggregation, shared, release = job.setup.aggregation, job.plan.shared_noise, job.plan.client_release
    if not aggregation.secure and shared is None and release is None:
        return None
    clients = job.setup.num_clients
    _check_sums(job)
    # The automatic scale is the same with and without masks, so that both give the same words.
    grid = aggregation if isinstance(aggregation, SecureAggregation) else _automatic_grid()
    if release is not None:
        plan = _clipped_plan(job, grid, release)
    elif shared is not None:
        plan = _gradient_plan(job, grid, shared)
    else:
        plan = _update_plan(job, grid)
    plan.layout.check(clients, plan.server_noise_stddev + plan.noise_stddev * math.sqrt(clients))
    if not aggregation.secure:
        return plan
    parameters = _parameters(job, plan, grid)
    roster, identities = enrol(parameters) if enrol else _simulated(grid, parameters, clients)
    return replace(plan, roster=roster, identities=identities)


def _check_sums(job: Job) -> None:
    """Refuse what a sum cannot give: comparing updates, another server step, fewer than three parties."""
    setup = job.setup
    least = setup.aggregation.survivors_for(setup.num_clients)
    if least > setup.num_clients and not (setup.aggregation.secure and setup.num_clients < 3):
        raise ConfigError(
            f"aggregation.minimum_survivors={least}: accepted are at most the {setup.num_clients} of "
            "federation.num_clients"
        )
    if setup.aggregation.secure and setup.num_clients < 3:
        raise ConfigError(
            f"federation.num_clients={setup.num_clients}: aggregation=secure takes at least 3, "
            "with two the sum tells each the other's update"
        )
    if setup.aggregation.secure and setup.federation.fraction_clients < 1:
        raise ConfigError(
            f"federation.fraction_clients={setup.federation.fraction_clients}: aggregation=secure takes 1, "
            "since the server sees who is asked"
        )
    _check_federation(job, setup.federation)
    _check_trainer(job, setup.trainer)


def _check_federation(job: Job, federation: Federation) -> None:
    name = type(federation).__name__.lower()
    if federation.robust:
        raise ConfigError(
            f"federation={name}: it compares single updates, of which privacy={job.plan.mechanism.name} releases the "
            "sum alone; accepted: a strategy that uses their mean, e.g. fedavg"
        )


def _check_trainer(job: Job, trainer: Trainer) -> None:
    mechanism = job.plan.mechanism
    if mechanism.optimizers is not None and trainer.optimizer not in mechanism.optimizers:
        accepted = " or ".join(mechanism.optimizers)
        raise ConfigError(
            f"trainer.optimizer={trainer.optimizer}: accepted with privacy={mechanism.name} is {accepted}"
        )
    if trainer.share_momentum and not mechanism.shares_momentum:
        raise ConfigError(
            f"trainer.share_momentum=true: accepted with privacy={mechanism.name} is false, updates alone are summed"
        )


def _automatic_grid() -> SecureAggregation:
    return SecureAggregation(
        threshold=None, minimum_survivors=None, scale=None, update_bound=UPDATE_BOUND, roster=None, max_attempts=1
    )


def _gradient_plan(job: Job, grid: SecureAggregation, shared: SharedNoise) -> SumPlan:
    step = job.plan.clients[0].step
    assert step is not None
    h, dimension = shared.contributors, job.layout.size
    most = max(client.num_units for client in job.plan.clients)
    bound = step.clip_norm * (most + 1)  # no client's sum is larger, so nothing saturates
    scale = grid.scale_for(job.setup.num_clients, bound, step.noise_stddev / math.sqrt(h))
    sensitivity = step.clip_norm * (1 + float32_slack(most))
    noise = client_noise_stddev(step.noise_multiplier, sensitivity, scale, dimension, h)
    _check_gap(job, scale, noise, h, dimension)
    return SumPlan("gradient", Layout(dimension, scale, bound), noise)


def _update_plan(job: Job, grid: SecureAggregation) -> SumPlan:
    clients = job.setup.num_clients
    dimension = job.layout.size * (1 + job.setup.trainer.share_momentum)
    scale = grid.scale_for(clients, grid.update_bound, 0.0)
    weight = ScalarField(WEIGHT, largest_scale(clients, 1.0, 0.0), 1.0)
    return SumPlan("update", Layout(dimension, scale, grid.update_bound, (weight,)))


def _clipped_plan(job: Job, grid: SecureAggregation, release: ClientRelease) -> SumPlan:
    """Updates in units of the round's clip norm, so that grid, bound and noise stay while the clip norm moves."""
    clients, shared = job.setup.num_clients, job.plan.shared_noise
    h = shared.contributors if shared else 1
    z = release.update_noise_multiplier
    dimension = job.layout.size
    scale = grid.scale_for(clients, 1.0, z / math.sqrt(h))
    noise = client_noise_stddev(z, 1.0, scale, dimension, h)
    fields: tuple[ScalarField, ...] = ()
    if release.quantile is not None:
        # Even, so that a half is on the grid; rounded down, so that the noise is at least the promised one.
        steps = 2 * math.floor(noise * math.sqrt(h) / release.quantile.noise_stddev / 2)
        fields = (ScalarField(SMALL, float(steps), 0.5),)
    _check_gap(job, scale, noise, h, dimension + len(fields))
    layout = Layout(dimension, scale, 1.0, fields)
    return SumPlan("clipped_update", layout, noise) if shared else SumPlan("clipped_update", layout, 0, noise)


def _check_gap(job: Job, scale: float, noise: int, contributors: int, dimension: int) -> None:
    releases = job.setup.federation.num_rounds * job.plan.num_runs
    gap = accounting_gap(noise, contributors, dimension, releases)
    if gap > NEGLIGIBLE_GAP:
        raise ConfigError(
            f"aggregation.scale={scale:g}: the noise's grid is too coarse, epsilon could grow by {gap:.2g}; "
            f"accepted: a scale that keeps this below {NEGLIGIBLE_GAP:g}, or null"
        )


def _simulated(aggregation: SecureAggregation, parameters: Parameters, clients: int) -> tuple[Roster, dict[int, bytes]]:
    roster, identities = aggregation.enrolled(parameters, clients)
    return roster, {client: identity.private_bytes_raw() for client, identity in enumerate(identities)}


def _parameters(job: Job, plan: SumPlan, aggregation: SecureAggregation) -> Parameters:
    event = _released(job)
    return Parameters(
        # Known before the run, so that a roster can be pinned; a hash, since a roster is public and the seed is not.
        run_id=derive_key(job.setup.seed, "roster", job.setup.draw_key).hex()[:32],
        dimension=plan.layout.size,
        scale=plan.layout.scale,
        bound=plan.layout.bound,
        num_rounds=job.setup.federation.num_rounds,
        max_attempts=aggregation.max_attempts,
        noise_stddev=plan.noise_stddev,
        noise_multiplier=event.noise_multiplier if event else None,
        clip_norm=event.clip_norm if event else None,
        sampling_probability=event.sampling_probability if event else None,
    )


def _released(job: Job) -> SampledGaussian | None:
    """The release that a sum is, where the sum is what is accounted."""
    if job.plan.client_release is not None:
        return job.plan.client_release.event
    return job.plan.clients[0].step if job.plan.shared_noise is not None else None


def aggregation_result(job: Job) -> AggregationResult:
    """How this job's updates are summed, for statement and result."""
    roster = job.sums.roster if job.sums else None
    if roster is None or job.sums is None:
        return AggregationResult(secure=False)
    return AggregationResult(
        secure=True,
        roster_hash=roster.digest.hex(),
        num_clients=roster.num_clients,
        threshold=roster.threshold,
        minimum_survivors=roster.minimum_survivors,
        tolerated_colluders=roster.tolerated_colluders,
        # Whatever the roster says: a process that holds every identity is one trust domain.
        trust_domain="one" if len(job.sums.identities or ()) == roster.num_clients else roster.trust_domain,
    )


def alone(setup: Setup) -> Setup:
    """The set-up of a baseline, whose one client has nobody to hide from: no masks, all of the noise."""
    federation = setup.federation.waiting() if isinstance(setup.federation, FedBuff) else setup.federation
    plain = PlainAggregation(minimum_survivors=None)
    return replace(setup, aggregation=plain, privacy=setup.privacy.alone(), federation=federation)


def sum_plan(job: Job) -> SumPlan:
    """The job's sums; a job without them never gets a message that asks for one."""
    assert job.sums is not None
    return job.sums


def attempts_of(job: Job) -> int:
    """How often a round may be tried."""
    return int(getattr(job.setup.aggregation, "max_attempts", 1))


def ledger_entry(job: Job, position: Position) -> int:
    """Under which number an attempt at a round is entered where every attempt is a release of its own.

    No two attempts of the plan have one number; raises PrivacyError for what is not in the plan.
    """
    rounds, attempts = job.setup.federation.num_rounds, attempts_of(job)
    if not (1 <= position.round <= rounds and 0 <= position.attempt < attempts):
        raise PrivacyError(
            f"round {position.round}, attempt {position.attempt}: accepted are rounds 1 to {rounds} and "
            f"attempts 0 to {attempts - 1}"
        )
    return (position.round - 1) * attempts + position.attempt


def noise_stream(
    job: Job, who: Key, position: Position, *added_to: Key, heard: Callable[[np.ndarray, float], None] | None = None
) -> NoiseStream:
    """The noise of one client, or of the server, for one attempt and for what it is added to: a stream used once."""
    return NoiseStream(secret_key(job, "noise", who, *position, *added_to), heard)
