"""What is computed around the rounds: the model is tried before, and measured when they are over."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from medx.dataset import DataSplits, Split
from medx.dataset.labels import count_classes
from medx.federation.prepared import Prepared
from medx.federation.server import predict
from medx.federation.setup import Job, Setup, build_module, build_network
from medx.metrics import (
    bootstrap,
    choose_threshold,
    choose_thresholds,
    curve_data,
    evaluate,
    is_degenerate,
    majority_accuracy,
)
from medx.model.export import check_export, check_outputs
from medx.privacy.preflight import check_independence, check_module, perturbed
from medx.privacy.units import PATIENT
from medx.randomness import Key, derive_seed, numpy_generator
from medx.released import Record
from medx.results import ClientResult, CurveData, DatasetInfo, Interval, PublicWeights, SubgroupResult
from medx.trainer.gradients import try_mode
from medx.trainer.state import Tensors

RESAMPLES = 1000
TestRows = Mapping[int, np.ndarray]  # of each hospital, by client
TRIED_IMAGES = 3  # of a patient, where a gradient mode is tried


class Measurement(Record):
    """The final model's metrics on both splits. ``threshold`` was chosen on validation, and is None for K > 2.

    Of several labels a record ``thresholds`` has one for each.
    ``by_hospital`` are metrics on a hospital's own test images, by client, where the data tell hospitals.
    """

    validation: dict[str, Interval]
    test: dict[str, Interval]
    threshold: float | None
    thresholds: list[float | None] | None = None
    majority_accuracy: float
    degenerate: bool
    curves: CurveData
    by_hospital: dict[int, dict[str, Interval]]
    subgroups: list[SubgroupResult]


def check_model(job: Job, prepared: Prepared) -> None:
    """Refuse a model that does not fit, could not be saved, or cannot be private, before any training."""
    network, splits, labels = build_network(job.setup, prepared.spec), prepared.splits, prepared.labels["validation"]
    trainer, seen = job.setup.trainer, prepared.inputs["validation"][:2]
    module, objective = build_module(job.setup, prepared.spec), trainer.trained_objective(prepared.objective)
    inputs = torch.cat((seen, -seen))  # independence needs two records, of which some validation splits have one
    check_module(network, job.plan.private)
    check_outputs(network, prepared.objective, inputs)
    images = splits.to_tensor(splits.validation.images[:2])
    check_export(job.setup.model, splits, prepared.features, perturbed(network).float(), images)
    if job.plan.private:
        check_independence(module, objective, inputs, torch.zeros(len(inputs), *labels.shape[1:]).long())
    if any(plan.step is not None for plan in job.plan.clients):
        # A hospital's patients may have one image each.
        for each in (1, TRIED_IMAGES) if job.plan.unit is PATIENT else (1,):
            try_mode(
                trainer.gradient_mode,
                module,
                objective,
                views=trainer.augmentation_multiplicity,
                shape=inputs.shape[1:],
                num_classes=prepared.spec.num_classes,
                several=prepared.spec.task == "multilabel",
                images=each,
            )


def measure(module: nn.Module, state: Tensors, prepared: Prepared, setup: Setup, *, test_rows: TestRows) -> Measurement:
    """Point values with 95 % bootstrap intervals over images, thresholds from validation only."""
    task = prepared.spec.task
    labels = {split: prepared.labels[split].numpy() for split in ("train", "validation", "test")}
    predicted = {
        split: predict(module, state, prepared, prepared.inputs[split], setup.device).numpy()
        for split in ("validation", "test")
    }
    chosen = predicted["validation"], labels["validation"]
    threshold = choose_threshold(*chosen, setup.threshold) if task == "binary" else None
    thresholds = choose_thresholds(*chosen, setup.threshold) if task == "multilabel" else None

    def interval(split: str, rows: np.ndarray | slice, *keys: Key) -> dict[str, Interval]:
        generator = numpy_generator(derive_seed(setup.seed, "bootstrap", split, *keys))
        given = predicted[split][rows], labels[split][rows]
        return bootstrap(*given, task, thresholds or threshold, generator, resamples=RESAMPLES)

    intervals = {split: interval(split, slice(None)) for split in ("validation", "test")}
    return Measurement(
        validation=intervals["validation"],
        test=intervals["test"],
        threshold=threshold,
        thresholds=thresholds,
        majority_accuracy=majority_accuracy(labels["train"], labels["test"]),
        degenerate=is_degenerate(answers(predicted["test"], thresholds)),
        curves=curve_data(predicted["test"], labels["test"]),
        subgroups=[
            SubgroupResult(
                column=column,
                value=value,
                class_counts=count_classes(labels["test"][rows], prepared.spec.num_classes),
                metrics=interval("test", rows, column, value),
            )
            for column, values in prepared.splits.test.subgroups.items()
            for value in np.unique(values).tolist()
            for rows in [np.flatnonzero(values == value)]
        ],
        by_hospital={client: interval("test", rows, client) for client, rows in test_rows.items() if len(rows)},
    )


def answers(probabilities: np.ndarray, thresholds: list[float | None] | None) -> np.ndarray:
    """The most probable class of each record; of several labels those from their thresholds upwards."""
    if thresholds is None:
        found: np.ndarray = probabilities.argmax(1)
        return found
    return probabilities >= np.array([0.5 if cut is None else cut for cut in thresholds])


def own_test_rows(prepared: Prepared) -> TestRows:
    """Every hospital's own test rows, by client; empty where the data tell no hospitals."""
    found = {client: prepared.test_rows(client) for client in range(len(prepared.parts))}
    return {client: rows for client, rows in found.items() if rows is not None}


def measure_clients(
    module: nn.Module,
    state: Tensors,
    prepared: Prepared,
    device: str,
    *,
    measured: Measurement,
    baselines: Mapping[int, dict[str, dict[str, Interval]]],
) -> list[ClientResult]:
    """The final model on every hospital's own rows; the study holds them all, a deployment would not."""
    predicted = predict(module, state, prepared, prepared.inputs["train"], device).numpy()
    labels = prepared.labels["train"].numpy()
    results, own = [], own_test_rows(prepared)
    count = partial(count_classes, num_classes=prepared.spec.num_classes)
    for client, rows in enumerate(prepared.parts):
        metrics = evaluate(predicted[rows], labels[rows], prepared.spec.task) if len(rows) else {}
        result = ClientResult(
            client=client,
            name=prepared.hospital_name(client),
            num_records=len(rows),
            class_counts=count(labels[rows]),
            metrics=metrics,
            test_counts=count(prepared.splits.test.labels[own[client]]) if client in own else None,
            test=measured.by_hospital.get(client, {}),
            baselines=baselines.get(client, {}),
        )
        results.append(result)
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
        class_counts={name: count_classes(split.labels, spec.num_classes) for name, split in parts.items()},
        shared_patients=splits.shared_patients(),
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


def described(name: str, module: nn.Module, weights: PublicWeights | None) -> dict[str, Any]:
    """What a result says of its model: the option, its trainable numbers, and weights from elsewhere if it has some."""
    public = {} if weights is None else {"weights": weights.model_dump()}
    return {"name": name, "parameters": count_parameters(module), **public}


def count_parameters(module: nn.Module) -> int:
    """Trainable numbers of a module."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
