"""Batches: drawn by Poisson sampling, and cut into pieces that fit into memory."""

import logging
import math
from collections.abc import Iterator

import torch

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


class MicroBatches:
    """Sums over micro-batches of about ``size`` images; halves ``size`` for good when memory runs out.

    A batch of up to a quarter more is not cut: a Poisson batch is as often above its expectation as below, and a
    piece costs a tenth of itself whatever its size.

    Where there are ``views`` of a record, each is an image. They are drawn for the whole batch, so that the sum does
    not depend on how it is cut.
    """

    def __init__(self, mode: GradientMode, size: int, views: RandomViews | None = None) -> None:
        self.mode = mode
        self.views = views
        self.size = size if views is None else max(1, size // views.multiplicity)

    def clipped_sum(self, inputs: torch.Tensor, labels: torch.Tensor, clip_norm: float) -> list[torch.Tensor]:
        """As GradientMode, for a batch of any size; raises torch.OutOfMemoryError where one record is too many."""
        if len(labels) == 0:
            return self.mode.clipped_sum(inputs, labels, clip_norm)
        drawn = None if self.views is None else self.views.draw(len(labels))
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
                images = self.views.apply(images, drawn[part])
            return self.mode.clipped_sum(images, labels[part], clip_norm)
        except torch.OutOfMemoryError:
            if part.stop - part.start == 1:
                raise
            return None


def added(sums: list[torch.Tensor], part: list[torch.Tensor]) -> list[torch.Tensor]:
    """Sums in float64 from the second piece on: what they round does not grow with the number of pieces."""
    return [total.double().add_(term) for total, term in zip(sums, part, strict=True)]


def even_piece(left: int, size: int) -> int:
    """The next piece, of at most ``size`` and a quarter; what is left is cut evenly: 942 at 512 are twice 471."""
    return math.ceil(left / math.ceil(left / (size + size // 4)))
