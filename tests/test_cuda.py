"""On a CUDA device the same promises: exact clipped sums, bounded records, the CPU's own noise, runs that repeat."""

import copy
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from medx.aggregation.integer_noise import NoiseStream
from medx.privacy.base import SampledGaussian
from medx.trainer.batches import MicroBatches
from medx.trainer.gradients import MODES
from medx.trainer.gradients.record_loss import NonFiniteGradientError, RecordLoss, refuse_non_finite
from medx.trainer.local_training import exact_products
from medx.trainer.release import GaussianRelease
from tests.program import DATA, MODEL, SCATTERNET, WORK, Ran, call
from tests.trainer.examples import MODE_NAMES, build_batch, norm, record_loss, reference, relative_error
from tests.trainer.test_local_training import make_plan, make_trainer, run

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
CUDA = torch.device("cuda")
NETWORKS = ["linear", "cnn", "resnet18"]
COMMON = (*DATA, *WORK, "tracking=none", "device=cpu", "noise=seed")
SUMMED = ("privacy=distributed_dp", "trainer.expected_batch_size=null", "trainer.local_steps=1")
RUNS = {
    "cnn": (*MODEL, "privacy=local_dp"),
    "cnn, the sum noised": (*MODEL, *SUMMED),
    "cnn, secure": (*MODEL, *SUMMED, "aggregation=secure"),
    "cnn, a client's": (*MODEL, "privacy=central_dp", "privacy.epsilon=90"),
    "cnn, plain": (*MODEL, "privacy=none"),
    "cnn, views": (*MODEL, "privacy=local_dp", "trainer.augmentation=affine", "trainer.augmentation_multiplicity=2"),
    "cnn, changes of low rank": (*MODEL, "privacy=local_dp", "model.train=low_rank", "model.rank=2"),
    "scatternet": ("privacy=local_dp", *SCATTERNET),
    "resnet18": ("privacy=local_dp", "model=resnet18", "dataset.size=32"),
}


@pytest.fixture(autouse=True)
def in_float32() -> Iterator[None]:
    """As in every step of a run."""
    exact_products()
    yield
    torch.cuda.empty_cache()


def placed(loss: RecordLoss) -> RecordLoss:
    return replace(loss, module=copy.deepcopy(loss.module).to(CUDA))


def clip_norm_of(loss: RecordLoss, inputs: torch.Tensor, labels: torch.Tensor) -> float:
    """One that cuts some records and spares others."""
    rows = range(len(labels))
    single = sorted(norm(reference(loss, inputs[i : i + 1], labels[i : i + 1], math.inf)) for i in rows)
    return sum(single[1:3]) / 2


@pytest.mark.parametrize("mode", MODE_NAMES)
@pytest.mark.parametrize("name", NETWORKS)
def test_sum_equals_the_loop_in_float64(name: str, mode: str) -> None:
    loss, (inputs, labels) = record_loss(name), build_batch(name, 12)
    clip_norm = clip_norm_of(loss, inputs, labels)
    exact = [total.to(CUDA) for total in reference(loss, inputs, labels, clip_norm)]
    gradients = MODES[mode](placed(loss))
    inputs, labels = inputs.to(CUDA), labels.to(CUDA)
    whole = gradients.clipped_sum(inputs, labels, clip_norm)
    assert all(total.device.type == "cuda" for total in whole)
    assert relative_error(whole, exact) < 2e-5
    assert relative_error(MicroBatches(gradients, 5).clipped_sum(inputs, labels, clip_norm), exact) < 2e-5
    for wrong in (math.inf, 1.001 * clip_norm):
        assert relative_error(gradients.clipped_sum(inputs, labels, wrong), exact) > 2e-5, "the planted fault"


@pytest.mark.parametrize("mode", MODE_NAMES)
@pytest.mark.parametrize("name", NETWORKS)
def test_one_record_moves_the_sum_by_at_most_the_clip_norm(name: str, mode: str) -> None:
    inputs, labels = (tensor.to(CUDA) for tensor in build_batch(name, 8))
    gradients = MODES[mode](placed(record_loss(name)))

    def moved_by_last_record(inputs: torch.Tensor, clip_norm: float) -> float:
        all_of_them = gradients.clipped_sum(inputs, labels, clip_norm)
        without = gradients.clipped_sum(inputs[:-1], labels[:-1], clip_norm)
        return norm([a.double() - b.double() for a, b in zip(all_of_them, without, strict=True)])

    clip_norm = norm(gradients.clipped_sum(inputs[-1:], labels[-1:], math.inf)) / 10
    for data in (inputs, torch.cat((inputs[:-1], 1e6 * inputs[-1:]))):
        assert moved_by_last_record(data, clip_norm) <= clip_norm * (1 + 1e-5)
    assert moved_by_last_record(inputs, math.inf) > 1.1 * clip_norm, "the planted fault: no clip"


@pytest.mark.parametrize("mode", MODE_NAMES)
def test_a_bad_record_is_seen(mode: str) -> None:
    inputs, labels = (tensor.to(CUDA) for tensor in build_batch("cnn", 3))
    for bad in (math.nan, math.inf):
        inputs[1, 0, 3, 3] = bad
        with pytest.raises(NonFiniteGradientError):
            refuse_non_finite(MODES[mode](placed(record_loss("cnn"))).clipped_sum(inputs, labels, 1.0))


def test_noise_is_that_of_the_cpu_to_the_bit() -> None:
    """So that what tests show of the noise, its scale and its tails, holds here."""
    sums = [torch.randn(shape, generator=torch.Generator().manual_seed(1)) for shape in [(400, 700), (5,), (2, 3, 4)]]
    step = SampledGaussian(1.0, noise_multiplier=1.5, clip_norm=0.2)

    def released(device: str) -> list[torch.Tensor]:
        parameters = [nn.Parameter(torch.zeros(total.shape, device=device)) for total in sums]
        release = GaussianRelease(torch.optim.SGD(parameters, lr=1.0), step, 2.5, 100, NoiseStream(bytes(32)))
        release.release([total.to(device) for total in sums])
        assert all(parameter.grad is not None and parameter.grad.device.type == device for parameter in parameters)
        return [parameter.grad.cpu() for parameter in parameters if parameter.grad is not None]

    assert all(torch.equal(here, there) for here, there in zip(released("cpu"), released("cuda"), strict=True))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_round_repeats_to_the_bit_and_is_the_cpus(name: str) -> None:
    trainer, plan = make_trainer(), make_plan(steps=3, probability=0.7, records=24)
    _, here = run(trainer, plan, name)
    _, there = run(trainer, plan, name, device=CUDA)
    _, again = run(trainer, plan, name, device=CUDA)
    assert all(torch.equal(there.state[key], again.state[key]) for key in there.state)
    assert relative_error([there.state[key].cpu() for key in here.state], list(here.state.values())) < 1e-4
    _, other = run(trainer, plan, name, client=1, device=CUDA)
    assert relative_error([other.state[key].cpu() for key in here.state], list(here.state.values())) > 1e-3


def test_memory_that_runs_out_halves_the_micro_batch_and_the_sum_is_right() -> None:
    loss, (inputs, labels) = record_loss("cnn"), build_batch("cnn", 512)
    gradients = MODES["hooks"](placed(loss))
    inputs, labels = inputs.to(CUDA), labels.to(CUDA)
    small = MicroBatches(gradients, 8).clipped_sum(inputs, labels, 0.1)
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(CUDA).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 100 * 2**20) / total)
    try:
        pieces = MicroBatches(gradients, 512)
        sums = pieces.clipped_sum(inputs, labels, 0.1)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert pieces.size < 512, "it was to run out"
    assert relative_error(sums, small) < 1e-5


def same_weights(*folders: Path) -> bool:
    first, second = (load_file(folder / "model.safetensors") for folder in folders)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("case", RUNS)
def test_a_run_repeats_and_tells_what_the_cpus_tells(case: str, tmp_path: Path) -> None:
    def made(name: str, *overrides: str) -> Ran:
        ran = call(tmp_path / name, "dataset.num_train=300", *RUNS[case], "seed=3", *overrides, base=COMMON)
        assert ran.code == 0, ran.err
        return ran

    said = "is faster here"
    here, there, again = made("cpu"), made("cuda", "device=cuda"), made("again", "device=cuda")
    assert there.result.environment["device"] == torch.cuda.get_device_name()
    assert there.result.privacy.epsilon == here.result.privacy.epsilon
    assert there.result.privacy.epsilon_by_accountant == here.result.privacy.epsilon_by_accountant
    assert [client.steps for client in there.result.privacy.clients] == [
        client.steps for client in here.result.privacy.clients
    ]
    assert there.result.test == again.result.test
    assert [record.metrics for record in there.result.rounds] == [record.metrics for record in again.result.rounds]
    assert same_weights(there.folder, again.folder)
    assert said not in here.out
    assert (said in there.out) == (case != "scatternet"), "pieces that suit a CPU"
    if there.result.privacy.epsilon is None:  # noise is other noise on another device
        loss = here.result.test["loss"].value
        assert loss is not None
        assert there.result.test["loss"].value == pytest.approx(loss, rel=1e-3)


def test_a_sweep_gives_the_bits_of_a_run_alone(tmp_path: Path) -> None:
    swept = call(tmp_path / "sweep", "device=auto", "seed=0,1", "jobs=2", "-m")
    assert swept.code == 0, swept.err
    alone = call(tmp_path / "alone", "device=cuda", "seed=1")
    assert same_weights(tmp_path / "sweep" / "1", alone.folder)
