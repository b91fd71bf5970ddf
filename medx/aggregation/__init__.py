"""How updates are summed: in the clear, or under masks so that nobody sees a single one."""

import math
import shlex
from typing import Annotated, ClassVar, Protocol

from annotated_types import Ge, Gt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from medx.aggregation.ring import largest_scale
from medx.aggregation.roster import (
    Parameters,
    Roster,
    default_survivors,
    find_identities,
    flag,
    make_roster,
    simulated_roster,
)
from medx.schema import ConfigError, Place, component

ROBUST_STRATEGIES = ("fedmedian", "fedtrimmedavg", "krum", "multikrum", "bulyan")


class Aggregation(Protocol):
    """What an option offers to the rounds. ``secure`` hides single updates."""

    secure: ClassVar[bool]

    def check_strategy(self, strategy: str) -> None:
        """Raise ConfigError where this federation option needs what the aggregation hides."""
        ...

    def survivors_for(self, num_clients: int) -> int:
        """The fewest clients that a sum of noise shares may be made of."""
        ...


@component("aggregation/plain")
class PlainAggregation:
    """No cryptography. Whoever runs the server learns each update, so privacy towards it must come from local noise.

    ``minimum_survivors`` counts where clients share the noise and the server is trusted: None means as many as under
    aggregation=secure, so that both make the same noise.
    """

    minimum_survivors: Annotated[int, Ge(1)] | None

    secure: ClassVar[bool] = False

    def check_strategy(self, strategy: str) -> None:
        """Every strategy works on updates in the clear."""

    def survivors_for(self, num_clients: int) -> int:
        """The fewest clients whose shares make the planned noise."""
        return self.minimum_survivors or min(default_survivors(num_clients), num_clients)


@component("aggregation/secure")
class SecureAggregation:
    """The five-stage protocol (after Bonawitz et al. 2017), unweighted sums modulo 2^32.

    None means: ``threshold`` floor(2n/3) + 1, ``minimum_survivors`` as few as the threshold allows, ``scale`` the
    largest power of two in the ring bound, ``roster`` made on the fly as one trust domain. ``update_bound`` is the
    public bound on a coordinate of a weighted update; a client whose update lies beyond it abstains.
    """

    secure: ClassVar[bool] = True

    threshold: Annotated[int, Ge(3)] | None
    minimum_survivors: Annotated[int, Ge(3)] | None
    scale: Annotated[float, Gt(0)] | None
    update_bound: Annotated[float, Gt(0)]
    roster: Place | None
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
        return self.minimum_survivors or default_survivors(num_clients, self.threshold)

    def scale_for(self, num_clients: int, bound: float, noise_stddev: float) -> float:
        """Grid units to one unit of the update; ``noise_stddev`` is one client's noise in units of the update.

        The automatic scale leaves a factor two for what rounding adds to the noise.
        """
        if self.scale is not None:
            return self.scale
        return largest_scale(num_clients, bound, 2 * noise_stddev * math.sqrt(num_clients))

    def enrolled(self, parameters: Parameters, num_clients: int) -> tuple[Roster, tuple[Ed25519PrivateKey, ...]]:
        """The run's roster with all identities: made on the fly, or pinned with the key files beside it."""
        if self.roster is None:
            return simulated_roster(parameters, num_clients, self.threshold, self.minimum_survivors)
        roster = self.pinned(parameters, num_clients)
        return roster, find_identities(self.roster.parent, roster.identities)

    def pinned(self, parameters: Parameters, num_clients: int) -> Roster:
        """The roster on disk, which must hold exactly these parameters.

        Raises ConfigError with every value that differs, and with the command that makes the roster of this run.
        """
        if self.roster is None:
            raise ConfigError("aggregation.roster=null: accepted is a roster file, outside a simulation")
        accepted = f"accepted: what this makes: {self.command(parameters, num_clients)}"
        if not self.roster.exists():
            raise ConfigError(f"aggregation.roster={self.roster}: no such file; {accepted}")
        roster = Roster.load(self.roster)
        if roster.num_clients != num_clients:
            raise ConfigError(
                f"aggregation.roster={self.roster}: {roster.num_clients} public keys for {num_clients} clients; "
                f"{accepted}"
            )
        wanted = make_roster(
            parameters, roster.identities, self.threshold, self.minimum_survivors, roster.trust_domain
        ).model_dump()
        wrong = [
            f"{name} = {value!r} where this run has {wanted[name]!r}"
            for name, value in roster.model_dump().items()
            if value != wanted[name]
        ]
        if wrong:
            raise ConfigError(f"aggregation.roster={self.roster}: {', '.join(wrong)}; {accepted}")
        return roster

    def command(self, parameters: Parameters, num_clients: int) -> str:
        """The command line that makes this run's roster, of the identities beside it where there are enough."""
        assert self.roster is not None
        folder = self.roster.parent
        public = sorted(folder.glob("*.pub"))
        known = [part for path in public for part in ("--public-key", str(path))] if len(public) == num_clients else []
        who = known or ["--clients", str(num_clients), "--folder", str(folder)]
        options = {
            "output": self.roster,
            **parameters.model_dump(),
            "threshold": self.threshold,
            "minimum_survivors": self.minimum_survivors,
        }
        given = [part for name, value in options.items() if value is not None for part in (flag(name), str(value))]
        return shlex.join(["python", "-m", "medx.aggregation", "roster", *who, *given])
