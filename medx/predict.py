"""``python -m medx.predict MODEL FOLDER``: what a trained model says of every image in a folder."""

import csv
import io
import logging
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from shutil import get_terminal_size

import numpy as np
import torch
from rich.console import Console

from medx import output
from medx.api import load_model
from medx.data.__main__ import configured
from medx.dataset import normalised
from medx.dataset.decoded import Rules, decode
from medx.dataset.folder import Folder
from medx.dataset.image_files import images_below
from medx.dataset.table import CSV
from medx.files import replaced
from medx.measurement import answers
from medx.metrics.evaluate import Threshold, evaluate
from medx.model.export import ExportedModel
from medx.model.storage import cache_folder
from medx.output import Parser, counted, plain_text, refusing, say
from medx.schema import ConfigError, DataError
from medx.tables import Table

HELP = """
MODEL is a run's folder or its model.safetensors. FOLDER has images; where there
is labels.csv in it, as for training, its rows are read, and the model is measured
against their labels, by split where they tell one.

Pictures are fitted as those were that the model was trained on, where it was
trained on a folder; else as dataset.fit=... says, which is crop.

examples:
  python -m medx.predict outputs/2031-01-01/12-00-00 scans
  python -m medx.predict model.safetensors scans dataset.fit=medmnist
  python -m medx.predict RUN scans dataset.csv=other.csv --out said.csv

The CSV has a row an image: its path, the probability of each class, the most
probable one and, of two classes, the one at the threshold that was chosen on
validation images. A model is no medical device: nobody has approved it.

exit code: 0, or 2 where the model or the folder cannot be read.
"""
BATCH = 64
SHOWN = {
    "auc": "AUC",
    "accuracy": "accuracy",
    "balanced_accuracy": "bal. acc.",
    "sensitivity_at_threshold": "sens. @thr.",
    "specificity_at_threshold": "spec. @thr.",
}

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Images:
    """Files of a folder, with the class of each (-1: not told) and the split, where its table tells them."""

    paths: list[Path]
    ratios: list[float] | None = None
    labels: np.ndarray | None = None
    splits: list[str] | None = None


@dataclass(frozen=True)
class Answers:
    """``probabilities [kept, classes]`` of the images at the places ``kept``, those that gave a picture."""

    model: ExportedModel
    folder: Path
    images: Images
    probabilities: np.ndarray
    kept: np.ndarray


def main(arguments: Sequence[str] | None = None) -> None:
    """Read, answer, measure."""
    parser = Parser.of("medx.predict", __doc__, HELP)
    parser.add_argument("model", type=Path, metavar="MODEL", help="a run's folder or its model.safetensors")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="images, and labels.csv where they have labels")
    parser.add_argument("overrides", nargs="*", metavar="dataset.key=value", help="as for a run")
    parser.add_argument(
        "--out", type=Path, default=Path("predictions.csv"), metavar="FILE", help="default: %(default)s"
    )
    chosen = parser.parse_intermixed_args(arguments)
    output.shown_by(output.Line())
    with refusing():
        model = load_model(chosen.model)
        if not chosen.out.parent.is_dir():
            raise ConfigError(f"--out={chosen.out}: there is no such folder; accepted: a file in one that is")
        said = answered(model, reading(model, chosen.folder, chosen.overrides))
        with replaced(chosen.out) as aside:
            aside.touch(mode=0o600)  # what is said of patients, by the names of their files
            aside.write_text(as_csv(said))
    say("")
    tell(said, chosen.out)


def reading(model: ExportedModel, folder: Path, overrides: Sequence[str]) -> Folder:
    """The folder as the model's images were read; ``overrides`` say otherwise. Raises ConfigError."""
    recipe = model.metadata.get("recipe") or {}
    known = {name: value for name, value in recipe.items() if value is not None}
    fixed = {"size": model.spec.image_size, "colour": "grey" if model.spec.num_channels == 1 else "rgb"}
    if wrong := [part for part in overrides if part.split("=", 1)[0] in {f"dataset.{name}" for name in fixed}]:
        raise ConfigError(f"{wrong[0]}: the model takes {fixed['size']} pixels, {fixed['colour']}; accepted: no other")
    given = [f"dataset.{name}={_as_override(value)}" for name, value in (known | fixed).items()]
    _, dataset = configured([str(folder), *given, *overrides])
    assert isinstance(dataset, Folder)
    return dataset


def _as_override(value: object) -> str:
    return f"[{','.join(map(str, value))}]" if isinstance(value, list) else str(value)


def class_names(model: ExportedModel) -> list[str]:
    """The names of the classes, which files of earlier versions do not have: there they are numbers."""
    return list(model.metadata.get("classes") or map(str, range(model.spec.num_classes)))


def found(dataset: Folder, names: list[str]) -> Images:
    """The images of the folder's table, else all below it; raises DataError."""
    assert dataset.path is not None
    if dataset.csv is None and not (dataset.path / CSV).exists():
        if not dataset.path.is_dir():
            raise DataError(f"{dataset.path}: no such folder; accepted: one with images")
        if not (paths := list(images_below(dataset.path))):
            raise DataError(f"{dataset.path}: no image below it; accepted: PNG, JPEG, TIFF, BMP, WebP, DICOM")
        return Images(paths)
    table = dataset.table()
    labels, own = dataset.labels_of(table)
    if dataset.has_several:
        if list(own) != names:
            raise DataError(f"dataset.columns.label: {', '.join(own)}; accepted: the model's, {', '.join(names)}")
        return Images(table.paths, table.aspect_ratios, labels, table.splits)
    codes = {name: code for code, name in enumerate(names)}
    if unknown := sorted(set(own) - set(names)):
        raise DataError(f"dataset.columns.label: {unknown[0]} is no class of the model; accepted: {', '.join(names)}")
    return Images(table.paths, table.aspect_ratios, np.array([codes[own[code]] for code in labels]), table.splits)


def answered(model: ExportedModel, dataset: Folder) -> Answers:
    """What the model says of the folder's images; raises DataError where there are none that it could be asked of."""
    images = found(dataset, class_names(model))
    rules = Rules(dataset.size, dataset.fit, dataset.colour, dataset.reading)
    decoded = decode(images.paths, images.ratios, rules, cache_folder())
    if decoded.unreadable:
        log.warning("%d files give no picture (%s)", len(decoded.unreadable), decoded.reasons())
    parts, progress = [np.zeros((0, model.spec.num_classes))], counted("answering", len(decoded.kept))
    with torch.no_grad():
        for start in range(0, len(decoded.kept), BATCH):
            outputs = model(normalised(decoded.images[start : start + BATCH], model.mean, model.std))
            parts.append(model.probabilities(outputs.double()).numpy())
            progress(start + len(outputs))
    assert dataset.path is not None
    return Answers(model, dataset.path, images, np.concatenate(parts), decoded.kept)


def threshold_of(model: ExportedModel) -> Threshold:
    """Of two classes the threshold that the run chose on validation images, of several labels one each."""
    threshold: Threshold = model.metadata.get("threshold")
    return threshold


def as_csv(said: Answers) -> str:
    """A row a picture."""
    names, threshold = class_names(said.model), threshold_of(said.model)
    several = said.model.spec.task == "multilabel"
    cuts: list[float | None] = list(threshold) if isinstance(threshold, Sequence) else [None] * len(names)
    at = threshold if isinstance(threshold, float) and len(names) == 2 and not several else None
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", *names, "answer", *([] if at is None else ["answer_at_threshold"])])
    chosen = answers(said.probabilities, cuts if several else None)
    for row, values, answer in zip(said.kept, said.probabilities, chosen, strict=True):
        path = said.images.paths[row]
        shown = path.relative_to(said.folder) if path.is_relative_to(said.folder) else path
        word = "|".join(name for name, yes in zip(names, answer, strict=True) if yes) if several else names[answer]
        also = [] if at is None else [names[int(values[1] >= at)]]
        writer.writerow([shown, *(f"{value:.6g}" for value in values), word, *also])
    return text.getvalue()


def tell(said: Answers, out: Path) -> None:
    """What the model is, and how good it is where labels are there."""
    privacy = said.model.metadata.get("privacy") or {}
    if privacy.get("epsilon") is not None:
        words = "model of {mechanism}: epsilon {epsilon:.4g}, delta {delta:g}, for one {unit} of its training data"
        print(words.format_map(privacy))
    if rows := list(measured(said)):
        table = Table.of(rows, tuple(reversed(SHOWN.values())))
        if sys.stdout.isatty():
            table.draw(Console(highlight=False), "Against the labels")
        else:
            print("\n".join(table.plain(get_terminal_size().columns)))
    print(plain_text(f"{len(said.kept)} images: {out}"))


def measured(said: Answers) -> Iterator[dict[str, object]]:
    """A row of figures for each split that the table tells, or one for all."""
    images, kept = said.images, said.kept
    if images.labels is None or not len(kept):
        return
    splits = np.array(["all"] * len(images.paths) if images.splits is None else images.splits, dtype=object)[kept]
    task, threshold = said.model.spec.task, threshold_of(said.model)
    for split in dict.fromkeys(splits.tolist()):
        rows = splits == split
        figures = evaluate(said.probabilities[rows], images.labels[kept][rows], task, threshold)
        values = {word: figures.get(name) for name, word in SHOWN.items()}
        told = {word: "-" if value is None else f"{value:.4f}" for word, value in values.items()}
        yield {"split": split or "-", "images": int(rows.sum())} | told


if __name__ == "__main__":
    output.take_all()
    main()
