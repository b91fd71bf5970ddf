"""``python -m medx.export MODEL --onnx FILE``: a trained model as ONNX, for programs without MedX."""

import json
import logging
import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from medx import output
from medx.api import load_model
from medx.files import replaced
from medx.model.export import ExportedModel
from medx.output import Parser, plain_text, refusing, say
from medx.schema import ConfigError

HELP = """
MODEL is a run's folder or its model.safetensors. Fixed features and the images'
normalisation are in the file, so it takes images as they are:

  images         float32 [n, channels, size, size], black 0 and white 1
  probabilities  float32 [n, classes]

Its metadata has under "medx" what the model's own file has: classes, threshold,
what its epsilon covers. The file is written once its answers to noise are the
model's own within 1e-5.

examples:
  python -m medx.export outputs/2031-01-01/12-00-00 --onnx model.onnx

exit code: 0, or 2 where the model cannot be read or written.
"""
NEEDS = ("onnx", "onnxscript", "onnxruntime")
ALIKE = 1e-5  # the most by which a probability may differ
PROBES = 5


class Answering(nn.Module):
    """From images with values in 0..1 to probabilities."""

    def __init__(self, model: ExportedModel) -> None:
        super().__init__()
        self.model = model
        for name, values in (("mean", model.mean), ("std", model.std)):
            self.register_buffer(name, torch.tensor(values).view(1, -1, 1, 1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """``[n, channels, size, size]`` to ``[n, classes]``."""
        outputs = self.model((images - self.get_buffer("mean")) / self.get_buffer("std"))
        return self.model.probabilities(outputs)


def main(arguments: Sequence[str] | None = None) -> None:
    """Read, translate, compare, write."""
    parser = Parser.of("medx.export", __doc__, HELP)
    parser.add_argument("model", type=Path, metavar="MODEL", help="a run's folder or its model.safetensors")
    parser.add_argument("--onnx", type=Path, required=True, metavar="FILE", help="the file to write")
    chosen = parser.parse_args(arguments)
    output.shown_by(output.Line())
    with refusing():
        if not chosen.onnx.parent.is_dir():
            raise ConfigError(f"--onnx={chosen.onnx}: there is no such folder; accepted: a file in one that is")
        difference = to_onnx(load_model(chosen.model), chosen.onnx)
    say("")
    print(plain_text(f"{chosen.onnx}: probabilities as the model's, within {difference:.1e}"))


def to_onnx(model: ExportedModel, path: Path) -> float:
    """Write ``path`` whole or not at all; gives by how much its probabilities differ from the model's.

    Raises ConfigError where the packages are not there, or where it would answer otherwise than the model.
    """
    if missing := [name for name in NEEDS if find_spec(name) is None]:
        raise ConfigError(
            f"--onnx={path}: needs {', '.join(missing)}; accepted: with the extra onnx (pip install '.[onnx]')"
        )
    from onnxruntime import InferenceSession

    spec, answering = model.spec, Answering(model).eval()
    shape = (PROBES, spec.num_channels, spec.image_size, spec.image_size)
    images = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    say("translating the model")
    with replaced(path) as partial:
        _translated(answering, images[:2], model.metadata).save(partial)
        say("comparing its answers")
        session = InferenceSession(str(partial))
        (found,) = session.run(None, {"images": images.numpy()})
        with torch.no_grad():
            difference = float(np.abs(found - answering(images).numpy()).max())
        if not difference <= ALIKE:
            raise ConfigError(f"--onnx={path}: its probabilities are off by {difference:.1e}; accepted: {ALIKE:g}")
    return difference


def _translated(answering: nn.Module, images: torch.Tensor, metadata: dict[str, Any]) -> Any:
    """The program of the module for any number of images."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own, of how it traces
            program = torch.onnx.export(
                answering,
                (images,),
                dynamo=True,
                verbose=False,
                input_names=["images"],
                output_names=["probabilities"],
                dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
            )
    finally:
        logger.setLevel(level)
    assert program is not None
    program.model.metadata_props["medx"] = json.dumps(metadata, sort_keys=True)
    return program


if __name__ == "__main__":
    output.take_all()
    main()
