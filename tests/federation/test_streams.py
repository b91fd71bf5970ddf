"""Seeded draws are secret as long as the seed is: one stream is never added to two different things."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from medx.baselines import share_epsilon
from medx.federation.clipped_updates import ClippedUpdates
from medx.federation.exchange import Attempt
from medx.federation.hospital import generators
from medx.federation.prepared import prepare
from medx.federation.setup import Job, secret_key
from medx.federation.sums import noise_stream
from medx.privacy.noise_health import NoiseHealth
from medx.trainer.state import ModelState
from tests.federation.sum_examples import Pixels, Position, make, model_of, prepared_of, words


def drawn(job: Job, model: bytes = b"model") -> np.ndarray:
    """The first words of a client's noise in round 1."""
    return generators(job, 0, 1, model, NoiseHealth())[1].words(8, "<u8")


def test_every_draw_of_a_round_repeats_and_shares_nothing(tmp_path: Path) -> None:
    job = make(tmp_path, privacy="local_dp", secure=False)
    job = replace(job, plan=replace(job.plan, noise_source="seed"))
    assert np.array_equal(drawn(job), drawn(job))
    kinds = ("sampling", "noise", "views")
    seen = {secret_key(job, purpose, client, 1) for purpose in kinds for client in range(4)}
    assert len(seen) == 12
    system = replace(job, plan=replace(job.plan, noise_source="system"))
    assert not np.any(drawn(system) == drawn(system))
    first, second = (torch.rand(50, generator=generators(system, 0, 1, b"model", NoiseHealth())[0]) for _ in range(2))
    assert not torch.equal(first, second)  # who knows the sampling loses what it amplifies


CHANGES: dict[str, Callable[[Job], Job]] = {
    "another configuration": lambda job: replace(job, setup=replace(job.setup, draw_key="other")),
    "another seed": lambda job: replace(job, setup=replace(job.setup, seed=1)),
    "a baseline": lambda job: replace(job, setup=replace(job.setup, pooled=True)),
}


def test_a_run_beside_baselines_has_more_noise_and_by_another_key(tmp_path: Path) -> None:
    """At two scales one noise would come off: it is nearly the same multiple of both."""
    job = make(tmp_path, privacy="local_dp", secure=False, mechanism={"noise_source": "seed"})
    beside = [replace(job, setup=share_epsilon(job.setup, names)) for names in ((), ("centralized",), ("local_only",))]
    assert len({each.setup.draw_key for each in beside}) == 3
    assert np.array_equal(drawn(beside[0]), drawn(job))
    assert not any(np.any(drawn(each) == drawn(job)) for each in beside[1:])
    plain = make(tmp_path / "none", privacy="none", secure=False)
    assert share_epsilon(plain.setup, ("centralized",)) == plain.setup, "nothing to take off"


@pytest.mark.parametrize("change", CHANGES)
def test_what_noise_is_added_to_keys_it(tmp_path: Path, change: str) -> None:
    job = make(tmp_path, privacy="local_dp", secure=False)
    job = replace(job, plan=replace(job.plan, noise_source="seed"))
    assert not np.any(drawn(CHANGES[change](job)) == drawn(job))


def test_versions_device_data_and_their_order_key_the_noise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def seeded(**changes: object) -> np.ndarray:
        job = make(tmp_path, privacy="local_dp", secure=False, **changes)
        return drawn(replace(job, plan=replace(job.plan, noise_source="seed")))

    before = seeded()
    assert not np.any(seeded(dataset=Pixels(num_train=61)) == before)
    whole = prepare(make(tmp_path, privacy="none", secure=False).setup).splits.train
    turned = replace(whole, images=whole.images[::-1], labels=whole.labels[::-1])
    assert turned.digest != whole.digest  # the same multiset of records, dealt to other hospitals
    owners = np.arange(len(whole)) // 2
    known = [replace(whole, **{name: owners + more}) for name in ("patients", "hospitals") for more in (0, 1)]
    assert len({each.digest for each in (whole, *known)}) == 5, "who is whose, and where, is summed by too"
    monkeypatch.setattr("medx.federation.setup._computed_by", lambda device: ("9.9", "2.0", device))
    assert not np.any(seeded() == before)


def test_a_second_run_that_a_hospital_leaves_does_not_share_noise(tmp_path: Path) -> None:
    """Round 2 of two runs of one seed, in one of which a hospital missed round 1: another model, and other noise."""
    job = make(tmp_path, mechanism={"noise_source": "seed"})
    models = [ModelState.of_tensors({"weight": torch.full((3,), value)}).hash() for value in (0.0, 1e-7)]
    summed = [noise_stream(job, 0, Position(2, 0), model).words(8, "<u8") for model in models]
    assert not np.any(summed[0] == summed[1])
    local = make(tmp_path / "local", privacy="local_dp", secure=False, mechanism={"noise_source": "seed"})
    assert not np.any(drawn(local, models[0]) == drawn(local, models[1]))
    assert np.array_equal(words(job, 0, 2), words(job, 0, 2))  # the same of everything is the same again
    assert not np.any(words(job, 0, 2) == words(job, 0, 1))


def test_a_servers_noise_on_another_sum_is_other_noise(tmp_path: Path) -> None:
    job = make(tmp_path, privacy="central_dp", secure=False, mechanism={"noise_source": "seed"})
    engine = ClippedUpdates(job, prepared_of(job))
    engine.restore({})

    def noise_on(total: np.ndarray) -> np.ndarray:
        attempt = Attempt(None, {}, model_of(job), {}, Position(1, 0), None)  # type: ignore[arg-type]
        engine.begin(attempt)
        noised = total.copy()
        engine.add_noise(noised, attempt)
        return noised - total

    size = job.sums.layout.size  # type: ignore[union-attr]
    all_of_them, one_less = np.arange(size, dtype=np.uint32), np.arange(size, dtype=np.uint32) + 1
    assert np.array_equal(noise_on(all_of_them), noise_on(all_of_them))
    ledger = engine._ledger
    assert ledger is not None
    assert [steps for _, steps in ledger.executed(job.run_id)] == [1], "twice the same is one release"
    assert not np.any(noise_on(all_of_them) == noise_on(one_less))
    assert [steps for _, steps in ledger.executed(job.run_id)] == [2], "of another sum is another"
