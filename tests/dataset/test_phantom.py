"""Phantoms: the same seed draws the same pixels, they say that they are synthetic, and labels can be learned."""

import time

import numpy as np
import pytest
from pydantic import ValidationError
from scipy.stats import spearmanr
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline

from medx.dataset.chest_phantom import draw_chest
from medx.dataset.drawing import Sheet, Spots, splat
from medx.dataset.fundus_phantom import GRADE_SHARES, _dark_lesions, _pale_lesions, draw_fundus
from medx.dataset.phantom import Phantom
from medx.randomness import numpy_generator

SMALL = {"size": 28, "num_train": 40, "num_validation": 20, "num_test": 30, "seed": 0}


@pytest.mark.parametrize(("draw", "channels", "classes"), [(draw_chest, 1, 2), (draw_fundus, 3, 5)])
@pytest.mark.parametrize("size", [28, 64])
def test_drawing_is_a_function_of_the_generator(draw: type(draw_chest), channels: int, classes: int, size: int) -> None:
    images, labels = draw(60, size, numpy_generator(5))
    np.random.seed(3)
    again, same = draw(60, size, numpy_generator(5))
    other, _ = draw(60, size, numpy_generator(6))
    assert images.dtype == np.uint8
    assert images.shape == (60, size, size, channels)
    assert labels.dtype == np.int64
    assert set(labels) == set(range(classes))
    assert np.array_equal(images, again)
    assert np.array_equal(labels, same)
    assert not np.array_equal(images, other)
    assert len(np.unique(images.reshape(60, -1), axis=0)) == 60


def test_drawing_is_cheap() -> None:
    began = time.process_time()
    draw_chest(600, 28, numpy_generator(0))
    draw_fundus(600, 28, numpy_generator(0))
    assert time.process_time() - began < 5


@pytest.mark.parametrize("kind", ["chest", "fundus"])
def test_splits_are_synthetic_disjoint_and_fixed_by_the_seed(kind: str) -> None:
    splits = Phantom(kind=kind, **SMALL).load()
    assert splits.synthetic
    assert "SYNTHETIC" in splits.title
    assert [len(s) for s in (splits.train, splits.validation, splits.test)] == [40, 20, 30]
    assert splits.task == {"chest": "binary", "fundus": "ordinal"}[kind]
    rows = {image.tobytes() for s in (splits.train, splits.validation, splits.test) for image in s.images}
    assert len(rows) == 90
    assert Phantom(kind=kind, **SMALL).load().content_hash == splits.content_hash
    assert Phantom(kind=kind, **(SMALL | {"seed": 1})).load().content_hash != splits.content_hash
    tensor = splits.to_tensor(splits.train.images)
    assert tensor.shape == (40, splits.spec.num_channels, 28, 28)
    assert -1 <= tensor.min() < tensor.max() <= 1


def test_chest_labels_can_be_learned_but_not_from_brightness_alone() -> None:
    images, labels = draw_chest(1200, 28, numpy_generator(1))
    rows = images.reshape(len(images), -1) / 255.0
    model = make_pipeline(PCA(150, random_state=0), LogisticRegression(C=0.3, max_iter=500))
    model.fit(rows[:900], labels[:900])
    assert 0.75 < roc_auc_score(labels[900:], model.decision_function(rows[900:])) < 0.99
    assert roc_auc_score(labels, rows.mean(1)) < 0.8


def test_lesions_follow_the_grade() -> None:
    amount = [
        np.mean(lesions(np.full(200, grade), Sheet(200, 56, numpy_generator(grade))))
        for lesions in (_dark_lesions, _pale_lesions)
        for grade in range(5)
    ]
    assert amount[0] == amount[5] == amount[6] == 0  # exudates begin at grade 2
    assert 0 < 2 * amount[1] < amount[2] < amount[3] / 1.5
    assert amount[2] < amount[4]
    assert 0 < amount[7] < amount[8]


def test_fundus_shows_its_lesions() -> None:
    images, labels = draw_fundus(400, 48, numpy_generator(2))
    share = np.bincount(labels) / len(labels)
    np.testing.assert_allclose(share, GRADE_SHARES, atol=0.08)
    green = images[:, 8:40, 8:40, 1].astype(float)
    detail = np.abs(np.diff(green, 2, axis=1)).mean((1, 2)) / green.mean((1, 2))
    assert spearmanr(detail, labels).statistic > 0.35
    assert images[:, :3, :3].mean() < 30  # the camera's round field leaves the corners dark


def test_a_spot_is_drawn_where_it_is_told() -> None:
    owner, place = np.array([1, 2]), np.array([-0.5, 1.0])
    spots = Spots(owner, place, np.array([0.25, 1.0]), np.array([0.1, 0.1]), np.array([1.0, 2.0]))
    drawn = splat(spots, 3, 40)
    assert drawn[0].max() == 0
    row, column = np.unravel_index(drawn[1].argmax(), (40, 40))
    assert abs(row - 24.5) <= 0.5
    assert abs(column - 9.5) <= 0.5
    assert drawn[2].argmax() == 40 * 40 - 1
    # A Gaussian of width 2 pixels holds pi 2^2 (cut at 2.2 widths); one at a corner keeps about a quarter.
    assert drawn[1].sum() == pytest.approx(np.pi * 4, rel=0.03)
    assert drawn[2].max() == pytest.approx(2)


def test_bad_sizes_are_refused() -> None:
    for bad in ({"size": 15}, {"num_train": 0}, {"kind": "knee"}, {"seed": -1}):
        with pytest.raises(ValidationError):
            Phantom(**({"kind": "chest"} | SMALL | bad))
