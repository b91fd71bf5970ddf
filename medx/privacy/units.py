"""Whom a guarantee can protect: an image, a patient with all images, a hospital with all records."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Unit:
    """Whom a guarantee protects, and the statement's words for it: ``several`` of them, a ``patient``, composition."""

    name: Literal["record", "patient", "client"]
    adjacency: str
    what: str
    several: str
    patient: str
    composition: str


RECORD = Unit(
    name="record",
    adjacency="differ in one record's content, which is there or taken out (zero-out)",
    what="one record (one image)",
    several="records of one hospital (a patient's images, copies of an image)",
    patient="The records of one patient at several hospitals: those hospitals' epsilons, and their deltas, add up.",
    composition="every step of every round is counted; hospitals hold different records, so the largest of their "
    "epsilons is the federation's.",
)
PATIENT = Unit(
    name="patient",
    adjacency="differ in the content of all images of one patient, which is there or taken out (zero-out)",
    what="one patient (all images of one, at one hospital)",
    several="patients of one hospital",
    patient="How many images a patient has is public too.",
    composition="every step of every round is counted; hospitals have different patients, so the largest of their "
    "epsilons is the federation's.",
)
CLIENT = Unit(
    name="client",
    adjacency="differ in what one hospital holds, which is there or taken out (zero-out)",
    what="one hospital with all its records",
    several="hospitals",
    patient="So every record and every patient of one hospital is covered.",
    composition="every round counts for every hospital, drawn or not.",
)
