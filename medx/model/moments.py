"""Second moments of fixed features, as a linear loss: a record's gradient is its part in them, with the sign changed.

So what clips, sums, noises and accounts gradients does it for a record's moments too, and nothing else is needed.
"""

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from medx.model import Objective
from medx.model.objectives import BinaryObjective, MulticlassObjective, MultilabelObjective, OrdinalObjective
from medx.schema import ConfigError


class Moments(nn.Module):
    """Features ``x [n, d]`` to ``[n, 1 + targets]``: ``<gram, a svec(x x^T)>``, and ``<cross_k, b x>`` of each target.

    ``svec`` is the upper triangle by rows, off the diagonal times sqrt 2, so that its norm is ``|x|^2``. With
    ``cross_share`` = b^2 = 1 - a^2 a record with features and targets of norm 1 is 1 long. The gradient of the loss of
    ``MomentsObjective`` is ``(a svec(x x^T), b t x^T)`` with the sign changed, at every value of the parameters. With a
    ``constant`` targets go with it too, as with one feature more: so their means are known.
    """

    positions: torch.Tensor
    weights: torch.Tensor

    def __init__(self, num_features: int, num_targets: int, cross_share: float, constant: float = 0.0) -> None:
        super().__init__()
        self.constant = constant
        self.of_features, self.of_targets = math.sqrt(1 - cross_share), math.sqrt(cross_share)
        rows, columns = torch.triu_indices(num_features, num_features)
        self.gram = nn.Parameter(torch.zeros(len(rows)))
        self.cross = nn.Parameter(torch.zeros(num_targets, num_features + (constant > 0)))
        positions = torch.empty(num_features, num_features, dtype=torch.int64)
        positions[rows, columns] = positions[columns, rows] = torch.arange(len(rows))
        self.register_buffer("positions", positions, persistent=False)
        # A symmetric matrix has a number of svec twice, each over sqrt 2.
        weights = torch.where(rows == columns, 1.0, math.sqrt(0.5))
        self.register_buffer("weights", weights, persistent=False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """``[n, d]`` to ``[n, 1 + targets]``."""
        square = ((inputs @ self.matrix(self.gram)) * inputs).sum(1, keepdim=True)
        return torch.cat((self.of_features * square, self.of_targets * self.extended(inputs) @ self.cross.T), 1)

    def extended(self, inputs: torch.Tensor) -> torch.Tensor:
        """``[n, d]`` with the constant behind them, where there is one."""
        return functional.pad(inputs, (0, 1), value=self.constant) if self.constant else inputs

    def matrix(self, vector: torch.Tensor) -> torch.Tensor:
        """The symmetric ``[d, d]`` of which the vector is the svec."""
        return (vector * self.weights.to(vector))[self.positions]

    def vector(self, matrix: torch.Tensor) -> torch.Tensor:
        """The svec of a symmetric matrix ``[d, d]``."""
        rows, columns = torch.triu_indices(*matrix.shape, device=matrix.device)
        return matrix[rows, columns] / self.weights.to(matrix)


@dataclass(frozen=True)
class MomentsObjective:
    """The loss whose gradient a record's moments are; ``task`` is the objective of the head that they give.

    Targets are public numbers for each class, at most 1 long: -1 and 1 of two; of more the class's indicator less
    1 / classes, scaled to norm 1; of ordered ones -1 or 1 for each cut point that the class is below or above, and of
    several labels for each that is known, over the root of their number. What ordered classes come to on a scale from
    -1 to 1 is the mean over cut points: its regression has the noise of one target.
    """

    task: Objective

    @property
    def num_outputs(self) -> int:
        """Columns of the outputs of ``Moments``."""
        return 1 + num_targets(self.task)

    def loss(self, outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """``[batch]``: minus the sum of outputs, those of targets times the record's own."""
        return -outputs[:, 0] - (self.targets(labels).to(outputs) * outputs[:, 1:]).sum(1)

    def targets(self, labels: torch.Tensor) -> torch.Tensor:
        """``[batch, targets]``."""
        if isinstance(self.task, MultilabelObjective):
            known = torch.where(labels > 0, 1.0, -1.0) * (labels >= 0)
            return known / math.sqrt(self.task.num_outputs)
        return class_targets(self.task).to(labels.device)[labels]

    def probabilities(self, outputs: torch.Tensor) -> torch.Tensor:
        """``[batch, classes]``, by how well outputs go with each class's targets; nothing is measured by them."""
        if isinstance(self.task, MultilabelObjective):
            return torch.sigmoid(outputs[:, 1:])
        return (outputs[:, 1:] @ class_targets(self.task).to(outputs).T).softmax(1)


def num_targets(task: Objective) -> int:
    """One for two classes, of ordered ones one for each cut point, else one for each class or label."""
    return task.num_outputs if isinstance(task, MultilabelObjective) else class_targets(task).shape[1]


def class_targets(task: Objective) -> torch.Tensor:
    """``[classes, targets]`` of a task with one label a record; raises ConfigError for an objective of another kind."""
    if isinstance(task, BinaryObjective):
        return torch.tensor([[-1.0], [1.0]])
    if isinstance(task, OrdinalObjective):
        cuts = task.num_outputs
        return (2.0 * (torch.arange(cuts + 1)[:, None] > torch.arange(cuts)) - 1) / math.sqrt(cuts)
    if isinstance(task, MulticlassObjective):
        classes = task.num_outputs
        return functional.normalize(torch.eye(classes) - 1 / classes)
    raise ConfigError(
        f"model: no targets are known for its objective {type(task).__name__}; accepted with trainer=least_squares: a "
        "model with an objective of this package"
    )
