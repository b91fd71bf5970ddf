"""What the server measures each round, on validation and test images that it holds itself."""

import torch
from torch import nn
from torch.func import functional_call

from medx.federation.job import Prepared
from medx.federation.payload import State
from medx.metrics import evaluate

BATCH = 512


@torch.no_grad()
def probabilities(module: nn.Module, state: State, prepared: Prepared, split: str, device: str) -> torch.Tensor:
    """Class probabilities ``[n, num_classes]`` of the model with these parameters on one split, on the CPU."""
    return predict(module, state, prepared, prepared.inputs[split], device)


@torch.no_grad()
def predict(module: nn.Module, state: State, prepared: Prepared, inputs: torch.Tensor, device: str) -> torch.Tensor:
    """Class probabilities ``[n, num_classes]`` for any model inputs ``[n, ...]``, on the CPU, in float64."""
    module.eval()
    placed = {name: tensor.to(device) for name, tensor in state.items()}
    outputs = [functional_call(module, placed, (batch.to(device),)) for batch in inputs.split(BATCH)]
    return prepared.objective.probabilities(torch.cat(outputs).double()).cpu()


def round_metrics(module: nn.Module, state: State, prepared: Prepared, device: str) -> dict[str, float | None]:
    """Metrics of both splits, named ``validation/auc``, ``test/auc`` and so on."""
    metrics: dict[str, float | None] = {}
    for split in ("validation", "test"):
        predicted = probabilities(module, state, prepared, split, device)
        labels = prepared.labels[split].numpy()
        for name, value in evaluate(predicted.numpy(), labels, prepared.spec.task).items():
            metrics[f"{split}/{name}"] = value
    return metrics
