"""The same private steps as ``medx.run`` with no framework around them: the floor that a run can be compared with.

Five hospitals, five rounds of 15 steps, expected batch 64, ``cnn``: sample, clip per record, add noise, step; average
the hospitals; evaluate on the test images. No Flower, Lightning, Hydra, MLflow, ledger, or checkpoint, and no noise
calibration. Prints the seconds of the rounds, and the last accuracy.
"""

import argparse
import time

import numpy as np
import torch
from torch import nn

from benchmarks.common import BATCH, CLIP, HOSPITALS, MOMENTUM, RATE, ROUNDS, STEPS, load_arrays, small_cnn
from medx.machine import keep_freed_memory
from medx.trainer.gradients import build_mode
from medx.trainer.gradients.record_loss import RecordLoss

NOISE_MULTIPLIER = 0.75


def train(model: nn.Module, images: torch.Tensor, labels: torch.Tensor, generator: torch.Generator) -> None:
    """One hospital's steps of one round, in place."""
    mode = build_mode("auto", RecordLoss(model, nn.CrossEntropyLoss(reduction="none")), True)
    parameters = list(model.parameters())
    optimizer = torch.optim.SGD(parameters, lr=RATE, momentum=MOMENTUM)
    for _ in range(STEPS):
        rows = torch.nonzero(torch.rand(len(labels), generator=generator) < BATCH / len(labels)).squeeze(1)
        for parameter, total in zip(parameters, mode.clipped_sum(images[rows], labels[rows], CLIP), strict=True):
            noise = torch.randn(total.shape, generator=generator)
            parameter.grad = (total + NOISE_MULTIPLIER * CLIP * noise) / BATCH
        optimizer.step()


def run() -> tuple[float, float]:
    """Seconds of the rounds, and the last accuracy."""
    keep_freed_memory()  # as in a run
    images, labels, test_images, test_labels = load_arrays()
    order = np.random.default_rng(0).permutation(len(labels))
    parts = [torch.from_numpy(rows) for rows in np.array_split(order, HOSPITALS)]
    data = [(images[rows], labels[rows]) for rows in parts]
    model, generator = small_cnn(), torch.Generator().manual_seed(0)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    accuracy = 0.0
    started = time.perf_counter()
    for _ in range(ROUNDS):
        states = []
        for part in data:
            model.load_state_dict(state)
            train(model.train(), *part, generator)
            states.append({name: value.clone() for name, value in model.state_dict().items()})
        state = {name: torch.stack([other[name] for other in states]).mean(0) for name in state}
        model.load_state_dict(state)
        with torch.no_grad():
            accuracy = float((model.eval()(test_images).argmax(1) == test_labels).float().mean())
    return time.perf_counter() - started, accuracy


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    torch.set_num_threads(parser.parse_args().threads)
    elapsed, accuracy = run()
    print(f"rounds {elapsed:.3f}\naccuracy {accuracy:.3f}")
