"""Small cases of what a server sees again: an image without noise; nothing of noise, or of a masked sum."""

import numpy as np
import pytest
import torch

from medx.aggregation import coordinator, participant
from medx.api import composed
from medx.attacks import likeness
from medx.attacks.inversion import NOISY, Inversion, Search
from medx.attacks.likeness import assigned, psnr, ssim
from medx.attacks.linear_head import several, single
from medx.attacks.received import ONE_STEP, Received, receive
from medx.federation.setup import build_module
from medx.schema import ConfigError
from medx.trainer.state import trained_parameters

PHANTOM = (
    "dataset=phantom", "dataset.size=16", "dataset.num_train=60", "dataset.num_validation=20", "dataset.num_test=2",
    "federation.num_clients=3", "federation.num_rounds=2", "trainer.learning_rate=0.5",
)  # fmt: skip
CNN = (*PHANTOM, "model=cnn", "federation.num_rounds=4")
HEAD = (*PHANTOM, "model=scatternet", "model.basis=none", "model.num_views=1", "trainer.learning_rate=30")
NONE, SECURE, SPENT = "privacy=none", "aggregation=secure", "privacy.spare_rounds=0"
CLIP = (NONE, "privacy._target_=medx.attacks.clip_only.ClipOnly", "+privacy.clip_norm=0.1", "trainer.learning_rate=5")
CONSTANT = 0.1  # model.bias
CHANCE = 5.5  # standard deviations: masks are drawn anew each time


def heard(folder, *overrides: str, records: int = 1) -> Received:
    config, _ = composed([*ONE_STEP, *overrides], None, folder)
    return receive(config, folder, records=records, others=8)


def truths(received: Received) -> np.ndarray:
    return received.data.targets / 255


def mean_image(received: Received) -> np.ndarray:
    return (received.data.whole.validation.images / 255).mean(0)


@pytest.mark.parametrize("overrides", [(NONE,), CLIP])
def test_without_noise_the_image_is_seen_again(overrides: tuple[str, ...], tmp_path) -> None:
    received = heard(tmp_path, *CNN, *overrides)
    (image,), (truth,) = Inversion.of(received, received.own[-1]).best(Search(steps=60)).images, truths(received)
    assert psnr(image, truth) > max(20, psnr(mean_image(received), truth) + 3)
    assert ssim(image, truth) > 0.9


@pytest.mark.parametrize("overrides", [("privacy=local_dp", SPENT), ("privacy=distributed_dp", SPENT), (NONE, SECURE)])
def test_noise_and_masks_leave_no_more_than_the_mean_image(overrides: tuple[str, ...], tmp_path) -> None:
    received = heard(tmp_path, *CNN, *overrides)
    (image,), (truth,) = Inversion.of(received, received.own[-1]).best(NOISY).images, truths(received)
    assert psnr(image, truth) <= psnr(mean_image(received), truth)
    assert ssim(image, truth) <= ssim(mean_image(received), truth)


def test_the_label_of_one_record_is_read_off(tmp_path) -> None:
    for seed in range(4):
        config, _ = composed([*ONE_STEP, *CNN, NONE], None, tmp_path)
        received = receive(config, tmp_path / str(seed), records=1, others=8, seed=seed)
        quick = Search(variation=(1.0,), steps=1)
        labels = Inversion.of(received, received.own[-1]).best(quick).labels
        assert list(labels) == received.prepared.client(0)[1].tolist()


def test_what_is_received_is_the_gradient(tmp_path) -> None:
    """Distance nought at the truth: without it an attack that finds nothing would say nothing of privacy."""
    received = heard(tmp_path, *CNN, NONE, records=2)
    inputs, labels = received.prepared.client(0)
    for step in received.own:
        distance = Inversion.of(received, step, labels.tolist())._distances(torch.float64)
        assert distance(inputs.double()).item() < 1e-9
        assert distance(inputs.double() + 0.1).item() > 1e-5


def true_gradient(received: Received, step) -> np.ndarray:
    """Of hospital 0's mean loss at the model that went out."""
    module = build_module(received.job.setup, received.prepared.spec)
    step.model.load_into(module)
    inputs, labels = received.prepared.client(0)
    loss = received.prepared.objective.loss(module(inputs), labels).mean()
    parameters = [parameter for _, parameter in trained_parameters(module)]
    return torch.cat([part.reshape(-1) for part in torch.autograd.grad(loss, parameters)]).numpy()


@pytest.mark.parametrize("privacy", [(NONE, SECURE), ("privacy=distributed_dp", SPENT)])
def test_masked_words_tell_nothing_of_the_update(privacy: tuple[str, ...], tmp_path) -> None:
    received = heard(tmp_path, *CNN, *privacy)
    assert len(received.words) == len(received.own) == 4
    for step, words in zip(received.own, received.words, strict=True):
        true = true_gradient(received, step)
        moved = np.flatnonzero(true)
        assert abs(np.corrcoef(step.gradient[moved], true[moved])[0, 1]) < CHANCE / np.sqrt(len(moved))
        places = words.astype(np.float64) / 2**32  # even over the whole ring
        assert abs(places.mean() - 0.5) < CHANCE / np.sqrt(12 * len(words))
        assert abs(places.var() * 12 - 1) < CHANCE / np.sqrt(len(words))


def test_words_without_masks_are_the_update(tmp_path, monkeypatch) -> None:
    """The test above could fail: without the masks what is read from the words is the gradient."""
    monkeypatch.setattr(participant, "apply_masks", lambda words, added, subtracted: None)
    monkeypatch.setattr(coordinator, "apply_masks", lambda words, added, subtracted: None)
    received = heard(tmp_path, *CNN, NONE, SECURE)
    for step in received.own:
        assert np.corrcoef(step.gradient, true_gradient(received, step))[0, 1] > 0.999


def test_a_sum_is_everybodys_gradient(tmp_path) -> None:
    """Secure and in the clear the server sees the same of all hospitals together."""
    secure, plain = heard(tmp_path / "a", *CNN, NONE, SECURE), heard(tmp_path / "b", *CNN, NONE)
    assert np.corrcoef(secure.total[0].gradient, plain.total[0].gradient)[0, 1] > 0.9999


@pytest.mark.parametrize(("records", "rounds"), [(1, 1), (3, 20)])
def test_a_linear_head_gives_features_and_labels_away_exactly(records: int, rounds: int, tmp_path) -> None:
    received = heard(tmp_path, *HEAD, NONE, f"federation.num_rounds={rounds}", records=records)
    features, labels = (each.numpy() for each in received.prepared.client(0))
    found = head(received)
    apart = np.linalg.norm(features[:, None] - found.features[None], axis=2)
    assert found.exact
    assert sorted(apart.argmin(1)) == list(range(records))
    assert apart.min(1).max() < 1e-3
    assert np.array_equal(found.labels[apart.argmin(1)], labels)


@pytest.mark.parametrize(("records", "rounds"), [(1, 1), (3, 20)])
def test_a_noised_linear_head_does_not(records: int, rounds: int, tmp_path) -> None:
    overrides = ("privacy=local_dp", SPENT, f"federation.num_rounds={rounds}", "trainer.learning_rate=1")
    received = heard(tmp_path, *HEAD, *overrides, records=records)
    found, features = head(received), received.prepared.client(0)[0].numpy()
    assert not found.exact
    assert np.linalg.norm(features[:, None] - found.features[None], axis=2).min() > 1  # all are one long


def head(received: Received):
    gradients, models = [s.gradient for s in received.own], [s.model.parameters.astype(float) for s in received.own]
    if received.data.records == 1:
        return single(gradients[0][None], CONSTANT)
    return several(models, gradients, received.data.records, CONSTANT)


def test_a_head_that_does_not_start_at_zero_is_refused() -> None:
    with pytest.raises(ConfigError, match="start at zero"):
        several([np.ones(4)], [np.ones(4)], 1, CONSTANT)


def test_more_records_than_there_are_are_refused(tmp_path) -> None:
    with pytest.raises(ConfigError, match=r"records=50: 66 images.*at most 60"):
        heard(tmp_path, *CNN, NONE, records=50)


def test_likeness_is_as_defined() -> None:
    generator = np.random.default_rng(0)
    image = generator.random((24, 24, 1))
    assert psnr(image, image) == likeness.MOST
    assert ssim(image, image) == pytest.approx(1)
    assert psnr(image * 0, image * 0 + 0.1) == pytest.approx(20)
    assert ssim(image, 1 - image) < 0 < ssim(image, np.clip(image + 0.1 * generator.random(image.shape), 0, 1)) < 1
    # Of two flat images the structure is the same, and the light is compared alone (Wang et al. 2004, equation 13).
    flat, brighter = np.full((24, 24, 1), 0.25), np.full((24, 24, 1), 0.5)
    assert ssim(flat, brighter) == pytest.approx((2 * 0.125 + 1e-4) / (0.0625 + 0.25 + 1e-4))
    assert assigned([brighter, flat], [flat, brighter]) == [1, 0]


def test_ssim_is_that_of_a_loop_over_windows() -> None:
    generator = np.random.default_rng(1)
    one, other = generator.random((2, 14, 14, 1))
    line = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    weights = np.outer(line, line) / line.sum() ** 2
    values = []
    for row, column in np.ndindex(4, 4):
        x, y = (each[row : row + 11, column : column + 11, 0] for each in (one, other))
        mean_x, mean_y = (weights * x).sum(), (weights * y).sum()
        spread = (weights * (x - mean_x) ** 2).sum() + (weights * (y - mean_y) ** 2).sum()
        common = (weights * (x - mean_x) * (y - mean_y)).sum()
        light = (2 * mean_x * mean_y + 1e-4) / (mean_x**2 + mean_y**2 + 1e-4)
        values.append(light * (2 * common + 9e-4) / (spread + 9e-4))
    assert ssim(one, other) == pytest.approx(np.mean(values))
