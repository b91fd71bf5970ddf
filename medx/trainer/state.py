"""A model as it travels: one vector of its trained parameters, and one of the optimiser's momentum where it is shared.

What is not trained is public and the same in every process, so it is neither sent nor kept.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from typing import TypeVar

import numpy as np
import torch
from torch import nn

from medx.aggregation.messages import model_hash
from medx.schema import ConfigError

MOMENTUM = "momentum/"
KINDS: dict[torch.dtype, np.dtype] = {
    torch.float16: np.dtype("float16"),
    torch.float32: np.dtype("float32"),
    torch.float64: np.dtype("float64"),
}
Tensors = dict[str, torch.Tensor]
A = TypeVar("A", np.ndarray, torch.Tensor)


def trained_parameters(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Those that training moves, by name, in the module's order."""
    return [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]


@dataclass(frozen=True)
class ModelLayout:
    """Names and shapes of the trained parameters in the module's order, and their one type.

    Client and server each derive it from the module that they are configured with, and never from a message.
    """

    shapes: tuple[tuple[str, tuple[int, ...]], ...]
    kind: np.dtype

    @classmethod
    def of(cls, tensors: Mapping[str, torch.Tensor]) -> "ModelLayout":
        """The layout of these tensors; raises ConfigError unless there are any, and of one type of float."""
        types = {tensor.dtype for tensor in tensors.values()}
        if len(types) != 1 or not types <= KINDS.keys():
            found = " and ".join(sorted(map(str, types))) or "none"
            raise ConfigError(
                f"model: its trained parameters are {found}; accepted: one type of {', '.join(map(str, KINDS))}"
            )
        return cls(tuple((name, tuple(tensor.shape)) for name, tensor in tensors.items()), KINDS[types.pop()])

    @cached_property
    def size(self) -> int:
        """How many numbers the parameters are."""
        return self._ends[-1]

    @cached_property
    def _ends(self) -> list[int]:
        return list(accumulate(math.prod(shape) for _, shape in self.shapes))

    @cached_property
    def texts(self) -> tuple[str, str]:
        """Names and shapes of parameters and of momentum: what a model's hash has beside the values."""
        return self._text(""), MOMENTUM + self._text(MOMENTUM)

    def _text(self, prefix: str) -> str:
        return json.dumps({prefix + name: shape for name, shape in self.shapes}, separators=(",", ":"))

    @cached_property
    def names(self) -> tuple[str, str]:
        """What the vectors of parameters and of momentum are called in a message.

        A digest of the layout is in it, so that no side takes the vector of another model of the same size for its own.
        """
        digest = hashlib.sha256(self.texts[0].encode()).hexdigest()[:16]
        return f"parameters-{digest}", f"momentum-{digest}"

    def split(self, vector: A) -> dict[str, A]:
        """Views of the vector ``[size]`` in the parameters' shapes, by name."""
        starts = [0, *self._ends]
        return {
            name: vector[starts[place] : starts[place + 1]].reshape(shape)
            for place, (name, shape) in enumerate(self.shapes)
        }

    def join(self, tensors: Mapping[str, torch.Tensor]) -> np.ndarray:
        """The vector ``[size]`` of these tensors, in memory of its own."""
        return np.concatenate([tensors[name].detach().cpu().numpy().ravel() for name, _ in self.shapes])


@dataclass(frozen=True)
class ModelState:
    """Parameters ``[layout.size]``, and the momentum, as long, where it is a part of the state."""

    layout: ModelLayout
    parameters: np.ndarray
    momentum: np.ndarray | None = None

    @classmethod
    def of(cls, module: nn.Module, *, momentum: bool = False) -> "ModelState":
        """The trained parameters of a module as they are, with a momentum of zero where there is one."""
        tensors = dict(trained_parameters(module))
        layout = ModelLayout.of(tensors)
        return cls(layout, layout.join(tensors), np.zeros(layout.size, layout.kind) if momentum else None)

    @classmethod
    def of_tensors(cls, tensors: Tensors) -> "ModelState":
        """The state whose ``tensors()`` these are."""
        parameters = {name: tensor for name, tensor in tensors.items() if not name.startswith(MOMENTUM)}
        momentum = {name.removeprefix(MOMENTUM): tensor for name, tensor in tensors.items() if name not in parameters}
        layout = ModelLayout.of(parameters)
        return cls(layout, layout.join(parameters), layout.join(momentum) if momentum else None)

    def tensors(self) -> Tensors:
        """Tensors by name, and the momentum as ``momentum/NAME``, in memory of their own."""
        return self.parameter_tensors() | {MOMENTUM + name: part for name, part in self.momentum_tensors().items()}

    def parameter_tensors(self) -> Tensors:
        """The parameters by name, in memory of their own."""
        return self.layout.split(torch.from_numpy(self.parameters.copy()))

    def momentum_tensors(self) -> Tensors:
        """The momentum by the parameters' names, in memory of its own; empty where there is none."""
        return {} if self.momentum is None else self.layout.split(torch.from_numpy(self.momentum.copy()))

    @property
    def vectors(self) -> list[np.ndarray]:
        """The parameters, and the momentum where there is one."""
        return [self.parameters] if self.momentum is None else [self.parameters, self.momentum]

    def load_into(self, module: nn.Module) -> None:
        """Give the module these parameters."""
        with torch.no_grad():
            tensors = self.parameter_tensors()
            for name, parameter in trained_parameters(module):
                parameter.copy_(tensors[name])

    def without_momentum(self) -> "ModelState":
        """The parameters alone."""
        return replace(self, momentum=None)

    def flat(self) -> np.ndarray:
        """All numbers, ``float64 [size]``, or twice that with the momentum."""
        return np.concatenate(self.vectors).astype(np.float64)

    def moved(self, update: np.ndarray) -> "ModelState":
        """The state plus an update ``[size]``, or twice that with the momentum, of any type."""
        size = self.layout.size
        parts = update[:size], update[size:]
        new = [old + part.astype(old.dtype) for old, part in zip(self.vectors, parts, strict=False)]
        return ModelState(self.layout, *new)

    @property
    def finite(self) -> bool:
        """Whether every number is finite."""
        return all(bool(np.isfinite(vector).all()) for vector in self.vectors)

    def hash(self, clip_norm: float | None = None) -> bytes:
        """The hash of the model, and of the clip norm that came with it, as this party has them."""
        values = list(zip(self.layout.texts, self.vectors, strict=False))
        return model_hash(values if clip_norm is None else [*values, ("clip-norm", np.array(clip_norm))])
