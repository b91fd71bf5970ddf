"""Batches: drawn by Poisson sampling, and cut into pieces that fit into memory."""

import logging
import math
from collections.abc import Iterator

import numpy as np
import torch

from medx.privacy.base import ClientPlan
from medx.schema import PrivacyError
from medx.trainer.augmentation import RandomViews
from medx.trainer.gradients import GradientMode

logger = logging.getLogger(__name__)


def poisson_batches(
    num_records: int, sampling_probability: float, steps: int, generator: torch.Generator
) -> Iterator[torch.Tensor]:
    """Yield ``steps`` batches of row numbers ``int64 [drawn]`` in rising order, on the generator's device.

    Poisson sampling (Abadi et al. 2016; Mironov et al. 2019): every row is in every batch with
    ``sampling_probability``, independently; a batch may be empty, and with probability 1 it is all rows. The draw
    depends on nothing but the count of records.
    """
    for _ in range(steps):
        if sampling_probability == 1:  # every coin falls the same way
            yield torch.arange(num_records, device=generator.device)
            continue
        coins = torch.rand(num_records, dtype=torch.float64, generator=generator, device=generator.device)
        yield (coins < sampling_probability).nonzero().flatten()


class Patients:
    """Whose each of a client's records is: what is drawn and clipped are patients, not records.

    ``numbers`` is a number a record. A step takes at most ``most`` images of a patient (None: all), drawn anew without
    replacement, each set of so many with equal chance; ``views`` is how many rows a drawn patient takes up.
    """

    def __init__(self, numbers: np.ndarray, most: int | None) -> None:
        _, places, counts = np.unique(numbers, return_inverse=True, return_counts=True)
        self._rows = torch.from_numpy(np.argsort(places, kind="stable"))  # patient by patient
        self._counts = torch.from_numpy(counts)
        self._starts = self._counts.cumsum(0) - self._counts
        self._largest = int(counts.max(initial=1))
        self.views = self._largest if most is None else min(most, self._largest)

    def __len__(self) -> int:
        return len(self._counts)

    def draw(self, chosen: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows ``int64 [patients, views]`` of the chosen patients' images, and where there is one, ``bool``.

        A patient with fewer images than ``views`` has one of the own again where there is none: no other patient's is
        ever in reach.
        """
        chosen = chosen.cpu()
        counts = self._counts[chosen][:, None]
        width = self._largest
        order = torch.arange(width).expand(len(chosen), width)
        there = order < counts
        if width > self.views:
            keys = torch.rand(there.shape, dtype=torch.float64, generator=generator, device=generator.device).cpu()
            order = keys.masked_fill(~there, 2.0).argsort(1)[:, : self.views]
            there = order < counts
        return self._rows[self._starts[chosen][:, None] + torch.where(there, order, 0)], there


def drawn_batches(
    inputs: torch.Tensor,
    labels: torch.Tensor,
    patients: Patients | None,
    plan: ClientPlan,
    *,
    steps: int,
    generator: torch.Generator,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Inputs ``[drawn, ...]`` and labels ``[drawn]`` of each step's batch; of patients ``[drawn, views, ...]``.

    A label is -1 where a patient has fewer images than that.
    """
    units = len(labels) if patients is None else len(patients)
    for drawn in poisson_batches(units, _probability(plan), steps, generator):
        if patients is None:
            yield _select(inputs, labels, drawn)
            continue
        rows, there = patients.draw(drawn, generator)
        marked = labels[rows.to(labels.device)]
        marked[~there.to(labels.device)] = -1
        images = inputs[rows.to(inputs.device)]
        yield (images[:, 0], marked[:, 0]) if patients.views == 1 else (images, marked)


def _select(inputs: torch.Tensor, labels: torch.Tensor, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    if len(rows) == len(labels):
        return inputs, labels
    return inputs[rows.to(inputs.device)], labels[rows.to(labels.device)]


def _probability(plan: ClientPlan) -> float:
    if plan.step is not None and plan.step.sampling_probability != plan.sampling_probability:
        raise PrivacyError(
            f"client {plan.client}: samples with {plan.sampling_probability} but accounts "
            f"{plan.step.sampling_probability}; they must be equal"
        )
    return plan.sampling_probability


class MicroBatches:
    """Sums over micro-batches of about ``size`` images; halves ``size`` for good when memory runs out.

    A batch of up to a quarter more is not cut: a Poisson batch is as often above its expectation as below, and a
    piece costs a tenth of itself whatever its size.

    Where there are ``views`` of a record, each is an image, and so is each of a patient's ``images``. Views are drawn
    for the whole batch, so that the sum does not depend on how it is cut.
    """

    def __init__(self, mode: GradientMode, size: int, views: RandomViews | None = None, images: int = 1) -> None:
        self.mode = mode
        self.views = views
        self.images = images
        self.size = max(1, size // (images * (1 if views is None else views.multiplicity)))

    def clipped_sum(self, inputs: torch.Tensor, labels: torch.Tensor, clip_norm: float) -> list[torch.Tensor]:
        """As GradientMode, for a batch of any size; raises torch.OutOfMemoryError where one record is too many."""
        if len(labels) == 0:
            return self.mode.clipped_sum(inputs, labels, clip_norm)
        shape = (len(labels),) if self.images == 1 else (len(labels), self.images)
        drawn = None if self.views is None else self.views.draw(math.prod(shape)).unflatten(0, shape)
        sums: list[torch.Tensor] = []
        start = 0
        while start < len(labels):
            stop = start + even_piece(len(labels) - start, self.size)
            part = self._attempt(inputs, labels, drawn, slice(start, stop), clip_norm)
            if part is None:
                # Here, and not while the error is handled: its traceback still holds the memory.
                torch.cuda.empty_cache()
                self.size = (stop - start) // 2
                logger.warning("out of memory: micro_batch_size is now %d", self.size)
                continue
            sums = added(sums, part) if sums else part
            start = stop
        return sums

    def _attempt(
        self, inputs: torch.Tensor, labels: torch.Tensor, drawn: torch.Tensor | None, part: slice, clip_norm: float
    ) -> list[torch.Tensor] | None:
        try:
            images = inputs[part]
            if self.views is not None and drawn is not None:
                images = _viewed(self.views, images, drawn[part])
            return self.mode.clipped_sum(images, labels[part], clip_norm)
        except torch.OutOfMemoryError:
            if part.stop - part.start == 1:
                raise
            return None


def _viewed(views: RandomViews, images: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
    """The views of each record, or of each patient's images: ``[n, images * views, c, h, w]``."""
    if drawn.ndim == 3:
        return views.apply(images, drawn)
    seen = views.apply(images.flatten(0, 1), drawn.flatten(0, 1))
    return seen.reshape(len(images), -1, *images.shape[2:])


def added(sums: list[torch.Tensor], part: list[torch.Tensor]) -> list[torch.Tensor]:
    """Sums in float64 from the second piece on: what they round does not grow with the number of pieces."""
    return [total.double().add_(term) for total, term in zip(sums, part, strict=True)]


def even_piece(left: int, size: int) -> int:
    """The next piece, of at most ``size`` and a quarter; what is left is cut evenly: 942 at 512 are twice 471."""
    return math.ceil(left / math.ceil(left / (size + size // 4)))
