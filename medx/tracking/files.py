"""The files that belong to a run's record, besides those that the run wrote itself."""

from functools import cache
from importlib.metadata import distributions
from pathlib import Path

import yaml

from medx.results import ExperimentResult
from medx.tracking.figures import draw_figures

HOW_TO_LOAD = """# Load the final model

`{checkpoint}` is in safetensors: tensors and plain JSON, no code. Where MedX is installed:

```python
from pathlib import Path
import torch
from medx.model.export import load_model

model = load_model(Path("{checkpoint}"))  # a torch.nn.Module on the CPU
mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (model.mean, model.std))
inputs = (torch.from_numpy(images).permute(0, 3, 1, 2) / 255 - mean) / std  # images: uint8 [n, size, size, channels]
probabilities = model.probabilities(model(inputs))  # [n, classes]
```

Classes, in order: {classes}.{threshold}
{note}"""

RECORDS = {"owner": "result.json", "released": "released.json"}
THRESHOLD = (
    " The threshold chosen on validation: the second class from a probability of {:.6g} upwards; epsilon does not "
    "cover the images that it was chosen on."
)


def run_files(result: ExperimentResult, output_dir: Path, given: list[Path]) -> list[tuple[Path, str | None]]:
    """Files to keep and the artifact folder of each (None: the top).

    ``given`` come first; of ``statement.txt``, ``config.yaml``, ``environment.txt``, ``how_to_load.md`` and
    ``result.json`` (``released.json`` where that is all there is), those not given are written here from the result, as
    are the figures.
    """
    checkpoint = _checkpoint(result, output_dir)
    given = [path for path in given if path.absolute() not in [each.absolute() for each in checkpoint]]
    names = {path.name for path in given}
    made = output_dir / "tracking" / "files"
    made.mkdir(parents=True, exist_ok=True)
    texts = _texts(result)
    for name, text in texts.items():
        (made / name).write_text(text)
    files: list[tuple[Path, str | None]] = [(path, None) for path in given]
    files += [(made / name, None) for name in texts if name not in names]
    files += [(path, "figures") for path in draw_figures(result, output_dir / "figures")]
    return files + [(path, "checkpoint") for path in checkpoint]


@cache
def installed_packages() -> list[str]:
    """``name==version`` of all packages; a tenth of a second to find out."""
    return sorted({f"{each.metadata['Name']}=={each.version}" for each in distributions()}, key=str.lower)


def _texts(result: ExperimentResult) -> dict[str, str]:
    described = [f"{name}: {value}" for name, value in result.environment.items()]
    texts = {
        RECORDS[result.view]: result.model_dump_json(indent=1),
        "statement.txt": result.privacy.statement,
        "config.yaml": yaml.safe_dump(result.config, sort_keys=False),
        "environment.txt": "\n".join([*described, "", *installed_packages()]) + "\n",
    }
    if result.checkpoint is not None:
        note = "\nThe images were synthetic: the model knows nothing of patients.\n" if result.dataset.synthetic else ""
        note += f"\nNoise from a seed: {result.privacy.warning}.\n" if result.privacy.warning else ""
        threshold = "" if result.threshold is None else THRESHOLD.format(result.threshold)
        texts["how_to_load.md"] = HOW_TO_LOAD.format(
            checkpoint=Path(result.checkpoint).name,
            classes=", ".join(result.dataset.class_names),
            threshold=threshold,
            note=note,
        )
    return texts


def _checkpoint(result: ExperimentResult, output_dir: Path) -> list[Path]:
    """The checkpoint's file, or all files of its folder; its path is absolute or relative to ``output_dir``."""
    if result.checkpoint is None:
        return []
    path = output_dir / result.checkpoint
    return sorted(each for each in path.iterdir() if each.is_file()) if path.is_dir() else [path]
