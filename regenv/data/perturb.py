"""Perturbations: starting poses, rigid de-alignment, affine co-deformation; numbers per lane, by its own generator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from regenv.data.pairs import PairBatch, PairSource
from regenv.grid import Grid
from regenv.ops.warp import matmul, transform_points, warp_affine
from regenv.transforms.rigid import Rigid, homogeneous, invert_affine


@dataclass(frozen=True)
class UniformStart:
    """Starting poses, uniform within +-ranges, some of them near the solution (Liao et al. 2017, denser sampling).

    Args:
        ranges: half-widths of the P parameters, mm and degrees (Rx Ry Rz angles).
        near: share of the lanes that are drawn within ``near_scale`` times the ranges.
        whole: only whole units, each as likely, so that unit steps reach the solution exactly.
        units: of the parameters; default 1 each.
    """

    ranges: tuple[float, ...]
    near: float = 0.0
    near_scale: float = 0.15
    whole: bool = False
    units: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not all(width >= 0 and np.isfinite(width) for width in self.ranges):
            raise ValueError(f"UniformStart: ranges is {self.ranges}; half-widths must be finite and not negative.")
        for name in ("near", "near_scale"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"UniformStart: {name} is {getattr(self, name)}; it must lie in [0, 1].")

    def draw(self, rngs: Sequence[np.random.Generator], scale: float = 1.0,
             pair: PairBatch | None = None) -> np.ndarray:
        """Poses (B, P) float64; ``scale`` in (0, 1] shrinks the ranges, for curricula."""
        width, units = np.asarray(self.ranges) * scale, np.asarray(self.units or 1.0)
        if self.whole:
            width = (np.floor(width / units + 1e-9) + 0.5) * units
        poses = np.stack([rng.uniform(-width, width) * (self.near_scale if rng.random() < self.near else 1.0)
                          for rng in rngs])
        return np.round(poses / units) * units if self.whole else poses


@dataclass(frozen=True)
class OnTheWay:
    """Starting poses of a deformation model: zero, or somewhere between zero and the target, and off the straight way.

    Args:
        deviations: of the P amplitudes. wander: share of lanes that start on the way, which training wants; evaluation
            starts at zero. stray: largest standard deviation of these beside the way, in deviations.
    """

    deviations: tuple[float, ...]
    wander: float = 0.0
    stray: float = 0.3

    def __post_init__(self) -> None:
        if not 0 <= self.wander <= 1 or not self.stray >= 0:
            raise ValueError(f"OnTheWay: wander is {self.wander} and stray {self.stray}; wander must lie in [0, 1], "
                             "stray must not be negative.")

    def draw(self, rngs: Sequence[np.random.Generator], scale: float = 1.0,
             pair: PairBatch | None = None) -> np.ndarray:
        """Poses (B, P) float64; ``scale`` has no meaning here."""
        sigma = np.asarray(self.deviations)
        draws = [(rng.random() < self.wander, rng.random(), rng.random(), rng.normal(0, sigma)) for rng in rngs]
        if pair is None or pair.target_pose is None:
            return np.zeros((len(rngs), len(sigma)))
        targets = pair.target_pose.cpu().numpy()
        return np.stack([on * (way * target + self.stray * off * spread)
                         for (on, way, spread, off), target in zip(draws, targets, strict=True)])


@dataclass(frozen=True)
class Still:
    """Dense episodes begin with no displacement. Args: shape: of the fields."""

    shape: tuple[int, ...]

    def draw(self, rngs: Sequence[np.random.Generator], scale: float = 1.0,
             pair: PairBatch | None = None) -> np.ndarray:
        """Fields (B, D, *shape) float32, zero."""
        return np.zeros((len(rngs), len(self.shape), *self.shape), dtype=np.float32)


def random_rigid(rngs: Sequence[np.random.Generator], ndim: int, mm: float, degrees: float) -> Tensor:
    """Rigid maps (B, D+1, D+1) float64, each translation uniform in +-mm and each angle uniform in +-degrees."""
    turns = 1 if ndim == 2 else 3
    width = np.array([mm] * ndim + [degrees] * turns, dtype=np.float64)
    return Rigid(ndim).matrix(torch.from_numpy(np.stack([rng.uniform(-width, width) for rng in rngs])))


def random_affine(rngs: Sequence[np.random.Generator], ndim: int, amount: float) -> Tensor:
    """Linear maps (B, D+1, D+1) float64, I + c with every c_ij uniform in +-amount (Liao et al. 2017, eq. 6)."""
    c = np.stack([rng.uniform(-amount, amount, (ndim, ndim)) for rng in rngs])
    return homogeneous(torch.from_numpy(np.eye(ndim) + c), torch.zeros(len(rngs), ndim, dtype=torch.float64))


@dataclass(frozen=True)
class CoDeformed:
    """A source whose pairs are de-aligned from the scanner's axes and co-deformed, both images alike.

    Both images are seen through one random map, x -> A G x: a rigid G about the grid's centre and an affine A
    (eq. 6). The truth follows, so alignment is preserved. The fixed image is drawn on a grid ``margin`` times larger
    and resampled once; the moving image is not resampled, only its frame changes.

    Args: source; affine: bound of c_ij; mm, degrees: bounds of the rigid part; margin: enlargement of the drawn grid.
    """

    source: PairSource
    affine: float = 0.25
    mm: float = 0.0
    degrees: float = 0.0
    margin: float = 1.25

    @property
    def ndim(self) -> int:
        return self.source.ndim

    def draw(self, rngs: Sequence[np.random.Generator], grid: Grid, device: torch.device,
             difficulty: float = 1.0) -> PairBatch:
        """As the wrapped source; the deformation grows with ``difficulty``."""
        shape = tuple(round(n * self.margin) for n in grid.shape)
        wide = Grid.centered(shape, grid.spacing, grid.center.tolist(), grid.direction)
        pair = self.source.draw(rngs, wide, device, difficulty)
        n = grid.ndim
        rigid = random_rigid(rngs, n, self.mm * difficulty, self.degrees * difficulty)
        through = about(grid.center, matmul(random_affine(rngs, n, self.affine * difficulty), rigid)).to(device)
        back = invert_affine(through)
        to_world = torch.from_numpy(grid.voxel_to_world).to(device)
        to_wide = torch.from_numpy(wide.world_to_voxel).to(device)
        voxels = matmul(matmul(to_wide, through), to_world)
        labels = pair.fixed_labels
        return replace(
            pair,
            fixed=warp_affine(pair.fixed, voxels, grid.shape),
            fixed_to_world=to_world.expand(len(rngs), -1, -1).clone(),
            world_to_moving=matmul(pair.world_to_moving, through),
            truth=matmul(matmul(back, pair.truth), through),
            landmarks=None if pair.landmarks is None else transform_points(back, pair.landmarks),
            targets=None if pair.targets is None else transform_points(back, pair.targets),
            fixed_labels=None if labels is None else warp_affine(labels, voxels, grid.shape, mode="nearest"),
        )


def about(center: np.ndarray | Tensor, matrix: Tensor) -> Tensor:
    """Maps (B, D+1, D+1) given about the origin, now about ``center`` (D,) or (B, D)."""
    middle = torch.as_tensor(center, dtype=matrix.dtype, device=matrix.device)
    n = matrix.shape[-1] - 1
    shift = middle - matmul(matrix[..., :n, :n], middle.expand(matrix.shape[0], n).unsqueeze(-1)).squeeze(-1)
    moved = matrix.clone()
    moved[..., :n, n] = moved[..., :n, n] + shift
    return moved
