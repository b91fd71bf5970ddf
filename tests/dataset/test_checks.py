"""The same questions to every data set, each answered in one line, and nothing refused that is right."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from medx.dataset import DataSplits, Split
from medx.dataset.checks import check_splits, count_copies
from medx.dataset.phantom import Phantom
from medx.schema import DataError

GOOD = Phantom(kind="chest", size=16, num_train=40, num_validation=10, num_test=20, seed=0).load()
OWN = replace(GOOD, public=False)


def changed(part: str, **changes: Any) -> DataSplits:
    return replace(OWN, **{part: replace(getattr(OWN, part), **changes)})


def test_a_right_data_set_passes() -> None:
    check_splits(GOOD)
    check_splits(OWN)
    deep = {part: Split(getattr(OWN, part).images.astype(np.uint16), getattr(OWN, part).labels) for part in PARTS}
    check_splits(replace(OWN, **deep))


PARTS = ("train", "validation", "test")
EMPTY = {"images": GOOD.test.images[:0], "labels": GOOD.test.labels[:0]}
HALF = {"labels": GOOD.test.labels[:5]}


@pytest.mark.parametrize(
    ("part", "changes", "says"),
    [
        ("validation", EMPTY, "validation is empty"),
        ("test", HALF, r"test: labels are int64 \[5\]; expected integers \[20\]"),
        ("test", {"labels": GOOD.test.labels.astype(float)}, "test: labels are float64"),
        (
            "train",
            {"labels": np.where(np.arange(40) == 7, 2, GOOD.train.labels)},
            "label of row 7 is 2; expected 0 to 1",
        ),
        ("train", {"labels": GOOD.train.labels - 1}, "train: label of row .* is -1"),
        ("test", {"images": GOOD.test.images / 255}, "test: images are float64"),
        ("test", {"images": GOOD.test.images[..., 0]}, r"test: images are uint8 \[20, 16, 16\]"),
        ("test", {"images": GOOD.test.images[:, :8]}, r"test: images are uint8 \[20, 8, 16, 1\]"),
        ("test", {"images": GOOD.test.images[:, :8, :8]}, "those of train are not"),
        ("test", {"images": GOOD.test.images.astype(np.uint16)}, "those of train are not"),
        ("train", {"patients": np.arange(39)}, r"train: patients are int64 \[39\]; expected integers \[40\]"),
        ("test", {"images": GOOD.train.images[:20]}, "20 of 20 test images are in train too"),
    ],
)
def test_mistakes_are_one_line(part: str, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(DataError, match=says) as refused:
        check_splits(changed(part, **changes))
    assert "\n" not in str(refused.value)


def test_copies_are_looked_for_where_records_are_not_everybodys() -> None:
    copied = changed("test", images=GOOD.train.images[:20])
    assert count_copies(copied.test, copied.train) == 20
    assert count_copies(GOOD.test, GOOD.train) == 0
    check_splits(replace(copied, public=True))
    check_splits(replace(copied, copies_accepted=True))


def test_16_bits_are_the_same_shares_of_white() -> None:
    images = GOOD.test.images
    deep = GOOD.to_tensor(images.astype(np.uint16) * 257)
    assert torch.allclose(deep, GOOD.to_tensor(images), atol=1e-6)
    np.testing.assert_allclose(GOOD.to_tensor(images).numpy()[:, 0], (images[..., 0] / 255 - 0.5) / 0.5, atol=1e-6)
