"""Breathing as closed formulas: from a point of an image to the point of the painted chest, and back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from regenv.data.phantoms.lung_anatomy import Chest

WAVES = 6
_WAVELENGTHS_MM = (130.0, 280.0)
_CALM = 0.45            # share of the diaphragm's motion that the organs between the lungs do not follow
_CALM_WIDTH = 0.22      # distance from the middle up to which that holds, over the cavity's half-width
_SHEAR_MM = 5.0         # distance over which one lobe's motion becomes the other's
_RIBS_MM = (-10.0, 110.0)   # middle level of the ribs' motion, and how far it reaches
_STEPS, _EXACT_MM = 80, 1e-5


@dataclass(frozen=True)
class Motion:
    """Motion from full exhale to full inhale, mm.

    Attributes:
        diaphragm: downwards; the lungs follow it, less towards the apex, where nothing moves.
        deepen, widen: of the breast bone forwards, and of each side outwards.
        lift: of the front of the ribs, upwards.
        lobes: of the lower lobes beyond the upper ones', along the fissures.
        back, left: relative growth of the diaphragm's motion towards the back and the left.
    """

    diaphragm: float
    deepen: float
    widen: float
    lift: float
    lobes: float
    back: float
    left: float


@dataclass(frozen=True)
class Breath:
    """The breathing state of a chest in one image.

    Points of the image are in the patient's frame, mm: (..., 3), or in 2D (..., 2) on a coronal sheet, x to the left
    and y down.

    Attributes:
        chest: as painted, half-way between exhale and inhale.
        motion: from exhale to inhale.
        phase: -0.5 at exhale to 0.5 at inhale.
        bending: smooth random displacement: wave vectors (K, 3), 1/mm; phases (K,); amplitudes (K, 3), mm.
        sheet: place of a 2D image in the chest's outline, -1 to 1 from front to back; None in 3D.
    """

    chest: Chest
    motion: Motion
    phase: float
    bending: tuple[np.ndarray, np.ndarray, np.ndarray]
    sheet: float | None = None

    def wall(self, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Places x, y, z (...) in the painted chest's wall of points (..., D) of the image."""
        x, y, z = self._bent(self._lifted(points))
        middle, reach = _RIBS_MM
        ribs = self.phase * torch.exp(-(((z - middle) / reach) ** 2))
        x = x * (1 - self.motion.widen / self.chest.width * ribs)
        front = 0.5 - 0.5 * (y / self.chest.depth if self.sheet is None else self.sheet)
        z = z - self.motion.lift * ribs * front
        if self.sheet is not None:
            _, depth, center = self.chest.levels(z)
            return x, center + self.sheet * depth, z
        return x, y + self.motion.deepen * ribs * front, z

    def lung(self, wall: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Places x, y, z in the painted cavity of what is seen at places of :meth:`wall`.

        Everything in the cavity keeps its place in the outline and slides along the wall.
        """
        x, y, z = wall
        across, back = self.chest.outline(x, y, z)
        t = ((self.chest.apex - z) / self.chest.height).clamp(0, 1)
        down = self.phase * t * t * (3 - 2 * t)
        calm = 1 - _CALM * torch.exp(-((across / _CALM_WIDTH) ** 2))
        uneven = 1 + self.motion.back * back.clamp(-1.2, 1.2) + self.motion.left * across.clamp(-1.2, 1.2)
        z = z + self.motion.diaphragm * down * calm * uneven
        lower = torch.sigmoid(self.chest.fissure(x, y, z) / -_SHEAR_MM) - 0.5
        z = z + self.motion.lobes * down * lower
        width, depth, middle = self.chest.levels(z)
        return across * width, middle + back * depth, z

    def pull_back(self, points: Tensor) -> Tensor:
        """Points (N, D) of the image to points (N, D) of the painted cavity."""
        return self._lowered(self.lung(self.wall(points)))

    def push(self, points: Tensor) -> Tensor:
        """Points (N, D) float64 of the painted cavity to points of the image, the inverse of :meth:`pull_back`.

        By fixed-point iteration to 1e-5 mm; NaN where it does not converge.
        """
        found = points.clone()
        for _ in range(_STEPS):
            missing = points - self.pull_back(found)
            if float(missing.abs().max()) < _EXACT_MM:
                return found
            found = found + missing
        found[~((points - self.pull_back(found)).abs() < _EXACT_MM).all(-1)] = torch.nan
        return found

    def _lifted(self, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if self.sheet is None:
            x, y, z = points.unbind(-1)
            return x, y, z
        x, y = points.unbind(-1)
        return x, torch.zeros_like(x), -y

    def _lowered(self, xyz: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        return torch.stack(xyz if self.sheet is None else (xyz[0], -xyz[2]), -1)

    def _bent(self, xyz: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        shifted = list(xyz)
        for vector, phase, amplitude in zip(*(each.tolist() for each in self.bending), strict=True):
            if any(amplitude):
                wave = torch.cos(vector[0] * xyz[0] + vector[1] * xyz[1] + vector[2] * xyz[2] + phase)
                shifted = [s + a * wave for s, a in zip(shifted, amplitude, strict=True)]
        return shifted[0], shifted[1], shifted[2]


def random_waves(rng: np.random.Generator, rms_mm: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A smooth random displacement: a sum of plane waves, root mean square ``rms_mm`` in each direction.

    Returns: ``bending`` of :class:`Breath`.
    """
    vectors = rng.normal(size=(WAVES, 3))
    vectors *= 2 * np.pi / (np.linalg.norm(vectors, axis=1, keepdims=True) * rng.uniform(*_WAVELENGTHS_MM, (WAVES, 1)))
    amplitudes = rng.normal(size=(WAVES, 3))
    amplitudes *= rms_mm * np.sqrt(2) / np.maximum(np.linalg.norm(amplitudes, axis=0), 1e-9)
    return vectors, rng.uniform(0, 2 * np.pi, WAVES), amplitudes
