"""Trainers of a linear head that take one round: one release of all records in place of many noised steps."""

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import nn

from medx.model.layers import LinearHead
from medx.privacy.units import CLIENT, Unit
from medx.schema import ConfigError
from medx.trainer.local_training import Trainer


class OneRound(Trainer):
    """What is sent after the one round is a sum, whose mean over hospitals ``solved`` turns into the head."""

    name: ClassVar[str]
    # What makes the sum one step of rate 1, and nothing else.
    fixed: ClassVar[Mapping[str, Any]] = {
        "local_steps": 1,
        "learning_rate": 1.0,
        "learning_rate_noise": None,
        "optimizer": "sgd",
        "momentum": 0.0,
        "weight_decay": 0.0,
        "share_momentum": False,
        "ema_decay": 0.0,
        "precision": "fp32",
        "augmentation": "none",
        "augmentation_multiplicity": 1,
        "schedule": "constant",
        "warmup_steps": 0,
    }

    def __post_init__(self) -> None:
        for name, value in self.fixed.items():
            if getattr(self, name) != value:
                accepted = "null" if value is None else str(value).lower()
                raise ConfigError(
                    f"trainer.{name}={getattr(self, name)}: accepted with trainer={self.name} is {accepted}"
                )

    def check_round(self, num_rounds: int, federation: str, protected: Unit | None) -> None:
        """Refuse more than one round, another strategy than the mean, and clipping whole hospitals."""
        if protected is CLIENT:
            raise ConfigError(
                f"privacy=central_dp: trainer={self.name} bounds what each record adds, not a hospital; accepted: "
                "none, local_dp, distributed_dp"
            )
        if federation != "federation/fedavg":
            name = federation.rpartition("/")[2]
            raise ConfigError(f"federation={name}: trainer={self.name} takes the mean of sums; accepted: fedavg")
        if num_rounds != 1:
            raise ConfigError(f"federation.num_rounds={num_rounds}: accepted with trainer={self.name} is 1")

    def linear_layer(self, network: nn.Module) -> nn.Linear:
        """The one layer of a linear head on features; raises ConfigError where the network is another."""
        layer = network[0] if isinstance(network, LinearHead) else None
        if not isinstance(layer, nn.Linear) or layer.bias is not None:
            raise ConfigError(
                f"trainer={self.name}: the model is no linear head without bias on fixed features; accepted: "
                "model=scatternet with model.hidden=0, or one like it"
            )
        return layer
