"""How subjects are brought together: by translation from the intensities, rigidly from masks; through SimpleITK."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk

from regenv.data.io import Image, ImageError, normalize
from regenv.grid import Grid

THINNEST = 4                    # voxels along an axis, for ITK's recursive filters
_WORKING_MM = 3.0               # in which translations are found
_LEVER_MM = 14.0                # of rotations about an organ's centre: about its radius
_NEAR_MM = 8.0                  # from its surface, within which a mask's distance counts


def working(image: Image) -> sitk.Image:
    """Intensities in [0, 1], averaged to about the spacing in which translations are found."""
    sizes = zip(image.grid.spacing, image.grid.size, strict=True)
    factors = [max(1, min(round(_WORKING_MM / s), n // THINNEST)) for s, n in sizes]
    return sitk.BinShrink(framed(normalize(image.array), image.grid), factors)


def translation(fixed: sitk.Image, image: Image) -> np.ndarray:
    """From fixed to moving world points, (3,) mm, by Mattes mutual information from aligned image centres."""
    moving = working(image)
    centers = [Grid.from_sitk(each).center for each in (fixed, moving)]
    transform = sitk.TranslationTransform(3, (centers[1] - centers[0]).tolist())
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(32)
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentage(0.3, 1)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(1.0, 0.02, 60)
    method.SetShrinkFactorsPerLevel([1, 1])
    method.SetSmoothingSigmasPerLevel([2, 1])
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOn()
    method.SetNumberOfThreads(1)
    method.SetInitialTransform(transform, inPlace=True)
    try:
        method.Execute(fixed, moving)
    except RuntimeError as error:
        raise ImageError(f"{image.path}: no translation to the template is found: the images do not overlap "
                         "enough. Check the field of view, or leave the subject out.") from error
    return np.array(transform.GetOffset())


def rigid(fixed: np.ndarray, moving: np.ndarray, grid: Grid) -> np.ndarray:
    """Pull-back (D+1, D+1), mm, under which two masks overlap best: from aligned centroids, by the squared difference
    of their distance maps near the surfaces."""
    near = [_near_surface(mask, grid) for mask in (fixed, moving)]
    centers = [grid.to_world(np.argwhere(mask).mean(0)) for mask in (fixed, moving)]
    transform = sitk.Euler2DTransform() if grid.ndim == 2 else sitk.Euler3DTransform()
    transform.SetCenter(centers[0].tolist())
    transform.SetTranslation((centers[1] - centers[0]).tolist())
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMeanSquares()
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentage(0.2, 1)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(2.0, 0.005, 100, 0.7)
    method.SetOptimizerScales([_LEVER_MM**2] * (grid.ndim * (grid.ndim - 1) // 2) + [1.0] * grid.ndim)
    method.SetNumberOfThreads(1)
    method.SetInitialTransform(transform, inPlace=True)
    method.Execute(*near)
    n = grid.ndim
    matrix = np.eye(n + 1)
    matrix[:n, :n] = np.reshape(transform.GetMatrix(), (n, n))
    matrix[:n, n] = transform.TransformPoint((0.0,) * n)
    return matrix


def _near_surface(mask: np.ndarray, grid: Grid) -> sitk.Image:
    """Distance to a mask's surface, mm, positive within, cut where it is far."""
    distance = sitk.SignedMaurerDistanceMap(framed(mask.astype(np.uint8), grid), insideIsPositive=True,
                                            squaredDistance=False, useImageSpacing=True)
    return sitk.Clamp(distance, sitk.sitkFloat32, -_NEAR_MM, _NEAR_MM)


def framed(array: np.ndarray, grid: Grid) -> sitk.Image:
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(grid.spacing)
    image.SetOrigin(grid.origin)
    image.SetDirection(grid.direction)
    return image
