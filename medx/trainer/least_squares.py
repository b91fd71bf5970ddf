"""A linear head by ridge regression on noised second moments: one release in place of many steps."""

import math
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Gt, Lt
from torch import nn

from medx.model import Objective
from medx.model.moments import Moments, MomentsObjective, num_targets
from medx.model.objectives import OrdinalObjective
from medx.privacy.base import PrivacyPlan
from medx.schema import component
from medx.trainer.one_round import OneRound
from medx.trainer.state import Tensors

CONSTANT = 0.25  # beside features of norm 1: a cut point's share of records has four times the noise of a mean target
SURE = 0.02  # the least share of records on a side of a cut point that is believed


@component("trainer/least_squares")
class LeastSquares(OneRound):
    """Private least squares by sufficient statistics (AdaSSP: Wang 2018; of fixed features: Mehta et al. 2023).

    A record's vector is its features' products with themselves and with its targets (``model.moments``). It is clipped,
    summed, noised and accounted as a gradient is, in one step of rate 1 from zero: what is trained are the mean moments
    G and M. Sensitivity of their sum: ``clip_norm``, at which all records stand by the preset. The head is
    ``(G + r I)^-1 (M + r W)``, in float64 and deterministic, so it is free (post-processing); W is where the model
    starts (``model.phantom_start``, else nought) in units of the regression.

    G is first taken to the nearest matrix that can be one: eigenvalues below nought are set to it. The ridge r is
    ``ridge + ridge_noise * s sqrt(2 d)``, where s is the noise's standard deviation on a diagonal entry of G: it is
    1 / sqrt(2) of that elsewhere, so the noise's norm is about ``s sqrt(2 d)`` (Wigner's semicircle, Tao 2012, section
    2.3), and what ``ridge_noise`` 1 adds is as much as the noise can take away. Both follow from the plan alone.

    ``temperature`` makes a regression's value v the logit ``temperature * v``. For normal classes alike in spread,
    whose regression explains a share R^2, it is ``2 / (1 - R^2)``: 4 at one half. It is public, and not fitted. Ordered
    classes have one score, whose cut points follow from the shares of records below each, which moments tell
    (``cut_points``).
    """

    ridge: Annotated[float, Gt(0)]
    ridge_noise: Annotated[float, Ge(0)]
    cross_share: Annotated[float, Gt(0), Lt(1)]
    temperature: Annotated[float, Gt(0)]

    name: ClassVar[str] = "least_squares"

    def trained_module(self, network: nn.Module, objective: Objective) -> nn.Module:
        """The moments of the features that a linear head is on."""
        layer = self.linear_layer(network)
        constant = CONSTANT if isinstance(objective, OrdinalObjective) else 0.0
        return Moments(layer.in_features, num_targets(objective), self.cross_share, constant)

    def trained_objective(self, objective: Objective) -> Objective:
        """The loss whose gradients moments are."""
        return MomentsObjective(objective)

    def solved(self, network: nn.Module, objective: Objective, average: Tensors, plan: PrivacyPlan) -> Tensors:
        """The head's tensors."""
        layer, moments = self.linear_layer(network), self.trained_module(network, objective)
        assert isinstance(moments, Moments)
        mean = {name: tensor.detach().cpu().double() for name, tensor in average.items()}
        gram = moments.matrix(mean["gram"]) / moments.of_features
        cross = mean["cross"] / moments.of_targets
        noise = noise_stddev(plan) / moments.of_features
        ridge = self.ridge + self.ridge_noise * noise * math.sqrt(2 * layer.in_features)
        start = layer.weight.detach().cpu().double() / self.temperature
        if not moments.constant:
            weight = self.temperature * ridge_solution(gram, cross, ridge, start)
            return {"0.weight": weight.to(layer.weight)}
        # Ordered classes: all records weigh what the clip norm leaves of one whose features have norm 1.
        step, cuts = plan.clients[0].step, math.sqrt(len(cross))
        left = 1.0 if step is None else min(1.0, step.clip_norm)
        means = cross[:, -1] * cuts / moments.constant / left
        weight = ridge_solution(gram, (cross[:, :-1] * cuts).mean(0, keepdim=True), ridge, start)
        spread = float((weight @ gram @ weight.T).clamp(min=0)) / left - float(means.mean()) ** 2
        points = cut_points(means, self.temperature, self.temperature**2 * max(0.0, spread))
        return {"0.weight": (self.temperature * weight).to(layer.weight), "1.cutpoints": points.to(layer.weight)}


def ridge_solution(gram: torch.Tensor, cross: torch.Tensor, ridge: float, start: torch.Tensor) -> torch.Tensor:
    """``[targets, d]``: the B that minimises ``tr(B G B^T) - 2 tr(B M^T) + ridge |B - start|^2``.

    ``gram [d, d]`` is G without its negative eigenvalues, ``cross [targets, d]`` is M.
    """
    values, vectors = torch.linalg.eigh(gram)
    solution: torch.Tensor = ((cross + ridge * start) @ vectors / (values.clamp(min=0) + ridge)) @ vectors.T
    return solution


def cut_points(means: torch.Tensor, temperature: float, variance: float) -> torch.Tensor:
    """``[cuts]``: those at which a normal score has the records' shares below them, as far as these are believed.

    ``means [cuts]`` are of targets that are -1 below a cut point and 1 above. The score's mean is that of targets times
    ``temperature``; the mean of ``sigmoid(c - score)`` is about ``sigmoid((c - mean) / sqrt(1 + pi variance / 8))``
    (MacKay 1992).
    """
    below = ((1 - means) / 2).clamp(SURE, 1 - SURE).sort().values
    return temperature * means.mean() + math.sqrt(1 + math.pi / 8 * variance) * torch.logit(below)


def noise_stddev(plan: PrivacyPlan) -> float:
    """Of the noise on each number of the mean moments, by the plan: with all hospitals in the sum, and no retry."""
    steps = [client.step.noise_stddev if client.step else 0.0 for client in plan.clients]
    if plan.shared_noise is not None:
        more = math.sqrt(len(plan.clients) / plan.shared_noise.contributors)
        return steps[0] * more / plan.clients[0].federation_batch_size
    total = sum(client.num_records for client in plan.clients)
    weights = [client.num_records / total / client.expected_batch_size for client in plan.clients]
    return math.hypot(*(weight * stddev for weight, stddev in zip(weights, steps, strict=True)))
