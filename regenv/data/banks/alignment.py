"""Alignment of subjects: by a translation found from the intensities, or rigidly from masks."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk
import torch
from torch import Tensor

from regenv.data.io.images import Image, ImageError, normalize
from regenv.data.io.resampling import SHORTEST_AXIS, framed
from regenv.grid import Grid
from regenv.ops.affine import about, homogeneous, matmul, transform_points
from regenv.ops.sampling import sample
from regenv.transforms.rigid import Rigid

_WORKING_MM = 3.0               # spacing at which translations are found
_MOST_DEGREES = 25.0            # largest rotation about each axis
_NEAR_MM = 8.0                  # largest distance from a mask's surface that counts


def downsampled(image: Image) -> sitk.Image:
    """Intensities in [0, 1], averaged to about the spacing in which translations are found."""
    sizes = zip(image.grid.spacing, image.grid.size, strict=True)
    factors = [max(1, min(round(_WORKING_MM / s), n // SHORTEST_AXIS)) for s, n in sizes]
    return sitk.BinShrink(framed(normalize(image.array), image.grid), factors)


def translation(fixed: sitk.Image, image: Image) -> np.ndarray:
    """From fixed to moving world points, (3,) mm, by Mattes mutual information from aligned image centres."""
    moving = downsampled(image)
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
    """Pull-back (D+1, D+1), mm, under which two masks overlap best.

    It minimises the squared difference of their distance maps near the fixed surface, from aligned centroids. Rotations
    stay within 25 degrees about each axis: by overlap alone, a round organ would turn the patient over.
    """
    n = grid.ndim
    target, source = (torch.from_numpy(_near_surface(mask, grid)) for mask in (fixed, moving))
    shown = torch.nonzero(target.abs() < _NEAR_MM)
    points, values = shown[None].double(), target[tuple(shown.T)]
    centers = [grid.to_world(np.argwhere(mask).mean(0)) for mask in (fixed, moving)]
    shift = homogeneous(torch.eye(n, dtype=torch.float64), torch.from_numpy(centers[1] - centers[0]))
    to_world, to_voxel = torch.from_numpy(grid.voxel_to_world), torch.from_numpy(grid.world_to_voxel)
    motion = Rigid(n)
    pose = torch.zeros(len(motion.names), dtype=torch.float64, requires_grad=True)

    def angles() -> Tensor:
        return _MOST_DEGREES * torch.tanh(pose[n:] / _MOST_DEGREES)

    def pull_back() -> Tensor:
        return matmul(shift, about(centers[0], motion.matrix(torch.cat([pose[:n], angles()])[None]))[0])

    optimizer = torch.optim.LBFGS([pose], max_iter=60, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        seen = transform_points(matmul(matmul(to_voxel, pull_back()), to_world)[None], points)
        found = sample(source[None, None], seen.view(1, -1, *(1,) * (n - 1), n), padding="border").flatten()
        total = (found - values).square().mean() + (angles() / (4 * _MOST_DEGREES)).square().sum()
        total.backward()
        return total

    optimizer.step(loss)
    return pull_back().detach().numpy()


def _near_surface(mask: np.ndarray, grid: Grid) -> np.ndarray:
    """Distance to a mask's surface, mm, positive inside, clipped to +-8 mm."""
    distance = sitk.SignedMaurerDistanceMap(framed(mask.astype(np.uint8), grid), insideIsPositive=True,
                                            squaredDistance=False, useImageSpacing=True)
    return np.clip(sitk.GetArrayFromImage(distance).astype(np.float64), -_NEAR_MM, _NEAR_MM)
