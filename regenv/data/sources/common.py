"""What pair sources share: a base for sources that change another one's pairs, pairs on one grid, checks of arguments,
random rigid, affine and smooth maps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from regenv.data.pairs import SPLITS, PairBatch, PairSource
from regenv.grid import Grid
from regenv.ops import bspline
from regenv.ops.affine import homogeneous
from regenv.ops.sampling import identity, sample, sample_labels
from regenv.transforms.rigid import Rigid

STEEPEST = 0.4      # displacement of a control point over their distance; below it nothing folds (Choi and Lee 2000)


@dataclass(frozen=True)
class Wrapping:
    """A source that changes the pairs of another one; a subclass says how in :meth:`changed`."""

    source: PairSource

    @property
    def ndim(self) -> int:
        return self.source.ndim

    def draw(self, rngs: Sequence[np.random.Generator], grid: Grid, device: torch.device,
             difficulty: float = 1.0) -> PairBatch:
        """See :class:`~regenv.data.pairs.PairSource`."""
        return self.changed(self.source.draw(rngs, self.source_grid(grid), device, difficulty), rngs, grid, difficulty)

    def source_grid(self, grid: Grid) -> Grid:
        """The grid on which the wrapped source draws."""
        return grid

    def changed(self, pair: PairBatch, rngs: Sequence[np.random.Generator], grid: Grid, difficulty: float) -> PairBatch:
        """What becomes of the wrapped source's ``pair``; ``rngs``: the generators after its draws."""
        raise NotImplementedError


def repeated(array: np.ndarray | Tensor, lanes: int, device: torch.device | str = "cpu") -> Tensor:
    """The same array for every lane, (B, *array.shape) float64, without shared memory."""
    tensor = torch.as_tensor(array, dtype=torch.float64).to(device)
    return tensor.expand(lanes, *tensor.shape).clone()


def pair_on_grid(grid: Grid, fixed: Tensor, moving: Tensor, fixed_labels: Tensor | None = None,
                 moving_labels: Tensor | None = None, landmarks: Tensor | None = None, targets: Tensor | None = None,
                 known: bool = False) -> PairBatch:
    """Pairs on one grid, with the identity as truth.

    Args:
        grid: of all images.
        fixed, moving: (B, C, *shape) float32 in [0, 1].
        fixed_labels, moving_labels: (B, 1, *shape) integer, or None.
        landmarks, targets: (B, N, D) corresponding points of the fixed and the moving world, mm, or None.
        known: whether the identity aligns the images; otherwise their true deformation is unknown.
    """
    lanes, device = fixed.shape[0], fixed.device
    return PairBatch(fixed=fixed, moving=moving, fixed_to_world=repeated(grid.voxel_to_world, lanes, device),
                     world_to_moving=repeated(grid.world_to_voxel, lanes, device),
                     truth=repeated(np.eye(grid.ndim + 1), lanes, device),
                     known=torch.full((lanes,), known, device=device), center=repeated(grid.center, lanes, device),
                     landmarks=landmarks, targets=targets, fixed_labels=fixed_labels, moving_labels=moving_labels)


def as_compact(labels: Sequence[Tensor]) -> list[Tensor]:
    """All labels of a source in one type, the smallest of int16, int32 and int64 that holds their numbers."""
    least, most = (min(int(each.min()) for each in labels), max(int(each.max()) for each in labels))
    for kind in (torch.int16, torch.int32, torch.int64):
        if torch.iinfo(kind).min <= least and most <= torch.iinfo(kind).max:
            break
    return [each.to(kind) for each in labels]


def plane(grid: Grid) -> Grid:
    """A 2D grid as the one slice z = 0 of a 3D grid."""
    direction = np.eye(3)
    direction[:2, :2] = np.reshape(grid.direction, (2, 2))
    return Grid((1, *grid.shape), (*grid.spacing, 1.0), (*grid.origin, 0.0), tuple(direction.ravel().tolist()))


# ---------------------------------------------------------------------------------------------------------- random maps

def random_bending(rngs: Sequence[np.random.Generator], grid: Grid, knots_mm: float, amplitude_mm: float) -> Tensor:
    """Smooth displacements (B, D, *shape) float32, voxels: cubic B-splines with coefficients uniform in +-amplitude.

    Args: rngs: one per lane; grid: of the field; knots_mm: approximate distance of the control points; amplitude_mm.
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


def random_rigid(rngs: Sequence[np.random.Generator], ndim: int, mm: float, degrees: float) -> Tensor:
    """Rigid maps (B, D+1, D+1) float64, each translation uniform in +-mm and each angle uniform in +-degrees."""
    turns = 1 if ndim == 2 else 3
    width = np.array([mm] * ndim + [degrees] * turns, dtype=np.float64)
    return Rigid(ndim).matrix(torch.from_numpy(np.stack([rng.uniform(-width, width) for rng in rngs])))


def random_affine(rngs: Sequence[np.random.Generator], ndim: int, amount: float) -> Tensor:
    """Linear maps (B, D+1, D+1) float64, I + c with every c_ij uniform in +-amount (Liao et al. 2017, eq. 6)."""
    c = np.stack([rng.uniform(-amount, amount, (ndim, ndim)) for rng in rngs])
    return homogeneous(torch.from_numpy(np.eye(ndim) + c), torch.zeros(len(rngs), ndim, dtype=torch.float64))


# --------------------------------------------------------------------------------------------------------------- checks

def check_ndim(name: str, ndim: int) -> None:
    """Raise ValueError unless ndim is 2 or 3."""
    if ndim not in (2, 3):
        raise ValueError(f"{name}: ndim is {ndim}; it must be 2 or 3.")


def check_split(name: str, split: str) -> None:
    """Raise ValueError unless the split exists."""
    if split not in SPLITS:
        raise ValueError(f"{name}: split is {split!r}; it must be one of {', '.join(SPLITS)}.")


def check_patients(name: str, patients: int, bank_spacing: float) -> None:
    """Raise ValueError unless there are patients, and a spacing at which they can be painted."""
    if patients < 1:
        raise ValueError(f"{name}: patients is {patients}; at least one patient is needed.")
    if not (math.isfinite(bank_spacing) and bank_spacing > 0):
        raise ValueError(f"{name}: bank_spacing is {bank_spacing} mm; it must be positive and finite.")


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
