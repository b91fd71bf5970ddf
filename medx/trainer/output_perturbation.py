"""A linear head that each hospital trains to the end, and noises once: the oldest way, as a reference."""

import copy
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Ge, Gt
from torch import nn

from medx.model import Objective
from medx.model.objectives import BinaryObjective, MulticlassObjective, MultilabelObjective, OrdinalObjective
from medx.privacy.base import ClientPlan, PrivacyPlan
from medx.privacy.units import PATIENT, Unit
from medx.schema import ConfigError, PrivacyError, component
from medx.trainer.gradients import GradientMode
from medx.trainer.gradients.record_loss import NonFiniteGradientError, RecordLoss
from medx.trainer.one_round import OneRound
from medx.trainer.state import Tensors

SLACK = 1e-6  # how far from the minimum it may end: the gradient left, in one record's share of it
MOST_CONDITION = 1e6  # of the largest second derivative to the ridge; the root of it times about 60 steps are taken
FARTHEST = 1e4  # a start, from zero, in features of norm 1: what a server sends may be anything


@component("trainer/output_perturbation")
class OutputPerturbation(OneRound):
    """Output perturbation (Chaudhuri et al. 2011, algorithm 1), whose models hospitals average (Pathak et al. 2010).

    A hospital of n records finds the head that minimises ``mean loss + ridge / 2 |head - start|^2`` over features of
    norm at most ``feature_norm`` (longer ones are scaled down to it), and what it gives for the sum is n times the
    head's way from the start. n is public. The objective is ``ridge``-strongly convex and a record's loss has slope at
    most ``slope``, so taking a record out moves the head by at most ``slope / (n ridge)`` (their section 3.1); the way
    is sent in a unit in which n times that is ``clip_norm``, and the Gaussian noise and its account are those of a
    step in which all take part. The minimum is found in float64 to a gradient of ``SLACK slope / n``, by which each
    of two neighbours' heads may be ``SLACK`` of that bound off: the unit has both. What float64 rounds is less than the
    noise has room for (``float32_slack``) where the start is no farther than ``FARTHEST``. A server that sends another
    is refused: logits that are rounded to whole numbers are no convex function's, and a record can tip all others'.

    The ridge is public, the same at every hospital, and follows from the plan: with e the norm of the noise on the mean
    head at a ridge of 1, were it one hospital's, it is ``ridge + ridge_noise e^(2/3)``. What noise costs falls with
    the ridge's square, what the ridge costs grows with it, and there their sum is least. A record that is not finite
    makes the hospital abstain, as everywhere.
    """

    ridge: Annotated[float, Gt(0)]
    ridge_noise: Annotated[float, Ge(0)]
    feature_norm: Annotated[float, Gt(0)]

    name: ClassVar[str] = "output_perturbation"
    sums_gradients: ClassVar[bool] = False
    bounds: ClassVar[str | None] = (
        "output perturbation (Chaudhuri et al. 2011): each hospital trains its own head to the end, and no gradient is "
        "clipped: features are cut to a norm, and a ridge bounds what one record moves"
    )
    fixed: ClassVar[Mapping[str, Any]] = {
        **OneRound.fixed,
        "expected_batch_size": None,
        "sampling_probability": None,
        "gradient_mode": "auto",
        "class_weights": None,
    }

    def check_round(self, num_rounds: int, federation: str, protected: Unit | None) -> None:
        """Refuse patients as the unit too: a patient's images would share what is bounded for each."""
        if protected is PATIENT:
            raise ConfigError(
                f"privacy.unit=patient: trainer={self.name} bounds what one record moves, and a patient may have "
                "several; accepted: record"
            )
        super().check_round(num_rounds, federation, protected)

    def trained_module(self, network: nn.Module, objective: Objective) -> nn.Module:
        """The head itself, where it is linear, its loss is known and its minimum is found in time."""
        self.linear_layer(network)
        least = slope_and_curvature(objective, self.feature_norm)[1] / MOST_CONDITION
        if self.ridge < least:
            raise ConfigError(
                f"trainer.ridge={self.ridge:g}: accepted with this model and trainer.feature_norm="
                f"{self.feature_norm:g} is at least {least:.3g}; below that it takes too long"
            )
        if not self._starts_near(network):
            raise ConfigError(
                f"model: its head starts farther from zero than {self.farthest:g}, what is accepted with trainer="
                f"{self.name} and trainer.feature_norm={self.feature_norm:g}; model.phantom_start is what it goes with"
            )
        return network

    @property
    def farthest(self) -> float:
        """How long a model may be that is started from."""
        return FARTHEST / max(1.0, self.feature_norm)

    def refuse_far(self, network: nn.Module) -> None:
        """Raise PrivacyError where the server's model is longer than that, or is not finite."""
        if not self._starts_near(network):
            raise PrivacyError(
                f"the server's model is not finite or too long: accepted with trainer={self.name} and "
                f"trainer.feature_norm={self.feature_norm:g} is a length of at most {self.farthest:g}"
            )

    def _starts_near(self, network: nn.Module) -> bool:
        return math.hypot(*(float(start.detach().double().norm()) for start in network.parameters())) <= self.farthest

    def solved(self, network: nn.Module, objective: Objective, average: Tensors, plan: PrivacyPlan) -> Tensors:
        """The mean head: what was sent, out of its unit."""
        start = {name: parameter.detach().double() for name, parameter in network.named_parameters()}
        units = {self.unit(objective, client, network) for client in plan.clients if client.num_records}
        if len(units) != 1:
            raise ConfigError(f"trainer={self.name}: hospitals' noise differs, so their heads are in different units")
        (unit,) = units
        ways = {name: (tensor.to(start[name]) - start[name]) / unit for name, tensor in average.items()}
        return {name: (start[name] + way).to(average[name].dtype) for name, way in ways.items()}

    def ridge_for(self, objective: Objective, plan: ClientPlan, network: nn.Module) -> float:
        """The ridge of every hospital of the run that the plan is of."""
        if plan.step is None:
            return self.ridge
        slope, _ = slope_and_curvature(objective, self.feature_norm)
        numbers = sum(parameter.numel() for parameter in network.parameters())
        norm = slope * plan.step.noise_multiplier * math.sqrt(numbers) / plan.federation_batch_size
        return float(self.ridge + self.ridge_noise * norm ** (2 / 3))

    def unit(self, objective: Objective, plan: ClientPlan, network: nn.Module) -> float:
        """What a hospital's way from the start is multiplied by, so that a record moves n times it by the clip norm."""
        slope, _ = slope_and_curvature(objective, self.feature_norm)
        clip_norm = plan.step.clip_norm if plan.step else 1.0
        return clip_norm * self.ridge_for(objective, plan, network) / (slope * (1 + 2 * SLACK))

    def _sums(
        self, record_loss: RecordLoss, objective: Objective, plan: ClientPlan, generator: torch.Generator | None
    ) -> GradientMode:
        self.refuse_far(record_loss.module)
        return Ways(record_loss, objective, self, plan)


class Ways:
    """Minus n times the way to one hospital's own head, in the unit in which a record moves it by the clip norm."""

    def __init__(
        self, record_loss: RecordLoss, objective: Objective, trainer: OutputPerturbation, plan: ClientPlan
    ) -> None:
        self.record_loss, self.objective, self.trainer, self.plan = record_loss, objective, trainer, plan

    def clipped_sum(self, inputs: torch.Tensor, labels: torch.Tensor, clip_norm: float) -> list[torch.Tensor]:
        """``float64``, one tensor for each parameter; raises NonFiniteGradientError where no minimum is found.

        ``clip_norm`` is the plan's, or infinite. Inputs ``[n, d]`` and labels ``[n]`` are all records at once: a part
        of them has another minimum.
        """
        parameters = self.record_loss.parameters()
        if len(labels) == 0:
            return [torch.zeros_like(parameter, dtype=torch.float64) for parameter in parameters]
        assert clip_norm == (self.plan.step.clip_norm if self.plan.step else math.inf)
        times = self.plan.num_records * self.trainer.unit(self.objective, self.plan, self.record_loss.module)
        found = self._minimum(inputs.detach().cpu().double(), labels.cpu())
        pairs = zip(found, parameters, strict=True)
        return [times * (start.detach().double() - end.to(start.device)) for end, start in pairs]

    def _minimum(self, inputs: torch.Tensor, labels: torch.Tensor) -> list[torch.Tensor]:
        """By Nesterov's method for strongly convex functions (2004, section 2.2.1), in a public number of steps.

        His theorem 2.2.3 promises a gradient of ``SLACK slope / n`` after so many, whatever the records: neither how
        long it takes nor whether it ends depends on one.
        """
        inputs = inputs * (self.trainer.feature_norm / inputs.norm(dim=1, keepdim=True)).clamp(max=1)
        loss = replace(self.record_loss, module=copy.deepcopy(self.record_loss.module).cpu().double())
        at, records = loss.parameters(), self.plan.num_records
        ridge = self.trainer.ridge_for(self.objective, self.plan, loss.module)
        start = [parameter.detach().clone() for parameter in at]
        slope, curvature = slope_and_curvature(self.objective, self.trainer.feature_norm)
        more = max(1.0, len(labels) / records)
        most = curvature * more + ridge
        root = math.sqrt(most / ridge)

        def slopes() -> list[torch.Tensor]:
            gradients = loss.gradient(inputs, labels)
            pairs = zip(gradients, at, start, strict=True)
            return [gradient / records + ridge * (here.detach() - begun) for gradient, here, begun in pairs]

        before = start
        for _ in range(steps_enough(root, more * records)):
            now = [here.detach() - gradient / most for here, gradient in zip(at, slopes(), strict=True)]
            with torch.no_grad():
                for here, new, old in zip(at, now, before, strict=True):
                    here.copy_(new + (root - 1) / (root + 1) * (new - old))
            before = now
        with torch.no_grad():
            for here, new in zip(at, before, strict=True):
                here.copy_(new)
        if not math.hypot(*(float(each.norm()) for each in slopes())) <= SLACK * slope / records:
            raise NonFiniteGradientError("trainer=output_perturbation: records or features are not finite")
        return before


def steps_enough(root: float, records: float) -> int:
    """Steps to a gradient of ``SLACK`` in one record's share, at a condition of ``root``^2 and from any records.

    ``f - f*`` falls by ``1 - 1 / root`` in each, from ``most |start - minimum|^2`` at the most, and a squared gradient
    is at most ``2 most`` times it.
    """
    return math.ceil(root * math.log(2 * root**4 * (records / SLACK) ** 2))


def slope_and_curvature(objective: Objective, norm: float) -> tuple[float, float]:
    """Bounds on the norm of one record's gradient, and on its second derivative, by all parameters of a linear head.

    Its features are at most ``norm`` long. Raises ConfigError for an objective of another kind.
    """
    if isinstance(objective, BinaryObjective):
        return norm, norm**2 / 4
    if isinstance(objective, MulticlassObjective):  # probabilities less an indicator, of norm sqrt 2 at most
        return math.sqrt(2) * norm, norm**2 / 2
    if isinstance(objective, MultilabelObjective):
        return math.sqrt(objective.num_outputs) * norm, norm**2 / 4
    if isinstance(objective, OrdinalObjective):  # a mean over cut points: at most 1 by the score, 1 / K by each of them
        return math.sqrt(norm**2 + 1 / objective.num_outputs), (norm**2 + 1) / 4
    raise ConfigError(
        f"model: its objective {type(objective).__name__} has no bound that is known; accepted with "
        "trainer=output_perturbation: a model with an objective of this package"
    )
