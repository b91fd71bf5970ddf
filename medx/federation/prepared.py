"""The data of a run in memory: loaded, dealt to the clients, and turned into what the model takes."""

import hashlib
from collections import OrderedDict
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch

from medx.dataset import FEATURE_VALUE, DataSplits, InputSpec, refuse_beyond_memory
from medx.dataset.checks import check_splits
from medx.dataset.labels import strata
from medx.federation.setup import Declared, Setup
from medx.model import FixedFeatures, Objective
from medx.model.storage import cached_features
from medx.output import say
from medx.privacy.base import PatientImages
from medx.randomness import derive_seed, numpy_generator
from medx.schema import DataError


@dataclass(frozen=True)
class Prepared:
    """Data in memory: model inputs (images, or fixed features of them) of every split, and the clients' rows."""

    splits: DataSplits = field(repr=False)
    parts: tuple[np.ndarray, ...] = field(repr=False)
    inputs: dict[str, torch.Tensor] = field(repr=False)
    labels: dict[str, torch.Tensor] = field(repr=False)
    objective: Objective
    features: FixedFeatures | None = field(repr=False)

    @property
    def spec(self) -> InputSpec:
        """Shape and task of the images."""
        return self.splits.spec

    @cached_property
    def declared(self) -> Declared:
        """What everybody may know of these data."""
        train = self.splits.train
        total = hashlib.sha256(train.digest)
        for part in self.parts:
            total.update(np.ascontiguousarray(part, "<i8").tobytes() + b"|")
        numbers = train.patients
        return Declared(
            spec=self.spec,
            num_records=tuple(len(part) for part in self.parts),
            num_patients=None if numbers is None else tuple(len(np.unique(numbers[part])) for part in self.parts),
            patient_images=self.patient_images(),
            records=train.digest,
            dealt=total.hexdigest(),
        )

    def client(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """One client's training inputs ``[n, ...]`` and labels ``[n]``."""
        rows = torch.from_numpy(self.parts[index])
        return self.inputs["train"][rows], self.labels["train"][rows]

    def patients(self, index: int) -> np.ndarray | None:
        """A client's patients, a number a record ``int64 [n]``; None where the data set does not tell them."""
        known = self.splits.train.patients
        return None if known is None else known[self.parts[index]]

    def test_rows(self, index: int) -> np.ndarray | None:
        """A client's own test rows, where the clients are the hospitals of the data; None where they are not."""
        train, test = self.splits.train.hospitals, self.splits.test.hospitals
        if train is None or test is None:
            return None
        own = [np.unique(train[part]) for part in self.parts]
        if any(len(each) != 1 for each in own) or len(np.unique(np.concatenate(own))) < len(own):
            return None
        return np.flatnonzero(test == own[index][0])

    def hospital_name(self, index: int) -> str | None:
        """A client's name in the data; None where the clients are not hospitals that the data name."""
        numbers = self.splits.train.hospitals
        if numbers is None or not self.splits.hospital_names or self.test_rows(index) is None:
            return None
        return self.splits.hospital_names[numbers[self.parts[index][0]]]

    def patient_images(self) -> tuple[PatientImages, ...]:
        """The most images of a patient at each hospital, for each set of hospitals that patients are at."""
        if self.splits.train.patients is None:
            return ()
        images: dict[int, dict[int, int]] = {}
        for client, part in enumerate(self.parts):
            numbers, counts = np.unique(self.splits.train.patients[part], return_counts=True)
            for number, count in zip(numbers.tolist(), counts.tolist(), strict=True):
                images.setdefault(number, {})[client] = count
        most: dict[tuple[int, ...], dict[int, int]] = {}
        for each in images.values():
            known = most.setdefault(tuple(each), {})
            known |= {client: max(count, known.get(client, 0)) for client, count in each.items()}
        return tuple(tuple(sorted(known.items())) for _, known in sorted(most.items()))

    def dealt(self, setup: Setup) -> "Prepared":
        """The same data dealt as a baseline has them: all to one, or one hospital's alone."""
        if setup.pooled:
            return replace(self, parts=(np.arange(len(self.splits.train)),))
        return self if setup.only_client is None else replace(self, parts=(self.parts[setup.only_client],))


_PREPARED: OrderedDict[str, Prepared] = OrderedDict()
_KEEP = 2  # jobs of one process share data; more than two data sets in memory would only cost memory


def prepare(setup: Setup) -> Prepared:
    """Load, verify, transform and deal the data, once for a run, which hands them on, and for the next that wants them.

    Not only for its speed: the last bits of a product move with where its factors lie in memory.
    """
    if setup.data_key not in _PREPARED:
        try:
            _PREPARED[setup.data_key] = _load(setup)
        except MemoryError as error:
            raise DataError(f"dataset: memory ran out ({error}); accepted: fewer or smaller images") from error
        while len(_PREPARED) > _KEEP:
            _PREPARED.popitem(last=False)
    return _PREPARED[setup.data_key].dealt(setup)


def _load(setup: Setup) -> Prepared:
    say("preparing: the data set")
    splits = setup.dataset.load()
    check_splits(splits)
    generator = numpy_generator(derive_seed(setup.seed, "partition"))
    spec = splits.spec
    train, clients = splits.train, setup.federation.num_clients
    told = {"patients": train.patients, "hospitals": train.hospitals}
    known = {name: numbers for name, numbers in told.items() if numbers is not None}
    kinds = spec.num_classes + (spec.task == "multilabel")  # and records that have none of the labels
    parts = setup.partition.split(strata(train.labels), kinds, clients, generator, **known)
    return _in_memory(setup, splits, tuple(parts))


def prepare_own(setup: Setup, client: int) -> Prepared:
    """Load, verify and transform the data of one client, which are all that this process has; none of the others'."""
    say("preparing: the data set")
    splits = setup.dataset.load()
    check_splits(splits)
    nothing, everything = np.arange(0), np.arange(len(splits.train))
    parts = (everything if number == client else nothing for number in range(setup.num_clients))
    return _in_memory(setup, splits, tuple(parts))


def _in_memory(setup: Setup, splits: DataSplits, parts: tuple[np.ndarray, ...]) -> Prepared:
    check = getattr(setup.model, "check_data", None)
    if check is not None:
        check(splits)
    features = setup.model.features(splits.spec)
    if features is not None:
        _check_memory(splits, features)
    inputs, labels = {}, {}
    for name, split in (("train", splits.train), ("validation", splits.validation), ("test", splits.test)):
        if features is None:
            inputs[name] = splits.to_tensor(split.images)
        else:
            inputs[name] = cached_features(features, split.images, splits.to_tensor, setup.cache)
        labels[name] = torch.from_numpy(split.labels.astype(np.int64))
    return Prepared(splits, parts, inputs, labels, setup.model.objective(splits.spec), features)


def _check_memory(splits: DataSplits, features: FixedFeatures) -> None:
    """Refuse features that do not fit into memory, by those of one image."""
    with torch.no_grad():
        each = features(splits.to_tensor(splits.train.images[:1])).numel()
    images = len(splits.train) + len(splits.validation) + len(splits.test)
    what = f"model: {each} features of each of {images} images"
    refuse_beyond_memory(what, FEATURE_VALUE * each * images, "a model with fewer features, or fewer images")
