"""Tensors in safetensors files, never pickle: written whole, checked against their own SHA-256 when read; and a cache.

The cache is a folder, addressed by content, of what is costly to compute from public code and given bytes alone.
"""

import hashlib
import logging
import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from medx.files import locked, replaced
from medx.machine import all_threads
from medx.model import FixedFeatures
from medx.output import counted, say
from medx.schema import CheckpointError, ConfigError

Tensors = dict[str, torch.Tensor]
Normalise = Callable[[np.ndarray], torch.Tensor]  # images as read to a model's

# What is said of a kind when it is computed.
WORDS = {"basis": "the basis of the features, from drawn phantoms", "head": "a head fitted to drawn phantoms"}

BATCH_VALUES = 25_000  # pixels transformed at a time by one thread: fits a core's cache, bounds memory

log = logging.getLogger(__name__)


def tensors_digest(tensors: Tensors) -> str:
    """SHA-256 over names, types, shapes and bytes, in the order of names."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        array = tensors[name].detach().cpu().contiguous().numpy()
        total.update(f"{name} {array.dtype} {array.shape};".encode())
        total.update(array.reshape(-1).view("uint8").data)
    return total.hexdigest()


def source_digest(*sources: str) -> str:
    """SHA-256 over source files: in a cache's key, it makes results of older code unfindable."""
    return hashlib.sha256(b"".join(Path(source).read_bytes() for source in sources)).hexdigest()


def write_tensors(path: Path, tensors: Tensors, metadata: dict[str, str]) -> None:
    """Write ``path`` whole or not at all; its folder must exist. Raises CheckpointError, e.g. on a full disk."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        with replaced(path) as partial:
            save_file(tensors, partial, metadata | {"sha256": tensors_digest(tensors)})
    except (OSError, SafetensorError) as error:  # safetensors words a full disk as an error of its own
        raise CheckpointError(f"{path} could not be written: {error}") from error


def read_tensors(path: Path) -> tuple[Tensors, dict[str, str]]:
    """Tensors and metadata of ``path``; raises CheckpointError where it is missing or damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: _placed(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file ({error})") from error
    if metadata.pop("sha256", None) != tensors_digest(tensors):
        raise CheckpointError(f"{path}: its tensors do not match the SHA-256 that it carries; it is damaged")
    return tensors, metadata


def cache_folder() -> Path:
    """``$MEDX_CACHE``, else ``~/.cache/medx``."""
    return Path(os.environ.get("MEDX_CACHE") or Path.home() / ".cache" / "medx")


def cached(kind: str, key: str, compute: Callable[[], Tensors], folder: Path | None = None) -> Tensors:
    """The tensors stored under ``key``, else ``compute()``, stored for the next time in ``folder`` or the usual one.

    One process computes while others wait for it, so all of them get the same bits. A damaged file is
    reported and computed again. Raises ConfigError for a folder in which nothing can be written.
    """
    path = (folder or cache_folder()) / kind / f"{hashlib.sha256(key.encode()).hexdigest()}.safetensors"
    with ExitStack() as held:
        try:
            held.enter_context(locked(path.with_suffix(".lock")))
        except OSError as error:
            accepted = "accepted: a folder that can be written"
            raise ConfigError(f"cache={path.parent}: {error.strerror}; {accepted}") from error
        if path.exists():
            try:
                return read_tensors(path)[0]
            except CheckpointError as error:
                log.warning("cache cannot be used, computing it again: %s", error)
        say(f"preparing: {WORDS.get(kind, kind)}, once")
        with all_threads():
            tensors = compute()
        write_tensors(path, tensors, {"key": key})
        return {name: _placed(tensor) for name, tensor in tensors.items()}


def _placed(tensor: torch.Tensor) -> torch.Tensor:
    """The values in memory of torch's own: the last bits of a product move with where its factors lie."""
    return tensor.clone(memory_format=torch.contiguous_format)


def cached_features(
    features: FixedFeatures, images: np.ndarray, normalise: Normalise, cache: Path | None = None
) -> torch.Tensor:
    """``float32 [n, ...]`` features of images ``[n, height, width, channels]``, from ``cache`` if they are there.

    Keyed by the transform's fingerprint, the bytes of ``images``, and what ``normalise`` makes of black and white; so
    are its parts, each for itself.
    """
    ends = np.zeros((2, *images.shape[1:]), images.dtype)
    ends[1] = np.iinfo(images.dtype).max
    raw = torch.from_numpy(np.ascontiguousarray(images))
    key = f"{features.fingerprint} {tensors_digest({'images': raw, 'ends': normalise(ends)})}"

    def compute() -> Tensors:
        if features.parts:
            return {
                "features": features.joined(*(cached_features(x, images, normalise, cache) for x in features.parts))
            }
        return {"features": compute_features(lambda x: features(normalise(x)), images, features.images_at_once)}

    return cached("features", key, compute, cache)["features"]


def compute_features(
    transform: Callable[[Any], torch.Tensor], images: torch.Tensor | np.ndarray, at_once: int | None = None
) -> torch.Tensor:
    """``float32 [n, ...]``: ``transform`` over small batches, one thread a batch, in the order of ``images [n, ...]``.

    Beside the images and what is given there are a few batches in memory, each of ``at_once`` images, where that says.
    """
    batch = at_once or max(1, BATCH_VALUES // max(1, math.prod(images.shape[1:])))
    batches = [images[start : start + batch] for start in range(0, max(1, len(images)), batch)]
    threads = torch.get_num_threads()

    def apply(batch: torch.Tensor | np.ndarray) -> torch.Tensor:
        with torch.no_grad():
            return transform(batch).float()

    # Threads inside an operation wait for each other at every one of them; whole batches never do.
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        try:
            found, done = torch.empty(0), 0
            progress = counted(f"preparing: features of {len(images)} images", len(images))
            for part in pool.map(apply, batches):
                if not done:
                    found = part.new_empty(len(images), *part.shape[1:])
                found[done : done + len(part)] = part
                done += len(part)
                progress(done)
        finally:
            torch.set_num_threads(threads)
    return found
