"""The principal components of drawn phantoms: public, so that a basis fitted to them costs no privacy."""

from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
import scipy.linalg
import torch

from medx.dataset import phantom
from medx.model.cache import cached, compute_features
from medx.model.scatter_features import CODE as FEATURES_CODE
from medx.model.scatter_features import ScatterFeatures, ScatterSettings
from medx.model.storage import Tensors, source_digest, tensors_digest
from medx.preparing import say
from medx.randomness import derive_seed, numpy_generator
from medx.schema import ConfigError

WHITENING_FLOOR = 1e-3  # of the largest eigenvalue, added to all before their root is taken

NUM_PROBES = 16  # phantoms that stand for the code that draws them in the cache's key

CODE = source_digest(__file__)

Draw = Callable[[int, int, np.random.Generator], tuple[np.ndarray, np.ndarray]]
PHANTOMS: dict[int, Draw] = {1: phantom.draw_chest, 3: phantom.draw_fundus}


def phantom_basis(
    settings: ScatterSettings, num_phantoms: int, whitening_exponent: float, seed: int, cache: Path
) -> Tensors:
    """``centre [d]``, ``basis [d, components]`` and ``scales [components]`` for a ScatterFeatures, from ``cache``.

    Raises ConfigError where there are no phantoms of so many channels, or fewer phantoms than components.
    """
    if settings.num_channels not in PHANTOMS:
        raise ConfigError(f"model.basis=phantom: draws images of 1 or 3 channels, not {settings.num_channels}")
    if not settings.num_components < min(num_phantoms, settings.num_coefficients):
        most = min(num_phantoms, settings.num_coefficients) - 1
        raise ConfigError(f"model.num_components={settings.num_components}: must be at most {most}")
    # Views, colours and the constant come after the projection: every choice of them shares one basis.
    settings = replace(settings, num_views=1, colour_cells=0, colour_weight=0, bias=0)
    recipe = (CODE, FEATURES_CODE, asdict(settings), num_phantoms, whitening_exponent, seed)
    probe = phantoms_probe(settings, seed)
    fit = partial(_fit, settings, num_phantoms, whitening_exponent, seed)
    return cached(cache, "basis", f"{recipe} {probe}", fit)


def draw_phantoms(settings: ScatterSettings, count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images ``float32 [count, channels, size, size]`` in -1..1 and labels ``int64 [count]``."""
    generator = numpy_generator(derive_seed(seed, "phantom-basis"))
    drawn, labels = PHANTOMS[settings.num_channels](count, settings.image_size, generator)
    images = torch.from_numpy(drawn).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)
    return images.contiguous(), torch.from_numpy(labels)


def phantoms_probe(settings: ScatterSettings, seed: int) -> str:
    """A digest of a few phantoms, which stands for the code that draws them in a cache's key."""
    images, labels = draw_phantoms(settings, NUM_PROBES, seed)
    return tensors_digest({"images": images, "labels": labels})


def _fit(settings: ScatterSettings, num_phantoms: int, whitening_exponent: float, seed: int) -> Tensors:
    say(f"preparing: {num_phantoms} phantoms are drawn")
    images, _ = draw_phantoms(settings, num_phantoms, seed)
    # The projection is linear: the views of a phantom would add little that another phantom does not.
    plain = ScatterFeatures(replace(settings, num_components=0))
    rows = compute_features(plain.coefficients, images)
    say(f"preparing: principal components of {num_phantoms} phantoms, up to a minute")
    return principal_components(rows, settings.num_components, whitening_exponent)


def principal_components(rows: torch.Tensor, num_components: int, whitening_exponent: float) -> Tensors:
    """``centre``, ``basis`` (float16) and ``scales`` from ``rows [n, d]``, strongest component last.

    Exact, in single precision, from the smaller of the covariance and the Gram matrix; the entry of a
    component that is largest in size is positive. Scales are ``(eigenvalue + floor) ** -whitening_exponent``.
    """
    centre = rows.mean(0, dtype=torch.float64)
    rows = rows - centre.float()
    count, size = rows.shape
    wide = size > count
    products = (rows @ rows.T if wide else rows.T @ rows).numpy()
    top = (len(products) - num_components, len(products) - 1)
    values, vectors = scipy.linalg.eigh(products, subset_by_index=top, overwrite_a=True, check_finite=False)
    eigenvalues, basis = torch.from_numpy(values) / (count - 1), torch.from_numpy(vectors)
    if wide:
        basis = torch.nn.functional.normalize(rows.T @ basis, dim=0)
    largest = basis.gather(0, basis.abs().argmax(0, keepdim=True))
    scales = (eigenvalues + WHITENING_FLOOR * eigenvalues[-1]) ** -whitening_exponent
    return {"centre": centre.float(), "basis": (basis * largest.sign()).half(), "scales": scales.float()}
