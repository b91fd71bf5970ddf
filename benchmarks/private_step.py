"""Times a private step against the plain one: ``python benchmarks/private_step.py [--device cuda] [--memory]``.

Prints one table of ratios, medians over interleaved repetitions of one run, on one CPU thread or by CUDA events.
"""

import argparse
import math
import multiprocessing
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import nn

from medx.aggregation.integer_noise import NoiseStream
from medx.dataset import InputSpec
from medx.machine import keep_freed_memory
from medx.model.cnn import Cnn
from medx.model.objectives import BinaryObjective
from medx.model.resnet18 import ResNet18
from medx.privacy.base import SampledGaussian
from medx.trainer.batches import MicroBatches
from medx.trainer.gradients import MODES, GradientModeName, build_mode
from medx.trainer.gradients.record_loss import RecordLoss
from medx.trainer.module import ClassificationModule

IMAGE = (1, 28, 28)
CASES: dict[str, tuple[str, int, tuple[int, ...], int]] = {
    "cnn, batch 64": ("cnn", 64, IMAGE, 64),
    "cnn, batch 256 in 64s": ("cnn", 256, IMAGE, 64),
    "cnn, batch 256 in 128s": ("cnn", 256, IMAGE, 128),
    "resnet18, batch 32": ("resnet18", 32, IMAGE, 32),
    "resnet18, 224 pixels, batch 8": ("resnet18", 8, (1, 224, 224), 8),
    "linear, 942 x 1001": ("linear", 942, (1001,), 1024),
}
PLAIN: dict[str, Any] = {
    "weight_standardisation": False,
    "pretrain": "none",
    "num_phantoms": 1,
    "pretrain_epochs": 1,
    "pretrain_seed": 0,
    "train": "all",
}
Step = Callable[[], None]


def build(model: str, shape: tuple[int, ...]) -> nn.Module:
    """A network of this name, with weights that let gradients through every layer."""
    if model == "linear":
        return nn.Linear(1001, 1, bias=False)
    kinds: dict[str, Cnn | ResNet18] = {
        "cnn": Cnn(widths=(16, 32, 64, 64), num_groups=4, activation="tanh", **PLAIN),
        "resnet18": ResNet18(num_groups=32, weights=None, **PLAIN),
    }
    spec = InputSpec(num_channels=shape[0], image_size=shape[-1], num_classes=2, task="binary")
    network = kinds[model].build(spec, seed=0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    return network


def build_step(case: str, mode: str, device: torch.device) -> Step:
    """One whole step: gradient, noise where private, and the optimizer's move."""
    keep_freed_memory()  # as in a run, for the plain step too
    model, batch, shape, micro_batch = CASES[case]
    network = build(model, shape).to(device).train()
    inputs = torch.randn(batch, *shape, device=device)
    labels = torch.randint(0, 2, (batch,), device=device)
    optimizer = partial(torch.optim.SGD, lr=1e-4, momentum=0.9)
    if mode == "plain":
        return plain_step(network, optimizer(network.parameters()), inputs, labels)
    names: GradientModeName = mode  # type: ignore[assignment]
    step = SampledGaussian(sampling_probability=0.25, noise_multiplier=1.0, clip_norm=1.0)
    record_loss = RecordLoss(network, BinaryObjective().loss)
    private = ClassificationModule(
        record_loss,
        MicroBatches(build_mode(names, record_loss, private=True), micro_batch),
        optimizer,
        step=step,
        expected_batch_size=batch,
        num_records=4 * batch,
        noise_stream=NoiseStream.from_system(),
        proximal_mu=0.0,
    )
    return lambda: private.take_step(inputs, labels)


def plain_step(
    network: nn.Module, optimizer: torch.optim.Optimizer, inputs: torch.Tensor, labels: torch.Tensor
) -> Step:
    """What anybody would write without privacy."""

    def step() -> None:
        optimizer.zero_grad()
        BinaryObjective().loss(network(inputs), labels).mean().backward()
        optimizer.step()

    return step


def milliseconds(step: Step, device: torch.device) -> float:
    """One call's time, by CUDA events where there is a GPU."""
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        step()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end)
    begun = perf_counter()
    step()
    return 1e3 * (perf_counter() - begun)


def time_case(case: str, modes: list[str], device: torch.device, repetitions: int) -> list[dict[str, float]]:
    """Milliseconds by mode, one row a repetition: the modes take turns, so that a busy machine slows all alike."""
    steps = {mode: build_step(case, mode, device) for mode in modes}
    for step in steps.values():
        step()
    return [{mode: milliseconds(step, device) for mode, step in steps.items()} for _ in range(repetitions)]


def over_plain(times: list[dict[str, float]], mode: str) -> float:
    """Median of the ratios of neighbours."""
    return median(row[mode] / row["plain"] for row in times)


def peak_megabytes(case: str, mode: str, device_name: str) -> float:
    """Memory that two steps add, in a process of their own."""
    torch.set_num_threads(1)
    device = torch.device(device_name)
    step = build_step(case, mode, device)
    if device.type == "cuda":
        step()
        return torch.cuda.max_memory_allocated() / 2**20
    before = resident_kilobytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # restarts the high-water mark
    for _ in range(2):
        step()
    return (resident_kilobytes("VmHWM") - before) / 2**10


def resident_kilobytes(field: str) -> int:
    """``VmRSS`` (now) or ``VmHWM`` (peak) of this process, on Linux."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def print_table(device: torch.device, modes: list[str], cases: list[str], repetitions: int, memory: bool) -> None:
    """One row a case: the plain step in ms, then each mode's ratio to it, and its peak memory if asked."""
    print(f"{'case':30s}{'plain':>12s}" + "".join(f"{mode:>22s}" for mode in modes))
    for case in cases:
        slow = "naive" in modes or case.startswith("resnet18")
        times = time_case(case, ["plain", *modes], device, max(3, repetitions // 5) if slow else repetitions)
        peaks = dict.fromkeys(times[0], math.nan)
        if memory:
            with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
                peaks = {mode: pool.apply(peak_megabytes, (case, mode, str(device))) for mode in times[0]}
        cells = "".join(f"{over_plain(times, mode):9.2f} {peaks[mode]:9.0f} MB" for mode in modes)
        print(
            f"{case:30s}{median(row['plain'] for row in times):9.2f} ms{cells}  (plain {peaks['plain']:.0f} MB)",
            flush=True,
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--modes", nargs="+", default=["book_keeping", "hooks", "vmap"], choices=sorted(MODES))
    parser.add_argument("--cases", nargs="+", default=list(CASES))
    parser.add_argument("--repetitions", type=int, default=25)
    parser.add_argument("--memory", action="store_true", help="also the peak memory, each in a process of its own")
    options = parser.parse_args()
    torch.set_num_threads(1)
    chosen = [case for case in CASES if any(case.startswith(name) for name in options.cases)]
    print_table(torch.device(options.device), options.modes, chosen, options.repetitions, options.memory)
