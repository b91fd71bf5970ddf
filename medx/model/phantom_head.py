"""Where a head on scattering features may start: at a head fitted to drawn phantoms, which costs no privacy."""

from pathlib import Path

import torch
from torch import nn

from medx.dataset import InputSpec, chest_phantom, fundus_phantom
from medx.model import heads, objectives
from medx.model.cache import cached, compute_features
from medx.model.heads import LinearHead, initialise
from medx.model.objectives import objective_for
from medx.model.phantom_basis import draw_phantoms, phantoms_probe
from medx.model.scatter_features import ScatterFeatures
from medx.model.storage import Tensors, source_digest

# Long enough for a head to rank phantoms well, short enough that it does not memorise them.
STEPS = 300
LEARNING_RATE = 5.0
MOMENTUM = 0.9

CODE = source_digest(__file__, heads.__file__, objectives.__file__)

NUM_CLASSES = {
    ("binary", 1): len(chest_phantom.CLASS_NAMES),
    ("ordinal", 3): len(fundus_phantom.CLASS_NAMES),
}


def phantoms_fit(spec: InputSpec) -> bool:
    """Whether phantoms carry labels of this task: clear or opaque in grey, the five grades in colour."""
    return NUM_CLASSES.get((spec.task, spec.num_channels)) == spec.num_classes


def phantom_head(features: ScatterFeatures, spec: InputSpec, num_phantoms: int, seed: int, cache: Path) -> Tensors:
    """The state of a linear head on ``features``, fitted to ``num_phantoms`` drawn phantoms; from ``cache``."""
    probe = phantoms_probe(features.settings, seed)
    recipe = f"{CODE} {features.fingerprint} {spec} {num_phantoms} {seed} {probe}"
    return cached(cache, "head", recipe, lambda: _fit(features, spec, num_phantoms, seed))


def _fit(features: ScatterFeatures, spec: InputSpec, num_phantoms: int, seed: int) -> Tensors:
    images, labels = draw_phantoms(features.settings, num_phantoms, seed)
    rows = compute_features(features, images)
    with torch.device("meta"):
        head: nn.Module = LinearHead(rows.shape[1], spec, bias=False)
    head, objective = initialise(head, seed), objective_for(spec)
    optimizer = torch.optim.SGD(head.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM)
    for _ in range(STEPS):
        optimizer.zero_grad()
        objective.loss(head(rows), labels).mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return {name: value.detach().clone() for name, value in head.state_dict().items()}
