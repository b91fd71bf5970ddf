"""Tensors in safetensors files, never pickle: written atomically, checked against their own SHA-256 when read."""

import hashlib
import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from medx.schema import CheckpointError

Tensors = dict[str, torch.Tensor]


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
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        save_file(tensors, partial, metadata | {"sha256": tensors_digest(tensors)})
        os.replace(partial, path)
    except (OSError, SafetensorError) as error:  # safetensors words a full disk as an error of its own
        raise CheckpointError(f"{path} could not be written: {error}") from error
    finally:
        partial.unlink(missing_ok=True)


def read_tensors(path: Path) -> tuple[Tensors, dict[str, str]]:
    """Tensors and metadata of ``path``; raises CheckpointError where it is missing or damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file ({error})") from error
    if metadata.pop("sha256", None) != tensors_digest(tensors):
        raise CheckpointError(f"{path}: its tensors do not match the SHA-256 that it carries; it is damaged")
    return tensors, metadata
