"""What a model must be for a run to be worth beginning: outputs that fit the task, and a file that gives it back."""

import copy
import json

import torch
from torch import nn

from medx.dataset import DataSplits
from medx.model.base import FixedFeatures, Model, Objective
from medx.model.export import describe, restored, tensors_of
from medx.schema import ConfigError

KEPT = "accepted: a @component of plain values, whose modules differ in what state_dict() holds and in nothing else"
ALIKE = 1e-4  # relative: outputs of one module on one machine, computed twice


def check_outputs(module: nn.Module, objective: Objective, inputs: torch.Tensor) -> None:
    """Refuse a module that trains nothing, fails on ``inputs [n, ...]``, or whose outputs do not fit the objective.

    Also one that keeps what it saw in buffers: these are not sent between hospitals. Raises ConfigError.
    """
    if not any(parameter.requires_grad for parameter in module.parameters()):
        raise ConfigError("model: none of its parameters is trained; accepted: a module with requires_grad on some")
    probe = copy.deepcopy(module).cpu()
    buffers = {name: value.clone() for name, value in probe.named_buffers()}
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        try:
            probe.train()(inputs)
            outputs = probe.eval()(inputs)
        except Exception as error:  # whatever an unknown module makes of them
            raise ConfigError(f"model: fails on inputs of {list(inputs.shape)} ({said(error)})") from error
    for name, value in probe.named_buffers():
        if not torch.equal(value, buffers[name]):
            raise ConfigError(
                f"model: a forward pass changes buffer {name}, which hospitals do not send; accepted: layers without "
                "running statistics, e.g. GroupNorm or LayerNorm"
            )
    wanted = [len(inputs), objective.num_outputs]
    if not isinstance(outputs, torch.Tensor) or list(outputs.shape) != wanted:
        found = list(outputs.shape) if isinstance(outputs, torch.Tensor) else type(outputs).__name__
        raise ConfigError(
            f"model: gives {found} for {len(inputs)} images; accepted: {wanted}, as many outputs as "
            "objective(spec).num_outputs says for this task"
        )
    if not torch.isfinite(outputs).all():
        raise ConfigError("model: its outputs are not finite before any training")


def check_export(
    model: Model, splits: DataSplits, features: FixedFeatures | None, module: nn.Module, images: torch.Tensor
) -> None:
    """Refuse a model whose file would not give it back: saved, built anew and loaded, it must answer the same.

    ``images`` are normalised ``[n, channels, height, width]``; ``module`` has parameters off zero, as a last layer at
    zero would hide everything. Raises ConfigError.
    """
    try:
        description = json.loads(json.dumps(describe(model, splits.spec, splits.mean, splits.std)))
        fields = {name: value for name, value in description["model"].items() if name != "component"}
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            loaded = restored(type(model)(**fields), tensors_of(features, module), description)
            before = module.eval()(images if features is None else features(images))
            after = loaded(images)
    except Exception as error:  # of a class and a module that may be anybody's
        raise ConfigError(f"model: could not be saved and loaded ({said(error)}); {KEPT}") from error
    if not torch.allclose(before, after, rtol=ALIKE, atol=ALIKE):
        raise ConfigError(f"model: saved and loaded it gives other outputs; {KEPT}")


def said(error: Exception) -> str:
    """The kind of an error and the first line of what it says."""
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
