"""PneumoniaMNIST with its patients, whom MedMNIST's own split has on two sides."""

import csv
import gzip
import hashlib
import io
import logging
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from medx.dataset import DataSplits, Split
from medx.dataset.dealing import deal_patients
from medx.dataset.medmnist import MedMNIST, in_a_row, redealt
from medx.randomness import derive_seed, numpy_generator
from medx.schema import ConfigError, DataError, component

TABLE = Path(__file__).with_name("pneumoniamnist_patients.csv.gz")  # its source and licence are in the .md beside it
TABLE_SIZE = 28  # pixels, of the images that the table is of
DIGITS = 16  # of an image's SHA-256 in the table

log = logging.getLogger(__name__)


@component("dataset/medmnist")
class PneumoniaMNIST(MedMNIST):
    """The set with the patient of every image, by a table of the images themselves.

    ``patients`` null: where all images are in the table, which is of those at 28 pixels; a warning where they are not.
    ``validation=by_patient`` deals train and validation anew, by whole patients, always in the same way; test, which
    shares nobody, stays. ``official`` is MedMNIST's: most of its validation images are of patients who are in train.
    """

    patients: bool | None = False  # what it was before there was a table; the yaml says null
    validation: Literal["official", "by_patient"] = "official"

    added: ClassVar[tuple[str, ...]] = (*MedMNIST.added, "patients", "validation")

    def __post_init__(self) -> None:
        if self.validation == "by_patient" and self.patients is False:
            raise ConfigError("dataset.validation=by_patient: it needs dataset.patients=true")
        if self.validation == "by_patient" and self.fold is not None:
            raise ConfigError("dataset.fold: accepted: null with dataset.validation=by_patient; both are by patient")
        if self.size != TABLE_SIZE and (self.patients or self.validation == "by_patient"):
            key = "patients=true" if self.patients else "validation=by_patient"
            raise ConfigError(f"dataset.{key}: the patients are known at dataset.size={TABLE_SIZE}, not {self.size}")

    def _published(self) -> DataSplits:
        """As MedMNIST, then with patients; raises DataError where an image is not in the table."""
        splits = super()._published()
        if self.patients is False or self.size != TABLE_SIZE:
            return splits
        try:
            known = replace(
                splits,
                train=with_patients(splits.train),
                validation=with_patients(splits.validation),
                test=with_patients(splits.test),
            )
        except DataError as error:
            if self.patients or self.validation == "by_patient":
                raise
            log.warning("%s; patients are not known in this run", error)
            return splits
        if self.validation == "by_patient":
            return dealt_by_patient(known)
        if self.fold is not None:
            return known
        shared, count = known.shared_patients()["validation"], len(known.validation)
        log.warning(
            "dataset: %s of %s validation images are of patients who are in train (dataset.validation=by_patient)",
            *(shared, count),
        )
        return known


def with_patients(split: Split) -> Split:
    """The split with the patients' numbers."""
    numbers = patient_numbers()
    found = [numbers.get(hashlib.sha256(image.tobytes()).hexdigest()[:DIGITS]) for image in split.images]
    unknown = found.count(None)
    if unknown:
        raise DataError(
            f"dataset.patients: {unknown} of {len(found)} images are not in the table of patients; "
            "accepted: dataset.patients=false, or the published images"
        )
    return replace(split, patients=np.array(found, np.int64))


@cache
def patient_numbers() -> dict[str, int]:
    """The patient of each image, by the beginning of the digest of its pixels."""
    return {row["image_sha256"]: int(row["patient"]) for row in _rows()}


def _rows() -> Iterator[dict[str, str]]:
    with gzip.open(TABLE) as file:
        yield from csv.DictReader(io.TextIOWrapper(file))


def dealt_by_patient(splits: DataSplits) -> DataSplits:
    """Train and validation dealt anew so that they share nobody, validation with as large a share as before."""
    labels, patients = in_a_row(splits)
    share = len(splits.validation) / len(labels)
    generator = numpy_generator(derive_seed(0, "validation", splits.name))
    return redealt(splits, deal_patients(labels, patients, share, np.arange(len(labels)), generator))
