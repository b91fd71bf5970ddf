"""Photographs of the back of the eye drawn from anatomy: SYNTHETIC, and no program fitted it to data.

Disc, fovea and arcades lie as in a 45 degree field (Kanski and Bowling 2011); what appears at each grade follows the
international scale of diabetic retinopathy (Wilkinson et al. 2003). Blood absorbs green and blue more than red.
"""

from dataclasses import dataclass

import numpy as np

from medx.dataset.drawing import Sheet, Spots, bell, draw_in_chunks, inside, rotate, splat

CLASS_NAMES = ("no retinopathy", "mild", "moderate", "severe", "proliferative")
GRADE_SHARES = (0.4, 0.15, 0.2, 0.15, 0.1)
BLOOD = np.array([0.35, 1.0, 0.7], np.float32)  # absorbance in red, green, blue
NERVE = np.array([1.0, 0.86, 0.56], np.float32)
EXUDATE = np.array([1.0, 0.92, 0.5], np.float32)

# Mean number of lesions at grades 0..4.
MICROANEURYSMS = np.array([0.0, 6.0, 12.0, 22.0, 18.0])
HAEMORRHAGES = np.array([0.0, 0.0, 4.0, 13.0, 8.0])
EXUDATES = np.array([0.0, 0.0, 7.0, 12.0, 10.0])
COTTON_WOOL = np.array([0.0, 0.0, 0.4, 2.5, 1.5])
NEW_VESSELS = np.array([0.0, 0.0, 0.0, 0.0, 2.0])


def draw_fundus(count: int, size: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Images ``uint8 [count, size, size, 3]`` and labels ``int64 [count]``: grades 0 to 4 of retinopathy."""
    labels = generator.choice(len(GRADE_SHARES), size=count, p=GRADE_SHARES).astype(np.int64)
    return draw_in_chunks(_draw, labels, size, generator), labels


@dataclass(frozen=True)
class _Eye:
    """Coordinates from the optic disc: ``p`` towards the fovea, ``q`` down; ``radius`` from the image's centre."""

    p: np.ndarray
    q: np.ndarray
    radius: np.ndarray
    fovea: np.ndarray


def _draw(labels: np.ndarray, sheet: Sheet) -> np.ndarray:
    eye = _pose(sheet)
    blood = _vessels(eye, sheet) + _dark_lesions(labels, sheet)
    blood += sheet.uniform(0.15, 0.4) * bell(((eye.p - eye.fovea) ** 2 + eye.q**2) / 0.05)
    nerve, pale = _disc(eye, sheet), _pale_lesions(labels, sheet)
    shade = 1 - sheet.uniform(0.1, 0.45) * eye.radius**2
    shade += 0.06 * sheet.smooth_field(4) + 0.03 * sheet.smooth_field(12)
    shade *= sheet.uniform(0.7, 1.1)
    colour = _pigment(sheet) * shade[..., None]
    colour += nerve[..., None] * (NERVE * shade[..., None] - colour)
    colour *= np.exp(-blood[..., None] * BLOOD)
    colour += pale[..., None] * (EXUDATE * shade[..., None] - colour)
    colour *= inside(sheet.normal(1.06, 0.05) - eye.radius, 0.06)[..., None]
    return colour + 0.012 * sheet.generator.standard_normal(colour.shape, dtype=np.float32)


def _pose(sheet: Sheet) -> _Eye:
    x, y = sheet.plane()
    radius = np.sqrt(x**2 + y**2)
    hand = sheet.side_of_body()
    turned, down = rotate(hand * x, y, sheet.normal(0, 0.08))
    fovea = sheet.normal(0.7, 0.05)
    p = turned + sheet.normal(0.5, 0.14)
    q = down - sheet.normal(0, 0.05)
    p = p + 0.02 * sheet.smooth_field(7)
    q = q + 0.02 * sheet.smooth_field(7)
    return _Eye(p, q, radius, fovea)


def _pigment(sheet: Sheet) -> np.ndarray:
    """The colour of the retina, ``[count, 1, 1, 3]``: orange to brick red."""
    red = sheet.normal(0.78, 0.07)
    green = red * sheet.normal(0.47, 0.05)
    return np.stack([red, green, green * sheet.normal(0.45, 0.09)], axis=-1)


def _disc(eye: _Eye, sheet: Sheet) -> np.ndarray:
    radius = sheet.normal(0.15, 0.015)
    distance = np.sqrt((eye.p / 0.92) ** 2 + eye.q**2)
    cup = inside(radius * sheet.uniform(0.25, 0.55) - distance, 0.06)
    return inside(radius - distance, 0.06) * sheet.uniform(0.6, 0.8) + 0.2 * cup


def _vessels(eye: _Eye, sheet: Sheet) -> np.ndarray:
    """Arteries and veins: parabolas about the axis from disc to fovea, thinner away from the disc."""
    width = sheet.normal(0.034, 0.004)
    taper = width * (1 - 0.45 * np.sqrt(eye.p**2 + eye.q**2)).clip(0.3, None)
    total = np.zeros_like(taper)
    for upper in (True, False):
        half = ((eye.q < 0) == upper).astype(np.float32)
        arcade = sheet.normal(0.33, 0.06)
        for opening, start, strength, thin in (
            (arcade, 0.0, 0.85, 1.0),
            (0.72 * arcade, 0.01, 0.5, 0.75),
            (2.1 * arcade, 0.05, 0.45, 0.7),
            (0.5 * arcade, sheet.uniform(0.15, 0.3), 0.35, 0.5),
            (-1.1 * arcade, 0.02, 0.6, 0.8),
            (-0.3 * arcade, 0.02, 0.4, 0.6),
        ):
            line = _parabola(eye.p - start, eye.q, opening)
            total = np.maximum(total, half * strength * (1 - (line / (taper * thin)) ** 2).clip(0, None))
    return sheet.uniform(0.6, 1.1) * total


def _parabola(p: np.ndarray, q: np.ndarray, opening: np.ndarray) -> np.ndarray:
    """Distance to ``q^2 = opening p``, to first order."""
    return np.abs(q * q - opening * p) / np.sqrt(4 * q * q + opening**2)


def _scatter(means: np.ndarray, labels: np.ndarray, radii: tuple[float, float], sheet: Sheet) -> np.ndarray:
    """A map of Poisson many spots an image, by grade, with radii in image half-widths."""
    owner = np.repeat(np.arange(len(labels)), sheet.generator.poisson(means[labels]))
    reach, angle = 0.95 * np.sqrt(sheet.generator.random(len(owner))), 2 * np.pi * sheet.generator.random(len(owner))
    height = sheet.generator.uniform(0.6, 1.2, len(owner))
    radius = sheet.generator.uniform(*radii, len(owner))
    return splat(Spots(owner, reach * np.cos(angle), reach * np.sin(angle), radius, height), len(labels), sheet.side)


def _dark_lesions(labels: np.ndarray, sheet: Sheet) -> np.ndarray:
    """Microaneurysms, blot haemorrhages and, at the last grade, new vessels with a bleeding before the retina."""
    spots = 0.6 * _scatter(MICROANEURYSMS, labels, (0.018, 0.03), sheet)
    blots = 0.8 * _scatter(HAEMORRHAGES, labels, (0.035, 0.09), sheet)
    return np.minimum(spots + blots + _tangles(labels, sheet), 1.6)


def _tangles(labels: np.ndarray, sheet: Sheet, length: int = 60) -> np.ndarray:
    owner = np.repeat(np.arange(len(labels)), sheet.generator.poisson(NEW_VESSELS[labels]) + (labels == 4))
    steps = sheet.generator.normal(0, 0.028, (2, len(owner), length)).cumsum(axis=2)
    x, y = sheet.generator.uniform(-0.6, 0.6, (2, len(owner), 1)) + steps
    thin, faint = np.full(x.size, 0.016), np.full(x.size, 0.5)
    tangle = splat(Spots(owner.repeat(length), x.ravel(), y.ravel(), thin, faint), len(labels), sheet.side)
    bleeding = _scatter(NEW_VESSELS / 3, labels, (0.15, 0.3), sheet)
    return np.minimum(tangle, 0.9) + bleeding


def _pale_lesions(labels: np.ndarray, sheet: Sheet) -> np.ndarray:
    """Hard exudates, small and yellow, and cotton-wool spots, larger and fainter; 0..0.85."""
    hard = 0.8 * _scatter(EXUDATES, labels, (0.02, 0.045), sheet)
    soft = 0.45 * _scatter(COTTON_WOOL, labels, (0.06, 0.12), sheet)
    return np.minimum(hard + soft, 0.85)
