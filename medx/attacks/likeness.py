"""How like two images are, in figures: PSNR, and SSIM of Wang et al. 2004; images are ``[height, width, channels]``.

Values are from 0 to 1.
"""

from collections.abc import Sequence

import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.optimize import linear_sum_assignment

DEVIATION, RADIUS = 1.5, 5  # of the window, in pixels: 11 on a side (Wang et al. 2004, section III.C)
FLOORS = (0.01**2, 0.03**2)
MOST = 100.0  # dB, of equal images


def psnr(image: np.ndarray, truth: np.ndarray) -> float:
    """Peak signal to noise in dB, the peak being 1."""
    error = float(np.mean((image.astype(np.float64) - truth) ** 2))
    return MOST if error <= 10 ** (-MOST / 10) else -10 * float(np.log10(error))


def ssim(image: np.ndarray, truth: np.ndarray) -> float:
    """Structural similarity, the mean over channels and over all windows that lie wholly inside."""
    return float(np.mean([_ssim(image[..., k], truth[..., k]) for k in range(truth.shape[-1])]))


def _ssim(one: np.ndarray, other: np.ndarray) -> float:
    inside = slice(RADIUS, -RADIUS)

    def mean(values: np.ndarray) -> np.ndarray:
        blurred: np.ndarray = gaussian_filter(values, DEVIATION, radius=RADIUS)
        return blurred[inside, inside]

    one, other = one.astype(np.float64), other.astype(np.float64)
    mean_one, mean_other = mean(one), mean(other)
    variances = mean(one**2) - mean_one**2 + mean(other**2) - mean_other**2
    covariance = mean(one * other) - mean_one * mean_other
    light = (2 * mean_one * mean_other + FLOORS[0]) / (mean_one**2 + mean_other**2 + FLOORS[0])
    return float(np.mean(light * (2 * covariance + FLOORS[1]) / (variances + FLOORS[1])))


def assigned(images: Sequence[np.ndarray] | np.ndarray, truths: Sequence[np.ndarray] | np.ndarray) -> list[int]:
    """Which of the ``images``, each used once, stands for each of the ``truths``, so that errors are least in all.

    An attack gives its images in no order; this one knows the truth, so it favours the attack.
    """
    errors = [[float(np.mean((np.asarray(image) - truth) ** 2)) for image in images] for truth in truths]
    return [int(place) for place in linear_sum_assignment(errors)[1]]
