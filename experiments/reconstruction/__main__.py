"""``python -m experiments.reconstruction FOLDER``: what a server can see again of a hospital's images, as a figure.

See the README beside this file.
"""

import argparse
import logging
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from medx.api import composed
from medx.attacks.inversion import NOISY, Inversion, Search
from medx.attacks.likeness import assigned, psnr, ssim
from medx.attacks.linear_head import Records, several, single
from medx.attacks.received import ONE_STEP, Received, receive
from medx.attacks.sought import MEAN, NEAREST, RECONSTRUCTION_FILE, Reconstruction, Sought
from medx.figures import FAINT, INK, SETTINGS, Picture

HOSPITALS = 3
ROUNDS = 4  # the last is attacked: in the first the head is zero, and nothing goes through it
OTHERS = 15  # records at each other hospital, so that a sum is of one record among 31
CONSTANT = 0.1  # model.bias of scatternet
NONE = "privacy=none"
RATE = "trainer.learning_rate=5"  # where gradients are clipped to 0.1: a head that hardly moves lets nothing through it
CLIP = (NONE, "privacy._target_=medx.attacks.clip_only.ClipOnly", "+privacy.clip_norm=0.1", RATE)
SECURE = "aggregation=secure"
ALL_SPENT = "privacy.spare_rounds=0"  # so that the four rounds spend all of epsilon
LOCAL, DISTRIBUTED = ("privacy=local_dp", ALL_SPENT), ("privacy=distributed_dp", ALL_SPENT)


@dataclass(frozen=True)
class Condition:
    """A run's overrides, what of it is attacked (its own part, or the sum), and whether there is noise."""

    name: str
    overrides: tuple[str, ...]
    of_sum: bool = False
    noisy: bool = False


CONDITIONS = (
    Condition("no privacy", (NONE,)),
    Condition("clipping alone", CLIP),
    Condition("epsilon 10", (*LOCAL, RATE), noisy=True),
    Condition("secure sum:\nits words", (NONE, SECURE), noisy=True),
    Condition("secure sum:\nthe sum", (NONE, SECURE), of_sum=True),
    Condition("epsilon 10, secure:\nits words", (*DISTRIBUTED, RATE), noisy=True),
    Condition("epsilon 10, secure:\nthe sum", (*DISTRIBUTED, RATE), of_sum=True, noisy=True),
)


def main() -> None:
    """Run what is asked, and write ``reconstruction.json`` and the figure."""
    options = parsed()
    logging.disable(logging.WARNING)  # of patients in train and validation, which are nothing to an attack
    options.folder.mkdir(parents=True, exist_ok=True)
    rows: list[Sought] = []
    heads: list[dict[str, Any]] = []
    pictures: list[tuple[str, dict[str, np.ndarray], list[Sought]]] = []
    for data in (options.small, options.large):
        for seed in range(options.seed, options.seed + options.images):
            images, found = one_record(data.split(), seed, options)
            pictures.append((f"{found[0].pixels} pixels", images, found))
            rows += found
            keep(options.folder, rows, heads, options)
    for records in options.records:
        rows += several_records(options.small.split(), records, options)
        keep(options.folder, rows, heads, options)
    heads += linear_heads(options.small.split(), options)
    keep(options.folder, rows, heads, options, list(sums(options.small.split(), options)))
    figure(pictures).save(options.folder)


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m experiments.reconstruction")
    parser.add_argument("folder", type=Path, help="where figure and table are written")
    phantom = "dataset=phantom dataset.num_train=200 dataset.num_validation=50 dataset.num_test=2"
    parser.add_argument("--small", default=phantom, help="overrides that choose the images of 28 pixels")
    parser.add_argument("--large", default=f"{phantom} dataset.size=64", help="those of 64")
    parser.add_argument("--seed", type=int, default=0, help="which records; the first of --images")
    parser.add_argument("--images", type=int, default=1, help="hospitals of one record, each attacked alone")
    parser.add_argument("--records", type=int, nargs="*", default=[2, 4, 8], help="hospitals of more, without privacy")
    parser.add_argument("--sums", type=int, nargs="*", default=[1, 4, 15], help="records at each other in a sum")
    parser.add_argument("--steps", type=int, default=Search.steps, help="of each stage of the search")
    return parser.parse_args()


def one_record(data: list[str], seed: int, options: argparse.Namespace) -> tuple[dict[str, np.ndarray], list[Sought]]:
    """A hospital of one record under every condition: images by column, and their rows."""
    images: dict[str, np.ndarray] = {}
    rows: list[Sought] = []
    for condition in CONDITIONS:
        received = heard((*data, "model=cnn", *condition.overrides), 1, seed, options.folder)
        found, row = attacked(received, condition, options)
        images[condition.name], rows = found[0], rows + row
    truth = received.data.targets / white(received)
    images = {"the image": truth[0], **images}
    for name, image in baselines(received, truth[0]):
        images[name] = image
        rows.append(beside(name, image, truth[0], 1, 0))
    return images, rows


def several_records(data: list[str], records: int, options: argparse.Namespace) -> list[Sought]:
    """A hospital of several records without privacy, and the baselines of each."""
    received = heard((*data, "model=cnn", NONE), records, options.seed, options.folder)
    _, rows = attacked(received, CONDITIONS[0], options)
    for number, truth in enumerate(received.data.targets / white(received)):
        rows += [beside(name, image, truth, records, number) for name, image in baselines(received, truth)]
    return rows


def beside(name: str, image: np.ndarray, truth: np.ndarray, records: int, number: int) -> Sought:
    """The row of an image that no attack has found."""
    likeness = {"psnr": psnr(image, truth), "ssim": ssim(image, truth)}
    return Sought(pixels=truth.shape[0], condition=name, records=records, record=number, **likeness)


def heard(
    overrides: tuple[str, ...], records: int, seed: int, folder: Path, *, rounds: int = ROUNDS, others: int = OTHERS
) -> Received:
    """A run, and what its server received."""
    place = folder / "run"
    shutil.rmtree(place, ignore_errors=True)
    settings = (*ONE_STEP, f"federation.num_clients={HOSPITALS}", *overrides, f"federation.num_rounds={rounds}")
    config, _ = composed(settings, None, place)
    received = receive(config, place, records=records, others=others, seed=seed)
    shutil.rmtree(place, ignore_errors=True)
    return received


def attacked(
    received: Received, condition: Condition, options: argparse.Namespace
) -> tuple[list[np.ndarray], list[Sought]]:
    """What was found of each record of hospital 0, in the best order, and a row for each."""
    began = time.perf_counter()
    records = received.data.records
    step = (received.total if condition.of_sum else received.own)[-1]
    everybody = received.prepared.labels["train"].tolist()
    labels = everybody if condition.of_sum else everybody[:records] if records > 1 else None
    found = Inversion.of(received, step, labels).best(search_for(condition, options))
    truths = received.data.targets / white(received)
    images = [found.images[place] for place in assigned(found.images, truths)]
    seconds = time.perf_counter() - began
    name = condition.name.replace("\n", " ")
    rows = [
        Sought(pixels=truth.shape[0], condition=name, records=records, record=number, psnr=psnr(image, truth),
               ssim=ssim(image, truth), epsilon=received.claimed, distance=found.distance, seconds=seconds)
        for number, (image, truth) in enumerate(zip(images, truths, strict=True))
    ]  # fmt: skip
    for row in rows:
        print(f"{row.pixels} pixels, {row.records} records, {name}: PSNR {row.psnr:.1f} dB, SSIM {row.ssim:.2f}, "
              f"distance {found.distance:.2g}, {seconds:.0f} s", flush=True)  # fmt: skip
    return images, rows


def sums(data: list[str], options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The secure sum without noise, with more and more records of others: whether it tells who is in it.

    The attack finds an image for every record of the sum, so some are like any record by chance. A record's gain is the
    PSNR of the likest of them, less that of the mean image; beside it stand records of nobody in the sum, and the
    chance (auc) that a record of the sum has the larger gain.
    """
    for others in options.sums:
        received = heard((*data, "model=cnn", NONE, SECURE), 1, options.seed, options.folder, others=others)
        everybody = received.prepared.labels["train"].tolist()
        search = Search(steps=options.steps, seed=options.seed)
        images = Inversion.of(received, received.total[-1], everybody).best(search).images
        train, rows = received.data.whole.train.images, received.data.rows
        nobody = np.setdiff1d(np.arange(len(train)), rows)
        chosen = np.random.default_rng(options.seed).permutation(nobody)[:100]
        inside, outside = (gains(received, images, train[places]) for places in (rows, chosen))
        row = {
            "others": others, "records": len(inside),
            "gain": float(np.median(inside)), "best_gain": float(inside.max()),
            "gain_of_nobody": float(np.median(outside)), "auc": float(np.mean(inside[:, None] > outside[None])),
        }  # fmt: skip
        print(row, flush=True)
        yield row


def gains(received: Received, images: np.ndarray, records: np.ndarray) -> np.ndarray:
    """Of each record, by how many dB the likest of the images is liker than the mean image."""
    truths = records / white(received)
    mean = (received.data.whole.validation.images / white(received)).mean(0)
    return np.array([max(psnr(image, truth) for image in images) - psnr(mean, truth) for truth in truths])


def search_for(condition: Condition, options: argparse.Namespace) -> Search:
    """One that does not fit the noise where there is some."""
    return replace(NOISY if condition.noisy else Search(), steps=options.steps, seed=options.seed)


def baselines(received: Received, truth: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """The mean of the validation images; and of all training images elsewhere the one that is nearest to the truth."""
    yield MEAN, (received.data.whole.validation.images / white(received)).mean(0)
    elsewhere = received.data.elsewhere
    errors = [float(np.mean((image / white(received) - truth) ** 2)) for image in elsewhere]
    yield NEAREST, elsewhere[int(np.argmin(errors))] / white(received)


def white(received: Received) -> int:
    """The largest value of a pixel."""
    return int(np.iinfo(received.data.targets.dtype).max)


def linear_heads(data: list[str], options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The head on fixed features: how far, in lengths of a feature vector, each record is from what was found."""
    for privacy in ((NONE,), LOCAL):
        for records, rounds in ((1, 1), (8, 50)):
            overrides = (*data, "model=scatternet", "model.basis=none", "model.num_views=1", *privacy)
            received = heard(overrides, records, options.seed, options.folder, rounds=rounds)
            found = head_of(received)
            features, labels = (each.numpy() for each in received.prepared.client(0))
            apart = np.linalg.norm(features[:, None] - found.features[None], axis=2)
            nearest = apart.argmin(1)
            row = {
                "privacy": privacy[0], "records": records, "rounds": rounds, "epsilon": received.claimed,
                "farthest": float(apart.min(1).max()), "labels_right": int((found.labels[nearest] == labels).sum()),
                "unexplained": found.rest, "exact": found.exact,
            }  # fmt: skip
            print(row, flush=True)
            yield row


def head_of(received: Received) -> Records:
    """The exact inversion of a head of one logit."""
    gradients = [step.gradient for step in received.own]
    if received.data.records == 1:
        return single(gradients[0][None], CONSTANT)
    models = [step.model.parameters.astype(np.float64) for step in received.own]
    return several(models, gradients, received.data.records, CONSTANT)


def keep(
    folder: Path,
    rows: list[Sought],
    heads: list[dict[str, Any]],
    options: argparse.Namespace,
    in_sums: Sequence[dict[str, Any]] = (),
) -> None:
    """The table so far."""
    told = {key: value for key, value in vars(options).items() if key != "folder"}
    content = {"options": told, "images": rows, "linear_head": heads, "sums": list(in_sums)}
    (folder / RECONSTRUCTION_FILE).write_text(Reconstruction.model_validate(content).model_dump_json(indent=1) + "\n")


def figure(pictures: list[tuple[str, dict[str, np.ndarray], list[Sought]]]) -> Picture:
    """A row for each image that was sought, a column for each condition."""
    columns = list(pictures[0][1])
    with mpl.rc_context(SETTINGS):
        drawn = Figure(figsize=(1.25 * len(columns), 1.65 * len(pictures) + 0.3), layout="constrained")
        axes = drawn.subplots(len(pictures), len(columns), squeeze=False)
        for line, (title, images, rows) in enumerate(pictures):
            known = {row.condition: row for row in rows}
            for place, name in enumerate(columns):
                axis = axes[line, place]
                shown = images[name]
                axis.imshow(shown if shown.shape[2] == 3 else shown[..., 0], cmap="gray", vmin=0, vmax=1)
                axis.set(xticks=[], yticks=[])
                axis.grid(False)
                axis.spines[:].set_color(FAINT)
                row = known.get(name.replace("\n", " "))
                under = title if row is None else f"{row.psnr:.1f} dB, SSIM {row.ssim:.2f}"
                axis.set_xlabel(under, fontsize=7, color=INK)
                if line == 0:
                    axis.set_title(name.replace(NEAREST, "nearest image\nelsewhere"), fontsize=7.5)
        drawn.draw_without_rendering()
        drawn.set_layout_engine("none")
    caption = "What a server finds again of a hospital's one record by inverting gradients."
    return Picture("reconstruction", "What the server sees again", caption, drawn)


if __name__ == "__main__":
    main()
