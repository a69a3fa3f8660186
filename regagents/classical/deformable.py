"""Classical deformable registration with SimpleITK: B-spline free-form deformation and demons."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from regagents.classical.common import is_flat
from regagents.common.threads import one_thread
from regenv.grid import Grid


@dataclass(frozen=True)
class BSpline:
    """B-spline free-form deformation by mutual information (Rueckert et al. 1999), coarse to fine.

    Args:
        control: distance of the control points, voxels, one number or one per axis in array order; doubled on coarse
            levels.
        levels: of control lattices, coarse to fine, each half as wide as the one before; images are smoothed and
            shrunk with them.
        iterations: of each level. bins: of the joint histogram. sampling: share of the voxels that is used.
    """

    control: float | tuple[float, ...] = 16.0
    levels: int = 2
    iterations: int = 60
    bins: int = 32
    sampling: float = 1.0

    def register(self, fixed: sitk.Image, moving: sitk.Image) -> NDArray[np.float32]:
        """See :class:`~regagents.classical.common.FieldMethod`."""
        grid = Grid.from_sitk(fixed)
        if is_flat(fixed, moving):
            return np.zeros((grid.ndim, *grid.shape), dtype=np.float32)
        steps = np.broadcast_to(np.asarray(self.control, dtype=np.float64), grid.ndim) * 2 ** (self.levels - 1)
        mesh = [max(1, round(n / step)) for n, step in zip(grid.shape, steps, strict=True)][::-1]
        factors = [2**level for level in range(self.levels)]
        with one_thread():
            transform = sitk.BSplineTransformInitializer(fixed, mesh)
            method = sitk.ImageRegistrationMethod()
            method.SetMetricAsMattesMutualInformation(self.bins)
            if self.sampling < 1:
                method.SetMetricSamplingStrategy(method.RANDOM)
                method.SetMetricSamplingPercentage(self.sampling, 1)
            method.SetInterpolator(sitk.sitkLinear)
            method.SetOptimizerAsLBFGS2(numberOfIterations=self.iterations, solutionAccuracy=1e-4)
            method.SetInitialTransformAsBSpline(transform, inPlace=True, scaleFactors=factors)
            method.SetShrinkFactorsPerLevel([_shrink(grid, factor) for factor in factors[::-1]])
            method.SetSmoothingSigmasPerLevel([0.5 * factor for factor in factors[::-1]])
            method.SetSmoothingSigmasAreSpecifiedInPhysicalUnits(False)
            try:
                found = method.Execute(fixed, moving)
            except RuntimeError:
                return np.zeros((grid.ndim, *grid.shape), dtype=np.float32)
        return displacement_of(found, grid)


@dataclass(frozen=True)
class Demons:
    """Symmetric forces demons (Thirion 1998; Vercauteren et al. 2009) after histogram matching, coarse to fine.

    Args:
        smoothing: Gaussian sigma that regularises the field, voxels.
        iterations: of each level. levels: of the image pyramid.
    """

    smoothing: float = 2.0
    iterations: int = 80
    levels: int = 3

    def register(self, fixed: sitk.Image, moving: sitk.Image) -> NDArray[np.float32]:
        """See :class:`~regagents.classical.common.FieldMethod`."""
        grid = Grid.from_sitk(fixed)
        if is_flat(fixed, moving):
            return np.zeros((grid.ndim, *grid.shape), dtype=np.float32)
        with one_thread():
            fixed, moving = (sitk.Cast(image, sitk.sitkFloat32) for image in (fixed, moving))
            moving = sitk.HistogramMatching(moving, fixed, 64, 16, True)
            demons = sitk.FastSymmetricForcesDemonsRegistrationFilter()
            demons.SetNumberOfIterations(self.iterations)
            demons.SetSmoothDisplacementField(True)
            demons.SetStandardDeviations(self.smoothing)
            field: sitk.Image | None = None
            for level in reversed(range(self.levels)):
                shrink = [max(1, min(2**level, n // 8)) for n in grid.size]
                images = [sitk.Shrink(sitk.SmoothingRecursiveGaussian(
                    image, [max(1e-3, 0.5 * (f - 1)) * s for f, s in zip(shrink, image.GetSpacing(), strict=True)]),
                    shrink) for image in (fixed, moving)]
                if field is None:
                    field = demons.Execute(*images)
                else:
                    field = demons.Execute(*images, sitk.Resample(field, images[0]))
            assert field is not None
            field = sitk.Resample(field, fixed)
        return voxels(sitk.GetArrayFromImage(field), grid)


def displacement_of(transform: sitk.Transform, grid: Grid) -> NDArray[np.float32]:
    """A transform's displacement of every voxel of a grid, (D, *shape), voxels, array-axis order."""
    image = sitk.TransformToDisplacementField(transform, sitk.sitkVectorFloat64, grid.size, grid.origin, grid.spacing,
                                              grid.direction)
    return voxels(sitk.GetArrayFromImage(image), grid)


def voxels(millimetres: NDArray[np.floating], grid: Grid) -> NDArray[np.float32]:
    """A field (*shape, D) in mm, ITK order, as (D, *shape) in voxels, array-axis order."""
    linear = grid.world_to_voxel[:-1, :-1]
    return np.moveaxis(millimetres @ linear.T, -1, 0).astype(np.float32)


def _shrink(grid: Grid, factor: int) -> int:
    """The factor, or less where an axis would have under 8 voxels."""
    return max(1, min(factor, min(grid.shape) // 8))
