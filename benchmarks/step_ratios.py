"""The private step over the plain one: time with the modes taking turns, memory in processes of their own."""

import multiprocessing
from statistics import median

import torch

from benchmarks import private_step
from benchmarks.common import Row

# Case, the most that the private step may cost, the most memory it may take; None where no figure is promised.
TARGETS: dict[str, tuple[float | None, float | None]] = {
    "cnn, batch 64": (1.25, None),
    "cnn, batch 256 in 64s": (1.25, None),
    "cnn, batch 256 in 128s": (1.25, None),
    "resnet18, batch 32": (1.25, 1.5),
    "resnet18, 224 pixels, batch 8": (1.3, None),
}
PRIVATE = ("auto", "hooks")


def measure(repeats: int, device: str) -> list[Row]:
    """Ratios of the default mode, and of Opacus's hooks beside it, on one thread or on the GPU."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [row for case, targets in TARGETS.items() for row in rows(case, *targets, repeats, device)]
    finally:
        torch.set_num_threads(threads)


def rows(case: str, slowest: float | None, largest: float | None, repeats: int, device: str) -> list[Row]:
    """Time and memory of one case."""
    modes = ["plain", *PRIVATE]
    times = private_step.time_case(case, modes, torch.device(device), repeats * (5 if case.startswith("cnn") else 1))
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        peaks = {mode: pool.apply(private_step.peak_megabytes, (case, mode, device)) for mode in modes}
    result = []
    for mode in PRIVATE:
        goal, room = (slowest, largest) if mode == "auto" else (None, None)
        time, memory = private_step.over_plain(times, mode), peaks[mode] / peaks["plain"]
        middle = {name: median(row[name] for row in times) for name in (mode, "plain")}
        detail = f"{middle[mode]:.1f} / {middle['plain']:.1f} ms"
        result.append(Row(f"{mode} step over plain, {case}", time, "x", goal, detail))
        size = f"{peaks[mode]:.0f} / {peaks['plain']:.0f} MB"
        result.append(Row(f"  peak memory of {mode} over plain", memory, "x", room, size))
    return result
