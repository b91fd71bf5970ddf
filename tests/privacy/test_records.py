"""Which runs touched a record, against counting them one record at a time."""

import numpy as np
import pytest

from medx.privacy import SampledGaussian
from medx.privacy.ledger_folder import Entry, RecordSet, histories, record_set, worst

STEPS = [SampledGaussian(1.0, 15.0, 0.1), SampledGaussian(0.2, 3.0, 0.1)]


def some(generator: np.random.Generator, most: int = 8) -> RecordSet:
    values = generator.choice(20, generator.integers(0, most), replace=False)
    return RecordSet("key", np.sort(values).astype("<u8").tobytes())


def totals(history: list[Entry]) -> tuple[int, ...]:
    return tuple(sum(count for step, count in (entry.event for entry in history) if step == kind) for kind in STEPS)


@pytest.mark.parametrize("seed", range(20))
def test_the_worst_histories_are_those_of_single_records(seed: int) -> None:
    generator = np.random.default_rng(seed)
    mine = some(generator)
    entries = [
        Entry(f"run {index}", "record", some(generator), (STEPS[index % 2], int(generator.integers(1, 4))))
        for index in range(generator.integers(0, 7))
    ]
    single = {
        totals([entry for entry in entries if entry.records and value in entry.records.values]) for value in mine.values
    }
    found = {totals(history) for history in worst(histories(mine, "record", entries))}
    assert found <= single
    assert all(any(np.all(np.less_equal(one, other)) for other in found) for one in single)


def test_a_set_knows_images_whatever_their_order_and_number(tmp_path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (6, 5, 5, 1), np.uint8)
    whole = record_set(images, tmp_path)
    assert whole == record_set(images[[5, 0, 1, 1, 2, 3, 4]], tmp_path)
    assert len(whole.values) == 6
    assert np.all(np.diff(whole.values.astype(object)) > 0)
    assert record_set(images, tmp_path / "elsewhere").key != whole.key
    assert not set(record_set(images, tmp_path / "elsewhere").values) & set(whole.values)  # keyed: no public digest
    assert oct((tmp_path / "records.key").stat().st_mode)[-3:] == "600"
