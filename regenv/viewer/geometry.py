"""Where a page's volumes lie: reduced grids, and 2D lifted into 3D."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from regenv.grid import Grid


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
