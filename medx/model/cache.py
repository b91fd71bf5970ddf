"""A content-addressed folder for what is costly to compute and depends on public code and given bytes alone."""

import fcntl
import hashlib
import logging
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch

from medx.machine import all_threads
from medx.model.base import FixedFeatures
from medx.model.storage import Tensors, read_tensors, tensors_digest, write_tensors
from medx.preparing import counted, say
from medx.schema import CheckpointError, ConfigError

Transform = Callable[[torch.Tensor], torch.Tensor]

# What is said of a kind when it is computed.
WORDS = {"basis": "the basis of the features, from drawn phantoms", "head": "a head fitted to drawn phantoms"}

BATCH_VALUES = 25_000  # pixels transformed at a time by one thread: fits a core's cache, bounds memory

log = logging.getLogger(__name__)


def cache_folder() -> Path:
    """``$MEDX_CACHE``, else ``~/.cache/medx``."""
    return Path(os.environ.get("MEDX_CACHE") or Path.home() / ".cache" / "medx")


def cached(folder: Path, kind: str, key: str, compute: Callable[[], Tensors]) -> Tensors:
    """The tensors stored under ``key``, else ``compute()``, stored for the next time.

    One process computes while others wait for it, so all of them get the same bits. A damaged file is
    reported and computed again.
    """
    digest = hashlib.sha256(key.encode()).hexdigest()
    path = folder / kind / f"{digest}.safetensors"
    with _locked(path.with_suffix(".lock")):
        if path.exists():
            try:
                return read_tensors(path)[0]
            except CheckpointError as error:
                log.warning("cache cannot be used, computing it again: %s", error)
        say(f"preparing: {WORDS.get(kind, kind)}, once")
        with all_threads():
            tensors = compute()
        write_tensors(path, tensors, {"key": key})
        return tensors


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = path.open("w")
    except OSError as error:
        raise ConfigError(f"cache={path.parent}: {error.strerror}; accepted: a folder that can be written") from error
    with handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def cached_features(features: FixedFeatures, images: torch.Tensor, cache: Path) -> torch.Tensor:
    """``float32 [n, ...]`` features of normalised images ``[n, channels, height, width]``, from ``cache`` if there.

    Keyed by the transform's fingerprint and the bytes of ``images``.
    """
    digest = tensors_digest({"images": images})
    compute = partial(compute_features, features, images)
    return cached(cache, "features", f"{features.fingerprint} {digest}", lambda: {"features": compute()})["features"]


def compute_features(transform: Transform, images: torch.Tensor) -> torch.Tensor:
    """``float32 [n, ...]``: ``transform`` over small batches, one thread a batch, in the order of ``images``."""
    batch = max(1, BATCH_VALUES // max(1, images[0].numel())) if len(images) else 1
    batches = images.split(batch)
    threads = torch.get_num_threads()

    def apply(batch: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return transform(batch).float()

    # Threads inside an operation wait for each other at every one of them; whole batches never do.
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        try:
            parts: list[torch.Tensor] = []
            progress = counted(f"preparing: features of {len(images)} images", len(images))
            for part in pool.map(apply, batches):
                parts.append(part)
                progress(sum(map(len, parts)))
        finally:
            torch.set_num_threads(threads)
    return torch.cat(parts)
