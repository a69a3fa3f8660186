"""What the methods share: their result, the checks of what they are given, SimpleITK's images and matrices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk
from torch import Tensor

from regenv.grid import Grid

LEAST_OVERLAP = 0.05  # of the samples, below which mutual information means nothing
_SHORTEST_AXIS = 4    # voxels, for the recursive Gaussian


@dataclass(frozen=True, eq=False)
class Result:
    """A registration's outcome.

    Attributes:
        pull_back: (D+1, D+1) float64, fixed world points to moving world points, mm.
        metric: value reached, lower is better; ``inf`` where the images do not overlap or one of them has a single
            value (``pull_back`` is then the start).
        seconds: wall time.
        iterations: optimiser iterations (evaluations of the metric, for :class:`Refinement`).
    """

    pull_back: np.ndarray
    metric: float
    seconds: float
    iterations: int


def to_sitk(array: np.ndarray | Tensor, grid: Grid) -> sitk.Image:
    """A SimpleITK image of an array (*shape) on a grid, float32.

    Raises: ValueError: the array has another shape than the grid.
    """
    values = np.asarray(array.detach().cpu() if isinstance(array, Tensor) else array, dtype=np.float32)
    if values.shape != tuple(grid.shape):
        raise ValueError(f"to_sitk: the array's shape is {values.shape}; its grid has {tuple(grid.shape)} voxels.")
    image = sitk.GetImageFromArray(values)
    image.SetSpacing(grid.spacing)
    image.SetOrigin(grid.origin)
    image.SetDirection(grid.direction)
    return image


def working(image: sitk.Image, voxels: int) -> sitk.Image:
    """The image in float32, averaged over whole blocks until it has at most ``voxels``, the finest axes first."""
    factors = np.ones(image.GetDimension(), dtype=np.int64)
    spacing = np.asarray(image.GetSpacing())
    size = np.asarray(image.GetSize())
    while np.prod(size // factors) > voxels:
        current = np.where(size // (factors + 1) < _SHORTEST_AXIS, np.inf, spacing * factors)
        if np.isinf(current).all():
            break
        factors[current < 1.01 * current.min()] += 1  # axes of one spacing stay alike
    image = sitk.Cast(image, sitk.sitkFloat32)
    return sitk.BinShrink(image, factors.tolist()) if factors.max() > 1 else image


def checked(who: str, fixed: sitk.Image, moving: sitk.Image, initial: np.ndarray) -> np.ndarray:
    n = fixed.GetDimension()
    if n not in (2, 3) or moving.GetDimension() != n:
        raise ValueError(f"{who}: the fixed image is {n}D and the moving one {moving.GetDimension()}D; "
                         "both must be 2D, or both 3D.")
    for name, image in (("fixed", fixed), ("moving", moving)):
        if image.GetNumberOfComponentsPerPixel() != 1:
            raise ValueError(f"{who}: the {name} image has {image.GetNumberOfComponentsPerPixel()} channels; "
                             "give one channel, such as its grey values.")
        if min(image.GetSize()) < _SHORTEST_AXIS:
            raise ValueError(f"{who}: the {name} image has {image.GetSize()} voxels; every axis needs at least "
                             f"{_SHORTEST_AXIS}. Register a single slice as a 2D image.")
    pose = np.asarray(initial, dtype=np.float64)
    if pose.shape != (n + 1, n + 1) or not np.isfinite(pose).all():
        raise ValueError(f"{who}: initial has shape {pose.shape}; a {n}D pose is a finite ({n + 1}, {n + 1}) matrix.")
    return pose


def turn_generators(n: int) -> np.ndarray:
    """Generators of the rotations about x, y and z in 3D, of the one in 2D: (D(D-1)/2, D, D), skew-symmetric."""
    planes: Sequence[tuple[int, int]] = {2: ((0, 1),), 3: ((1, 2), (2, 0), (0, 1))}[n]
    turns = np.zeros((len(planes), n, n))
    for turn, (a, b) in zip(turns, planes, strict=True):
        turn[b, a], turn[a, b] = 1.0, -1.0
    return turns


def shift(offset: np.ndarray) -> np.ndarray:
    matrix = np.eye(len(offset) + 1)
    matrix[:-1, -1] = offset
    return matrix


def is_flat(*images: sitk.Image) -> bool:
    """Whether all voxels of one of the images have one value, which nothing explains.

    Raises ValueError: voxels are NaN or infinite.
    """
    contrasts = []
    for image in images:
        values = sitk.GetArrayViewFromImage(image)
        low, high = float(values.min()), float(values.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            bad = int((~np.isfinite(values)).sum())
            raise ValueError(f"registration: {bad} voxels of an image of size {image.GetSize()} are NaN or infinite; "
                             "replace them, such as by the background.")
        contrasts.append(high - low)
    return not min(contrasts) > 0
