"""The test of the tests of the privacy path: faults that such code has had, each planted and found by an audit."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from medx.api import composed
from medx.attacks.audit import Finding, audit
from medx.federation import hospital, setup, sums
from medx.federation.plain_rounds import RoundAborted
from medx.privacy import gaussian, spending
from medx.trainer import batches, local_training, release

CANARIES = 400
SMALL = (
    "dataset=phantom", "dataset.size=16", "dataset.num_train=600", "model=scatternet", "model.basis=none",
    "federation.num_clients=3", "federation.num_rounds=6", "noise=seed", "privacy.spare_rounds=0",
)  # fmt: skip
SAMPLED = "trainer.expected_batch_size=32"
Plant = Callable[[pytest.MonkeyPatch], None]


def run_audit(folder, *overrides: str, momentum: bool = False) -> list[Finding]:
    config, _ = composed([*SMALL, *overrides], None, folder)
    if "trainer=least_squares" in overrides:
        return audit(config, folder, canaries=60, seeds=[0, 1])
    changes = {"trainer": {"momentum": 0.9, "share_momentum": True}} if momentum else {}
    return audit(config, folder, canaries=CANARIES, seeds=[0], changes=changes)


def clipped_at(factor: float) -> Plant:
    def plant(patch: pytest.MonkeyPatch) -> None:
        right = batches.MicroBatches.clipped_sum
        patch.setattr(
            batches.MicroBatches,
            "clipped_sum",
            lambda self, inputs, labels, clip_norm: right(self, inputs, labels, clip_norm * factor),
        )

    return plant


def half_noise(patch: pytest.MonkeyPatch) -> None:
    right = release.release_grid
    patch.setattr(release, "release_grid", lambda *a: replace(grid := right(*a), stddev=grid.stddev // 2))


def half_shares(patch: pytest.MonkeyPatch) -> None:
    right = sums.client_noise_stddev
    patch.setattr(sums, "client_noise_stddev", lambda *a: right(*a) // 2)


def shares_too_small(patch: pytest.MonkeyPatch) -> None:
    """A share of 1 / n of the noise, which takes 1 / sqrt(n)."""
    right = sums.client_noise_stddev
    patch.setattr(sums, "client_noise_stddev", lambda z, s, scale, d, h: right(z, s, scale, d, h * h))


def epsilon_per_round(patch: pytest.MonkeyPatch) -> None:
    """Noise and epsilon of one round, spent anew in each of six."""
    calibrate, spent = gaussian.calibrate_noise_multiplier, spending.epsilon_spent
    patch.setattr(
        gaussian,
        "calibrate_noise_multiplier",
        lambda epsilon, delta, q, steps: calibrate(epsilon, delta, q, steps // 6),
    )
    for module in (gaussian, spending):
        patch.setattr(module, "epsilon_spent", lambda events, delta: spent([(e, n // 6) for e, n in events], delta))


def sampled_twice_as_often(patch: pytest.MonkeyPatch) -> None:
    right = batches.poisson_batches
    patch.setattr(batches, "poisson_batches", lambda n, q, steps, generator: right(n, 2 * q, steps, generator))


def padded_with_records(patch: pytest.MonkeyPatch) -> None:
    """Batches of one size, filled up with rows that are in them already."""
    right = batches._select

    def padded(inputs: torch.Tensor, labels: torch.Tensor, rows: torch.Tensor):
        more = rows[: len(rows) // 2]
        images, marked = right(inputs, labels, rows)
        return torch.cat([images, inputs[more]]), torch.cat([marked, labels[more]])

    patch.setattr(batches, "_select", padded)


def one_stream(kept: slice) -> Plant:
    """Noise whose key has only some of hospital, round and model."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        right = setup.secret_key

        def key(job, purpose, *keys):
            return right(job, purpose, *(keys[kept] if purpose == "noise" else keys))

        for module in (hospital, sums):
            patch.setattr(module, "secret_key", key)

    return plant


def unnoised_momentum(patch: pytest.MonkeyPatch) -> None:
    """Weights move by the noised gradient, and the momentum that is sent has the sum without noise."""
    right, clean = release.GaussianRelease.release, {}

    def remember(self, sums_):
        clean[id(self.original_optimizer)] = [total / self.expected_batch_size for total in sums_]
        right(self, sums_)

    state = local_training.Trainer._state

    def leaking(self, module, optimizer, start):
        buffers = clean[id(getattr(optimizer, "original_optimizer", optimizer))]
        for (_, parameter), total in zip(local_training.trained_parameters(module), buffers, strict=True):
            optimizer.state[parameter]["momentum_buffer"] = total
        return state(self, module, optimizer, start)

    patch.setattr(release.GaussianRelease, "release", remember)
    patch.setattr(local_training.Trainer, "_state", leaking)


LOCAL, SUMMED = "privacy=local_dp", "privacy=distributed_dp"
# One release of second moments, of so few features that all records' can be written out; as many canaries at most.
SQUARES = (
    "trainer=least_squares", "model.basis=phantom", "model.num_components=60", "model.num_phantoms=200",
    "federation.num_rounds=1",
)  # fmt: skip
STRONG, LITTLE, TOGETHER = "times as strongly", "less noise", "does not add up"
ROUNDS, HOSPITALS = "noise of rounds is correlated", "noise of hospitals is correlated"
FAULTS: dict[str, tuple[Plant, tuple[str, ...], str]] = {
    "no clip": (clipped_at(math.inf), (LOCAL,), STRONG),
    "clip at twice": (clipped_at(2), (LOCAL,), STRONG),
    "clip at twice, summed": (clipped_at(2), (SUMMED,), STRONG),
    "half noise": (half_noise, (LOCAL,), LITTLE),
    "half noise, summed": (half_shares, (SUMMED,), LITTLE),
    "shares too small": (shares_too_small, (SUMMED,), LITTLE),
    "epsilon per round": (epsilon_per_round, (LOCAL,), "epsilon"),
    "sampled twice as often": (sampled_twice_as_often, (LOCAL, SAMPLED), STRONG),
    "padding rows": (padded_with_records, (LOCAL, SAMPLED), STRONG),
    "one stream for all hospitals": (one_stream(slice(1, None)), (LOCAL,), HOSPITALS),
    "one stream for all rounds": (one_stream(slice(0, 1)), (LOCAL,), ROUNDS),
    "one stream for all hospitals, summed": (one_stream(slice(1, None)), (SUMMED,), TOGETHER),
    "one stream for all rounds, summed": (one_stream(slice(0, 1)), (SUMMED,), ROUNDS),
    "unnoised momentum": (unnoised_momentum, (LOCAL,), STRONG),
    "moments without a clip": (clipped_at(math.inf), (LOCAL, *SQUARES), STRONG),
    "moments clipped at twice": (clipped_at(2), (LOCAL, *SQUARES), STRONG),
    "half noise on moments": (half_noise, (LOCAL, *SQUARES), LITTLE),
    "half noise on moments, summed": (half_shares, (SUMMED, *SQUARES), LITTLE),
}
# Those that change what a record's part is beside the noise refute the claim itself, by the bound.
REFUTED = {"no clip", "clip at twice", "clip at twice, summed", "half noise", "half noise, summed", "shares too small",
           "epsilon per round", "unnoised momentum", "moments without a clip"}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(fault: str, tmp_path, monkeypatch) -> None:
    plant, overrides, sign = FAULTS[fault]
    plant(monkeypatch)
    findings = run_audit(tmp_path, *overrides, momentum=fault == "unnoised momentum")
    assert any(found.raised for found in findings)
    assert sign == "epsilon" or any(sign in doubt for found in findings for doubt in found.doubts)
    assert fault not in REFUTED or any(found.refutes for found in findings)


def test_a_sum_without_clipping_does_not_come_to_an_end(tmp_path, monkeypatch) -> None:
    clipped_at(math.inf)(monkeypatch)
    with pytest.raises(RoundAborted, match="not finite or beyond the grid"):
        run_audit(tmp_path, SUMMED)


@pytest.mark.parametrize("overrides", [(LOCAL,), (LOCAL, SAMPLED), (SUMMED,), (LOCAL, *SQUARES), (SUMMED, *SQUARES)])
def test_nothing_is_raised_where_all_is_right(overrides: tuple[str, ...], tmp_path) -> None:
    findings = run_audit(tmp_path, *overrides)
    assert not any(found.raised for found in findings)


def test_nothing_is_raised_with_momentum(tmp_path) -> None:
    findings = run_audit(tmp_path, LOCAL, momentum=True)
    assert {found.observer for found in findings} == {"server", "server, momentum", "whoever gets the model"}
    assert not any(found.raised for found in findings)
