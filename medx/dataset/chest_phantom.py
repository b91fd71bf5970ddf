"""Chest radiographs drawn from anatomy: SYNTHETIC, and no program fitted it to data.

Radiodensities add up along the beam and a film curve turns them into grey values (Bushberg et al. 2011, ch. 7);
the outlines follow the frontal view of textbooks (Goodman 2014). An opacity is air replaced by fluid.
"""

from dataclasses import dataclass, replace

import numpy as np

from medx.dataset.drawing import Sheet, bell, draw_in_chunks, inside, rotate

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


def _draw(labels: np.ndarray, sheet: Sheet) -> np.ndarray:
    frame = _pose(sheet)
    cage, lungs, below = _lungs(frame, sheet)
    opacity = np.zeros_like(lungs)
    diseased = np.flatnonzero(labels)
    if len(diseased):
        own = _Frame(frame.u[diseased], frame.v[diseased], frame.aside[diseased], frame.left[diseased])
        opacity[diseased] = _opacity(own, replace(sheet, count=len(diseased)))
    inflation = sheet.normal(1, 0.08) + 0.06 * sheet.smooth_field(4)
    density = _soft_tissue(frame, sheet)
    density += below * sheet.uniform(0.1, 0.35)
    density += _mediastinum(frame, sheet)
    density += cage * _bones(frame, sheet)
    density += lungs * _vessels(frame, sheet)
    density -= AIR * lungs * inflation * (1 - opacity)
    return _expose(density, sheet)[..., None]


def _pose(sheet: Sheet) -> _Frame:
    x, y = sheet.plane()
    x, y = rotate(x, y, sheet.normal(0, 0.04))
    u = (x - sheet.normal(0, 0.04)) * sheet.normal(0.98, 0.06)
    v = (y - sheet.normal(0, 0.05)) * sheet.normal(0.98, 0.06)
    return _Frame(u, v, np.abs(u), u > 0)


def _lungs(frame: _Frame, sheet: Sheet) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The rib cage, the lungs in it, and what lies below the diaphragm."""
    width, top = sheet.normal(0.86, 0.05), sheet.normal(-0.86, 0.05)
    across, along = frame.aside / width, (0.3 - frame.v) / (0.3 - top)
    radius = np.where(frame.v < 0.3, across**2 + along**2 * (0.6 + 0.4 * np.abs(along)), across**2)
    cage = inside(1 - radius, 0.16)
    right, drop = sheet.normal(0.62, 0.08), sheet.uniform(-0.02, 0.12)
    height = sheet.uniform(0.1, 0.24)
    dome = right + drop * frame.left - height * (1 - ((frame.aside - 0.4) / 0.48) ** 2)
    above = inside(dome - frame.v, 0.08)
    lungs = cage * above * inside(frame.aside - sheet.normal(0.12, 0.02), 0.1)
    return cage, lungs, cage * (1 - above)


def _soft_tissue(frame: _Frame, sheet: Sheet) -> np.ndarray:
    """The trunk and shoulders; beside the chest wall, under the arms, the beam meets only air."""
    wall = sheet.normal(1.0, 0.05) - 0.12 * inside(frame.v - 0.1, 1.2)
    trunk = inside(wall - frame.aside, 0.2)
    shoulders = inside(-0.42 - frame.v - 0.25 * (1 - frame.aside), 0.25)
    neck = inside(frame.aside - 0.3 + 0.5 * (frame.v + 0.95), 0.1) * inside(-0.88 - frame.v, 0.12)
    return sheet.normal(1.0, 0.06) * (np.maximum(trunk, shoulders) - 0.5 * neck)


def _mediastinum(frame: _Frame, sheet: Sheet) -> np.ndarray:
    """Heart, great vessels, spine and windpipe."""
    u, v = frame.u, frame.v
    axis, down = rotate(u - sheet.normal(0.13, 0.04), v - sheet.normal(0.24, 0.05), sheet.normal(0.45, 0.12))
    size = sheet.normal(1, 0.1)
    heart = inside(1 - (axis / (0.43 * size)) ** 2 - (down / (0.33 * size)) ** 2, 0.5)
    half = sheet.normal(0.15, 0.025) + 0.03 * np.abs(v)
    band = inside(half - np.abs(u - sheet.normal(0.02, 0.015)), 0.09)
    knob = bell(((u - 0.15) ** 2 + (v + 0.3) ** 2) / 0.011)
    discs = 1 + 0.2 * np.cos(2 * np.pi * (4.5 * v + sheet.uniform(0, 1)))
    spine = bell((u / 0.1) ** 2) * discs
    windpipe = bell((u / 0.05) ** 2) * inside(-0.22 - v, 0.2)
    strength = sheet.normal(1, 0.1)
    return strength * (0.55 * np.maximum(heart, band) + 0.15 * knob + 0.25 * spine) - 0.3 * windpipe


def _bones(frame: _Frame, sheet: Sheet) -> np.ndarray:
    """Posterior ribs that fall away from the spine, fainter anterior ribs that rise, and the collar bones."""
    pitch = sheet.normal(5.0, 0.4)  # ribs in one unit of height
    start, contrast = sheet.uniform(0, 1), sheet.uniform(0.08, 0.2)
    fall = sheet.normal(0.4, 0.08)
    behind = np.cos(2 * np.pi * (pitch * (frame.v - fall * frame.aside**2) + start))
    before = np.cos(2 * np.pi * (pitch * (frame.v + 0.75 * frame.aside) - start))
    ribs = inside(behind - 0.35, 0.8) * (0.6 + 0.9 * frame.aside**2) + 0.35 * inside(before - 0.5, 0.8)
    slope = sheet.normal(0.2, 0.08)
    line = frame.v + sheet.normal(0.62, 0.05) + slope * frame.aside
    collar = bell((line / 0.05) ** 2) * inside(frame.aside - 0.1, 0.1)
    return contrast * ribs * inside(frame.aside - 0.1, 0.1) + sheet.uniform(0.08, 0.22) * collar


def _vessels(frame: _Frame, sheet: Sheet) -> np.ndarray:
    """The hila, and vascular markings that fade towards the chest wall."""
    height = np.where(frame.left, np.float32(-0.04), np.float32(0.02))
    near = bell(((frame.aside - 0.2) / 0.13) ** 2 + ((frame.v - height) / 0.17) ** 2)
    reach = bell(((frame.aside - 0.2) / 0.4) ** 2 + ((frame.v - height) / 0.5) ** 2)
    fine = 0.6 * sheet.smooth_field(14) + 0.4 * sheet.smooth_field(24)
    return sheet.uniform(0.1, 0.3) * near + sheet.uniform(0.05, 0.13) * reach * fine


def _opacity(frame: _Frame, sheet: Sheet) -> np.ndarray:
    """The share of air that is gone, 0..1: patchy, lobar or diffuse, a third of the images each."""
    kind = sheet.generator.integers(0, 3, (sheet.count, 1, 1))
    lobar = _focus(frame, (0.2, 0.42), sheet)
    patchy = np.zeros_like(lobar)
    for index in range(4):
        present = (sheet.generator.random((sheet.count, 1, 1)) < 1 - 0.2 * index).astype(np.float32)
        patchy = np.maximum(patchy, present * _focus(frame, (0.09, 0.2), sheet))
    perihilar = bell(((frame.aside - 0.35) / 0.5) ** 2 + ((frame.v - 0.1) / 0.6) ** 2)
    texture = sheet.smooth_field(9)
    diffuse = 0.55 * perihilar * (1 + 0.6 * texture)
    shape = np.choose(kind, [patchy * (1 + 0.2 * texture), lobar * (1 + 0.2 * texture), diffuse])
    return (sheet.uniform(0.4, 1.0) * shape).clip(0, 0.95)


def _focus(frame: _Frame, radii: tuple[float, float], sheet: Sheet) -> np.ndarray:
    """One rounded focus somewhere in a lung, more often low than high."""
    sign = sheet.side_of_body()
    u = frame.u - sign * sheet.uniform(0.28, 0.68)
    u, v = rotate(u, frame.v - sheet.normal(0.12, 0.22), sheet.uniform(0, np.pi))
    radius = sheet.uniform(*radii)
    squared = (u / radius) ** 2 + (v / (radius * sheet.uniform(0.7, 1.5))) ** 2
    return inside(1.3 - squared, 2.2)


def _expose(density: np.ndarray, sheet: Sheet) -> np.ndarray:
    """Grey values: film curve, gain, contrast, scatter and grain."""
    curve = 1 - np.exp(-sheet.uniform(0.7, 1.3) * density.clip(0, None))
    grey = sheet.normal(0.06, 0.03) + sheet.normal(1.05, 0.08) * curve
    grey += 0.02 * sheet.smooth_field(3)
    grey += 0.025 * sheet.generator.standard_normal(grey.shape, dtype=np.float32)
    return grey
