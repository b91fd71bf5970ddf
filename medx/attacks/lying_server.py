"""A server that lies about its model to read a linear head's records one by one, with no search at all.

In every round the model it sends answers yes to the records beyond a bound in one feature, and is sure of it. The bound
rises, and of two rounds' gradients only the records between their bounds do not cancel: this is the imprint of Fowl et
al. 2022 with a bin a round in place of a bin a neuron, which needs no layer of its own. For other models that isolate
records: Boenisch et al. 2023; Wen et al. 2022. Plain rounds have nothing by which a hospital would refuse such weights.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from medx.attacks.overheard import Lies
from medx.attacks.received import Received, Step
from medx.model.scatternet import ScatterNet
from medx.schema import ConfigError
from medx.trainer.state import ModelState

STEEP = 1e6  # the weight on the feature: records a hundred-thousandth apart in it are on two sides of a bound
ALONE = 0.01  # of the length of a record: how far from it what lies between two bounds may be


def lies_of(received: Received) -> Lies:
    """The models of a run: bounds are quantiles of the most uneven feature among validation images, taken as public.

    All weights but two are zero, so that what the others move by loses no digits. Raises ConfigError for another model
    than a linear head with one logit.
    """
    model, rounds = received.job.setup.model, received.job.setup.federation.num_rounds
    if not isinstance(model, ScatterNet) or model.hidden or received.prepared.objective.num_outputs != 1:
        raise ConfigError("model: these lies are for a linear head with one logit; accepted: scatternet with hidden=0")
    public = received.prepared.inputs["validation"].numpy()
    place = int(np.argmax(public[:, :-1].std(0)))
    bounds = np.quantile(public[:, place], np.linspace(0, 1, rounds + 2)[1:-1])
    layout = received.job.layout

    def lie(number: int) -> ModelState:
        weights = np.zeros(layout.size, layout.kind)
        weights[place], weights[-1] = STEEP, -STEEP * bounds[number - 1] / model.bias
        return ModelState(layout, weights)

    return lie


def between_bounds(steps: Sequence[Step], records: int, constant: float) -> np.ndarray:
    """Features ``[n, features]`` of those ``records`` that are alone between two rounds' bounds, of either label.

    One record, and nothing else, is as long as one. The lie's own two weights have lost their digits: there stand the
    constant, which is known, and the middle of the bounds.
    """
    alone = [np.zeros((0, len(steps[0].gradient)))]
    for low, high in pairwise(steps):
        place = int(np.argmax(low.model.parameters[:-1]))
        row = records * (low.gradient - high.gradient)
        bounds = [-constant * each.model.parameters[-1] / each.model.parameters[place] for each in (low, high)]
        row[place] = np.mean(bounds)
        row[-1] = constant
        if abs(np.linalg.norm(row) / np.hypot(1, constant) - 1) < ALONE:
            alone.append(row[None])
    return np.concatenate(alone)
