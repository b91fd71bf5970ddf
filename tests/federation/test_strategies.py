"""A robust strategy is refused where its settings cannot hold for the hospitals that there are."""

from typing import Any

import pytest

from medx.federation.strategies import FedTrimmedAvg, Krum
from medx.schema import ConfigError

CLIENTS = {"num_clients": 5, "num_rounds": 1, "fraction_clients": 1.0, "min_clients": 2, "evaluate_every": 1}


@pytest.mark.parametrize(
    ("strategy", "setting", "clients", "refused"),
    [
        (Krum, {"num_malicious_clients": 1}, {}, ""),
        (
            Krum,
            {"num_malicious_clients": 2},
            {},
            r"clients=2: .*2 f \+ 3 = 7 .*there are 5; accepted: at most 1",
        ),
        (Krum, {"num_malicious_clients": 1}, {"fraction_clients": 0.8}, "there are 4; accepted: at most 0"),
        (Krum, {"num_malicious_clients": 0}, {"num_clients": 2}, "accepted: federation.num_clients=3 or more"),
        (FedTrimmedAvg, {"beta": 0.2}, {}, ""),
        (FedTrimmedAvg, {"beta": 0.0}, {}, ""),
        (FedTrimmedAvg, {"beta": 0.19}, {}, r"beta=0.19: of 5 .*trims none; accepted: 0.2 to below .5"),
        (FedTrimmedAvg, {"beta": 0.2}, {"fraction_clients": 0.6}, "of 3 .*accepted: 0.334 to below .5"),
        (FedTrimmedAvg, {"beta": 0.4}, {"num_clients": 2}, "accepted: federation.num_clients=3 or more"),
    ],
)
def test_what_a_strategy_stands_for_must_hold(
    strategy: type[Any], setting: dict[str, float], clients: dict[str, float], refused: str
) -> None:
    if not refused:
        strategy(**CLIENTS | clients | setting).strategy()
        return
    with pytest.raises(ConfigError, match=refused):
        strategy(**CLIENTS | clients | setting)
