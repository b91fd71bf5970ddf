"""What clients put into a sum: a noised gradient, a weighted or a clipped update, as words on a public grid."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from torch import nn

from medx.aggregation import PlainAggregation, SecureAggregation
from medx.aggregation.integer_noise import accounting_gap, client_noise_stddev
from medx.aggregation.ring import Layout, ScalarField, largest_scale
from medx.aggregation.roster import Parameters, Roster
from medx.federation.base import Federation
from medx.federation.job import Job, Prepared, Setup, build_module
from medx.federation.payload import MOMENTUM, State, parameters_of
from medx.privacy.base import ClientRelease, SampledGaussian, SharedNoise
from medx.randomness import derive_key
from medx.results import AggregationResult
from medx.schema import ConfigError
from medx.trainer.gradients.record_loss import float32_slack
from medx.trainer.local_training import Trainer

Kind = Literal["gradient", "update", "clipped_update"]
WEIGHT, SMALL = "weight", "small"
UPDATE_BOUND = 64.0
NEGLIGIBLE_GAP = 1e-4


@dataclass(frozen=True)
class SumPlan:
    """One job's sums. ``noise_stddev`` is a client's share in grid units, 0 where updates carry noise already.

    ``server_noise_stddev`` is what a trusted server adds to the sum, in grid units. ``roster`` and ``identities`` (raw
    Ed25519 keys, one trust domain) are None where the sum is in the clear.
    """

    kind: Kind
    layout: Layout
    noise_stddev: int = 0
    server_noise_stddev: int = 0
    roster: Roster | None = None
    identities: tuple[bytes, ...] | None = field(default=None, repr=False)


def make_sum_plan(job: Job, prepared: Prepared) -> SumPlan | None:
    """The sums of this job; None where updates go to a Flower strategy in the clear."""
    aggregation, shared, release = job.setup.aggregation, job.plan.shared_noise, job.plan.client_release
    if not aggregation.secure and shared is None and release is None:
        return None
    clients = job.setup.num_clients
    check_sums(job)
    module = build_module(job.setup, prepared)
    # The automatic scale is the same with and without masks, so that both give the same words.
    grid = aggregation if isinstance(aggregation, SecureAggregation) else _automatic_grid()
    if release is not None:
        plan = _clipped_plan(job, module, grid, release)
    elif shared is not None:
        plan = _gradient_plan(job, prepared, module, grid, shared)
    else:
        plan = _update_plan(job, module, grid)
    plan.layout.check(clients, plan.server_noise_stddev + plan.noise_stddev * math.sqrt(clients))
    return _with_roster(job, plan, grid) if aggregation.secure else plan


def check_sums(job: Job) -> None:
    """Refuse what a sum cannot give: comparing updates, another server step, fewer than three parties."""
    setup = job.setup
    least = setup.aggregation.survivors_for(setup.num_clients)
    if least > setup.num_clients >= 3:
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


def _gradient_plan(
    job: Job, prepared: Prepared, module: nn.Module, grid: SecureAggregation, shared: SharedNoise
) -> SumPlan:
    step = job.plan.clients[0].step
    assert step is not None
    h = shared.contributors
    dimension = sum(p.numel() for p in module.parameters() if p.requires_grad)
    bound = step.clip_norm * (max(prepared.num_records()) + 1)  # no client's sum is larger, so nothing saturates
    scale = grid.scale_for(job.setup.num_clients, bound, step.noise_stddev / math.sqrt(h))
    sensitivity = step.clip_norm * (1 + float32_slack(max(prepared.num_records())))
    noise = client_noise_stddev(step.noise_multiplier, sensitivity, scale, dimension, h)
    _check_gap(job, scale, noise, h, dimension)
    return SumPlan("gradient", Layout(dimension, scale, bound), noise)


def _update_plan(job: Job, module: nn.Module, grid: SecureAggregation) -> SumPlan:
    clients = job.setup.num_clients
    dimension = sum(tensor.numel() for tensor in shared_state(job, module).values())
    scale = grid.scale_for(clients, grid.update_bound, 0.0)
    weight = ScalarField(WEIGHT, largest_scale(clients, 1.0, 0.0), 1.0)
    return SumPlan("update", Layout(dimension, scale, grid.update_bound, (weight,)))


def _clipped_plan(job: Job, module: nn.Module, grid: SecureAggregation, release: ClientRelease) -> SumPlan:
    """Updates in units of the round's clip norm, so that grid, bound and noise stay while the clip norm moves."""
    clients, shared = job.setup.num_clients, job.plan.shared_noise
    h = shared.contributors if shared else 1
    z = release.update_noise_multiplier
    dimension = sum(p.numel() for p in module.parameters() if p.requires_grad)
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


def _with_roster(job: Job, plan: SumPlan, aggregation: SecureAggregation) -> SumPlan:
    event = _released(job)
    parameters = Parameters(
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
    roster, identities = aggregation.enrolled(parameters, job.setup.num_clients)
    return replace(plan, roster=roster, identities=tuple(identity.private_bytes_raw() for identity in identities))


def _released(job: Job) -> SampledGaussian | None:
    """The release that a sum is, where the sum is what is accounted."""
    if job.plan.client_release is not None:
        return job.plan.client_release.event
    return job.plan.clients[0].step if job.plan.shared_noise is not None else None


def aggregation_result(job: Job) -> AggregationResult:
    """How this job's updates are summed, for statement and result."""
    roster = job.sums.roster if isinstance(job.sums, SumPlan) else None
    if roster is None or not isinstance(job.sums, SumPlan):
        return AggregationResult(secure=False)
    return AggregationResult(
        secure=True,
        roster_hash=roster.digest.hex(),
        num_clients=roster.num_clients,
        threshold=roster.threshold,
        minimum_survivors=roster.minimum_survivors,
        tolerated_colluders=roster.tolerated_colluders,
        # Whatever the roster says: a process that holds every identity is one trust domain.
        trust_domain="one" if job.sums.identities is not None else roster.trust_domain,
    )


def alone(setup: Setup) -> Setup:
    """The set-up of a baseline, whose one client has nobody to hide from: no masks, all of the noise."""
    return replace(setup, aggregation=PlainAggregation(minimum_survivors=None), privacy=setup.privacy.alone())


def shared_state(job: Job, module: nn.Module) -> State:
    """What an update consists of, at zero: the trained parameters and the momentum where it is shared."""
    trainer = job.setup.trainer
    state = {name: torch.zeros_like(p, device="cpu") for name, p in module.named_parameters() if p.requires_grad}
    if trainer.share_momentum:
        state |= {MOMENTUM + name: value.clone() for name, value in state.items()}
    return state


def sent_state(job: Job, module: nn.Module) -> State:
    """What clients get as the round's model, at zero: a step of the server's keeps its momentum to itself."""
    state = shared_state(job, module)
    by_server = isinstance(job.sums, SumPlan) and job.sums.kind == "gradient"
    return parameters_of(state) if by_server else state


def flatten(tensors: Sequence[torch.Tensor]) -> np.ndarray:
    """All values in one ``float64 [dimension]`` vector, in the given order."""
    return torch.cat([tensor.detach().reshape(-1).double().cpu() for tensor in tensors]).numpy()


def unflatten(vector: np.ndarray, like: State) -> State:
    """A vector back in the shapes and types of ``like``, in its order."""
    result, start = {}, 0
    for name, tensor in like.items():
        part = torch.from_numpy(vector[start : start + tensor.numel()].copy())
        result[name] = part.reshape(tensor.shape).to(tensor.dtype)
        start += tensor.numel()
    return result


def with_sums(job: Job, prepared: Prepared) -> Job:
    """The job with its sums worked out, ready for clients and server."""
    return replace(job, sums=make_sum_plan(job, prepared))
