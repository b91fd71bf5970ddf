"""What an attack got for one observer, as a record."""

from statistics import NormalDist

from medx.released import Record


class AttackResult(Record):
    """What one attack got for one observer of a copy of the run, beside the claim: a lower bound, and no more.

    ``found`` is the lower bound for epsilon at ``delta`` with 95 % confidence, None where nothing hides a record; by
    ``shift``, that of a record that is there in standard deviations of the noise, with its ``error``; ``planned`` is
    the shift that the plan's noise gives. ``one_run`` is a bound without assumptions, of at most ``ceiling``.
    ``against`` says what speaks against the claim.
    """

    attack: str
    observer: str
    claimed: float | None
    delta: float
    found: float | None
    shift: float
    error: float
    planned: float | None
    one_run: float
    ceiling: float
    trials: int
    seconds: float
    against: list[str]

    def at_least(self, confidence: float) -> float:
        """A shift that is exceeded with this confidence."""
        return max(0.0, self.shift - NormalDist().inv_cdf(confidence) * self.error)

    def line(self) -> str:
        """For a person."""
        claimed = "nothing" if self.claimed is None else f"ε {self.claimed:.2f}"
        found = "no noise to speak of" if self.found is None else f"lower bound found {self.found:.2f}"
        planned = "" if self.planned is None else f", planned {self.planned:.3f}"
        return (
            f"{self.attack}, {self.observer}: claimed {claimed}, {found} (shift {self.shift:.3f} ± {self.error:.3f}"
            f"{planned}; by guesses {self.one_run:.2f} of at most {self.ceiling:.2f}; {self.trials} canaries)"
        )
