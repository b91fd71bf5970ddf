"""A model for each hospital beside the shared one: what each option trains, where it stays, and what it costs.

What never leaves a hospital needs no noise. What a hospital sends does, and so does all that it is computed from: a
part that is trained without noise is trained once the rounds are over and enters nothing that is sent.
"""

from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Gt, Le, MinLen
from torch import nn

from medx.aggregation import Aggregation
from medx.privacy.base import PrivacyMechanism
from medx.schema import ConfigError, component, identity_of
from medx.trainer.local_training import Trainer
from medx.trainer.state import ModelState, trained_parameters

Own = frozenset[str]


@component
class Personalisation:
    """Base of the options. ``keeps_own``: a hospital begins its rounds from what it kept, wholly or in part."""

    keeps_own: ClassVar[bool] = False
    says: ClassVar[str] = ""

    @property
    def name(self) -> str:
        """The option."""
        return identity_of(type(self)).rpartition("/")[2]

    @property
    def told(self) -> tuple[str, str] | None:
        """The option and what a statement says of it; None where there are no personal models."""
        return (self.name, self.says) if self.says else None

    @property
    def pull(self) -> float:
        """How strongly a hospital's own model is pulled towards the shared one in each step of a round."""
        return 0.0

    def check(
        self, trainer: Trainer, privacy: PrivacyMechanism, federation: str, aggregation: Aggregation, network: nn.Module
    ) -> None:
        """Raise ConfigError where the option does not go together with these."""
        trained_by = identity_of(type(trainer))
        if trained_by != "trainer/local_training":
            name = trained_by.rpartition("/")[2]
            raise ConfigError(
                f"personalisation={self.name}: takes a trainer of steps; accepted: none with trainer={name}"
            )
        if self.keeps_own:
            self._check_private_step(privacy, federation, aggregation)

    def _check_private_step(self, privacy: PrivacyMechanism, federation: str, aggregation: Aggregation) -> None:
        mechanism = identity_of(type(privacy)).rpartition("/")[2]
        if mechanism not in ("local_dp", "none"):
            raise ConfigError(
                f"personalisation={self.name}: each hospital's own steps must carry noise of their own, which "
                f"privacy={mechanism} adds to the sum alone; accepted: privacy=local_dp or none"
            )
        if aggregation.secure:
            raise ConfigError(
                f"personalisation={self.name}: hospitals end rounds in models that differ on purpose, and a secure sum "
                "is of changes to one; accepted: aggregation=plain"
            )
        if federation == "fedprox":
            raise ConfigError(f"personalisation={self.name}: has a pull of its own; accepted: a federation but fedprox")

    def own_names(self, network: nn.Module) -> Own:
        """The trained parameters that a hospital begins a round from as it left them."""
        return frozenset()

    def begin(self, received: ModelState, kept: ModelState | None, names: Own) -> ModelState:
        """Where a hospital's round begins: at what it was sent, with its own in place of what ``names`` has."""
        if kept is None or not names:
            return received
        parts = [
            received.layout.join({**layers, **{name: own[name] for name in names if name in own}})
            for layers, own in (
                (received.parameter_tensors(), kept.parameter_tensors()),
                *([(received.momentum_tensors(), kept.momentum_tensors())] if received.momentum is not None else []),
            )
        ]
        return ModelState(received.layout, *parts)


@component("personalisation/none")
class NoPersonalisation(Personalisation):
    """The shared model alone."""


AFTERWARDS = (
    "trained without noise on each hospital's own records once the rounds are over, and kept there; nothing of them "
    "enters what a hospital sends, so towards others they cost no epsilon. Whoever is given such a model, or figures "
    "of it, has no guarantee from this run; their metrics are the owner's view alone."
)


@component
class Afterwards(Personalisation):
    """Models that are trained once the rounds are over, of ``steps`` of the trainer's without noise.

    What an option leaves open is chosen by models that each saw all but one of ``folds`` parts of the hospital's
    records, whole patients, on the part that it did not see. (The shared model has seen them all.) ``choose_by`` is a
    metric, None AUC or of more than two classes balanced accuracy; where a hospital's records leave it undefined, as
    those of one class do, the cross-entropy chooses.
    """

    steps: Annotated[int, Ge(1)]
    folds: Annotated[int, Ge(2), Le(20)]
    choose_by: Literal["auc", "balanced_accuracy", "loss"] | None = "loss"

    added: ClassVar[tuple[str, ...]] = ("choose_by",)

    says: ClassVar[str] = AFTERWARDS


@component("personalisation/fine_tune")
class FineTune(Afterwards):
    """The shared model, trained on: ``shares`` of the steps to choose among, and none."""

    shares: Annotated[tuple[Annotated[float, Gt(0), Le(1)], ...], MinLen(1)]


@component("personalisation/interpolate")
class Interpolate(Afterwards):
    """The hospital's own model mixed with the shared one, parameter by parameter.

    As Deng et al. (2020) and Gasanov et al. (2022) do. ``weights`` of its own to choose among. Own models start where
    the run did.
    """

    weights: Annotated[tuple[Annotated[float, Ge(0), Le(1)], ...], MinLen(1)]


@component("personalisation/ditto")
class Ditto(Afterwards):
    """Own models that are pulled towards the shared one (Li et al. 2021), here towards the one that the run ends in.

    ``pulls`` to choose among, and the shared model itself.
    """

    pulls: Annotated[tuple[Annotated[float, Ge(0)], ...], MinLen(1)]


@component("personalisation/mr_mtl")
class MrMtl(Personalisation):
    """Each hospital trains a model of its own by the private step, pulled towards their mean (Liu et al. 2022).

    It begins each round from its own model of the last one, and what it sends is that model: the noised iterates that
    its epsilon covers. ``mean_pull`` is the strength: 0 trains alone.
    """

    mean_pull: Annotated[float, Ge(0)]

    keeps_own: ClassVar[bool] = True
    says: ClassVar[str] = (
        "each hospital's own noised iterates, which it sends in every round: its epsilon covers them as it covers what "
        "it sends. They are kept at the hospital; their metrics are the owner's view alone."
    )

    @property
    def pull(self) -> float:
        """``mean_pull``."""
        return self.mean_pull

    def own_names(self, network: nn.Module) -> Own:
        """All."""
        return frozenset(name for name, _ in trained_parameters(network))


@component("personalisation/local_norm")
class LocalNorm(Personalisation):
    """Scale and shift of normalisation layers stay a hospital's own (FedBN, Li et al. 2021b, for GroupNorm).

    The gradient of everything else depends on them, so they are trained by the same clipped and noised step; they are
    sent with the rest, and a hospital goes on from its own.
    """

    keeps_own: ClassVar[bool] = True
    says: ClassVar[str] = (
        "the shared model with each hospital's own scale and shift of its normalisation layers, which are clipped and "
        "noised with all else, so that its epsilon covers them. They are kept at the hospital; their metrics are the "
        "owner's view alone."
    )

    def check(
        self, trainer: Trainer, privacy: PrivacyMechanism, federation: str, aggregation: Aggregation, network: nn.Module
    ) -> None:
        """Also refuse a network without such layers."""
        super().check(trainer, privacy, federation, aggregation, network)
        if not self.own_names(network):
            raise ConfigError(
                "personalisation=local_norm: the model has no GroupNorm with trained scale and shift; accepted: "
                "model=cnn or resnet18"
            )

    def own_names(self, network: nn.Module) -> Own:
        """Those of GroupNorm layers."""
        layers = [name for name, module in network.named_modules() if isinstance(module, nn.GroupNorm)]
        trained = dict(trained_parameters(network))
        return frozenset(f"{layer}.{part}" for layer in layers for part in ("weight", "bias")) & trained.keys()
