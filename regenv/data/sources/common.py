"""What sources for dense registration share: pairs whose true deformation is unknown, random smooth deformations."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from regenv.data.pairs import PairBatch
from regenv.grid import Grid
from regenv.ops import bspline
from regenv.ops.affine import homogeneous
from regenv.ops.sampling import identity, sample, sample_labels
from regenv.transforms.rigid import Rigid

SPLITS = ("train", "test")
STEEPEST = 0.4      # of a control point's displacement to their distance: up to there nothing folds (Choi and Lee 2000)


def unknown_pair(grid: Grid, fixed: Tensor, moving: Tensor, fixed_labels: Tensor | None = None,
                 moving_labels: Tensor | None = None, landmarks: Tensor | None = None,
                 targets: Tensor | None = None) -> PairBatch:
    """Pairs on one grid whose true deformation is unknown; the identity stands for it.

    Args:
        grid: of all images.
        fixed, moving: (B, C, *shape) float32 in [0, 1].
        fixed_labels, moving_labels: (B, 1, *shape) int16, or None.
        landmarks, targets: (B, N, D) corresponding points of the fixed and the moving world, mm, or None.
    """
    lanes, device = fixed.shape[0], fixed.device

    def repeat(array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.asarray(array, dtype=np.float64)).to(device).expand(lanes, *array.shape).clone()

    return PairBatch(fixed=fixed, moving=moving, fixed_to_world=repeat(grid.voxel_to_world),
                     world_to_moving=repeat(grid.world_to_voxel), truth=repeat(np.eye(grid.ndim + 1)),
                     known=torch.zeros(lanes, dtype=torch.bool, device=device), center=repeat(grid.center),
                     landmarks=landmarks, targets=targets,
                     fixed_labels=fixed_labels, moving_labels=moving_labels)


def random_bending(rngs: Sequence[np.random.Generator], grid: Grid, knots_mm: float, amplitude_mm: float) -> Tensor:
    """Smooth displacements (B, D, *shape) float32, voxels: cubic B-splines with coefficients uniform in +-amplitude.

    Args: rngs: one a lane; grid: of the field; knots_mm: about the distance of the control points; amplitude_mm.
    """
    spacing = np.array(grid.spacing[::-1])
    control = bspline.control_shape(grid.shape, (knots_mm / spacing).tolist())
    reach = (amplitude_mm / spacing).reshape(-1, *(1,) * grid.ndim)
    coefficients = np.stack([rng.uniform(-1, 1, (grid.ndim, *control)) * reach for rng in rngs])
    return bspline.displacement(torch.from_numpy(coefficients.astype(np.float32)), grid.shape)


def bent(images: Tensor, labels: Tensor, displacement: Tensor) -> tuple[Tensor, Tensor]:
    """Images (B, C, *shape) float32 and labels (B, 1, *shape) integer through displacements (B, D, *shape), voxels."""
    points = (identity(tuple(displacement.shape[2:]), displacement.device) + displacement).movedim(1, -1)
    return sample(images, points), sample_labels(labels, points)


def check_split(name: str, split: str) -> None:
    """Raise ValueError unless the split is one."""
    if split not in SPLITS:
        raise ValueError(f"{name}: split is {split!r}; it must be one of {', '.join(SPLITS)}.")


def check_bending(name: str, knots_mm: float, amplitude_mm: float) -> None:
    """Raise ValueError unless such a deformation exists and cannot fold."""
    if not (math.isfinite(knots_mm) and knots_mm > 0):
        raise ValueError(f"{name}: knots is {knots_mm} mm; it must be positive and finite.")
    if not 0 <= amplitude_mm <= STEEPEST * knots_mm:
        raise ValueError(f"{name}: bending is {amplitude_mm} mm; it must lie in [0, {STEEPEST * knots_mm:g}], "
                         f"{STEEPEST:g} times the {knots_mm:g} mm between control points, or images may fold.")


def check_grid(name: str, ndim: int, grid: Grid) -> None:
    """Raise ValueError unless the source makes images of the grid's dimension."""
    if grid.ndim != ndim:
        raise ValueError(f"{name}: it makes {ndim}D images, but the grid is {grid.ndim}D {grid.shape}; use a {ndim}D "
                         "id, or another source.")


def random_rigid(rngs: Sequence[np.random.Generator], ndim: int, mm: float, degrees: float) -> Tensor:
    """Rigid maps (B, D+1, D+1) float64, each translation uniform in +-mm and each angle uniform in +-degrees."""
    turns = 1 if ndim == 2 else 3
    width = np.array([mm] * ndim + [degrees] * turns, dtype=np.float64)
    return Rigid(ndim).matrix(torch.from_numpy(np.stack([rng.uniform(-width, width) for rng in rngs])))


def random_affine(rngs: Sequence[np.random.Generator], ndim: int, amount: float) -> Tensor:
    """Linear maps (B, D+1, D+1) float64, I + c with every c_ij uniform in +-amount (Liao et al. 2017, eq. 6)."""
    c = np.stack([rng.uniform(-amount, amount, (ndim, ndim)) for rng in rngs])
    return homogeneous(torch.from_numpy(np.eye(ndim) + c), torch.zeros(len(rngs), ndim, dtype=torch.float64))
