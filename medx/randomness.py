"""Keyed randomness: every draw has its own generator, derived from (seed, purpose, ...) and never global."""

import hashlib
import os

import numpy as np
import torch

Key = int | str

STATE_WORDS, STATE_START = 624, 24  # where torch keeps the Mersenne Twister's words, eight bytes each


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


def system_generator(device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator on ``device`` that nobody can make again.

    On a CPU torch seeds its Mersenne Twister with 32 bits, few enough to try them all; so all 624 words of its
    state come from the operating system. On CUDA the Philox key has 64 bits.
    """
    generator = torch_generator(system_seed(), device)
    if generator.device.type == "cpu":
        state = generator.get_state()
        words = np.frombuffer(os.urandom(4 * STATE_WORDS), dtype="<u4").astype("<u8")
        state[STATE_START : STATE_START + 8 * STATE_WORDS] = torch.from_numpy(words.view(np.uint8))
        generator.set_state(state)
    return generator


def torch_generator(seed: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator on ``device`` that starts from ``seed``; of which a CPU uses 32 bits: for studies only."""
    return torch.Generator(device=device).manual_seed(seed)


def numpy_generator(seed: int) -> np.random.Generator:
    """A NumPy generator that starts from ``seed``."""
    return np.random.Generator(np.random.PCG64(seed))
