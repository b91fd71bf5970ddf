"""Private steps are the same bits with and without what imports put off, in every mode, each in a fresh process."""

import subprocess
import sys
from pathlib import Path

import torch

STEPS = """
import sys
from contextlib import nullcontext

from medx.imports import quickly

with quickly() if sys.argv[1] == "quickly" else nullcontext():
    import medx.job
    import medx.trainer.module

import torch
from medx.aggregation.integer_noise import NoiseStream
from medx.dataset import InputSpec
from medx.model.cnn import Cnn
from medx.model.objectives import BinaryObjective
from medx.privacy.accountants import Release, prv
from medx.privacy.base import SampledGaussian
from medx.randomness import torch_generator
from medx.trainer.augmentation import RandomViews
from medx.trainer.gradients.record_loss import RecordLoss
from medx.trainer.module import ClassificationModule

PLAIN = dict(pretrain="none", num_phantoms=1, pretrain_epochs=1, pretrain_seed=0, train="all")
SPEC = InputSpec(num_channels=1, image_size=28, num_classes=2, task="binary")
INPUTS = torch.randn(5, 1, 28, 28, generator=torch_generator(0))
LABELS = torch.arange(5) % 2


def stepped(model, mode, views):
    network = model.build(SPEC, seed=0)
    module = ClassificationModule(
        RecordLoss(network, BinaryObjective().loss, views=views),
        lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
        step=SampledGaussian(sampling_probability=0.5, noise_multiplier=1.0, clip_norm=1.0),
        expected_batch_size=5,
        num_records=5,
        noise_stream=NoiseStream(bytes(32)),
        gradient_mode=mode,
        micro_batch_size=2,
        proximal_mu=0.0,
        views=None if views == 1 else RandomViews("affine", views, torch_generator(2)),
    )
    module.take_step(INPUTS, LABELS)
    module.take_step(INPUTS, LABELS)
    return [parameter.detach() for parameter in network.parameters()]


def cnn(standardised):
    return Cnn(widths=(4, 8), num_groups=4, activation="tanh", weight_standardisation=standardised, **PLAIN)


found = {
    f"{mode}, standardised {standardised}, views {views}": stepped(cnn(standardised), mode, views)
    for mode in ("auto", "vmap", "naive")  # hooks: with resnet18, below
    for standardised, views in ((False, 1), (True, 2))
}
from medx.model.resnet18 import ResNet18  # here, since torchvision loads much of what was put off

found["resnet18"] = stepped(ResNet18(num_groups=4, weights=None, weight_standardisation=False, **PLAIN), "hooks", 1)
found["prv"] = [torch.tensor(prv((Release(0.01, 1.0, 200),), 1e-5), dtype=torch.float64)]
torch.save(found, sys.argv[2])
"""


def test_every_mode_steps_to_the_same_bits_with_and_without_what_is_put_off(tmp_path: Path) -> None:
    for how in ("quickly", "plainly"):
        command = [sys.executable, "-c", STEPS, how, str(tmp_path / how)]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    quickly, plainly = (torch.load(tmp_path / how) for how in ("quickly", "plainly"))
    assert quickly.keys() == plainly.keys()
    for name, parameters in plainly.items():
        for ours, theirs in zip(quickly[name], parameters, strict=True):
            assert torch.equal(ours, theirs), name
