"""Noise as it was added: what is as planned, what is not, and that a run says so."""

import threading

import numpy as np
import pytest

import medx
from medx.aggregation.integer_noise import NoiseStream, discrete_gaussian
from medx.federation import hospital, setup
from medx.privacy.noise_health import NoiseHealth
from medx.trainer import release

QUICK = ("dataset=phantom", "dataset.size=16", "dataset.num_train=90", "model=cnn", "model.widths=[4,8,8,8]",
         "federation.num_clients=3", "federation.num_rounds=3", "tracking=none")  # fmt: skip


def health_of(draw, *, rounds: int = 6, hospitals: int = 3, stddev: float = 1000.0) -> NoiseHealth:
    health = NoiseHealth()
    for number in range(1, rounds + 1):
        for client in range(hospitals):
            health.hear(number, client, draw(number, client), stddev)
    return health


def stream(number: int, client: int) -> np.ndarray:
    return discrete_gaussian(NoiseStream(bytes([number, client] * 16)), 1000, 5000)


def test_the_noise_of_the_sampler_is_as_planned() -> None:
    found = health_of(stream).found()
    assert found is not None
    assert found.doubts == []
    assert found.values == 90_000
    assert found.size == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize(
    ("draw", "doubt"),
    [
        (lambda number, client: stream(number, client) * 2 // 3, "its size is 0.66"),
        (lambda number, client: stream(number, client) * 3 // 2, "its size is 1.49"),
        (lambda number, client: stream(0, client), "rounds"),
        (lambda number, client: stream(number, 0), "hospitals"),
        (lambda number, client: -stream(number, 0) if client else 2 * stream(number, 0), "hospitals"),
        (lambda number, client: np.repeat(stream(number, client)[:2500], 2), "coordinates"),
        (lambda number, client: np.sign(stream(number, client)) * 1000, "tail"),
        (lambda number, client: np.random.default_rng([number, client]).uniform(-1732, 1732, 5000), "tail"),
    ],
)
def test_noise_that_is_not_as_planned_is_told(draw, doubt: str) -> None:
    found = health_of(draw).found()
    assert found is not None
    assert any(each.startswith(doubt) for each in found.doubts), found


def test_nothing_heard_is_nothing_told() -> None:
    assert NoiseHealth().found() is None
    assert health_of(lambda number, client: stream(number, client)[:5], rounds=1, hospitals=1).found().doubts == []


def test_the_order_of_hospitals_moves_no_digit() -> None:
    one, other = NoiseHealth(), NoiseHealth()
    for number in range(1, 4):
        for client in range(5):
            one.hear(number, client, stream(number, client), 1000)
            other.hear(number, 4 - client, stream(number, 4 - client), 1000)
    assert one.found() == other.found()


def test_threads_may_tell_at_once() -> None:
    health = NoiseHealth()
    threads = [
        threading.Thread(target=lambda c=c: [health.hear(n, c, stream(n, c), 1000) for n in (1, 2)]) for c in range(8)
    ]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    found = health.found()
    assert found is not None
    assert found.values == 16 * 5000


@pytest.mark.parametrize("privacy", ["local_dp", "distributed_dp", "central_dp"])
def test_a_run_says_that_its_noise_was_as_planned(privacy: str, tmp_path) -> None:
    result = medx.run(*QUICK, f"privacy={privacy}", folder=tmp_path, quiet=True)
    assert result.privacy.noise is not None
    assert result.privacy.noise.doubts == []
    assert "As it was added, its size and tail" in result.privacy.statement
    assert result.released().privacy.noise is None


def test_a_run_whose_hospitals_share_their_noise_is_marked(tmp_path, monkeypatch) -> None:
    right = setup.secret_key
    monkeypatch.setattr(
        hospital, "secret_key", lambda job, what, *keys: right(job, what, *(keys[1:] if what == "noise" else keys))
    )
    result = medx.run(*QUICK, "privacy=local_dp", "noise=seed", folder=tmp_path, quiet=True)
    assert "THE NOISE AS IT WAS ADDED IS NOT AS PLANNED: hospitals" in result.privacy.statement
    (doubt,) = result.privacy.noise.doubts
    assert doubt.startswith("hospitals")


def test_a_run_with_half_the_noise_is_marked(tmp_path, monkeypatch, capsys) -> None:
    right = release.discrete_gaussian
    monkeypatch.setattr(release, "discrete_gaussian", lambda stream, stddev, count: right(stream, stddev // 2, count))
    medx.run(*QUICK, "privacy=local_dp", folder=tmp_path)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "NOISE NOT AS PLANNED" in line]
    assert "its size is 0.5" in line or "its size is 0.49" in line
