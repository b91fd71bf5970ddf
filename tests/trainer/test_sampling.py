"""Poisson sampling against what is wrong about shuffled batches and shared generators."""

import torch
from scipy import stats

from medx.randomness import derive_seed, torch_generator
from medx.trainer.batches import poisson_batches
from tests.trainer.examples import poisson_loader

RECORDS, PROBABILITY, STEPS = 60, 0.2, 3000


def inclusion(batches: list[torch.Tensor]) -> torch.Tensor:
    """``[steps, records]`` of 0 and 1."""
    table = torch.zeros(len(batches), RECORDS)
    for row, batch in zip(table, batches, strict=True):
        row[batch] = 1
    return table


def is_poisson(table: torch.Tensor) -> bool:
    """Right frequency for every record, binomial batch sizes, and no record that knows of another or of the past."""
    steps, records = table.shape
    counts = [stats.binomtest(int(c), steps, PROBABILITY).pvalue for c in table.sum(0)]
    variance = float(table.sum(1).var()) / (records * PROBABILITY * (1 - PROBABILITY))
    centred = (table - PROBABILITY) / (PROBABILITY * (1 - PROBABILITY)) ** 0.5
    between_records = (centred.T @ centred / steps).fill_diagonal_(0)
    between_steps = float((centred[1:] * centred[:-1]).mean())
    return (
        min(counts) > 1e-3 / records
        and abs(variance - 1) < 5 * (2 / steps) ** 0.5
        and float(between_records.abs().max()) < 5.5 / steps**0.5
        and abs(float(between_records.mean())) < 5 / (steps**0.5 * records)
        and abs(between_steps) < 5 / (steps * records) ** 0.5
    )


def shuffled(fixed_size: bool) -> torch.Tensor:
    """What a shuffling loader draws: whole epochs cut into batches, or fixed-size subsets."""
    generator = torch_generator(1)
    size = int(RECORDS * PROBABILITY)
    batches: list[torch.Tensor] = []
    while len(batches) < STEPS:
        order = torch.randperm(RECORDS, generator=generator)
        batches += [order[:size]] if fixed_size else list(order.split(size))
    return inclusion(batches[:STEPS])


def test_accepts_poisson_and_rejects_shuffled_batches_and_wrong_rates():
    for seed in range(3):
        assert is_poisson(inclusion(list(poisson_batches(RECORDS, PROBABILITY, STEPS, torch_generator(seed)))))
    assert not is_poisson(shuffled(fixed_size=False))
    assert not is_poisson(shuffled(fixed_size=True))
    for wrong in (0.8 * PROBABILITY, 1.25 * PROBABILITY):
        assert not is_poisson(inclusion(list(poisson_batches(RECORDS, wrong, STEPS, torch_generator(0)))))


def test_clients_draw_independently():
    def draw(client: int) -> torch.Tensor:
        return inclusion(
            list(poisson_batches(RECORDS, PROBABILITY, STEPS, torch_generator(derive_seed(7, "sample", client))))
        )

    def independent(first: torch.Tensor, second: torch.Tensor) -> bool:
        correlation = ((first - PROBABILITY) * (second - PROBABILITY)).mean() / (PROBABILITY * (1 - PROBABILITY))
        return abs(float(correlation)) < 5 / (RECORDS * STEPS) ** 0.5

    assert independent(draw(0), draw(1))
    assert not independent(draw(0), draw(0))  # the planted fault: one seed for two clients


def test_all_rows_at_probability_one_and_empty_batches_are_yielded():
    assert [batch.tolist() for batch in poisson_batches(5, 1.0, 2, torch_generator(0))] == [[0, 1, 2, 3, 4]] * 2
    sizes = [len(batch) for batch in poisson_batches(2, 0.1, 50, torch_generator(0))]
    assert len(sizes) == 50
    assert 0 in sizes


def test_loader_gives_the_same_batches_also_empty_ones():
    inputs, labels = torch.arange(6.0).view(3, 2), torch.arange(3)
    loader = poisson_loader(inputs, labels, 0.3, 20, torch_generator(4))
    expected = list(poisson_batches(3, 0.3, 20, torch_generator(4)))
    assert any(len(rows) == 0 for rows in expected)
    for (batch, classes), rows in zip(loader, expected, strict=True):
        assert torch.equal(batch, inputs[rows])
        assert torch.equal(classes, labels[rows])
