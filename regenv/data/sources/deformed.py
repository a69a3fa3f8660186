"""A source whose moving images are bent by a random, smooth, known deformation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from regenv.data.pairs import PairBatch, PairSource
from regenv.grid import Grid
from regenv.ops import bspline, landmarks
from regenv.ops.affine import matmul, transform_points
from regenv.ops.warp import invert, warp_dense, warp_points, warp_through


@dataclass(frozen=True)
class Deformed:
    """Pairs of any source, the moving image first aligned by the truth and then bent: ``moving(x + u(x))``.

    u is a cubic B-spline with coefficients uniform in +-amplitude. The deformation that aligns the pair is the inverse
    of u; landmarks are on a lattice, and their targets follow it.

    Args: source: whose pairs know the truth; amplitude: mm, times the difficulty; control: control points' distance,
    mm.
    """

    source: PairSource
    amplitude: float = 12.0
    control: float = 48.0

    def __post_init__(self) -> None:
        if not (self.amplitude >= 0 and self.control > 0):
            raise ValueError(f"deformed: amplitude is {self.amplitude} mm and control {self.control} mm; the first "
                             "must not be negative, the second positive.")

    @property
    def ndim(self) -> int:
        return self.source.ndim

    def draw(self, rngs: Sequence[np.random.Generator], grid: Grid, device: torch.device,
             difficulty: float = 1.0) -> PairBatch:
        """As the wrapped source, on one grid; the amplitude grows with ``difficulty``."""
        pair = self.source.draw(rngs, grid, device, difficulty)
        voxels_mm = np.array(grid.spacing[::-1])
        lattice = bspline.control_shape(grid.shape, (self.control / voxels_mm).tolist())
        draws = np.stack([rng.uniform(-1, 1, (self.ndim, *lattice)) for rng in rngs])
        reach = torch.from_numpy(self.amplitude * difficulty / voxels_mm).view(-1, *(1,) * self.ndim)
        field = bspline.displacement((torch.from_numpy(draws) * reach).to(torch.float32), grid.shape).to(device)
        to_moving = matmul(matmul(pair.world_to_moving, pair.truth), pair.fixed_to_world)
        aligned = warp_through(pair.moving, to_moving, torch.zeros_like(field), grid.shape)
        labels = None if pair.moving_labels is None else warp_through(pair.moving_labels, to_moving, field, grid.shape,
                                                                      mode="nearest")
        to_world, to_voxel = (torch.from_numpy(matrix).to(device).repeat(len(rngs), 1, 1)
                              for matrix in (grid.voxel_to_world, grid.world_to_voxel))
        points = landmarks.lattice(grid, 5, 0.2).to(device).repeat(len(rngs), 1, 1)
        targets = warp_points(transform_points(to_voxel, points), invert(field)).to(torch.float64)
        return replace(pair, moving=warp_dense(aligned, field), moving_labels=labels, fixed_to_world=to_world,
                       world_to_moving=to_voxel, truth=torch.eye(self.ndim + 1, dtype=torch.float64,
                                                                 device=device).repeat(len(rngs), 1, 1),
                       known=torch.zeros_like(pair.known), landmarks=points,
                       targets=transform_points(to_world, targets))
