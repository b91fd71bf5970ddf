"""A mechanism of your own: the noise is given, and epsilon follows."""

from typing import Annotated, ClassVar

from annotated_types import Ge

from medx.privacy import Delta, GaussianMechanism
from medx.schema import component


@component("privacy/fixed_noise")
class FixedNoise(GaussianMechanism):
    """DP-SGD at each client (Abadi et al. 2016, algorithm 1) with one noise multiplier for all, whatever it spends.

    Unit: a record, added or removed in content (zero-out). Sensitivity of a step's clipped sum: ``clip_norm`` in the l2
    norm. ``noise_multiplier`` is the noise's standard deviation over ``clip_norm``.
    """

    delta: Delta
    noise_multiplier: Annotated[float, Ge(0.3)]

    what: ClassVar[str] = (
        "DP-SGD at every hospital (Abadi et al. 2016) with the noise that was asked for: each step clips every "
        "record's gradient and adds Gaussian noise before anything leaves"
    )

    def noise_for(self, delta: float, sampling_probability: float, releases: int) -> float:
        """The same, however often records are used: what it comes to is the accountants' to say."""
        return self.noise_multiplier
