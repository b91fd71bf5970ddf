"""What clients put into a sum: a noised gradient or a weighted update, as words on a public grid."""

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from torch import nn

from medx.aggregation.encoding import Layout, ScalarField
from medx.aggregation.integer_noise import accounting_gap, client_noise_stddev
from medx.aggregation.roster import Parameters, Roster
from medx.aggregation.secure import SecureAggregation
from medx.federation.job import Job, Prepared, build_module
from medx.federation.payload import MOMENTUM, State
from medx.privacy.base import SharedNoise
from medx.schema import ConfigError

WEIGHT = ScalarField("weight", scale=2.0**24, bound=1.0)
SATURATED = ScalarField("saturated", scale=1.0, bound=2.0**24)
NEGLIGIBLE_GAP = 1e-4


@dataclass(frozen=True)
class SumPlan:
    """One job's sums. ``noise_stddev`` is a client's share in grid units, 0 where updates carry noise already.

    ``roster`` and ``identities`` (raw Ed25519 keys, one trust domain) are None where the sum is in the clear.
    """

    layout: Layout
    noise_stddev: int
    gradient: bool
    roster: Roster | None
    identities: tuple[bytes, ...] | None


def make_sum_plan(job: Job, prepared: Prepared) -> SumPlan | None:
    """The sums of this job; None where updates go to a Flower strategy in the clear."""
    aggregation, shared = job.setup.aggregation, job.plan.shared_noise
    if not aggregation.secure and shared is None:
        return None
    module = build_module(job.setup, prepared)
    clients = job.setup.num_clients
    # The automatic scale is the same with and without masks, so that both give the same words.
    grid = aggregation if isinstance(aggregation, SecureAggregation) else _automatic_grid()
    if shared is not None:
        plan = _gradient_plan(job, prepared, module, grid, shared)
    else:
        dimension = sum(tensor.numel() for tensor in shared_state(job, module).values())
        scale = grid.scale_for(clients, grid.update_bound, 0.0)
        plan = SumPlan(Layout(dimension, scale, grid.update_bound, (WEIGHT, SATURATED)), 0, False, None, None)
    plan.layout.check(clients, plan.noise_stddev * math.sqrt(clients))
    return _with_roster(job, plan, grid) if aggregation.secure else plan


def _automatic_grid() -> SecureAggregation:
    return SecureAggregation(
        threshold=None, minimum_survivors=None, scale=None, update_bound=64.0, roster=None, max_attempts=1
    )


def _gradient_plan(
    job: Job, prepared: Prepared, module: nn.Module, grid: SecureAggregation, shared: SharedNoise
) -> SumPlan:
    step = job.plan.clients[0].step
    assert step is not None
    clients, h = job.setup.num_clients, shared.contributors
    dimension = sum(p.numel() for p in module.parameters() if p.requires_grad)
    bound = step.clip_norm * max(prepared.num_records())  # no client's sum can be larger, so nothing saturates
    scale = grid.scale_for(clients, bound, step.noise_stddev / math.sqrt(h))
    noise = client_noise_stddev(step.noise_multiplier, step.clip_norm, scale, dimension, h)
    gap = accounting_gap(noise, h, dimension, job.setup.federation.num_rounds)
    if gap > NEGLIGIBLE_GAP:
        raise ConfigError(
            f"aggregation.scale={scale:g}: the noise's grid is too coarse, epsilon could grow by {gap:.2g}; "
            f"accepted: a scale that keeps this below {NEGLIGIBLE_GAP:g}, or null"
        )
    return SumPlan(Layout(dimension, scale, bound), noise, True, None, None)


def _with_roster(job: Job, plan: SumPlan, aggregation: SecureAggregation) -> SumPlan:
    step = job.plan.clients[0].step if plan.gradient else None
    parameters = Parameters(
        run_id=f"{job.run_id}-{job.setup.seed}",
        dimension=plan.layout.size,
        scale=plan.layout.scale,
        bound=plan.layout.bound,
        num_rounds=job.setup.federation.num_rounds,
        noise_stddev=plan.noise_stddev,
        noise_multiplier=step.noise_multiplier if step else None,
        clip_norm=step.clip_norm if step else None,
        sampling_probability=step.sampling_probability if step else None,
    )
    roster, identities = aggregation.enrolled(parameters, job.setup.num_clients)
    return SumPlan(plan.layout, plan.noise_stddev, plan.gradient, roster, tuple(map(_raw, identities)))


def _raw(identity: Ed25519PrivateKey) -> bytes:
    return identity.private_bytes_raw()


def shared_state(job: Job, module: nn.Module) -> State:
    """What an update consists of, at zero: the trained parameters and the momentum where it is shared."""
    trainer = job.setup.trainer
    state = {name: torch.zeros_like(p, device="cpu") for name, p in module.named_parameters() if p.requires_grad}
    if trainer.share_momentum:
        state |= {MOMENTUM + name: value.clone() for name, value in state.items()}
    return state


def flatten(tensors: list[torch.Tensor]) -> np.ndarray:
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
