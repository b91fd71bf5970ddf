"""Poisson sampling: every record enters every step on its own coin (Abadi et al. 2016; Mironov et al. 2019)."""

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, TensorDataset


def poisson_batches(
    num_records: int, sampling_probability: float, steps: int, generator: torch.Generator
) -> Iterator[torch.Tensor]:
    """Yield ``steps`` batches of row numbers ``int64 [drawn]`` in rising order, on the generator's device.

    Every row is in every batch with ``sampling_probability``, independently; a batch may be empty, and with
    probability 1 it is all rows. The draw depends on nothing but the count of records.
    """
    for _ in range(steps):
        if sampling_probability == 1:  # every coin falls the same way
            yield torch.arange(num_records, device=generator.device)
            continue
        coins = torch.rand(num_records, dtype=torch.float64, generator=generator, device=generator.device)
        yield (coins < sampling_probability).nonzero().flatten()


def poisson_loader(
    inputs: torch.Tensor,
    labels: torch.Tensor,
    sampling_probability: float,
    steps: int,
    generator: torch.Generator,
) -> DataLoader[Any]:
    """A loader of ``steps`` logical batches, for ``lightning.Trainer.fit``: one batch is one private step."""
    batches = list(poisson_batches(len(labels), sampling_probability, steps, generator))
    dataset = TensorDataset(inputs, labels)
    return DataLoader(dataset, sampler=batches, batch_size=None)
