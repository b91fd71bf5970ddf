"""What is computed around the rounds: the model is tried before, and measured when they are over."""

import numpy as np
import torch
from torch import nn

from medx.dataset import DataSplits, Split
from medx.federation.server import predict
from medx.federation.setup import Job, Prepared, build_module
from medx.metrics import bootstrap, choose_threshold, curve_data, evaluate, is_degenerate, majority_accuracy
from medx.model.export import check_export, check_outputs
from medx.privacy.preflight import check_independence, check_module, perturbed
from medx.randomness import derive_seed, numpy_generator
from medx.released import Record
from medx.results import ClientResult, CurveData, DatasetInfo, Interval
from medx.trainer.gradients import try_mode
from medx.trainer.state import Tensors

RESAMPLES = 1000


class Measurement(Record):
    """The final model's metrics on both splits. ``threshold`` was chosen on validation, and is None for K > 2."""

    validation: dict[str, Interval]
    test: dict[str, Interval]
    threshold: float | None
    majority_accuracy: float
    degenerate: bool
    curves: CurveData


def check_model(job: Job, prepared: Prepared) -> None:
    """Refuse a model that does not fit, could not be saved, or cannot be private, before any training."""
    module, splits = build_module(job.setup, prepared), prepared.splits
    trainer, seen = job.setup.trainer, prepared.inputs["validation"][:2]
    inputs = torch.cat((seen, -seen))  # independence needs two records, of which some validation splits have one
    check_module(module, job.plan.private)
    check_outputs(module, prepared.objective, inputs)
    images = splits.to_tensor(splits.validation.images[:2])
    check_export(job.setup.model, splits, prepared.features, perturbed(module).float(), images)
    if job.plan.private:
        check_independence(module, prepared.objective, inputs)
    if any(plan.step is not None for plan in job.plan.clients):
        try_mode(
            trainer.gradient_mode,
            module,
            prepared.objective,
            views=trainer.augmentation_multiplicity,
            shape=inputs.shape[1:],
            num_classes=prepared.spec.num_classes,
        )


def measure(module: nn.Module, state: Tensors, prepared: Prepared, device: str, seed: int) -> Measurement:
    """Point values with 95 % bootstrap intervals over images, thresholds from validation only."""
    task = prepared.spec.task
    labels = {split: prepared.labels[split].numpy() for split in ("train", "validation", "test")}
    predicted = {
        split: predict(module, state, prepared, prepared.inputs[split], device).numpy()
        for split in ("validation", "test")
    }
    threshold = choose_threshold(predicted["validation"], labels["validation"]) if task == "binary" else None
    intervals = {
        split: bootstrap(
            predicted[split],
            labels[split],
            task,
            threshold,
            numpy_generator(derive_seed(seed, "bootstrap", split)),
            resamples=RESAMPLES,
        )
        for split in ("validation", "test")
    }
    return Measurement(
        validation=intervals["validation"],
        test=intervals["test"],
        threshold=threshold,
        majority_accuracy=majority_accuracy(labels["train"], labels["test"]),
        degenerate=is_degenerate(predicted["test"].argmax(1)),
        curves=curve_data(predicted["test"], labels["test"]),
    )


def measure_clients(module: nn.Module, state: Tensors, prepared: Prepared, device: str) -> list[ClientResult]:
    """The final model on every hospital's own training rows; the study holds them all, a deployment would not."""
    predicted = predict(module, state, prepared, prepared.inputs["train"], device).numpy()
    labels = prepared.labels["train"].numpy()
    results = []
    for client, rows in enumerate(prepared.parts):
        metrics = evaluate(predicted[rows], labels[rows], prepared.spec.task) if len(rows) else {}
        counts = np.bincount(labels[rows], minlength=prepared.spec.num_classes).tolist()
        results.append(ClientResult(client=client, num_records=len(rows), class_counts=counts, metrics=metrics))
    return results


def describe(splits: DataSplits) -> DatasetInfo:
    """Which data this was."""
    parts: dict[str, Split] = {"train": splits.train, "validation": splits.validation, "test": splits.test}
    spec = splits.spec
    return DatasetInfo(
        name=splits.name,
        title=splits.title,
        task=splits.task,
        md5=splits.md5,
        content_hash=splits.content_hash,
        synthetic=splits.synthetic,
        public=splits.public,
        sizes={name: len(split) for name, split in parts.items()},
        class_names=list(splits.class_names),
        class_counts={
            name: np.bincount(split.labels, minlength=spec.num_classes).tolist() for name, split in parts.items()
        },
        image_size=spec.image_size,
        num_channels=spec.num_channels,
    )


def mean_intervals(measured: list[dict[str, Interval]]) -> dict[str, Interval]:
    """Mean value over several models (local-only hospitals), low and high the smallest and largest of them."""
    merged: dict[str, Interval] = {}
    for name in measured[0]:
        values = [intervals[name].value for intervals in measured]
        known = [value for value in values if value is not None]
        if not known:
            merged[name] = Interval(value=None)
            continue
        merged[name] = Interval(value=float(np.mean(known)), low=min(known), high=max(known))
    return merged


def count_parameters(module: nn.Module) -> int:
    """Trainable numbers of a module."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
