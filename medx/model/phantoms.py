"""What drawn phantoms give, which show nobody and so cost no privacy: a basis, a start for linear heads, a body.

Each is cached by the code that makes it, and by a few phantoms, which stand for the code that draws them.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
import scipy.linalg
import torch
from torch import nn
from torch.nn import functional

from medx.dataset import InputSpec
from medx.dataset.phantom import KINDS, Kind, kind_of
from medx.model import FixedFeatures, layers, objectives, warping
from medx.model.layers import LinearHead, head_names, initialise
from medx.model.objectives import objective_for
from medx.model.storage import Tensors, cached, cached_features, compute_features, source_digest, tensors_digest
from medx.model.warping import AffineRange, affine_matrices, warp
from medx.output import counted, say
from medx.randomness import derive_seed, numpy_generator, torch_generator
from medx.schema import ConfigError

CODE = source_digest(__file__, *(str(part.__file__) for part in (layers, objectives, warping)))
NUM_PROBES = 16

COLUMNS = 1024
WHITENING_FLOOR = 1e-3  # of the largest eigenvalue, added to all before their root is taken

# Long enough for a head to rank phantoms well, short enough that it does not memorise them.
HEAD_STEPS, HEAD_LEARNING_RATE, HEAD_MOMENTUM = 300, 5.0, 0.9

THREADS = 1  # whatever the machine has: sums over threads are rounded by their number, and small layers gain little
BATCH = 64
LEARNING_RATE, WEIGHT_DECAY = 2e-3, 1e-2
AFFINE = AffineRange(degrees=12, magnification=0.12, shift=0.14)
CONTRAST, BRIGHTNESS = 0.4, 0.3  # gain up to 1.4 or down to 0.6; shift of grey values on the scale -1..1

Build = Callable[[InputSpec], nn.Module]


def draw_phantoms(kind: Kind, size: int, count: int, seed: int, purpose: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Images ``float32 [count, channels, size, size]`` in -1..1 and labels ``int64 [count]``."""
    images, labels = kind.draw(count, size, numpy_generator(derive_seed(seed, purpose)))
    return scaled(images), torch.from_numpy(labels)


@lru_cache(maxsize=1)
def _of_the_basis(kind: Kind, size: int, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Images ``uint8`` and labels; a head is fitted to those of its basis, and at 224 pixels they take minutes."""
    say(f"preparing: {count} phantoms are drawn")
    return kind.draw(count, size, numpy_generator(derive_seed(seed, "phantom-basis")))


def scaled(images: np.ndarray) -> torch.Tensor:
    """``float32 [n, channels, size, size]`` in -1..1 of images ``uint8 [n, size, size, channels]``."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float().div_(127.5).sub_(1).contiguous()


def _kind(spec: InputSpec, key: str) -> Kind:
    kind = kind_of(spec.num_channels)
    if kind is None:
        raise ConfigError(f"model.{key}=phantom: draws images of 1 or 3 channels, not {spec.num_channels}")
    return kind


def _probe(kind: Kind, size: int, seed: int, purpose: str, state: Tensors | None = None) -> str:
    images, labels = draw_phantoms(kind, size, NUM_PROBES, seed, purpose)
    return tensors_digest({"images": images, "labels": labels} | (state or {}))


@dataclass(frozen=True)
class PhantomBasis:
    """How a basis is fitted: how many phantoms of which seed, on how many components, how far whitened."""

    num_phantoms: int
    seed: int
    num_components: int
    whitening_exponent: float


def phantom_basis(raw: FixedFeatures, num_raw: int, spec: InputSpec, how: PhantomBasis) -> Tensors:
    """``centre [num_raw]``, ``basis [num_raw, components]`` and ``scales [components]`` of raw features; cached.

    Raises ConfigError where there are no phantoms of so many channels, or fewer phantoms than components.
    """
    kind = _kind(spec, "basis")
    if not how.num_components < min(how.num_phantoms, num_raw):
        most = min(how.num_phantoms, num_raw) - 1
        raise ConfigError(f"model.num_components={how.num_components}: must be at most {most}")
    probe = _probe(kind, spec.image_size, how.seed, "phantom-basis")

    def fit() -> Tensors:
        images, _ = _of_the_basis(kind, spec.image_size, how.num_phantoms, how.seed)
        rows = _features_of(raw, images)
        say(f"preparing: principal components of {how.num_phantoms} phantoms, up to a minute")
        return principal_components(rows, how.num_components, how.whitening_exponent)

    return cached("basis", f"{CODE} {raw.fingerprint} {how} {probe}", fit)


def _features_of(features: FixedFeatures, phantoms: np.ndarray) -> torch.Tensor:
    """``float32 [n, d]`` of phantoms ``uint8``; what is costly, of the whole or of a part, from the cache."""
    if features.parts:
        return features.joined(*(_features_of(part, phantoms) for part in features.parts))
    if features.costly:
        return cached_features(features, phantoms, scaled)
    return compute_features(lambda images: features(scaled(images)), phantoms, features.images_at_once)


def principal_components(rows: torch.Tensor, num_components: int, whitening_exponent: float) -> Tensors:
    """``centre``, ``basis`` (float16) and ``scales`` from ``rows [n, d]``, strongest component last.

    Exact, in single precision, from the smaller of the covariance and the Gram matrix; ``rows``, maybe gigabytes,
    are centred in place. Of a component the entry that is largest in size is positive. Scales are
    ``(eigenvalue + floor) ** -whitening_exponent``.
    """
    # A mean in another precision makes a copy of all that it is of: here of some columns at a time.
    centre = torch.cat([part.mean(0, dtype=torch.float64) for part in rows.split(COLUMNS, 1)])
    rows -= centre.float()
    count, size = rows.shape
    wide = size > count
    products = (rows @ rows.T if wide else rows.T @ rows).numpy()
    top = (len(products) - num_components, len(products) - 1)
    values, vectors = scipy.linalg.eigh(products, subset_by_index=top, overwrite_a=True, check_finite=False)
    eigenvalues, basis = torch.from_numpy(values) / (count - 1), torch.from_numpy(vectors)
    if wide:
        basis = functional.normalize(rows.T @ basis, dim=0)
    largest = basis.gather(0, basis.abs().argmax(0, keepdim=True))
    scales = (eigenvalues + WHITENING_FLOOR * eigenvalues[-1]) ** -whitening_exponent
    return {"centre": centre.float(), "basis": (basis * largest.sign()).half(), "scales": scales.float()}


def phantoms_fit(spec: InputSpec) -> bool:
    """Whether phantoms carry labels of this task, by what the data set says: opacities of chests, grades of fundi."""
    return spec.phantoms is not None and KINDS[spec.phantoms] == kind_of(spec.num_channels)


def phantom_head(features: FixedFeatures, spec: InputSpec, num_phantoms: int, seed: int) -> Tensors:
    """The state of a linear head on ``features``, fitted to ``num_phantoms`` drawn phantoms; cached."""
    kind = _kind(spec, "basis")
    probe = _probe(kind, spec.image_size, seed, "phantom-basis")

    def fit() -> Tensors:
        drawn, classes = _of_the_basis(kind, spec.image_size, num_phantoms, seed)
        rows, labels = _features_of(features, drawn), torch.from_numpy(classes)
        with torch.device("meta"):
            head: nn.Module = LinearHead(rows.shape[1], spec, bias=False)
        head, objective = initialise(head, seed), objective_for(spec)
        optimizer = torch.optim.SGD(head.parameters(), lr=HEAD_LEARNING_RATE, momentum=HEAD_MOMENTUM)
        for _ in range(HEAD_STEPS):
            optimizer.zero_grad()
            objective.loss(head(rows), labels).mean().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        return {name: value.detach().clone() for name, value in head.state_dict().items()}

    return cached("head", f"{CODE} {features.fingerprint} {spec} {num_phantoms} {seed} {probe}", fit)


def pretrained_body(build: Build, spec: InputSpec, num_phantoms: int, epochs: int, seed: int) -> Tensors:
    """Weights of all but the head after training on phantoms of these channels and size; cached.

    ``build`` gives the network for a task, its initial weights following from ``seed`` alone, which is apart from the
    experiment's. The same bits on one machine. Raises ConfigError where no phantoms of so many channels are drawn.
    """
    kind = _kind(spec, "pretrain")
    task = InputSpec(spec.num_channels, spec.image_size, len(kind.class_names), kind.task)
    network = build(task)
    probe = _probe(kind, spec.image_size, seed, "pretraining", network.state_dict())
    recipe = f"{CODE} {num_phantoms} {epochs} {seed} {network!r} {probe}"
    return cached("pretrained", recipe, lambda: pretrain(network, task, num_phantoms, epochs, seed))


def pretrain(network: nn.Module, task: InputSpec, num_phantoms: int, epochs: int, seed: int) -> Tensors:
    """AdamW (Loshchilov and Hutter 2019) with a cosine schedule after a warm-up of one epoch in twenty."""
    images, labels = draw_phantoms(_kind(task, "pretrain"), task.image_size, num_phantoms, seed, "pretraining")
    generator = torch_generator(derive_seed(seed, "pretraining-steps"))
    loss = objective_for(task).loss
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    total = epochs * math.ceil(len(labels) / BATCH)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(_rate_factor, total=total))
    threads = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        network.train()
        progress = counted(f"preparing: pretraining on {num_phantoms} drawn phantoms, once", epochs)
        for epoch in range(epochs):
            progress(epoch)
            for rows in torch.randperm(len(labels), generator=generator).split(BATCH):
                optimizer.zero_grad()
                loss(network(augmented(images[rows], generator)), labels[rows]).mean().backward()
                optimizer.step()
                schedule.step()
    finally:
        torch.set_num_threads(threads)
    head = head_names(network)
    return {name: tensor.clone() for name, tensor in network.state_dict().items() if name not in head}


def _rate_factor(step: int, total: int) -> float:
    warmup = max(1, total // 20)
    return min(1.0, (step + 1) / warmup) * (1 + math.cos(math.pi * min(1.0, step / total))) / 2


def augmented(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A random affine view of every image, at another contrast and brightness."""
    uniforms = torch.rand((len(images), 6), generator=generator) * 2 - 1
    gain, shift = (1 + CONTRAST * uniforms[:, 4]), BRIGHTNESS * uniforms[:, 5]
    views = warp(images, affine_matrices(uniforms[:, :4], AFFINE))
    return views * gain[:, None, None, None] + shift[:, None, None, None]
