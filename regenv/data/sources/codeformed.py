"""Any source's pairs with both images turned away from the scanner's axes and deformed alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from regenv.data.pairs import PairBatch
from regenv.data.sources.common import Wrapping, random_affine, random_rigid
from regenv.grid import Grid
from regenv.ops.affine import about, invert_affine, matmul, transform_points
from regenv.ops.warp import warp_affine


@dataclass(frozen=True)
class CoDeformed(Wrapping):
    """A source whose pairs are co-deformed: both images are seen through one random map, x -> A G x.

    G is rigid, about the grid's centre, and A affine (Liao et al. 2017, eq. 6). The truth changes with the map, so that
    alignment is preserved. The fixed image is drawn on a grid ``margin`` times larger and resampled once; the moving
    image is not resampled, only its frame changes.

    Args:
        source: any.
        affine: bound of c_ij, times the difficulty.
        mm, degrees: bounds of the rigid part, times the difficulty.
        margin: enlargement of the grid on which the wrapped source draws.
    """

    affine: float = 0.25
    mm: float = 0.0
    degrees: float = 0.0
    margin: float = 1.25

    def source_grid(self, grid: Grid) -> Grid:
        """The grid, ``margin`` times larger."""
        shape = tuple(round(n * self.margin) for n in grid.shape)
        return Grid.centered(shape, grid.spacing, grid.center.tolist(), grid.direction)

    def changed(self, pair: PairBatch, rngs: Sequence[np.random.Generator], grid: Grid, difficulty: float) -> PairBatch:
        """The pair through a random map."""
        n, device = grid.ndim, pair.fixed.device
        rigid = random_rigid(rngs, n, self.mm * difficulty, self.degrees * difficulty)
        through = about(grid.center, matmul(random_affine(rngs, n, self.affine * difficulty), rigid)).to(device)
        back = invert_affine(through)
        to_world = torch.from_numpy(grid.voxel_to_world).to(device)
        to_wide = torch.from_numpy(self.source_grid(grid).world_to_voxel).to(device)
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
