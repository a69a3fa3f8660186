"""Where a page's volumes lie: reduced grids, 2D lifted into 3D, and how the planes of a grid lie in the body."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import permutations

import numpy as np
from numpy.typing import ArrayLike, NDArray

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


def view_grid(grid: Grid, most: int, longest: int) -> Grid:
    """The finest grid over the same extent with at most so many voxels in all and along an axis; no axis gets finer
    than it is, and the others become as near to isotropic as that allows."""
    def shape(spacing: float) -> tuple[int, ...]:
        return tuple(max(1, min(n, round(e / spacing)))
                     for n, e in zip(grid.shape, grid.extent[::-1], strict=True))

    fine, coarse = min(grid.spacing), max(grid.extent)
    if _fits(shape(fine), most, longest):
        return grid
    for _ in range(50):
        middle = math.sqrt(fine * coarse)
        fine, coarse = (fine, middle) if _fits(shape(middle), most, longest) else (middle, coarse)
    return grid.resized(shape=shape(coarse))


def _fits(shape: tuple[int, ...], most: int, longest: int) -> bool:
    return math.prod(shape) <= most and max(shape) <= longest


def lifted_frame(grid: Grid) -> NDArray[np.float64]:
    """From voxels of the array as (D, H, W) to the world, (4, 4), mm; a 2D image is the slice at z = 0."""
    frame = grid.voxel_to_world
    if grid.ndim == 3:
        return frame
    matrix = np.eye(4)
    matrix[:2, :3] = np.column_stack([np.zeros(2), frame[:2, :2]])
    matrix[2, :3] = (1, 0, 0)
    matrix[:2, 3] = frame[:2, 2]
    return matrix


def lifted_pose(pull_back: ArrayLike) -> NDArray[np.float64]:
    """A pull-back (D+1, D+1) as (4, 4), mm; a 2D one leaves z alone.

    Raises: ValueError: it is neither (3, 3) nor (4, 4), or not finite.
    """
    pose = np.asarray(pull_back, dtype=np.float64)
    if pose.shape not in ((3, 3), (4, 4)) or not np.isfinite(pose).all():
        raise ValueError(f"report: a pose has shape {pose.shape}; it must be a finite (3, 3) or (4, 4) matrix.")
    if len(pose) == 4:
        return pose
    matrix = np.eye(4)
    matrix[np.ix_([0, 1, 3], [0, 1, 3])] = pose
    return matrix
