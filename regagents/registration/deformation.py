"""Two images registered densely about a pose: by an optimiser, classical or learned, on a common grid."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk
import torch
import torch.nn.functional as F
from torch import Tensor

from regagents.agents import load
from regagents.classical.convexadam import AdamInstance, ConvexAdam, CoupledConvex, Solver
from regagents.common.threads import one_thread
from regenv.data.io.images import Image, ImageError
from regenv.data.io.resampling import matrix_to_sitk, reduced, resampled
from regenv.grid import Grid
from regenv.ops.regularity import folding, sd_log_jacobian

OPTIMISERS: dict[str, Solver] = {"adam": AdamInstance(), "convex": CoupledConvex(), "convexadam": ConvexAdam()}
MOST_VOXELS, LEAST_VOXELS = 128, 8  # along an axis of the grid of a classical optimiser, and of any
LINEAR = {2: "bilinear", 3: "trilinear"}


@dataclass(frozen=True)
class Optimiser:
    """What deforms an image: a classical solver, or a learned one that Adam refines.

    Attributes:
        solver: finds displacements; spacing: of the grid it works on, mm, None for the image's own, within limits.
        refine: whether Adam goes on from there, on that finer grid.
    """

    solver: Solver
    spacing: float | None = None
    refine: bool = False

    @one_thread()
    def register(self, fixed: Image, moving: Image, pull_back: np.ndarray,
                 masks: tuple[Image, Image] | None = None) -> Deformation:
        """What is left of the displacement when the pose is right.

        Args: masks: of the fixed and of the moving image, the organ that counts.
        Raises ImageError: an axis has too few voxels.
        """
        finest = max(min(fixed.grid.spacing), max(fixed.grid.extent) / MOST_VOXELS)
        grid = fixed.grid.resized(spacing=self.spacing or finest)
        if min(grid.shape) < LEAST_VOXELS:
            raise ImageError(f"{fixed.path}: in voxels of {grid.spacing[0]:.2f} mm its shape is {grid.shape}; "
                             f"to deform it every axis needs at least {LEAST_VOXELS}.")
        field = self.solver.solve(**seen(fixed, moving, pull_back, masks, grid))
        if self.refine:
            coarse, grid = grid, fixed.grid.resized(spacing=finest)
            start = F.interpolate(field, grid.shape, mode=LINEAR[grid.ndim], align_corners=False)
            ratio = torch.tensor(grid.shape) / torch.tensor(coarse.shape)
            field = AdamInstance().solve(**seen(fixed, moving, pull_back, masks, grid),
                                         initial=start * ratio.view(-1, *(1,) * grid.ndim))
        return Deformation(field[0].double().numpy(), grid)


def seen(fixed: Image, moving: Image, pull_back: np.ndarray, masks: tuple[Image, Image] | None,
         grid: Grid) -> dict[str, Tensor]:
    """What a solver takes: both images on a grid, the moving one through the pose, and their masks."""
    posed = resampled(moving, fixed.grid, pull_back)
    arrays = {"fixed": reduced(fixed, grid), "moving": reduced(posed, grid)}
    if masks is not None:
        poses = {"fixed_mask": np.eye(grid.ndim + 1), "moving_mask": pull_back}
        arrays |= {name: resampled(mask, grid, pose, sitk.sitkNearestNeighbor).array
                   for mask, (name, pose) in zip(masks, poses.items(), strict=True)}
    return {name: torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))[None, None]
            for name, array in arrays.items()}


@dataclass(frozen=True, eq=False)
class Deformation:
    """A displacement field (D, *shape), voxels, array-axis order, on its grid."""

    displacement: np.ndarray
    grid: Grid

    @property
    def folding(self) -> float:
        """Share of folded voxels."""
        return folding(torch.from_numpy(self.displacement)[None]).item()

    @property
    def sd_log_jacobian(self) -> float:
        """Standard deviation of log det J."""
        return sd_log_jacobian(torch.from_numpy(self.displacement)[None]).item()

    def through(self, pull_back: np.ndarray) -> sitk.CompositeTransform:
        """Fixed to moving world points, mm: displaced, then taken by the pose. Beyond the grid there is only the pose.
        """
        millimetres = np.moveaxis(self.displacement, 0, -1) @ self.grid.voxel_to_world[:-1, :-1].T
        image = sitk.GetImageFromArray(np.ascontiguousarray(millimetres), isVector=True)
        image.SetSpacing(self.grid.spacing)
        image.SetOrigin(self.grid.origin)
        image.SetDirection(self.grid.direction)
        return sitk.CompositeTransform([matrix_to_sitk(pull_back), sitk.DisplacementFieldTransform(image)])


def optimiser(name: str, ndim: int, refine: bool = True) -> Optimiser:
    """An optimiser by name, or the learned one of a checkpoint.

    Raises CheckpointError for bad weights or another kind of agent, ValueError for one of another dimension.
    """
    if name in OPTIMISERS:
        return Optimiser(OPTIMISERS[name])
    agent = load(name, algorithm="L2O")
    grid = agent.task().grid
    if grid.ndim != ndim:
        raise ValueError(f"{name}: the images are {ndim}D, but this agent registers {grid.ndim}D images.")
    return Optimiser(agent.policy, grid.spacing[0], refine)

