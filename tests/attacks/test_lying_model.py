"""A server that sends models made to isolate records: without privacy it reads them; of noise it reads nothing."""

from itertools import pairwise

import numpy as np
import pytest

from medx.api import composed
from medx.attacks.lying_server import between_bounds, lies_of
from medx.attacks.received import ONE_STEP, Received, receive
from medx.schema import ConfigError

RECORDS, ROUNDS, CONSTANT = 8, 30, 0.1
HEAD = (
    "dataset=phantom", "dataset.size=16", "dataset.num_train=60", "dataset.num_validation=40", "dataset.num_test=2",
    "model=scatternet", "model.basis=none", "model.num_views=1", "trainer.learning_rate=30", "federation.num_clients=3",
    f"federation.num_rounds={ROUNDS}",
)  # fmt: skip
NONE = "privacy=none"


def heard(folder, *overrides: str, lies=lies_of) -> Received:
    config, _ = composed([*ONE_STEP, *HEAD, *overrides], None, folder)
    return receive(config, folder, records=RECORDS, others=8, lies=lies)


def distances(received: Received, rows: np.ndarray) -> np.ndarray:
    """How far each row is from the nearest record; all features are one long."""
    features = received.prepared.client(0)[0].numpy()
    return np.linalg.norm(rows[:, None] - features[None], axis=2).min(1)


def read(received: Received) -> np.ndarray:
    return between_bounds(received.own, RECORDS, CONSTANT)


def test_most_records_are_read_one_by_one(tmp_path) -> None:
    received = heard(tmp_path, NONE)
    rows = read(received)
    assert len(rows) >= RECORDS / 2
    assert distances(received, rows).max() < 0.01


def test_an_honest_model_isolates_nothing(tmp_path) -> None:
    """Of the same rounds, read in the same way but for the bounds, which honest models do not have."""
    received = heard(tmp_path, NONE, lies=None)
    rows = np.array([RECORDS * (low.gradient - high.gradient) for low, high in pairwise(received.own)])
    assert distances(received, rows).min() > 0.1


def test_noise_leaves_the_liar_nothing(tmp_path) -> None:
    assert len(read(heard(tmp_path, "privacy=local_dp", "privacy.spare_rounds=0"))) == 0


def test_other_models_are_refused(tmp_path) -> None:
    with pytest.raises(ConfigError, match="accepted: scatternet with hidden=0"):
        heard(tmp_path, NONE, "model.hidden=4")
