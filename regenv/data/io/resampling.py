"""Images on other grids, and arrays as SimpleITK's images."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import SimpleITK as sitk

from regenv.data.io.images import Image, normalize
from regenv.grid import Grid

BLUR = 0.35


def coarser(grid: Grid, spacing: float) -> Grid:
    """A grid's own extent and axes at (about) an isotropic spacing."""
    return grid.resized(spacing=spacing)


def reduced(image: Image, grid: Grid) -> np.ndarray:
    """An image on another grid, antialiased, intensities in [0, 1]: float32 (*grid.shape)."""
    smooth = to_sitk(image)
    sigmas = [BLUR * np.sqrt(max(0.0, min(grid.spacing) ** 2 - s**2)) for s in image.grid.spacing]
    if max(sigmas) > 0 and min(image.grid.shape) >= 4:
        smooth = sitk.SmoothingRecursiveGaussian(smooth, [max(s, 1e-3) for s in sigmas])
    return np.clip(_resample(smooth, grid, sitk.sitkLinear), 0, 1).astype(np.float32)


@lru_cache(maxsize=4)
def to_sitk(image: Image) -> sitk.Image:
    """An image as SimpleITK's, intensities in [0, 1]. Remembered for the last images: do not change it."""
    return _framed(normalize(image.array), image.grid)


@lru_cache(maxsize=4)
def foreground_center(image: Image) -> np.ndarray:
    """World centroid of what is not background (Otsu's threshold), mm, (D,)."""
    mask = sitk.OtsuThreshold(to_sitk(image), 0, 1)
    shape = sitk.LabelShapeStatisticsImageFilter()
    shape.Execute(mask)
    return np.array(shape.GetCentroid(1)) if shape.HasLabel(1) else image.grid.center


def resampled(image: Image, like: Grid, through: np.ndarray | sitk.Transform,
              interpolator: int = sitk.sitkLinear) -> Image:
    """An image on another grid through a pull-back (D+1, D+1) or a transform, 0 outside, float32."""
    if isinstance(through, sitk.Transform):
        transform = through
    else:
        n = like.ndim
        transform = sitk.AffineTransform(n)
        transform.SetMatrix(np.asarray(through)[:n, :n].ravel().tolist())
        transform.SetTranslation(np.asarray(through)[:n, n].tolist())
    warped = _resample(_framed(image.array, image.grid), like, interpolator, transform)
    return Image(warped.astype(np.float32), like, image.path)


def _on(array: np.ndarray, grid: Grid, target: Grid, interpolator: int) -> np.ndarray:
    return _resample(_framed(array, grid), target, interpolator)


def _resample(image: sitk.Image, grid: Grid, interpolator: int, transform: sitk.Transform | None = None) -> np.ndarray:
    identity = sitk.Transform(grid.ndim, sitk.sitkIdentity)
    return sitk.GetArrayFromImage(sitk.Resample(image, grid.size, transform or identity, interpolator, grid.origin,
                                                grid.spacing, grid.direction, 0.0, sitk.sitkFloat32))


def _framed(array: np.ndarray, grid: Grid) -> sitk.Image:
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(grid.spacing)
    image.SetOrigin(grid.origin)
    image.SetDirection(grid.direction)
    return image

THINNEST = 4                    # voxels along an axis, for ITK's recursive filters


def framed(array: np.ndarray, grid: Grid) -> sitk.Image:
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(grid.spacing)
    image.SetOrigin(grid.origin)
    image.SetDirection(grid.direction)
    return image


def matrix_to_sitk(pull_back: np.ndarray) -> sitk.AffineTransform:
    """A matrix (D+1, D+1) as SimpleITK's transform from fixed to moving world points."""
    n = len(pull_back) - 1
    transform = sitk.AffineTransform(n)
    transform.SetMatrix(np.asarray(pull_back, dtype=np.float64)[:n, :n].ravel().tolist())
    transform.SetTranslation(np.asarray(pull_back, dtype=np.float64)[:n, n].tolist())
    return transform


def sitk_to_matrix(transform: sitk.Transform) -> np.ndarray:
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
