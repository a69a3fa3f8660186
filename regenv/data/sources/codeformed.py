"""Perturbations: starting poses, rigid de-alignment, affine co-deformation; numbers per lane, by its own generator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from regenv.data.pairs import PairBatch, PairSource
from regenv.data.sources.common import random_affine, random_rigid
from regenv.grid import Grid
from regenv.ops.affine import about, invert_affine, matmul, transform_points
from regenv.ops.warp import warp_affine


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


