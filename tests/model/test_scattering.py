import numpy as np
import pytest
import torch

from medx.model.scattering import Scattering
from medx.schema import ConfigError


def gabor(size: int, sigma: float, angle: float, frequency: float, slant: float) -> np.ndarray:
    """By explicit rotation matrices and loops over periods: shares no code with the implementation."""
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    curvature = rotation @ np.diag([1, slant**2]) @ rotation.T / (2 * sigma**2)
    total = np.zeros((size, size), complex)
    for up in range(-2, 3):
        for left in range(-2, 3):
            x, y = np.mgrid[up * size : (up + 1) * size, left * size : (left + 1) * size]
            quadratic = curvature[0, 0] * x * x + 2 * curvature[0, 1] * x * y + curvature[1, 1] * y * y
            total += np.exp(-quadratic + 1j * frequency * (x * np.cos(angle) + y * np.sin(angle)))
    return total * slant / (2 * np.pi * sigma**2)


def convolve(image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    return np.fft.ifft2(np.fft.fft2(image) * np.fft.fft2(kernel))


def reference(image: np.ndarray, scales: int, angles: int) -> np.ndarray:
    """Scattering in float64, every convolution at full size, pixels dropped afterwards in space."""
    size, stride = len(image), 2**scales
    cells = -(-size // stride)
    padded = np.pad(image, (stride, (cells + 1) * stride - size), mode="reflect")

    def wavelet(scale: int, theta: int) -> np.ndarray:
        arguments = (len(padded), 0.8 * 2**scale, theta * np.pi / angles)
        wave = gabor(*arguments, 0.75 * np.pi / 2**scale, 4 / angles)
        envelope = gabor(*arguments, 0.0, 4 / angles)
        return wave - wave.sum() / envelope.sum() * envelope

    lowpass = gabor(len(padded), 0.8 * 2 ** (scales - 1), 0.0, 0.0, 1.0)

    def average(maps: np.ndarray, scale: int) -> np.ndarray:
        step = 2**scale
        smooth = convolve(maps, lowpass[::step, ::step] * step**2).real
        return smooth[:: stride // step, :: stride // step][1 : cells + 1, 1 : cells + 1]

    first, second = [average(padded, 0)], []
    for fine in range(scales):
        for theta in range(angles):
            envelope = abs(convolve(padded, wavelet(fine, theta)))[:: 2**fine, :: 2**fine]
            first.append(average(envelope, fine))
            for coarse in range(fine + 1, scales):
                for phi in range(angles):
                    kernel = wavelet(coarse, phi)[:: 2**fine, :: 2**fine] * 4**fine
                    step = 2 ** (coarse - fine)
                    maps = average(abs(convolve(envelope, kernel))[::step, ::step], coarse)
                    second.append(((fine, coarse, theta, phi), maps))
    return np.stack(first + [maps for _, maps in sorted(second, key=lambda entry: entry[0])])


@pytest.mark.parametrize(("size", "scales", "angles", "paths"), [(28, 2, 8, 81), (45, 3, 4, 61)])
def test_equals_the_slow_reference(size: int, scales: int, angles: int, paths: int) -> None:
    image = torch.rand(2, size, size, generator=torch.Generator().manual_seed(0))
    scattering = Scattering(size, scales, angles)
    found = scattering(image[None])[0]
    cells = -(-size // 2**scales)
    assert found.shape == (2, paths, cells, cells)
    assert sum(scattering.orders) == paths
    for one, pixels in zip(found.numpy(), image.double().numpy(), strict=True):
        expected = reference(pixels, scales, angles)
        for order in np.split(np.arange(paths), np.cumsum(scattering.orders)[:2]):
            assert np.abs(one[order] - expected[order]).max() < 2e-5 * np.abs(expected[order]).max()


def test_is_stable_to_translation() -> None:
    smooth = torch.nn.functional.avg_pool2d(torch.rand(1, 40, 40, generator=torch.Generator().manual_seed(0)), 5, 1)
    scattering = Scattering(28, 3, 8)
    here, there = smooth[:, 2:30, 2:30], smooth[:, 2:30, 3:31]
    moved = (scattering(here) - scattering(there)).norm() / scattering(here).norm()
    assert moved < 0.5 * (here - there).norm() / here.norm()
    assert moved > 0


def test_constant_images_have_a_mean_and_nothing_else() -> None:
    coefficients = Scattering(28, 2, 8)(torch.full((1, 28, 28), 3.0))[0]
    assert torch.allclose(coefficients[0], torch.tensor(3.0), atol=1e-4)
    assert coefficients[1:].abs().max() < 1e-5


def test_refuses_images_smaller_than_the_scales() -> None:
    with pytest.raises(ConfigError, match="num_scales=4"):
        Scattering(28, 4, 8)
