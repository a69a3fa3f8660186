"""What the classical methods share: their contracts, their result, and the checks of their arguments."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from regenv.data.io.resampling import SHORTEST_AXIS

LEAST_OVERLAP = 0.05  # of the samples, below which mutual information means nothing


@dataclass(frozen=True, eq=False)
class Result:
    """A registration's outcome.

    Attributes:
        pull_back: (D+1, D+1), fixed world points to moving world points, mm.
        metric: value reached, lower is better; ``inf`` if the images do not overlap or one of them is constant
            (``pull_back`` is then the start).
        seconds: wall time.
        iterations: optimiser iterations (evaluations of the metric, for :class:`Refinement`).
    """

    pull_back: NDArray[np.float64]
    metric: float
    seconds: float
    iterations: int


class PoseMethod(Protocol):
    """A method that registers two images by one linear map, such as :class:`~regagents.classical.MattesMI`."""

    def register(self, fixed: sitk.Image, moving: sitk.Image, initial: NDArray[np.float64],
                 center: NDArray[np.float64]) -> Result:
        """Register from a pose.

        Args:
            fixed, moving: scalar images, 2D or 3D.
            initial: (D+1, D+1), the pull-back to start from, mm.
            center: (D,), fixed world point that rotations turn about, mm.
        Raises: ValueError: the images or the initial pose do not fit together.
        """


class FieldMethod(Protocol):
    """A method that registers two images by a displacement field, such as
    :class:`~regagents.classical.deformable.Demons`."""

    def register(self, fixed: sitk.Image, moving: sitk.Image) -> NDArray[np.float32]:
        """Displacement (D, *shape), voxels of the fixed image, array-axis order; zero where one image is flat."""


def from_zero(image: sitk.Image) -> sitk.Image:
    """An image less its least value, float32: resampled with 0 outside, it is there as dark as its background, and a
    constant that is added to all of it changes nothing."""
    least = float(sitk.GetArrayViewFromImage(image).min())
    return sitk.Cast(sitk.Cast(image, sitk.sitkFloat64) - least, sitk.sitkFloat32)


def downsampled(image: sitk.Image, voxels: int) -> sitk.Image:
    """The image in float32, averaged over whole blocks until it has at most ``voxels``, the finest axes first."""
    factors = np.ones(image.GetDimension(), dtype=np.int64)
    spacing = np.asarray(image.GetSpacing())
    size = np.asarray(image.GetSize())
    while np.prod(size // factors) > voxels:
        current = np.where(size // (factors + 1) < SHORTEST_AXIS, np.inf, spacing * factors)
        if np.isinf(current).all():
            break
        factors[current < 1.01 * current.min()] += 1  # axes of one spacing stay alike
    image = sitk.Cast(image, sitk.sitkFloat32)
    return sitk.BinShrink(image, factors.tolist()) if factors.max() > 1 else image


def blurred(image: sitk.Image, sigma: float) -> sitk.Image:
    """Gaussian smoothing, sigma in mm, along the axes that are long enough for the recursive filter."""
    for axis, size in enumerate(image.GetSize()):
        if sigma > 0 and size >= SHORTEST_AXIS:
            image = sitk.RecursiveGaussian(image, sigma=sigma, direction=axis)
    return image


def checked(who: str, fixed: sitk.Image, moving: sitk.Image, initial: NDArray[np.float64]) -> NDArray[np.float64]:
    """The initial pose, checked together with the images. Raises ValueError, which names the method ``who``."""
    n = fixed.GetDimension()
    if n not in (2, 3) or moving.GetDimension() != n:
        raise ValueError(f"{who}: the fixed image is {n}D and the moving one {moving.GetDimension()}D; "
                         "both must be 2D, or both 3D.")
    for name, image in (("fixed", fixed), ("moving", moving)):
        if image.GetNumberOfComponentsPerPixel() != 1:
            raise ValueError(f"{who}: the {name} image has {image.GetNumberOfComponentsPerPixel()} channels; "
                             "give one channel, such as its grey values.")
        if min(image.GetSize()) < SHORTEST_AXIS:
            raise ValueError(f"{who}: the {name} image has {image.GetSize()} voxels; every axis needs at least "
                             f"{SHORTEST_AXIS}. Register a single slice as a 2D image.")
    pose = np.asarray(initial, dtype=np.float64)
    if pose.shape != (n + 1, n + 1) or not np.isfinite(pose).all():
        raise ValueError(f"{who}: initial has shape {pose.shape}; a {n}D pose is a finite ({n + 1}, {n + 1}) matrix.")
    return pose


def jittered_lattice(shape: tuple[int, ...], samples: int, seed: int) -> NDArray[np.float64]:
    """About ``samples`` voxel points (N, D), one at a random place in each cell of a regular lattice."""
    last = np.asarray(shape, dtype=np.float64) - 1
    pitch = max(1.0, float((np.prod(shape) / samples) ** (1 / len(shape))))
    corners = np.stack(np.meshgrid(*(np.arange(0, n, pitch) for n in last), indexing="ij"), -1).reshape(-1, len(shape))
    points = corners + pitch * np.random.default_rng(seed).random(corners.shape)
    return points[(points <= last).all(1)]


def turn_generators(n: int) -> NDArray[np.float64]:
    """Generators of the rotations, about x, y and z in 3D: (D(D-1)/2, D, D), skew-symmetric."""
    planes: Sequence[tuple[int, int]] = {2: ((0, 1),), 3: ((1, 2), (2, 0), (0, 1))}[n]
    turns = np.zeros((len(planes), n, n))
    for turn, (a, b) in zip(turns, planes, strict=True):
        turn[b, a], turn[a, b] = 1.0, -1.0
    return turns


def shift(offset: NDArray[np.float64]) -> NDArray[np.float64]:
    """The matrix (D+1, D+1) of a translation."""
    matrix = np.eye(len(offset) + 1)
    matrix[:-1, -1] = offset
    return matrix


def is_flat(*images: sitk.Image) -> bool:
    """Whether one of the images is constant.

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
