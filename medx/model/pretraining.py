"""Supervised pretraining on drawn phantoms: public, so that it costs no data and no privacy."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn

from medx.dataset import InputSpec, phantom
from medx.model import heads, objectives, warping, weight_standardisation
from medx.model.cache import cached
from medx.model.heads import LinearHead
from medx.model.objectives import objective_for
from medx.model.storage import Tensors, source_digest, tensors_digest
from medx.model.warping import AffineRange, affine_matrices, warp
from medx.preparing import counted
from medx.randomness import derive_seed, numpy_generator, torch_generator
from medx.schema import ConfigError

CODE = source_digest(__file__, *(str(part.__file__) for part in (heads, objectives, warping, weight_standardisation)))

NUM_PROBES = 16  # phantoms that stand for the code that draws them in the cache's key
THREADS = 1  # whatever the machine has: sums over threads are rounded by their number, and small layers gain little
BATCH = 64
LEARNING_RATE, WEIGHT_DECAY = 2e-3, 1e-2
AFFINE = AffineRange(degrees=12, magnification=0.12, shift=0.14)
CONTRAST, BRIGHTNESS = 0.4, 0.3  # gain up to 1.4 or down to 0.6; shift of grey values on the scale -1..1

KINDS = {
    1: (phantom.draw_chest, InputSpec(1, 0, 2, "binary")),
    3: (phantom.draw_fundus, InputSpec(3, 0, 5, "ordinal")),
}

Build = Callable[[InputSpec], nn.Module]


@dataclass(frozen=True)
class Pretraining:
    """How many phantoms are drawn, how often each is seen, and the seed of it all, apart from the experiment's."""

    num_phantoms: int
    epochs: int
    seed: int


def pretrained_body(build: Build, spec: InputSpec, settings: Pretraining, cache: Path) -> Tensors:
    """Weights of all but the head after training on phantoms of these channels and size; from ``cache`` if there.

    ``build`` gives the network for a task, its initial weights following from ``settings.seed`` alone. The same
    bits on one machine. Raises ConfigError where no phantoms of so many channels are drawn.
    """
    if spec.num_channels not in KINDS:
        raise ConfigError(f"model.pretrain=phantom: draws images of 1 or 3 channels, not {spec.num_channels}")
    task = _phantom_spec(spec)
    network = build(task)
    images, labels = _phantoms(spec, NUM_PROBES, settings.seed)
    probe = tensors_digest({"images": images, "labels": labels} | network.state_dict())
    recipe = f"{CODE} {settings} {network!r} {probe}"
    return cached(cache, "pretrained", recipe, partial(_pretrain, network, spec, settings))


def load_body(network: nn.Module, body: Tensors) -> None:
    """Put ``body`` into the network and leave its head as it is."""
    missing, unexpected = network.load_state_dict(body, strict=False)
    assert not unexpected
    assert set(missing) == head_names(network)


def head_names(network: nn.Module) -> set[str]:
    """Names of the tensors of the LinearHead."""
    heads = [f"{name}." for name, module in network.named_modules() if isinstance(module, LinearHead)]
    return {name for name in network.state_dict() if name.startswith(tuple(heads))}


def freeze_body(network: nn.Module) -> None:
    """Leave only the head and the norms' scales and shifts to be trained."""
    kept = head_names(network)
    for name, module in network.named_modules():
        for own, parameter in module.named_parameters(recurse=False):
            parameter.requires_grad_(isinstance(module, nn.GroupNorm) or f"{name}.{own}" in kept)


def _phantom_spec(spec: InputSpec) -> InputSpec:
    _, task = KINDS[spec.num_channels]
    return InputSpec(task.num_channels, spec.image_size, task.num_classes, task.task)


def _phantoms(spec: InputSpec, count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """``float32 [count, channels, size, size]`` in -1..1, and labels."""
    draw, _ = KINDS[spec.num_channels]
    images, labels = draw(count, spec.image_size, numpy_generator(derive_seed(seed, "pretraining")))
    scaled = torch.from_numpy(images).permute(0, 3, 1, 2).float().div_(127.5).sub_(1).contiguous()
    return scaled, torch.from_numpy(labels)


def _pretrain(network: nn.Module, spec: InputSpec, settings: Pretraining) -> Tensors:
    """AdamW (Loshchilov and Hutter 2019) with a cosine schedule after a warm-up of one epoch in twenty."""
    images, labels = _phantoms(spec, settings.num_phantoms, settings.seed)
    generator = torch_generator(derive_seed(settings.seed, "pretraining-steps"))
    loss = objective_for(_phantom_spec(spec)).loss
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    total = settings.epochs * math.ceil(len(labels) / BATCH)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(_rate_factor, total=total))
    threads = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        network.train()
        text = f"preparing: pretraining on {settings.num_phantoms} drawn phantoms, once"
        progress = counted(text, settings.epochs)
        for epoch in range(settings.epochs):
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
