"""The option of buffered asynchronous averaging."""

from typing import Annotated

from annotated_types import Ge, Gt
from flwr.serverapp import strategy

from medx.aggregation import Aggregation
from medx.federation.strategies import FedAvg, Federation
from medx.privacy.base import PrivacyMechanism
from medx.schema import ConfigError, component, identity_of


@component("federation/fedbuff")
class FedBuff(Federation):
    """The server goes on when ``buffer_size`` answers are there, and waits for nobody (Nguyen et al. 2022).

    ``num_rounds`` are each hospital's answers at the most. One that began from a model of ``age`` updates ago counts
    ``(1 + age)^-staleness``.
    """

    buffer_size: Annotated[int, Ge(1)]
    staleness: Annotated[float, Ge(0)]
    server_learning_rate: Annotated[float, Gt(0)]

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.buffer_size > self.num_clients:
            raise ConfigError(
                f"federation.buffer_size={self.buffer_size}: more than there are hospitals, {self.num_clients}; "
                "accepted: at most as many"
            )
        if self.fraction_clients != 1:
            raise ConfigError(
                f"federation.fraction_clients={self.fraction_clients:g}: federation=fedbuff asks whoever is free; "
                "accepted: 1"
            )

    def check(self, privacy: PrivacyMechanism, aggregation: Aggregation) -> None:
        """Refuse what needs everybody's answer to one model; raises ConfigError."""
        mechanism = identity_of(type(privacy)).rpartition("/")[2]
        if mechanism not in ("local_dp", "none"):
            raise ConfigError(
                f"federation=fedbuff: with privacy={mechanism} noise is of a sum of answers to one model, and here "
                "nobody is waited for; accepted: privacy=local_dp or none"
            )
        if aggregation.secure:
            raise ConfigError(
                "federation=fedbuff: with aggregation=secure the server must not see who began from which model, which "
                "weighs its answer here; accepted: aggregation=plain"
            )

    def waiting(self) -> FedAvg:
        """As many rounds in which everybody is waited for: those of one hospital alone, or of all records together."""
        return FedAvg(
            num_clients=self.num_clients,
            num_rounds=self.num_rounds,
            fraction_clients=1.0,
            min_clients=self.min_clients,
            evaluate_every=self.evaluate_every,
        )

    @property
    def updates(self) -> int:
        """How many there are at the most."""
        return self.num_clients * self.num_rounds // self.buffer_size

    def strategy(self) -> strategy.Strategy:
        """None of Flower's, which average answers to one model: ``buffered_rounds`` asks for none."""
        raise ConfigError("federation=fedbuff: is no strategy of rounds that wait for all; accepted: any other option")
