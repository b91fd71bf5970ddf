"""A gradient mode is tried on the very model before any data is read, or any budget reserved."""

import copy
import math
import warnings

import torch
from torch import nn

from medx.model import Objective
from medx.privacy.preflight import check_gradients, perturbed
from medx.schema import PrivacyError
from medx.trainer.gradients import GradientModeName, Naive, build_mode
from medx.trainer.gradients.record_loss import RecordLoss

CUT = 0.7  # of the median norm
OTHERS: tuple[GradientModeName, ...] = ("book_keeping", "hooks", "vmap", "naive")


def try_mode(
    mode: GradientModeName, module: nn.Module, objective: Objective, *, views: int, shape: torch.Size, num_classes: int
) -> None:
    """Refuse a gradient mode that fails on ``module``, or clips otherwise than the naive loop; names those that do not.

    Tried on a copy without dropout and with weights off zero, as a last layer at zero would hide every layer below, on
    the CPU, with three random inputs of ``shape``, ``views`` of each.
    """
    loss = RecordLoss(without_dropout(perturbed(module).float()), objective.loss, views=views)
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(3, *((views,) if views > 1 else ()), *shape, generator=generator)
    labels = torch.arange(3) % num_classes
    problem = problem_of(mode, loss, inputs, labels)
    if problem is None:
        return
    right = [other for other in OTHERS if other != mode and problem_of(other, loss, inputs, labels) is None]
    accepted = f"trainer.gradient_mode={' or '.join(right)}" if right else "another model"
    raise PrivacyError(
        f"trainer.gradient_mode={mode}: gives no gradient per record of this model ({problem}); accepted: {accepted}"
    )


def problem_of(mode: GradientModeName, loss: RecordLoss, inputs: torch.Tensor, labels: torch.Tensor) -> str | None:
    """Why this mode cannot train the module of ``loss``, in one line; None where it clips as the naive loop does."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of slow operations: here a mode is only asked whether it is right
        try:
            clip_norm = cutting_norm(loss, inputs, labels)
            sums = build_mode(mode, loss, private=True).clipped_sum(inputs, labels, clip_norm)
            check_gradients(loss.module, loss, sums, inputs=inputs, labels=labels, clip_norm=clip_norm)
        except Exception as error:  # of whatever the libraries under the modes make of an unknown module
            return next(iter(str(error).splitlines()), type(error).__name__)
    return None


def cutting_norm(loss: RecordLoss, inputs: torch.Tensor, labels: torch.Tensor) -> float:
    """A clip norm below the median norm of the records' gradients, whatever the run's: it surely cuts some records.

    At the median itself, records of nearly equal norms would all be spared, and a mode that takes something else for a
    record would give the right sum.
    """
    alone = [Naive(loss).clipped_sum(inputs[i : i + 1], labels[i : i + 1], math.inf) for i in range(len(inputs))]
    norms = [math.sqrt(sum(float(g.double().square().sum()) for g in gradients)) for gradients in alone]
    return CUT * sorted(norms)[len(norms) // 2] or 1.0


def without_dropout(module: nn.Module) -> nn.Module:
    """A copy in training mode, on the CPU, whose dropout drops nothing, so that two passes are equal."""
    probe = copy.deepcopy(module).cpu().train()
    for part in probe.modules():
        for name in ("p", "dropout"):  # of Dropout, and of recurrent and attention layers
            if isinstance(getattr(part, name, None), float):
                setattr(part, name, 0.0)
    return probe
