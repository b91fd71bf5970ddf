"""What the benchmarks share: the same images, the same network, rows of the table, and fair timing."""

import hashlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import median

import numpy as np
import torch
import yaml
from torch import nn

ROOT = Path(__file__).resolve().parent.parent
IMAGES = "pneumoniamnist.npz"
HOSPITALS, ROUNDS, STEPS, BATCH = 5, 5, 15, 64
EPSILON, DELTA, CLIP, RATE, MOMENTUM = 10.0, 1e-5, 1.0, 0.1, 0.9


@dataclass(frozen=True)
class Row:
    """One line of the table: a figure, the most it may be (None: no target), and what it was made from."""

    name: str
    value: float
    unit: str = ""
    target: float | None = None
    note: str = ""

    def text(self) -> str:
        """The line as it is printed; a figure above its target says so."""
        aim = "" if self.target is None else f"<= {self.target:g}"
        verdict = "" if self.target is None else ("ok" if self.value <= self.target else "ABOVE")
        return f"{self.name:52s} {self.value:9.3f} {self.unit:6s} {aim:10s} {verdict:6s} {self.note}"


def interleaved(parts: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """What each part answers, ``repeats`` times, in the order A B A B: a slow minute slows all alike."""
    figures: dict[str, list[float]] = {name: [] for name in parts}
    for _ in range(repeats):
        for name, part in parts.items():
            figures[name].append(part())
    return figures


def ratio(figures: Mapping[str, list[float]], part: str, base: str) -> float:
    """Median over the repeats of ``part / base``, each pair measured side by side."""
    return median(a / b for a, b in zip(figures[part], figures[base], strict=True))


def seconds(function: Callable[[], object]) -> float:
    """Wall time of one call."""
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


@dataclass(frozen=True)
class Process:
    """A finished Python process: its wall time from the shell's view, and what it printed."""

    seconds: float
    output: str

    def number(self, label: str) -> float:
        """The number that the process printed after ``label``."""
        match = re.search(rf"^{label} ([0-9.]+)", self.output, re.MULTILINE)
        if match is None:
            raise ValueError(f"no '{label} NUMBER' in the output:\n{self.output[-2000:]}")
        return float(match[1])


def python(folder: Path, *arguments: str) -> Process:
    """Run ``python ARGUMENTS`` in ``folder``; raises CalledProcessError with its output where it fails."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    elapsed = time.perf_counter() - started
    if done.returncode:
        print(done.stdout[-2000:], done.stderr[-4000:], file=sys.stderr)
        done.check_returncode()
    return Process(elapsed, done.stdout)


def prepare_images(folder: Path) -> Path:
    """The file of PneumoniaMNIST under $MEDX_DATA, else phantoms drawn into ``folder``; all parts read this file."""
    path = Path(os.environ.get("MEDX_DATA", ".")) / IMAGES
    if path.is_file():
        return path
    from medx.dataset.chest_phantom import draw_chest

    print("images: SYNTHETIC chest phantoms, since $MEDX_DATA has no pneumoniamnist.npz")
    generator, arrays = np.random.default_rng(0), {}
    for split, count in (("train", 4708), ("val", 524), ("test", 624)):
        images, labels = draw_chest(count, 28, generator)
        arrays[f"{split}_images"], arrays[f"{split}_labels"] = images[..., 0], labels.reshape(-1, 1).astype(np.uint8)
    np.savez(folder / IMAGES, **arrays)  # type: ignore[arg-type]
    os.environ["MEDX_DATA"] = str(folder)
    return folder / IMAGES


def data_overrides(images: Path) -> list[str]:
    """Overrides that make ``medx.run`` read the same file."""
    checksum = hashlib.md5(images.read_bytes(), usedforsecurity=False).hexdigest()
    return ["dataset=pneumoniamnist", f"dataset.root={images.parent.resolve()}", f"dataset.md5={checksum}"]


@cache
def load_arrays() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Training and test images ``[n, 1, 28, 28]`` in -1..1 with labels ``[n]``, from the folder $MEDX_DATA."""
    with np.load(Path(os.environ["MEDX_DATA"]) / IMAGES, allow_pickle=False) as arrays:
        result = []
        for split in ("train", "test"):
            images = torch.from_numpy(arrays[f"{split}_images"]).float().div(255).sub(0.5).div(0.5).unsqueeze(1)
            result += [images, torch.from_numpy(arrays[f"{split}_labels"].reshape(-1).astype(np.int64))]
    return result[0], result[1], result[2], result[3]


def small_cnn() -> nn.Module:
    """The network of ``model=cnn`` for 28x28 grey images, with two outputs for cross-entropy."""
    from medx.dataset import InputSpec
    from medx.model.cnn import Cnn

    fields = yaml.safe_load((ROOT / "conf" / "model" / "cnn.yaml").read_text())
    del fields["_target_"]
    return Cnn(**fields).build(InputSpec(1, 28, 2, "multiclass"), 0)
