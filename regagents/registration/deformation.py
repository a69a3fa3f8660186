"""Two images registered by a displacement field about a pose: a classical solver or a dense agent on a common grid."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from regagents.classical.common import FieldMethod
from regagents.classical.convexadam import ConvexAdam, CoupledConvex, Solver
from regagents.classical.deformable import BSpline, Demons
from regagents.classical.greedy import SETTINGS, ByDimension, Labels
from regagents.classical.levels import AdamLevels
from regagents.classical.syn import SyN
from regagents.common.threads import one_thread
from regagents.registration.dense_agents import Refiner, stage
from regenv.data.io.images import Image, ImageError
from regenv.data.io.resampling import antialiased, framed, matrix_to_sitk, reduced, resampled_labels, sampled, to_sitk
from regenv.grid import Grid
from regenv.ops.regularity import folding, non_diffeomorphic_volume, sd_log_jacobian
from regenv.ops.sampling import LINEAR

LEAST_VOXELS = 8    # along an axis of any grid
MEMORY = 2 * 10**9    # bytes that an optimiser may work with, unless told otherwise
A_LABEL = 48        # bytes a voxel that each label takes beside the images, estimated: a dozen images of it
LABELLED = "greedy:labels"


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
    LABELLED: Choice(SETTINGS["generic"], SETTINGS["generic"].bytes_per_voxel),
}
"""What finds displacements without training. After a colon: what its settings were tuned on, or what it compares."""


@dataclass(frozen=True)
class Optimiser:
    """What deforms an image: a classical solver, or a dense agent that a classical one refines.

    Attributes:
        solver: finds displacements.
        spacing: of the grid that it works on, mm; None: the finest of the image's own, or as fine as the memory allows.
        refiner: continues from its displacements, on the finest grid that the memory allows.
        labelled: whether it brings labels of both images onto each other, too.
        per_voxel: memory that it takes, or the refiner after it, bytes a voxel.
        memory: bytes that it may work with; the images and the field themselves come on top.
    """

    solver: Solver
    spacing: float | None = None
    refiner: Refiner | None = None
    labelled: bool = False
    per_voxel: int = 160
    memory: int = MEMORY

    def __post_init__(self) -> None:
        if self.memory <= 0 or self.per_voxel <= 0:
            raise ValueError(f"deform: memory is {self.memory} bytes, {self.per_voxel} a voxel; both must be positive.")

    def finest(self, grid: Grid, labels: int = 0) -> float:
        """Spacing of the finest isotropic grid over an image that the memory allows, with so many labels, mm."""
        needed = math.prod(grid.extent) * (self.per_voxel + A_LABEL * labels)
        return max(min(grid.spacing), (needed / self.memory) ** (1 / grid.ndim))

    @one_thread()
    def register(self, fixed: Image, moving: Image, pull_back: NDArray[np.float64],
                 masks: tuple[Image, Image] | None = None, labels: tuple[Image, Image] | None = None) -> Deformation:
        """The displacement that is left when the pose is right.

        Args:
            pull_back: the pose, (D+1, D+1), mm.
            masks: of the fixed and of the moving image, the organ on which the displacement is found.
            labels: of both, for an optimiser that is ``labelled``.
        Raises: ImageError: an axis has too few voxels. ValueError: labels are missing.
        """
        if self.labelled and labels is None:
            raise ValueError(f"deform: optimiser is {LABELLED!r}, but there are no labels; give those of both images.")
        used = labels if self.labelled else None
        finest = self.finest(fixed.grid, len(_classes(used)) if used else 0)
        grid = fixed.grid.resized(spacing=self.spacing or finest)
        if min(grid.shape) < LEAST_VOXELS:
            raise ImageError(f"{fixed.path}: in voxels of {grid.spacing[0]:.2f} mm its shape is {grid.shape}; "
                             f"to deform it every axis needs at least {LEAST_VOXELS}.")
        given = tensors(fixed, moving, pull_back, masks, grid)
        if used is None:
            field = self.solver.solve(**given)
        else:
            assert isinstance(self.solver, ByDimension)
            field = self.solver.solve(**given, labels=label_tensors(used, pull_back, grid))
        if self.refiner is not None:
            coarse, grid = grid, fixed.grid.resized(spacing=finest)
            start = F.interpolate(field, grid.shape, mode=LINEAR[grid.ndim], align_corners=False)
            ratio = torch.tensor(grid.shape) / torch.tensor(coarse.shape)
            field = self.refiner.solve(**tensors(fixed, moving, pull_back, masks, grid),
                                       initial=start * ratio.view(-1, *(1,) * grid.ndim))
        return Deformation(field[0].double().numpy(), grid, self._notes(fixed.grid, finest))

    def _notes(self, grid: Grid, finest: float) -> tuple[str, ...]:
        """Says where the memory did not allow the image's own voxels."""
        own = min(grid.spacing)
        if finest <= own or (self.spacing is not None and self.refiner is None):
            return ()
        needed = self.memory * (finest / own) ** grid.ndim
        return (f"deformed on a grid of {finest:.2f} mm: in the image's own voxels of {own:.2f} mm it would take "
                f"{needed / 1e9:.1f} GB of memory, and {self.memory / 1e9:.1f} GB are allowed (memory).",)


def _classes(labels: tuple[Image, Image]) -> set[int]:
    """The labels that occur in either image, but for the background."""
    return {int(value) for label in labels for value in np.unique(label.array)} - {0}


def label_tensors(labels: tuple[Image, Image], pull_back: NDArray[np.float64], grid: Grid) -> Labels:
    """Labels of both images on a grid, the moving one's through the pose, (1, 1, *shape) each."""
    here, there = (torch.from_numpy(resampled_labels(label, grid, pose).array.astype(np.int32))[None, None]
                   for label, pose in zip(labels, (np.eye(grid.ndim + 1), pull_back), strict=True))
    return here, there


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
    """A displacement field (D, *shape), voxels, array-axis order, on its grid, and what is to be said of it."""

    displacement: NDArray[np.float64]
    grid: Grid
    notes: tuple[str, ...] = ()

    @property
    def folding(self) -> float:
        """Share of folded voxels (det J <= 0)."""
        return folding(torch.from_numpy(self.displacement)[None]).item()

    @property
    def sd_log_jacobian(self) -> float:
        """Standard deviation of log det J."""
        return sd_log_jacobian(torch.from_numpy(self.displacement)[None]).item()

    @property
    def non_diffeomorphic_volume(self) -> float:
        """Share of the volume that is folded, see :func:`regenv.ops.regularity.non_diffeomorphic_volume`."""
        return non_diffeomorphic_volume(torch.from_numpy(self.displacement)[None]).item()

    def through(self, pull_back: NDArray[np.float64]) -> sitk.CompositeTransform:
        """SimpleITK's transform from fixed to moving world points, mm: first the displacement, then the pose.

        Beyond the grid there is only the pose.
        """
        millimetres = np.moveaxis(self.displacement, 0, -1) @ self.grid.voxel_to_world[:-1, :-1].T
        field = sitk.DisplacementFieldTransform(framed(np.ascontiguousarray(millimetres), self.grid))
        return sitk.CompositeTransform([matrix_to_sitk(pull_back), field])


def optimiser(name: str, ndim: int, refine: bool = True, memory: int = MEMORY) -> Optimiser:
    """An optimiser by name, or the dense agent of a checkpoint (a path or shipped weights).

    Args:
        refine: whether a classical one refines what an agent finds.
        memory: bytes that it may work with; where the image's own grid needs more, it works on a coarser one.
    Raises: CheckpointError: bad weights. ValueError: another dimension, an agent that finds no displacements, an
        unknown setting, or a method that is not installed.
    """
    if name in OPTIMISERS:
        if name == "syn" and not SyN.available():
            raise ValueError("deform: optimiser is 'syn'; install it with `pip install antspyx`.")
        return Optimiser(OPTIMISERS[name].solver, labelled=name == LABELLED, per_voxel=OPTIMISERS[name].memory,
                         memory=memory)
    if name.partition(":")[0] in OPTIMISERS:
        raise ValueError(f"deform: optimiser is {name!r}; it must be one of {', '.join(OPTIMISERS)}.")
    learned = stage(name, ndim)
    return Optimiser(learned.solver, learned.spacing, learned.refiner if refine else None, memory=memory)
