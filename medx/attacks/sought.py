"""What ``experiments.reconstruction`` leaves: the images that it sought, and how like them is what it found."""

from typing import Any

from medx.released import Record

RECONSTRUCTION_FILE = "reconstruction.json"
MEAN, NEAREST = "mean image", "nearest image elsewhere"  # what stands beside what was found


class Sought(Record):
    """One image that was sought under a condition, or what no attack gives (``MEAN``, ``NEAREST``).

    ``pixels`` along an edge; ``record`` of so many ``records`` of a hospital. ``psnr`` is in dB with white as 1, and
    ``ssim`` that of Wang et al. 2004. ``distance`` is what the search left between the gradients.
    """

    pixels: int
    condition: str
    records: int
    record: int
    psnr: float
    ssim: float
    epsilon: float | None = None
    distance: float | None = None
    seconds: float = 0.0


class SoughtInSum(Record):
    """A sum of ``records``, ``others`` of them at each other hospital: how many dB above the mean image each is found.

    ``gain_of_nobody`` is that of records that are not in the sum; ``auc`` the chance that one of the sum has more.
    """

    others: int
    records: int
    gain: float
    best_gain: float
    gain_of_nobody: float
    auc: float


class SoughtInHead(Record):
    """Records behind a linear head: how many feature lengths the ``farthest`` is from the nearest one that was found.

    ``labels_right`` of ``records``; ``exact`` says that what was received has no other explanation.
    """

    privacy: str
    records: int
    rounds: int
    epsilon: float | None
    farthest: float
    labels_right: int
    unexplained: float
    exact: bool


class Reconstruction(Record):
    """The whole file; ``options`` are those of the command."""

    options: dict[str, Any]
    images: list[Sought]
    linear_head: list[SoughtInHead]
    sums: list[SoughtInSum]
