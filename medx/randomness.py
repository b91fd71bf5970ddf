"""Keyed randomness: every draw has its own generator, derived from (seed, purpose, ...) and never global."""

import hashlib
import os

import numpy as np
import torch

Key = int | str | bytes

# Raised with every change that moves a number of a run: two versions never add one noise to two sums. A change that is
# not numeric, such as where a class lies, leaves it and all draws alone.
NUMERICS = 1
KEY_BYTES = 32
STATE_WORDS, STATE_START = 624, 24  # where torch keeps the Mersenne Twister's words, eight bytes each


def derive_key(seed: int, *keys: Key) -> bytes:
    """32 bytes from ``seed`` and the keys, e.g. ("noise", client, round, attempt), by SHAKE-256 (FIPS 202).

    Different keys give computationally unrelated streams, so that no two clients, rounds or purposes share randomness.
    """
    return hashlib.shake_256(_text(seed, *keys)).digest(KEY_BYTES)


def system_key() -> bytes:
    """32 bytes from the operating system: for what nobody can make again."""
    return os.urandom(KEY_BYTES)


def derive_seed(seed: int, *keys: Key) -> int:
    """A 63-bit seed from ``seed`` and the keys, for draws that are public: partition, initial weights, bootstrap."""
    return int.from_bytes(hashlib.sha256(_text(seed, *keys)).digest()[:8], "little") >> 1


def keyed_generator(key: bytes, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator on ``device`` whose whole state follows from ``key``: for draws that are secret.

    By ``manual_seed`` torch's Mersenne Twister starts from 32 bits on a CPU, few enough to try them all, and few enough
    for two of a hundred thousand streams to be equal; so all 624 words of its state are SHAKE-256 of the key. On CUDA
    the Philox key has 64 bits.
    """
    generator = torch_generator(int.from_bytes(key[:8], "little") >> 1, device)
    if generator.device.type == "cpu":
        state = generator.get_state()
        words = np.frombuffer(hashlib.shake_256(key).digest(4 * STATE_WORDS), dtype="<u4").astype("<u8")
        state[STATE_START : STATE_START + 8 * STATE_WORDS] = torch.from_numpy(words.view(np.uint8))
        generator.set_state(state)
    return generator


def torch_generator(seed: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator on ``device`` that starts from ``seed``, of which a CPU uses 32 bits: for public draws only."""
    return torch.Generator(device=device).manual_seed(seed)


def numpy_generator(seed: int) -> np.random.Generator:
    """A NumPy generator that starts from ``seed``."""
    return np.random.Generator(np.random.PCG64(seed))


def _text(*keys: Key) -> bytes:
    return "\x1f".join(f"{type(key).__name__}:{key!s}" for key in keys).encode()
