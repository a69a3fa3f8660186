"""Two images registered by a displacement field about a pose: a classical or a learned optimiser on a common grid."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from regagents.agents import load_as
from regagents.classical.common import FieldMethod
from regagents.classical.convexadam import AdamInstance, ConvexAdam, CoupledConvex, Solver
from regagents.classical.deformable import BSpline, Demons
from regagents.classical.greedy import SETTINGS
from regagents.classical.levels import AdamLevels
from regagents.classical.syn import SyN
from regagents.common.threads import one_thread
from regagents.l2o import L2O
from regenv.data.io.images import Image, ImageError
from regenv.data.io.resampling import antialiased, framed, matrix_to_sitk, reduced, resampled_labels, sampled, to_sitk
from regenv.grid import Grid
from regenv.ops.regularity import folding, sd_log_jacobian
from regenv.ops.sampling import LINEAR

LEAST_VOXELS = 8    # along an axis of any grid
MEMORY = 2 << 30    # bytes that an optimiser may work with, unless told otherwise


@dataclass(frozen=True)
class Fields:
    """A :class:`~regagents.classical.convexadam.Solver` of a method that takes two images at a time and no masks: what
    lies outside its mask is 0 in an image."""

    method: FieldMethod

    def solve(self, fixed: Tensor, moving: Tensor, fixed_mask: Tensor | None = None,
              moving_mask: Tensor | None = None) -> Tensor:
        """Displacements (B, D, *shape), voxels, array-axis order."""
        grid = Grid.centered(tuple(fixed.shape[2:]), 1.0)
        images = [image if mask is None else image * mask.to(image.dtype)
                  for image, mask in ((fixed, fixed_mask), (moving, moving_mask))]
        fields = [self.method.register(*(framed(image[0].numpy(), grid, np.float32) for image in pair))
                  for pair in zip(*images, strict=True)]
        return torch.from_numpy(np.stack(fields))


@dataclass(frozen=True)
class Choice:
    """An optimiser by name. Attributes: solver; memory: that it takes in 3D, bytes a voxel, measured."""

    solver: Solver
    memory: int


OPTIMISERS: dict[str, Choice] = {
    "demons": Choice(Fields(Demons()), 190),
    "bspline": Choice(Fields(BSpline(control=8.0)), 190),
    "syn": Choice(Fields(SyN()), 300),
    "adam": Choice(AdamLevels(), 160),
    "convex": Choice(CoupledConvex(), 240),
    "convexadam": Choice(ConvexAdam(), 240),
    "greedy": Choice(SETTINGS["generic"], SETTINGS["generic"].bytes_per_voxel),
    **{f"greedy:{name}": Choice(solver, solver.bytes_per_voxel) for name, solver in SETTINGS.items()},
}
"""What finds displacements without training. After a colon: what its settings were tuned on."""


@dataclass(frozen=True)
class Optimiser:
    """What deforms an image: a classical solver, or a learned one that Adam refines.

    Attributes:
        solver: finds displacements.
        spacing: of the grid that it works on, mm; None: the finest of the image's own, or as fine as the memory allows.
        refine: whether Adam continues from its displacements on that grid.
        per_voxel: memory that it takes, or Adam after it, bytes a voxel.
        memory: bytes that it may work with; the images and the field themselves come on top.
    """

    solver: Solver
    spacing: float | None = None
    refine: bool = False
    per_voxel: int = 160
    memory: int = MEMORY

    def __post_init__(self) -> None:
        if self.memory <= 0 or self.per_voxel <= 0:
            raise ValueError(f"deform: memory is {self.memory} bytes, {self.per_voxel} a voxel; both must be positive.")

    def finest(self, grid: Grid) -> float:
        """Spacing of the finest isotropic grid over an image that the memory allows, mm."""
        return max(min(grid.spacing), (math.prod(grid.extent) * self.per_voxel / self.memory) ** (1 / grid.ndim))

    @one_thread()
    def register(self, fixed: Image, moving: Image, pull_back: NDArray[np.float64],
                 masks: tuple[Image, Image] | None = None) -> Deformation:
        """The displacement that is left when the pose is right.

        Args:
            pull_back: the pose, (D+1, D+1), mm.
            masks: of the fixed and of the moving image, the organ on which the displacement is found.
        Raises: ImageError: an axis has too few voxels.
        """
        finest = self.finest(fixed.grid)
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


def optimiser(name: str, ndim: int, refine: bool = True, memory: int = MEMORY) -> Optimiser:
    """An optimiser by name, or the learned one of a checkpoint (a path or shipped weights).

    Args:
        refine: whether Adam refines what a learned one finds.
        memory: bytes that it may work with; where the image's own grid needs more, it works on a coarser one.
    Raises: CheckpointError: bad weights, or an agent that is no learned optimiser. ValueError: another dimension, an
        unknown setting, or a method that is not installed.
    """
    if name in OPTIMISERS:
        if name == "syn" and not SyN.available():
            raise ValueError("deform: optimiser is 'syn'; install it with `pip install antspyx`.")
        return Optimiser(OPTIMISERS[name].solver, per_voxel=OPTIMISERS[name].memory, memory=memory)
    if name.partition(":")[0] in OPTIMISERS:
        raise ValueError(f"deform: optimiser is {name!r}; it must be one of {', '.join(OPTIMISERS)}.")
    agent = load_as(L2O, name)
    grid = agent.task().grid
    if grid.ndim != ndim:
        raise ValueError(f"{name}: the images are {ndim}D, but this agent registers {grid.ndim}D images.")
    return Optimiser(agent.policy, grid.spacing[0], refine, memory=memory)
