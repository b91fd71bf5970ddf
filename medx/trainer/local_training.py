"""One client's local work in one round: private steps from a given state, and the state they end in."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Ge, Gt, Le, Lt
from torch import nn

from medx.aggregation.integer_noise import NoiseStream
from medx.model import Objective
from medx.privacy.base import ClientPlan, PrivacyPlan
from medx.privacy.units import Unit
from medx.schema import ConfigError, PrivacyError, component
from medx.trainer.augmentation import AugmentationName, RandomViews
from medx.trainer.batches import MicroBatches, Patients, drawn_batches
from medx.trainer.gradients import GradientMode, GradientModeName, build_mode
from medx.trainer.gradients.record_loss import Loss, NonFiniteGradientError, RecordLoss, refuse_non_finite
from medx.trainer.schedule import ScheduleName, learning_rate_factor
from medx.trainer.state import ModelState, Tensors, trained_parameters


@dataclass(frozen=True)
class ClientUpdate:
    """One client's answer to one round; nothing else that depends on records leaves a client.

    ``finite`` is false where the client must abstain: then ``state`` is what it was given.
    """

    state: ModelState
    finite: bool = True


@component("trainer/local_training")
class Trainer:
    """What every client does in a round. Stateless: all that lasts between rounds is in the state passed in.

    ``expected_batch_size`` None takes every record in every step; ``sampling_probability`` replaces it.
    ``learning_rate`` None means ``min(max_learning_rate, learning_rate_noise * B / noise_multiplier)``, with B the
    expected batch of all clients: the noise of a step is then the same at every epsilon and number of records.
    ``momentum`` is beta_1 for adam. ``class_weights`` are public and multiply each record's own loss. ``ema_decay``
    is for the server, which averages the models of all rounds (Polyak and Juditsky 1992).
    ``augmentation_multiplicity`` views of a record make one gradient, which is clipped (``augmentation.RandomViews``).
    ``schedule`` and ``warmup_steps`` move the rate over the steps of the whole run (``learning_rate_factor``).
    """

    local_steps: Annotated[int, Ge(1)]
    expected_batch_size: Annotated[float, Gt(0)] | None
    sampling_probability: Annotated[float, Gt(0), Le(1)] | None
    learning_rate: Annotated[float, Gt(0)] | None
    learning_rate_noise: Annotated[float, Gt(0)] | None
    max_learning_rate: Annotated[float, Gt(0)]
    optimizer: Literal["sgd", "adam"]
    momentum: Annotated[float, Ge(0), Lt(1)]
    weight_decay: Annotated[float, Ge(0)]
    share_momentum: bool
    ema_decay: Annotated[float, Ge(0), Lt(1)]
    micro_batch_size: Annotated[int, Ge(1)]
    gradient_mode: GradientModeName
    precision: Literal["fp32", "bf16"]
    class_weights: tuple[Annotated[float, Gt(0)], ...] | None
    augmentation: AugmentationName
    augmentation_multiplicity: Annotated[int, Ge(1), Le(1024)]
    schedule: ScheduleName
    warmup_steps: Annotated[int, Ge(0)]

    sums_gradients: ClassVar[bool] = True  # what a client sends is made of clipped gradients of its records
    bounds: ClassVar[str | None] = None  # for the statement, what bounds a record where that is no clipping

    def __post_init__(self) -> None:
        if self.expected_batch_size is not None and self.sampling_probability is not None:
            raise ConfigError(
                f"trainer.expected_batch_size={self.expected_batch_size} and trainer.sampling_probability="
                f"{self.sampling_probability}: set one of them, the other follows"
            )
        if self.learning_rate is None and self.learning_rate_noise is None:
            raise ConfigError("trainer.learning_rate=null: needs trainer.learning_rate_noise, or a rate")
        if self.share_momentum and (self.optimizer != "sgd" or self.momentum == 0):
            raise ConfigError(
                f"trainer.share_momentum=true: takes optimizer=sgd with momentum > 0, not {self.optimizer} "
                f"with {self.momentum}"
            )
        if self.augmentation_multiplicity > 1 and self.augmentation == "none":
            raise ConfigError(
                f"trainer.augmentation_multiplicity={self.augmentation_multiplicity}: needs trainer.augmentation=shift "
                "or affine, as equal views add nothing"
            )

    def sampling_probability_for(self, num_units: int) -> float:
        """The chance of each of so many records, or patients, to enter a step; 1 where a batch would be more."""
        if self.sampling_probability is not None:
            return self.sampling_probability
        if self.expected_batch_size is None:
            return 1.0
        return min(1.0, self.expected_batch_size / num_units)

    def learning_rate_for(self, plan: ClientPlan) -> float:
        """The largest rate of the run under this plan; without privacy it is ``max_learning_rate``."""
        if self.learning_rate is not None:
            return self.learning_rate
        if plan.step is None or plan.step.noise_multiplier == 0:
            return self.max_learning_rate
        assert self.learning_rate_noise is not None
        follows = self.learning_rate_noise * plan.federation_batch_size / plan.step.noise_multiplier
        return min(self.max_learning_rate, follows)

    def rate_at(self, step: int, plan: ClientPlan) -> float:
        """The rate of one step, counted from 0 over the whole run."""
        factor = learning_rate_factor(self.schedule, step, plan.total_steps, self.warmup_steps)
        return factor * self.learning_rate_for(plan)

    def check(self, num_classes: int, *, images: bool = True, several: bool = False) -> None:
        """Raise ConfigError where ``class_weights`` are not one for each class, or views are asked of no images.

        ``several`` tells that a record may have several labels.
        """
        if self.augmentation != "none" and not images:
            raise ConfigError(
                f"trainer.augmentation={self.augmentation}: takes a model of images, this one has fixed features; "
                "accepted: none"
            )
        if self.class_weights is not None and several:
            raise ConfigError("trainer.class_weights: a record may have several labels here; accepted: null")
        if self.class_weights is not None and len(self.class_weights) != num_classes:
            raise ConfigError(f"trainer.class_weights={list(self.class_weights)}: takes {num_classes} weights, or null")

    def check_round(self, num_rounds: int, federation: str, protected: Unit | None) -> None:
        """Raise ConfigError where a run of so many rounds, with this strategy and unit, is not what is trained here."""

    def trained_module(self, network: nn.Module, objective: Objective) -> nn.Module:
        """What is trained for the model's ``network``: that itself."""
        return network

    def trained_objective(self, objective: Objective) -> Objective:
        """What is minimised over it, for a task's ``objective``: that itself."""
        return objective

    def solved(self, network: nn.Module, objective: Objective, average: Tensors, plan: PrivacyPlan) -> Tensors:
        """The trained tensors of ``network``, which is at its initial values, from those of what was trained."""
        return average

    def train(
        self,
        module: nn.Module,
        objective: Objective,
        inputs: torch.Tensor,
        labels: torch.Tensor,
        *,
        plan: ClientPlan,
        state: ModelState,
        sample_generator: torch.Generator,
        noise_stream: NoiseStream,
        device: torch.device,
        proximal_mu: float = 0.0,
        anchor: ModelState | None = None,
        view_generator: torch.Generator | None = None,
        patients: Patients | None = None,
        first_step: int = 0,
    ) -> ClientUpdate:
        """Run ``plan.steps_per_round`` steps from ``state`` on inputs ``[n, ...]`` and labels ``[n]``.

        ``module`` is a workspace: its weights are overwritten. ``view_generator`` is needed for an augmentation. With
        ``patients`` they are what is drawn and clipped.
        ``proximal_mu`` pulls towards ``anchor``, or where that is None towards ``state``.
        ``first_step`` counts the run's steps before this round. Where a gradient or a weight is not finite the update
        abstains and ``state`` comes back as it was given.
        """
        # Not at the top: lightning takes seconds to import, and a wrong configuration is refused without it.
        from medx.trainer.module import ClassificationModule

        record_loss = self._prepare(module, objective, state, device, patients)
        local = ClassificationModule(
            record_loss,
            self._sums(record_loss, objective, plan, view_generator),
            lambda parameters: self._optimizer(parameters, module, state, plan),
            step=plan.step,
            expected_batch_size=plan.expected_batch_size,
            num_records=plan.num_units,
            noise_stream=noise_stream,
            proximal_mu=proximal_mu,
            anchor=None if anchor is None else list(anchor.parameter_tensors().values()),
        )
        inputs, labels = inputs.to(device), labels.to(device)
        try:
            for number, batch in enumerate(
                drawn_batches(inputs, labels, patients, plan, steps=plan.steps_per_round, generator=sample_generator),
                start=first_step,
            ):
                self._set_rate(local.optimizer, number, plan)
                local.take_step(*batch)
            refuse_non_finite(record_loss.parameters())
        except NonFiniteGradientError:
            return ClientUpdate(state, finite=False)
        return ClientUpdate(self._state(module, local.optimizer, state))

    def clipped_gradient(
        self,
        module: nn.Module,
        objective: Objective,
        inputs: torch.Tensor,
        labels: torch.Tensor,
        *,
        plan: ClientPlan,
        state: ModelState,
        sample_generator: torch.Generator,
        device: torch.device,
        view_generator: torch.Generator | None = None,
        patients: Patients | None = None,
    ) -> list[torch.Tensor]:
        """The clipped sum over one Poisson batch at ``state``, *without noise*: the caller must add it.

        One tensor on ``device`` for each trained parameter; raises NonFiniteGradientError.
        """
        record_loss = self._prepare(module, objective, state, device, patients)
        (batch,) = drawn_batches(inputs, labels, patients, plan, steps=1, generator=sample_generator)
        inputs, labels = (tensor.to(device) for tensor in batch)
        clip_norm = plan.step.clip_norm if plan.step else float("inf")
        sums = self._sums(record_loss, objective, plan, view_generator).clipped_sum(inputs, labels, clip_norm)
        refuse_non_finite(sums)
        return sums

    def _prepare(
        self,
        module: nn.Module,
        objective: Objective,
        state: ModelState,
        device: torch.device,
        patients: Patients | None,
    ) -> RecordLoss:
        refuse_batch_statistics(module)
        exact_products()
        if any(parameter.device != device for parameter in module.parameters()):
            module.to(device)
        module.train()
        state.load_into(module)
        loss = weighted(self.trained_objective(objective).loss, self.class_weights, device)
        images = 1 if patients is None else patients.views
        return RecordLoss(module, loss, self.precision == "bf16", self.augmentation_multiplicity * images, images)

    def _sums(
        self, record_loss: RecordLoss, objective: Objective, plan: ClientPlan, generator: torch.Generator | None
    ) -> GradientMode:
        """What gives the clipped sum of a batch of any size; ``generator`` draws views."""
        views = None
        if self.augmentation != "none":
            assert generator is not None
            views = RandomViews(self.augmentation, self.augmentation_multiplicity, generator)
        mode = build_mode(self.gradient_mode, record_loss, plan.step is not None)
        return MicroBatches(mode, self.micro_batch_size, views, record_loss.images)

    def _set_rate(self, optimizer: torch.optim.Optimizer, step: int, plan: ClientPlan) -> None:
        for group in optimizer.param_groups:
            group["lr"] = self.rate_at(step, plan)

    def _optimizer(
        self, parameters: list[nn.Parameter], module: nn.Module, state: ModelState, plan: ClientPlan
    ) -> torch.optim.Optimizer:
        rate = self.learning_rate_for(plan)
        if self.optimizer == "adam":
            return torch.optim.Adam(parameters, lr=rate, betas=(self.momentum, 0.999), weight_decay=self.weight_decay)
        optimizer = torch.optim.SGD(parameters, lr=rate, momentum=self.momentum, weight_decay=self.weight_decay)
        if self.share_momentum:
            momentum = state.momentum_tensors()
            for name, parameter in trained_parameters(module):
                optimizer.state[parameter]["momentum_buffer"] = momentum[name].to(parameter.device)
        return optimizer

    def _state(self, module: nn.Module, optimizer: torch.optim.Optimizer, start: ModelState) -> ModelState:
        trained, layout = dict(trained_parameters(module)), start.layout
        if not self.share_momentum:
            return ModelState(layout, layout.join(trained))
        momentum = {name: optimizer.state[parameter]["momentum_buffer"] for name, parameter in trained.items()}
        return ModelState(layout, layout.join(trained), layout.join(momentum))


def weighted(loss: Loss, class_weights: tuple[float, ...] | None, device: torch.device) -> Loss:
    """``loss`` times the public weight of each record's own class: no sum of weights couples the records."""
    if class_weights is None:
        return loss
    weights = torch.tensor(class_weights, device=device)
    return lambda outputs, labels: loss(outputs, labels) * weights[labels]


def exact_products() -> None:
    """No TF32 on CUDA: it keeps 10 bits of a factor, and by such products norms would be measured and clipped.

    And the same bits each time: cuDNN has convolutions that add up in the order in which its threads come by.
    """
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.deterministic = True


def refuse_batch_statistics(module: nn.Module) -> None:
    """Raise PrivacyError for BatchNorm, which couples records and depends on how a batch is cut."""
    for name, child in module.named_modules():
        if isinstance(child, nn.modules.batchnorm._BatchNorm):
            raise PrivacyError(f"model: {name} is {type(child).__name__}, which couples records; use GroupNorm")
