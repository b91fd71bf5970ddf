"""How outputs become a loss per record and class probabilities, for each task. No objective mixes records."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional

from medx.dataset import InputSpec, Task
from medx.model import Objective
from medx.schema import ConfigError

SMALLEST_GAP = 1e-3  # between two neighbouring cut points, in logits: keeps every class possible


@dataclass(frozen=True)
class BinaryObjective:
    """Logistic loss of one logit for class 1."""

    num_outputs: int = 1

    def loss(self, outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """``[batch]`` losses from logits ``[batch, 1]`` and labels 0 or 1 ``[batch]``."""
        return functional.softplus((1 - 2 * labels.to(outputs.dtype)) * outputs[:, 0])

    def probabilities(self, outputs: torch.Tensor) -> torch.Tensor:
        """``[batch, 2]`` probabilities of class 0 and class 1."""
        return torch.cat((torch.sigmoid(-outputs), torch.sigmoid(outputs)), 1)


@dataclass(frozen=True)
class MulticlassObjective:
    """Cross-entropy of a softmax over ``num_outputs`` classes."""

    num_outputs: int

    def loss(self, outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """``[batch]`` losses from logits ``[batch, classes]`` and labels ``[batch]``."""
        return functional.cross_entropy(outputs, labels, reduction="none")

    def probabilities(self, outputs: torch.Tensor) -> torch.Tensor:
        """``[batch, classes]`` softmax probabilities."""
        return outputs.softmax(1)


@dataclass(frozen=True)
class OrdinalObjective:
    """Proportional odds (McCullagh 1980): output k is the logit of P(class <= k), K - 1 outputs for K classes.

    The loss is the all-threshold one (Rennie and Srebro 2005): the mean over cut points of the logistic loss of
    "class <= k". Every record pulls at every cut point. The likelihood's gradient touches a record's two neighbours
    only, and clipping then drives cut points together until a class between them is gone.
    """

    num_outputs: int

    def loss(self, outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """``[batch]`` losses from cumulative logits ``[batch, classes - 1]`` and labels ``[batch]``."""
        cuts = torch.arange(self.num_outputs, device=labels.device)
        signs = (labels[:, None] > cuts).to(outputs.dtype) * 2 - 1
        return functional.softplus(signs * outputs).mean(1)

    def probabilities(self, outputs: torch.Tensor) -> torch.Tensor:
        """``[batch, classes]`` probabilities.

        Outputs out of order are sorted, and gaps below ``SMALLEST_GAP`` widened, so that every class keeps a
        positive probability whatever noise did to the cut points.
        """
        ordered = outputs.sort(1).values
        above = functional.pad(functional.logsigmoid(ordered), (0, 1))
        below = functional.pad(functional.logsigmoid(-ordered), (1, 0))
        gaps = (ordered[:, 1:] - ordered[:, :-1]).clamp(min=SMALLEST_GAP)
        inside = functional.pad(torch.log(-torch.expm1(-gaps)), (1, 1))
        # sigmoid(b) - sigmoid(a) = sigmoid(b) sigmoid(-a) (1 - exp(a - b)), which no rounding makes negative.
        return (above + below + inside).softmax(1)


@dataclass(frozen=True)
class MultilabelObjective:
    """Logistic losses of one logit a label, added up over the labels that are known: one loss and gradient a record."""

    num_outputs: int

    def loss(self, outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """``[batch]`` losses from logits ``[batch, labels]`` and labels of that shape: 1, 0, or -1 for not known."""
        return (functional.softplus((1 - 2 * labels.to(outputs.dtype)) * outputs) * (labels >= 0)).sum(1)

    def probabilities(self, outputs: torch.Tensor) -> torch.Tensor:
        """``[batch, labels]``, each of its own label: they do not sum to one."""
        return torch.sigmoid(outputs)


OBJECTIVES: dict[Task, Callable[[int], Objective]] = {
    "binary": lambda num_classes: BinaryObjective(),
    "multiclass": MulticlassObjective,
    "multilabel": MultilabelObjective,
    "ordinal": lambda num_classes: OrdinalObjective(num_classes - 1),
}


def objective_for(spec: InputSpec) -> Objective:
    """The objective of ``spec.task``; raises ConfigError where the number of classes does not fit it."""
    if spec.num_classes < (1 if spec.task == "multilabel" else 2) or (spec.task == "binary" and spec.num_classes != 2):
        accepted = "2" if spec.task == "binary" else "2 or more"
        raise ConfigError(f"num_classes={spec.num_classes}: task {spec.task} takes {accepted}")
    return OBJECTIVES[spec.task](spec.num_classes)
