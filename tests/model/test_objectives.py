import copy

import pytest
import torch
from torch.nn import functional

from medx.dataset import InputSpec
from medx.model.layers import CutPoints, LinearHead, initialise
from medx.model.objectives import OrdinalObjective, objective_for
from medx.schema import ConfigError

SPECS = [InputSpec(1, 28, 2, "binary"), InputSpec(1, 28, 9, "multiclass"), InputSpec(3, 28, 5, "ordinal")]


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_binary_is_torchs_logistic_loss(generator: torch.Generator) -> None:
    outputs, labels = torch.randn(20, 1, generator=generator) * 30, torch.arange(20) % 2
    expected = functional.binary_cross_entropy_with_logits(outputs[:, 0], labels.float(), reduction="none")
    assert torch.allclose(objective_for(SPECS[0]).loss(outputs, labels), expected, atol=1e-5)


def test_ordinal_probabilities_are_differences_of_the_cumulative_ones(generator: torch.Generator) -> None:
    outputs = torch.randn(20, 4, generator=generator).sort(1).values.double() * 3
    cumulative = functional.pad(torch.cat((torch.sigmoid(outputs), torch.ones(20, 1)), 1), (1, 0)).double()
    expected = cumulative.diff(dim=1)
    assert torch.allclose(OrdinalObjective(4).probabilities(outputs), expected, atol=1e-12)


def test_ordinal_loss_is_the_mean_over_cut_points(generator: torch.Generator) -> None:
    outputs = torch.randn(20, 4, generator=generator)
    for row, label in zip(outputs, torch.arange(20) % 5, strict=True):
        terms = [functional.binary_cross_entropy_with_logits(row[k], (label <= k).float()) for k in range(4)]
        assert torch.allclose(OrdinalObjective(4).loss(row[None], label[None])[0], torch.stack(terms).mean())


def test_ordinal_loss_keeps_every_class_under_clipping() -> None:
    # Equal classes and nothing to learn: gradients of norm one each must leave every class its fifth, roughly.
    labels, cuts = torch.arange(100) % 5, torch.tensor([-1.4, -0.4, 0.4, 1.4])
    for _ in range(400):
        logits = cuts.expand(100, 4).clone().requires_grad_(True)
        (gradient,) = torch.autograd.grad(OrdinalObjective(4).loss(logits, labels).sum(), logits)
        cuts = cuts - 0.2 * (gradient / gradient.norm(dim=1, keepdim=True)).mean(0)
    assert OrdinalObjective(4).probabilities(cuts[None]).min() > 0.1


@pytest.mark.parametrize("outputs", [[3.0, -1.0, 2.0, 0.0], [0.0] * 4, [1e4, -1e4, 5.0, 5.0], [-200.0] * 4])
def test_ordinal_survives_unordered_cut_points(outputs: list[float]) -> None:
    objective = OrdinalObjective(4)
    tensor = torch.tensor([outputs] * 5, requires_grad=True)
    losses = objective.loss(tensor, torch.arange(5))
    losses.sum().backward()
    assert tensor.grad is not None
    assert losses.isfinite().all()
    assert tensor.grad.isfinite().all()
    assert torch.allclose(objective.probabilities(tensor).sum(1), torch.ones(5))


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.task)
def test_no_record_changes_anothers_loss(spec: InputSpec, generator: torch.Generator) -> None:
    objective = objective_for(spec)
    outputs = torch.randn(6, objective.num_outputs, generator=generator)
    labels = torch.arange(6) % spec.num_classes
    changed, relabelled = outputs.clone(), labels.clone()
    changed[1:] *= -7
    relabelled[1:] = 0
    before, after = objective.loss(outputs, labels), objective.loss(changed, relabelled)
    assert before.shape == (6,)
    assert before[0] == after[0]
    assert not torch.equal(before, after)
    assert torch.allclose(objective.probabilities(outputs).sum(1), torch.ones(6))
    assert objective.probabilities(outputs).shape == (6, spec.num_classes)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.task)
def test_a_fresh_head_finds_every_class_equally_likely(spec: InputSpec) -> None:
    head = initialise(LinearHead(7, spec, bias=True), 3)
    probabilities = objective_for(spec).probabilities(head(torch.ones(2, 7)))
    assert torch.allclose(probabilities, torch.full_like(probabilities, 1 / spec.num_classes))


def test_a_higher_score_means_a_higher_class() -> None:
    cut_points = CutPoints(4)
    cut_points.space_evenly()
    classes = OrdinalObjective(4).probabilities(cut_points(torch.tensor([[-4.0], [0.0], [4.0]]))) @ torch.arange(5.0)
    assert classes.diff().min() > 0.5


def test_opacus_sees_each_records_cut_point_gradient(generator: torch.Generator) -> None:
    from opacus import GradSampleModule

    import medx.trainer.gradients.hooks  # noqa: F401 (registers)

    spec = SPECS[2]
    head, objective = LinearHead(7, spec, bias=False), objective_for(spec)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, generator=generator)
    inputs, labels = torch.randn(4, 7, generator=generator), torch.tensor([0, 2, 4, 1])
    plain = copy.deepcopy(head)
    hooked = GradSampleModule(head, loss_reduction="sum")
    objective.loss(hooked(inputs), labels).sum().backward()
    for record in range(4):
        loss = objective.loss(plain(inputs[record : record + 1]), labels[record : record + 1])[0]
        gradients = torch.autograd.grad(loss, list(plain.parameters()))
        for parameter, expected in zip(head.parameters(), gradients, strict=True):
            assert torch.allclose(parameter.grad_sample[record], expected, atol=1e-6)


def test_binary_refuses_three_classes() -> None:
    with pytest.raises(ConfigError, match="num_classes=3"):
        objective_for(InputSpec(1, 28, 3, "binary"))
