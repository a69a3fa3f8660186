"""Arrays and matrices as SimpleITK's images and transforms and back; images on other grids, antialiased."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import ArrayLike, DTypeLike, NDArray

from regenv.data.io.errors import ImageError, OffImageError
from regenv.data.io.images import Image, normalize
from regenv.grid import Grid

SHORTEST_AXIS = 4       # voxels along an axis that ITK's recursive filters need
BLUR = 0.35             # sigma against aliasing, of the spacing that is sampled at


# ------------------------------------------------------------------------------------------------ to SimpleITK and back

def framed(array: ArrayLike, grid: Grid, dtype: DTypeLike | None = None) -> sitk.Image:
    """A SimpleITK image of an array on a grid.

    Args: array: (*grid.shape), or (*grid.shape, C) for vectors; dtype: of the image's numbers, default the array's.
    Raises ValueError: the array has another shape than the grid.
    """
    values: NDArray[Any] = np.asarray(array, dtype)
    if values.shape[:grid.ndim] != grid.shape or values.ndim - grid.ndim not in (0, 1):
        raise ValueError(f"framed: the array's shape is {values.shape}; its grid has {grid.shape} voxels.")
    image = sitk.GetImageFromArray(values, isVector=values.ndim > grid.ndim)
    image.SetSpacing(grid.spacing)
    image.SetOrigin(grid.origin)
    image.SetDirection(grid.direction)
    return image


@lru_cache(maxsize=4)
def to_sitk(image: Image) -> sitk.Image:
    """An image as SimpleITK's, intensities in [0, 1]. The last images are cached: do not change the result."""
    return framed(normalize(image.array), image.grid)


def matrix_to_sitk(pull_back: ArrayLike) -> sitk.AffineTransform:
    """A matrix (D+1, D+1) as SimpleITK's transform from fixed to moving world points."""
    matrix = np.asarray(pull_back, dtype=np.float64)
    n = len(matrix) - 1
    transform = sitk.AffineTransform(n)
    transform.SetMatrix(matrix[:n, :n].ravel().tolist())
    transform.SetTranslation(matrix[:n, n].tolist())
    return transform


def sitk_to_matrix(transform: sitk.Transform) -> NDArray[np.float64]:
    """The matrix (D+1, D+1) of a linear SimpleITK transform (Euler, Versor, similarity, affine), whatever its centre.

    Raises: ValueError: the transform is not linear.
    """
    if not transform.IsLinear():
        raise ValueError(f"sitk_to_matrix: the transform is {transform.GetName()}; only a linear one has a matrix.")
    n = transform.GetDimension()
    matrix = np.eye(n + 1)
    matrix[:n, n] = transform.TransformPoint([0.0] * n)
    for axis in range(n):
        matrix[:n, axis] = transform.TransformPoint(np.eye(n)[axis].tolist()) - matrix[:n, n]
    return matrix


# ---------------------------------------------------------------------------------------------------- on other grids

def antialiased(image: sitk.Image, spacing: Sequence[float]) -> sitk.Image:
    """An image smoothed along its axes that are finer than the spacing (mm, ITK order) that it will be sampled at.

    Unchanged where no axis is finer, or one has fewer than four voxels.
    """
    sigmas = [BLUR * math.sqrt(max(0.0, target**2 - own**2))
              for target, own in zip(spacing, image.GetSpacing(), strict=True)]
    if max(sigmas) == 0 or min(image.GetSize()) < SHORTEST_AXIS:
        return image
    return sitk.SmoothingRecursiveGaussian(image, [max(sigma, 1e-3) for sigma in sigmas])


def sampled(image: sitk.Image, grid: Grid, transform: sitk.Transform | None = None, fill: float = 0.0,
            interpolator: int = sitk.sitkLinear, pixel: int = sitk.sitkFloat32) -> NDArray[Any]:
    """A SimpleITK image's values on a grid, (*grid.shape), ``fill`` outside.

    Args: transform: from the grid's world points to the image's, default the identity; pixel: type of the numbers.
    """
    through = sitk.Transform(grid.ndim, sitk.sitkIdentity) if transform is None else transform
    return sitk.GetArrayFromImage(sitk.Resample(image, grid.size, through, interpolator, grid.origin, grid.spacing,
                                                grid.direction, fill, pixel))


def reduced(image: Image, grid: Grid) -> NDArray[np.float32]:
    """An image on another grid, antialiased, intensities in [0, 1]: float32 (*grid.shape)."""
    smooth = antialiased(to_sitk(image), [min(grid.spacing)] * grid.ndim)
    return np.clip(sampled(smooth, grid), 0, 1)


def resampled(image: Image, like: Grid, through: ArrayLike | sitk.Transform, fill: float | None = None,
              interpolator: int = sitk.sitkLinear) -> Image:
    """An image on another grid through a pull-back (D+1, D+1) or a transform, float32.

    Args: fill: value outside the image, default its least one (air in a CT, where 0 would be water); interpolator:
    SimpleITK's.
    """
    outside = float(image.array.min()) if fill is None else fill
    return Image(sampled(framed(image.array, image.grid), like, _transform(through), outside, interpolator), like,
                 image.path)


def resampled_labels(labels: Image, like: Grid, through: ArrayLike | sitk.Transform) -> Image:
    """Labels or a mask on another grid: the nearest voxel's, 0 outside, in their own integer type."""
    array, numbers = labels.array, None
    if array.dtype.itemsize > 4:    # ITK passes numbers through float64, which does not hold all of 64 bits
        found, places = np.unique(array, return_inverse=True)
        array, numbers = places.reshape(array.shape).astype(np.int32) + 1, np.append(np.zeros_like(found[:1]), found)
    image = framed(array, labels.grid, np.uint8 if array.dtype == bool else None)
    found = sampled(image, like, _transform(through), 0.0, sitk.sitkNearestNeighbor, image.GetPixelID())
    return Image(found if numbers is None else numbers[found], like, labels.path)


def on_image(labels: Image, image: Image) -> Image:
    """Labels or a mask on the grid of the image that they belong to.

    Raises: ImageError: they are of another dimension. OffImageError: they are 0 in every voxel of the image.
    """
    if labels.ndim != image.ndim:
        raise ImageError(f"{labels.path}: it is {labels.ndim}D, but {image.path} is {image.ndim}D; both must have the "
                         "same dimension.")
    found = resampled_labels(labels, image.grid, np.eye(image.ndim + 1))
    if not found.array.any():
        raise OffImageError(f"{labels.path}: it is 0 in every voxel of {image.path} (their middles are "
                            f"{labels.grid.center.round(1).tolist()} and {image.grid.center.round(1).tolist()} mm); it "
                            "must lie on the image. Fix its origin, or give the image's own.")
    return found


def _transform(through: ArrayLike | sitk.Transform) -> sitk.Transform:
    return through if isinstance(through, sitk.Transform) else matrix_to_sitk(through)


@lru_cache(maxsize=4)
def foreground_center(image: Image) -> NDArray[np.float64]:
    """World centroid of what is not background (Otsu's threshold), mm, (D,)."""
    mask = sitk.OtsuThreshold(to_sitk(image), 0, 1)
    shape = sitk.LabelShapeStatisticsImageFilter()
    shape.Execute(mask)
    return np.array(shape.GetCentroid(1)) if shape.HasLabel(1) else image.grid.center
