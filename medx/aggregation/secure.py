"""Updates summed under masks: the server learns the sum of the survivors' updates and nothing else."""

import math
from pathlib import Path
from typing import Annotated, ClassVar

from annotated_types import Ge, Gt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from medx.aggregation.encoding import largest_scale
from medx.aggregation.identity import find_identities
from medx.aggregation.roster import Parameters, Roster, default_threshold, make_roster, simulated_roster
from medx.schema import ConfigError, component

ROBUST_STRATEGIES = ("fedmedian", "fedtrimmedavg", "krum", "multikrum", "bulyan")


@component
class SecureAggregation:
    """The five-stage protocol (after Bonawitz et al. 2017), unweighted sums modulo 2^32.

    None means: ``threshold`` floor(2n/3) + 1, ``minimum_survivors`` as few as the threshold allows, ``scale`` the
    largest power of two in the ring bound, ``roster`` made on the fly as one trust domain. ``update_bound`` is the
    public bound on a coordinate of a weighted update; what lies beyond saturates and is counted.
    """

    secure: ClassVar[bool] = True

    threshold: Annotated[int, Ge(3)] | None
    minimum_survivors: Annotated[int, Ge(3)] | None
    scale: Annotated[float, Gt(0)] | None
    update_bound: Annotated[float, Gt(0)]
    roster: Path | None
    max_attempts: Annotated[int, Ge(1)]

    def check_strategy(self, strategy: str) -> None:
        """Refuse strategies that need single updates: masks hide outliers too."""
        if strategy.lower() in ROBUST_STRATEGIES:
            raise ConfigError(
                f"aggregation=secure with federation={strategy}: the server cannot compare updates that it does not "
                "see; accepted: a strategy that uses their mean, e.g. fedavg, or aggregation=plain"
            )

    def survivors_for(self, num_clients: int) -> int:
        """Minimum survivors that a run with this many clients will have."""
        least = max(self.threshold or default_threshold(num_clients), 3)
        return least if self.minimum_survivors is None else self.minimum_survivors

    def scale_for(self, num_clients: int, bound: float, noise_stddev: float) -> float:
        """Grid units to one unit of the update; ``noise_stddev`` is one client's noise in units of the update.

        The automatic scale leaves a factor two for what rounding adds to the noise.
        """
        if self.scale is not None:
            return self.scale
        return largest_scale(num_clients, bound, 2 * noise_stddev * math.sqrt(num_clients))

    def simulated(self, parameters: Parameters, num_clients: int) -> tuple[Roster, tuple[Ed25519PrivateKey, ...]]:
        """A roster for a simulation with the identities of all clients; raises ConfigError."""
        return simulated_roster(parameters, num_clients, self.threshold, self.minimum_survivors)

    def enrolled(self, parameters: Parameters, num_clients: int) -> tuple[Roster, tuple[Ed25519PrivateKey, ...]]:
        """The run's roster with all identities: made on the fly, or pinned with the key files beside it."""
        if self.roster is None:
            return self.simulated(parameters, num_clients)
        roster = self.pinned(parameters)
        return roster, find_identities(self.roster.parent, roster.identities)

    def pinned(self, parameters: Parameters) -> Roster:
        """The roster on disk, which must hold exactly these parameters; ConfigError names the first that differs."""
        if self.roster is None:
            raise ConfigError("aggregation.roster = null; accepted: a roster file, outside a simulation")
        roster = Roster.load(self.roster)
        wanted = make_roster(
            parameters, roster.identities, self.threshold, self.minimum_survivors, roster.trust_domain
        ).model_dump()
        for name, value in roster.model_dump().items():
            if value != wanted[name]:
                raise ConfigError(f"roster {self.roster}: {name} = {value!r}; accepted: {wanted[name]!r} as configured")
        return roster
