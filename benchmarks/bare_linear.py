"""The default run's private steps with no framework around them: what the default sweep can be compared with.

Five hospitals, 50 rounds of 6 steps over all records, a linear head on the features of ``scatternet`` (from the cache):
clip per record, add noise, step; average model and momentum; evaluate on the test images. Prints the seconds of the
rounds, and the last accuracy.
"""

import argparse
import time

import torch
from torch import nn

from benchmarks.common import MOMENTUM
from benchmarks.in_process import configure
from medx.federation.setup import Prepared, build_module, prepare
from medx.trainer.gradients import build_mode
from medx.trainer.gradients.record_loss import RecordLoss

ROUNDS, STEPS, CLIP, RATE, NOISE_MULTIPLIER = 50, 6, 0.1, 30.0, 1.2
Pair = tuple[torch.Tensor, torch.Tensor]


def run(head: nn.Module, prepared: Prepared) -> tuple[float, float]:
    """Seconds of the rounds, and the last accuracy."""
    clients = [prepared.client(client) for client in range(len(prepared.parts))]
    mode = build_mode("auto", RecordLoss(head, prepared.objective.loss), True)
    (weight,) = head.parameters()
    state: Pair = (weight.detach().clone(), torch.zeros_like(weight))
    generator, accuracy = torch.Generator().manual_seed(0), 0.0
    started = time.perf_counter()
    for _ in range(ROUNDS):
        ends: list[Pair] = []
        for inputs, labels in clients:
            momentum = state[1].clone()
            with torch.no_grad():
                weight.copy_(state[0])
            for _ in range(STEPS):
                (total,) = mode.clipped_sum(inputs, labels, CLIP)
                noise = torch.randn(total.shape, generator=generator)
                momentum.mul_(MOMENTUM).add_(total + NOISE_MULTIPLIER * CLIP * noise, alpha=1 / len(labels))
                with torch.no_grad():
                    weight.sub_(momentum, alpha=RATE)
            ends.append((weight.detach().clone(), momentum))
        weights, momenta = zip(*ends, strict=True)
        state = (torch.stack(weights).mean(0), torch.stack(momenta).mean(0))
        with torch.no_grad():
            weight.copy_(state[0])
            predicted = prepared.objective.probabilities(head(prepared.inputs["test"])).argmax(1)
        accuracy = float((predicted == prepared.labels["test"]).float().mean())
    return time.perf_counter() - started, accuracy


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("overrides", nargs="*", help="of medx.run, for the data")
    options = parser.parse_args()
    setup, _ = configure(options.overrides)
    prepared = prepare(setup)
    torch.set_num_threads(options.threads)
    elapsed, accuracy = run(build_module(setup, prepared), prepared)
    print(f"rounds {elapsed:.3f}\naccuracy {accuracy:.3f}")
