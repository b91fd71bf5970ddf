"""Keyed randomness: every draw has its own generator, derived from (seed, purpose, ...) and never global."""

import hashlib
import os

import numpy as np
import torch

Key = int | str


def derive_seed(seed: int, *keys: Key) -> int:
    """A 63-bit seed from ``seed`` and the keys, e.g. ("noise", client, round, attempt), by SHA-256.

    Different keys give computationally unrelated streams, so that no two clients, rounds or purposes
    share randomness.
    """
    text = "\x1f".join(f"{type(key).__name__}:{key}" for key in (seed, *keys))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def system_seed() -> int:
    """A 63-bit seed from the operating system: for noise that nobody can make again."""
    return int.from_bytes(os.urandom(8), "little") >> 1


def torch_generator(seed: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator on ``device`` that starts from ``seed``."""
    return torch.Generator(device=device).manual_seed(seed)


def numpy_generator(seed: int) -> np.random.Generator:
    """A NumPy generator that starts from ``seed``."""
    return np.random.Generator(np.random.PCG64(seed))
