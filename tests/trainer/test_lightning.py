"""The same module under Lightning's Trainer and Fabric as under the loop of this package."""

from functools import partial

import pytest
import torch
from lightning.fabric import Fabric
from lightning.pytorch import Trainer as LightningTrainer

from medx.aggregation.integer_noise import NoiseStream
from medx.privacy.base import SampledGaussian
from medx.randomness import torch_generator
from medx.trainer.batches import MicroBatches, poisson_batches
from medx.trainer.gradients import build_mode
from medx.trainer.module import ClassificationModule
from tests.trainer.examples import build_batch, poisson_loader, record_loss

STEP = SampledGaussian(0.3, noise_multiplier=1.0, clip_norm=0.5)
STEPS, RECORDS = 12, 5


def make_module(step: SampledGaussian | None = STEP) -> ClassificationModule:
    optimizer = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
    loss = record_loss("cnn")
    return ClassificationModule(
        loss,
        MicroBatches(build_mode("auto", loss, private=step is not None), 2),
        optimizer,
        step=step,
        expected_batch_size=2.1,
        num_records=RECORDS,
        noise_stream=NoiseStream(bytes(32)),
        proximal_mu=0.01,
    )


def make_loader() -> torch.utils.data.DataLoader:
    return poisson_loader(*build_batch("cnn", RECORDS), STEP.sampling_probability, STEPS, torch_generator(8))


def weights(module: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def our_loop(step: SampledGaussian | None) -> torch.Tensor:
    module, (inputs, labels) = make_module(step), build_batch("cnn", RECORDS)
    batches = list(poisson_batches(RECORDS, STEP.sampling_probability, STEPS, torch_generator(8)))
    assert min(len(rows) for rows in batches) == 0
    assert max(len(rows) for rows in batches) > 2  # so that one batch is cut
    for rows in batches:
        module.take_step(inputs[rows], labels[rows])
    return weights(module)


@pytest.mark.parametrize("step", [STEP, None])
def test_trainer_fit_gives_exactly_the_same_weights(step, tmp_path):
    module = make_module(step)
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    fitter = LightningTrainer(max_epochs=1, accelerator="cpu", default_root_dir=tmp_path, **quiet)
    fitter.fit(module, make_loader())
    assert fitter.global_step == STEPS
    assert torch.equal(weights(module), our_loop(step))


def test_fabric_gives_exactly_the_same_weights():
    fabric = Fabric(accelerator="cpu", devices=1)
    raw = make_module()
    module, _ = fabric.setup(raw, raw.configure_optimizers())
    module.mark_forward_method("training_step")
    for index, batch in enumerate(make_loader()):
        module.training_step(batch, index)
    assert torch.equal(weights(raw), our_loop(STEP))
