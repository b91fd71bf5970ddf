"""A trained model as one safetensors file: tensors, and as JSON metadata what is needed to use them.

And what a model must be for a run to be worth beginning: outputs that fit the task, and a file that gives it back.
"""

import copy
import json
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from medx.dataset import DataSplits, InputSpec
from medx.model import FixedFeatures, Model, Objective
from medx.model.storage import Tensors, read_tensors, write_tensors
from medx.schema import CheckpointError, ConfigError, MedxError, class_of, identity_of

FORMATS = (1, 2)  # in 2 the model is named by its option
STARTS_AT_NOTHING = {"pretrain": "none", "phantom_start": 0.0}
KEPT = "accepted: a @component of plain values, whose modules differ in what state_dict() holds and in nothing else"
ALIKE = 1e-4  # relative: outputs of one module on one machine, computed twice


class ExportedModel(nn.Module):
    """Normalised images ``[n, channels, size, size]`` to outputs; ``probabilities`` turns those into classes'.

    ``mean`` and ``std``, one a channel on the 0..1 scale, normalise images. ``metadata`` is what was saved beside.
    """

    def __init__(
        self,
        features: FixedFeatures | None,
        head: nn.Module,
        objective: Objective,
        spec: InputSpec,
        metadata: dict[str, Any],
    ) -> None:
        super().__init__()
        self.features, self.head, self.objective, self.spec = features, head, objective, spec
        self.mean: tuple[float, ...] = tuple(metadata["mean"])
        self.std: tuple[float, ...] = tuple(metadata["std"])
        self.metadata = metadata

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Outputs ``[n, num_outputs]``."""
        outputs: torch.Tensor = self.head(images if self.features is None else self.features(images))
        return outputs

    def probabilities(self, outputs: torch.Tensor) -> torch.Tensor:
        """``[n, num_classes]`` class probabilities from ``outputs``."""
        return self.objective.probabilities(outputs)


def describe(model: Model, spec: InputSpec, mean: Sequence[float], std: Sequence[float], **more: Any) -> dict[str, Any]:
    """The JSON metadata of a model of this package; ``more`` is kept with it, e.g. a privacy statement."""
    kind = type(model)
    component = {field.name: getattr(model, field.name) for field in fields(kind)}  # type: ignore[arg-type]
    return {
        "format": FORMATS[-1],
        "model": {"component": identity_of(kind)} | _plain(component),
        "spec": asdict(spec),
        "mean": list(mean),
        "std": list(std),
        **more,
    }


def _plain(component: dict[str, Any]) -> dict[str, Any]:
    # Public weights and phantoms were the starting point only: the trained weights are in the file.
    plain = {name: None if isinstance(value, Path) else value for name, value in component.items()}
    return plain | {name: value for name, value in STARTS_AT_NOTHING.items() if name in plain}


def save_model(path: Path, description: dict[str, Any], features: FixedFeatures | None, head: nn.Module) -> None:
    """Write ``head``, the tensors of ``features`` and ``describe``'s metadata to ``path``, whole or not at all."""
    write_tensors(path, tensors_of(features, head), {"medx": json.dumps(description, sort_keys=True)})


def tensors_of(features: FixedFeatures | None, head: nn.Module) -> Tensors:
    """What a file keeps of a model, each tensor in memory of its own: weights that layers share are written twice."""
    parts = {"head": head} | ({} if features is None else {"features": features})
    return {
        f"{part}.{name}": value.clone() for part, module in parts.items() for name, value in module.state_dict().items()
    }


def load_model(path: Path | str, kind: type[Any] | None = None) -> ExportedModel:
    """The model in ``path``, in evaluation mode on the CPU; raises CheckpointError where it is none.

    A file names its model and never chooses what code runs: the class is that of an option in ``conf/model``, or else
    ``kind``, for which the caller vouches.
    """
    path = Path(path)
    tensors, metadata = read_tensors(path)
    try:
        description = json.loads(metadata["medx"])
        if description["format"] not in FORMATS:
            raise CheckpointError(f"{path}: format {description['format']!r}; this version reads 1 and 2")
        return restored(_component(dict(description["model"]), kind), tensors, description)
    except MedxError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError, ImportError, RuntimeError) as error:
        first_line = str(error).splitlines()[0]
        raise CheckpointError(f"{path}: not a model of this version ({type(error).__name__}: {first_line})") from error


def restored(model: Model, tensors: Tensors, description: dict[str, Any]) -> ExportedModel:
    """The model that ``tensors_of`` and ``describe`` were taken from, in evaluation mode on the CPU."""
    spec = InputSpec(**description["spec"])
    features, head = model.empty_features(spec), model.build(spec, seed=0)
    exported = ExportedModel(features, head, model.objective(spec), spec, description)
    exported.load_state_dict(tensors)
    return exported.eval().requires_grad_(False)


def _component(description: dict[str, Any], kind: type[Any] | None) -> Model:
    """The component that a file names, of ``kind`` or of an option here."""
    path: str = description.pop("_target_", "")  # in format 1, whose class lay in a module of the option's name
    name = description.pop("component", None) or f"model/{path.rpartition('.')[0].rpartition('.')[2]}"
    if kind is not None and identity_of(kind) == name:
        own: Model = kind(**description)
        return own
    if not name.startswith("model/"):
        raise CheckpointError(f"model {name!r}: no option of conf/model; accepted: load_model(path, its class)")
    model: Model = class_of(name)(**description)
    return model


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
