"""Chest radiographs drawn from anatomy: SYNTHETIC, and no program fitted it to data.

Radiodensities add up along the beam and a film curve turns them into grey values (Bushberg et al. 2011, ch. 7);
the outlines follow the frontal view of textbooks (Goodman 2014). An opacity is air replaced by fluid.
"""

from dataclasses import dataclass

import numpy as np

from medx.dataset.drawing import (
    bell,
    draw_in_chunks,
    inside,
    normal,
    plane,
    rotate,
    side_of_body,
    smooth_field,
    uniform,
)

CLASS_NAMES = ("clear", "opacity")
PREVALENCE = 0.5
AIR = 0.85  # density that a lung full of air takes away, in units of soft tissue


def draw_chest(count: int, size: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Images ``uint8 [count, size, size, 1]`` and labels ``int64 [count]``: 1 where a lung has an opacity."""
    labels = (generator.random(count) < PREVALENCE).astype(np.int64)
    return draw_in_chunks(_draw, labels, size, generator), labels


@dataclass(frozen=True)
class _Frame:
    """Coordinates fixed to the body: ``u`` to the patient's left, ``v`` down; ``aside`` is ``|u|``."""

    u: np.ndarray
    v: np.ndarray
    aside: np.ndarray
    left: np.ndarray


def _draw(labels: np.ndarray, side: int, generator: np.random.Generator) -> np.ndarray:
    count = len(labels)
    frame = _pose(count, side, generator)
    cage, lungs, below = _lungs(frame, count, generator)
    opacity = np.zeros_like(lungs)
    diseased = np.flatnonzero(labels)
    if len(diseased):
        own = _Frame(frame.u[diseased], frame.v[diseased], frame.aside[diseased], frame.left[diseased])
        opacity[diseased] = _opacity(own, len(diseased), side, generator)
    inflation = normal(generator, count, 1, 0.08) + 0.06 * smooth_field(generator, count, 4, side)
    density = _soft_tissue(frame, count, generator)
    density += below * uniform(generator, count, 0.1, 0.35)
    density += _mediastinum(frame, count, generator)
    density += cage * _bones(frame, count, generator)
    density += lungs * _vessels(frame, count, side, generator)
    density -= AIR * lungs * inflation * (1 - opacity)
    return _expose(density, side, generator)[..., None]


def _pose(count: int, side: int, generator: np.random.Generator) -> _Frame:
    x, y = plane(side)
    x, y = rotate(x, y, normal(generator, count, 0, 0.04))
    u = (x - normal(generator, count, 0, 0.04)) * normal(generator, count, 0.98, 0.06)
    v = (y - normal(generator, count, 0, 0.05)) * normal(generator, count, 0.98, 0.06)
    return _Frame(u, v, np.abs(u), u > 0)


def _lungs(frame: _Frame, count: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The rib cage, the lungs in it, and what lies below the diaphragm."""
    width, top = normal(generator, count, 0.86, 0.05), normal(generator, count, -0.86, 0.05)
    across, along = frame.aside / width, (0.3 - frame.v) / (0.3 - top)
    radius = np.where(frame.v < 0.3, across**2 + along**2 * (0.6 + 0.4 * np.abs(along)), across**2)
    cage = inside(1 - radius, 0.16)
    right, drop = normal(generator, count, 0.62, 0.08), uniform(generator, count, -0.02, 0.12)
    height = uniform(generator, count, 0.1, 0.24)
    dome = right + drop * frame.left - height * (1 - ((frame.aside - 0.4) / 0.48) ** 2)
    above = inside(dome - frame.v, 0.08)
    lungs = cage * above * inside(frame.aside - normal(generator, count, 0.12, 0.02), 0.1)
    return cage, lungs, cage * (1 - above)


def _soft_tissue(frame: _Frame, count: int, generator: np.random.Generator) -> np.ndarray:
    """The trunk and shoulders; beside the chest wall, under the arms, the beam meets only air."""
    wall = normal(generator, count, 1.0, 0.05) - 0.12 * inside(frame.v - 0.1, 1.2)
    trunk = inside(wall - frame.aside, 0.2)
    shoulders = inside(-0.42 - frame.v - 0.25 * (1 - frame.aside), 0.25)
    neck = inside(frame.aside - 0.3 + 0.5 * (frame.v + 0.95), 0.1) * inside(-0.88 - frame.v, 0.12)
    return normal(generator, count, 1.0, 0.06) * (np.maximum(trunk, shoulders) - 0.5 * neck)


def _mediastinum(frame: _Frame, count: int, generator: np.random.Generator) -> np.ndarray:
    """Heart, great vessels, spine and windpipe."""
    u, v = frame.u, frame.v
    axis, down = rotate(u - normal(generator, count, 0.13, 0.04), v - normal(generator, count, 0.24, 0.05),
                        normal(generator, count, 0.45, 0.12))  # fmt: skip
    size = normal(generator, count, 1, 0.1)
    heart = inside(1 - (axis / (0.43 * size)) ** 2 - (down / (0.33 * size)) ** 2, 0.5)
    half = normal(generator, count, 0.15, 0.025) + 0.03 * np.abs(v)
    band = inside(half - np.abs(u - normal(generator, count, 0.02, 0.015)), 0.09)
    knob = bell(((u - 0.15) ** 2 + (v + 0.3) ** 2) / 0.011)
    discs = 1 + 0.2 * np.cos(2 * np.pi * (4.5 * v + uniform(generator, count, 0, 1)))
    spine = bell((u / 0.1) ** 2) * discs
    windpipe = bell((u / 0.05) ** 2) * inside(-0.22 - v, 0.2)
    strength = normal(generator, count, 1, 0.1)
    return strength * (0.55 * np.maximum(heart, band) + 0.15 * knob + 0.25 * spine) - 0.3 * windpipe


def _bones(frame: _Frame, count: int, generator: np.random.Generator) -> np.ndarray:
    """Posterior ribs that fall away from the spine, fainter anterior ribs that rise, and the collar bones."""
    pitch = normal(generator, count, 5.0, 0.4)  # ribs in one unit of height
    start, contrast = uniform(generator, count, 0, 1), uniform(generator, count, 0.08, 0.2)
    fall = normal(generator, count, 0.4, 0.08)
    behind = np.cos(2 * np.pi * (pitch * (frame.v - fall * frame.aside**2) + start))
    before = np.cos(2 * np.pi * (pitch * (frame.v + 0.75 * frame.aside) - start))
    ribs = inside(behind - 0.35, 0.8) * (0.6 + 0.9 * frame.aside**2) + 0.35 * inside(before - 0.5, 0.8)
    slope = normal(generator, count, 0.2, 0.08)
    line = frame.v + normal(generator, count, 0.62, 0.05) + slope * frame.aside
    collar = bell((line / 0.05) ** 2) * inside(frame.aside - 0.1, 0.1)
    return contrast * ribs * inside(frame.aside - 0.1, 0.1) + uniform(generator, count, 0.08, 0.22) * collar


def _vessels(frame: _Frame, count: int, side: int, generator: np.random.Generator) -> np.ndarray:
    """The hila, and vascular markings that fade towards the chest wall."""
    height = np.where(frame.left, np.float32(-0.04), np.float32(0.02))
    near = bell(((frame.aside - 0.2) / 0.13) ** 2 + ((frame.v - height) / 0.17) ** 2)
    reach = bell(((frame.aside - 0.2) / 0.4) ** 2 + ((frame.v - height) / 0.5) ** 2)
    fine = 0.6 * smooth_field(generator, count, 14, side) + 0.4 * smooth_field(generator, count, 24, side)
    return uniform(generator, count, 0.1, 0.3) * near + uniform(generator, count, 0.05, 0.13) * reach * fine


def _opacity(frame: _Frame, count: int, side: int, generator: np.random.Generator) -> np.ndarray:
    """The share of air that is gone, 0..1: patchy, lobar or diffuse, a third of the images each."""
    kind = generator.integers(0, 3, (count, 1, 1))
    lobar = _focus(frame, count, (0.2, 0.42), generator)
    patchy = np.zeros_like(lobar)
    for index in range(4):
        present = (generator.random((count, 1, 1)) < 1 - 0.2 * index).astype(np.float32)
        patchy = np.maximum(patchy, present * _focus(frame, count, (0.09, 0.2), generator))
    perihilar = bell(((frame.aside - 0.35) / 0.5) ** 2 + ((frame.v - 0.1) / 0.6) ** 2)
    texture = smooth_field(generator, count, 9, side)
    diffuse = 0.55 * perihilar * (1 + 0.6 * texture)
    shape = np.choose(kind, [patchy * (1 + 0.2 * texture), lobar * (1 + 0.2 * texture), diffuse])
    return (uniform(generator, count, 0.4, 1.0) * shape).clip(0, 0.95)


def _focus(frame: _Frame, count: int, radii: tuple[float, float], generator: np.random.Generator) -> np.ndarray:
    """One rounded focus somewhere in a lung, more often low than high."""
    sign = side_of_body(generator, count)
    u = frame.u - sign * uniform(generator, count, 0.28, 0.68)
    u, v = rotate(u, frame.v - normal(generator, count, 0.12, 0.22), uniform(generator, count, 0, np.pi))
    radius = uniform(generator, count, *radii)
    squared = (u / radius) ** 2 + (v / (radius * uniform(generator, count, 0.7, 1.5))) ** 2
    return inside(1.3 - squared, 2.2)


def _expose(density: np.ndarray, side: int, generator: np.random.Generator) -> np.ndarray:
    """Grey values: film curve, gain, contrast, scatter and grain."""
    count = len(density)
    curve = 1 - np.exp(-uniform(generator, count, 0.7, 1.3) * density.clip(0, None))
    grey = normal(generator, count, 0.06, 0.03) + normal(generator, count, 1.05, 0.08) * curve
    grey += 0.02 * smooth_field(generator, count, 3, side)
    grey += 0.025 * generator.standard_normal(grey.shape, dtype=np.float32)
    return grey
