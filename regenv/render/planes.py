"""How the slices of a grid lie on a screen: three planes in radiological convention, and the letters at their edges."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regenv.grid import Grid

LETTERS = (("L", "R"), ("P", "A"), ("S", "I"))      # where each world axis points to, and where it comes from (LPS)
_OBLIQUE = 0.4                                      # cosine from which on a second letter is told


@dataclass(frozen=True)
class Plane:
    """One family of parallel slices of a grid, and how a slice lies on the screen.

    Attributes:
        name: "Axial", "Coronal" or "Sagittal"; of a 2D image "Image".
        axes: array axes of a 3D array: that one of the slices, the one down the screen, the one across it.
        flipped: whether an index falls downwards, and rightwards.
        letters: at the left, right, top and bottom edge; "" where nothing is known (2D images have no sides).
    """

    name: str
    axes: tuple[int, int, int]
    flipped: tuple[bool, bool]
    letters: tuple[str, str, str, str]

    def slice_of(self, array: NDArray[Any]) -> NDArray[Any]:
        """The middle slice (rows, columns) of an array (D, H, W), or a whole one (H, W), as it lies on the screen."""
        through, down, across = self.axes
        if array.ndim == 2:
            return array
        picture = np.take(array, array.shape[through] // 2, through)
        picture = picture if down < across else picture.T
        return picture[::-1 if self.flipped[0] else 1, ::-1 if self.flipped[1] else 1]


def planes_of(grid: Grid) -> tuple[Plane, ...]:
    """The planes of a grid in radiological convention: the patient's right is on the left of the screen, the front on
    top of an axial and on the left of a sagittal slice, the head's top on top."""
    if grid.ndim == 2:
        return (Plane("Image", (0, 1, 2), (False, False), ("", "", "", "")),)
    cosines = np.asarray(grid.direction, dtype=np.float64).reshape(3, 3)[:, ::-1]      # columns: array axes
    best = max(permutations(range(3)), key=lambda order: sum(abs(cosines[w, a]) for w, a in enumerate(order)))
    signs = [1.0 if cosines[w, a] >= 0 else -1.0 for w, a in enumerate(best)]

    def plane(name: str, through: int, down: int, sense: float, across: int) -> Plane:
        below = _letters(sense * signs[down] * cosines[:, best[down]])
        right = _letters(signs[across] * cosines[:, best[across]])
        return Plane(name, (best[through], best[down], best[across]), (sense * signs[down] < 0, signs[across] < 0),
                     (_opposite(right), right, _opposite(below), below))

    left, posterior, superior = range(3)
    return (plane("Axial", superior, posterior, 1, left), plane("Coronal", posterior, superior, -1, left),
            plane("Sagittal", left, superior, -1, posterior))


def _letters(direction: NDArray[np.float64]) -> str:
    """Where a unit vector (LPS) points to: a letter, or two for an oblique one, the nearer first."""
    order = sorted(range(3), key=lambda axis: -abs(direction[axis]))[:2]
    return "".join(LETTERS[axis][int(direction[axis] < 0)] for rank, axis in enumerate(order)
                   if rank == 0 or abs(direction[axis]) > _OBLIQUE)


def _opposite(letters: str) -> str:
    opposites = dict(LETTERS) | {back: there for there, back in LETTERS}
    return "".join(opposites[letter] for letter in letters)
