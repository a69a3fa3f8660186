"""Two images registered by a displacement field about a pose: a classical or a learned optimiser on a common grid."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from regagents.agents import load_as
from regagents.classical.convexadam import AdamInstance, ConvexAdam, CoupledConvex, Solver
from regagents.common.threads import one_thread
from regagents.l2o import L2O
from regenv.data.io.images import Image, ImageError
from regenv.data.io.resampling import antialiased, framed, matrix_to_sitk, reduced, resampled_labels, sampled, to_sitk
from regenv.grid import Grid
from regenv.ops.regularity import folding, sd_log_jacobian
from regenv.ops.sampling import LINEAR

OPTIMISERS: dict[str, Solver] = {"adam": AdamInstance(), "convex": CoupledConvex(), "convexadam": ConvexAdam()}
MOST_VOXELS, LEAST_VOXELS = 128, 8  # along an axis: of a classical optimiser's grid at most, of any grid at least


@dataclass(frozen=True)
class Optimiser:
    """What deforms an image: a classical solver, or a learned one that Adam refines.

    Attributes:
        solver: finds displacements.
        spacing: of the grid that it works on, mm; None: the image's own, within limits.
        refine: whether Adam continues from its displacements on the image's own grid, within limits.
    """

    solver: Solver
    spacing: float | None = None
    refine: bool = False

    @one_thread()
    def register(self, fixed: Image, moving: Image, pull_back: NDArray[np.float64],
                 masks: tuple[Image, Image] | None = None) -> Deformation:
        """The displacement that is left when the pose is right.

        Args:
            pull_back: the pose, (D+1, D+1), mm.
            masks: of the fixed and of the moving image, the organ on which the displacement is found.
        Raises: ImageError: an axis has too few voxels.
        """
        finest = max(min(fixed.grid.spacing), max(fixed.grid.extent) / MOST_VOXELS)
        grid = fixed.grid.resized(spacing=self.spacing or finest)
        if min(grid.shape) < LEAST_VOXELS:
            raise ImageError(f"{fixed.path}: in voxels of {grid.spacing[0]:.2f} mm its shape is {grid.shape}; "
                             f"to deform it every axis needs at least {LEAST_VOXELS}.")
        field = self.solver.solve(**tensors(fixed, moving, pull_back, masks, grid))
        if self.refine:
            coarse, grid = grid, fixed.grid.resized(spacing=finest)
            start = F.interpolate(field, grid.shape, mode=LINEAR[grid.ndim], align_corners=False)
            ratio = torch.tensor(grid.shape) / torch.tensor(coarse.shape)
            field = AdamInstance().solve(**tensors(fixed, moving, pull_back, masks, grid),
                                         initial=start * ratio.view(-1, *(1,) * grid.ndim))
        return Deformation(field[0].double().numpy(), grid)


def tensors(fixed: Image, moving: Image, pull_back: NDArray[np.float64], masks: tuple[Image, Image] | None,
            grid: Grid) -> dict[str, Tensor]:
    """A solver's arguments: both images on a grid, the moving one resampled through the pose, and their masks.

    Intensities are brought to [0, 1] before the resampling, so that 0 outside the moving image is its background.
    """
    spacing = [min(grid.spacing)] * grid.ndim
    posed = framed(sampled(to_sitk(moving), fixed.grid, matrix_to_sitk(pull_back)), fixed.grid)
    arrays = {"fixed": reduced(fixed, grid), "moving": np.clip(sampled(antialiased(posed, spacing), grid), 0, 1)}
    if masks is not None:
        poses = {"fixed_mask": np.eye(grid.ndim + 1), "moving_mask": pull_back}
        arrays |= {name: resampled_labels(mask, grid, pose).array
                   for mask, (name, pose) in zip(masks, poses.items(), strict=True)}
    return {name: torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))[None, None]
            for name, array in arrays.items()}


@dataclass(frozen=True, eq=False)
class Deformation:
    """A displacement field (D, *shape), voxels, array-axis order, on its grid."""

    displacement: NDArray[np.float64]
    grid: Grid

    @property
    def folding(self) -> float:
        """Share of folded voxels (det J <= 0)."""
        return folding(torch.from_numpy(self.displacement)[None]).item()

    @property
    def sd_log_jacobian(self) -> float:
        """Standard deviation of log det J."""
        return sd_log_jacobian(torch.from_numpy(self.displacement)[None]).item()

    def through(self, pull_back: NDArray[np.float64]) -> sitk.CompositeTransform:
        """SimpleITK's transform from fixed to moving world points, mm: first the displacement, then the pose.

        Beyond the grid there is only the pose.
        """
        millimetres = np.moveaxis(self.displacement, 0, -1) @ self.grid.voxel_to_world[:-1, :-1].T
        field = sitk.DisplacementFieldTransform(framed(np.ascontiguousarray(millimetres), self.grid))
        return sitk.CompositeTransform([matrix_to_sitk(pull_back), field])


def optimiser(name: str, ndim: int, refine: bool = True) -> Optimiser:
    """An optimiser by name, or the learned one of a checkpoint (a path or shipped weights).

    Args: refine: whether Adam refines what a learned one finds.
    Raises: CheckpointError: bad weights, or an agent that is no learned optimiser. ValueError: another dimension.
    """
    if name in OPTIMISERS:
        return Optimiser(OPTIMISERS[name])
    agent = load_as(L2O, name)
    grid = agent.task().grid
    if grid.ndim != ndim:
        raise ValueError(f"{name}: the images are {ndim}D, but this agent registers {grid.ndim}D images.")
    return Optimiser(agent.policy, grid.spacing[0], refine)

