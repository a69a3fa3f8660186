"""Any source's pairs with the moving image bent by a random, smooth, known deformation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from regenv.data.pairs import PairBatch
from regenv.data.sources.common import Wrapping, random_bending, repeated
from regenv.grid import Grid
from regenv.ops import landmarks
from regenv.ops.affine import matmul, transform_points
from regenv.ops.warp import invert, warp_dense, warp_points, warp_through


@dataclass(frozen=True)
class Deformed(Wrapping):
    """Pairs of any source on one grid; the moving image is aligned by the truth and then bent: ``moving(x + u(x))``.

    u is a cubic B-spline with coefficients uniform in +-amplitude. The deformation that aligns the pair is the inverse
    of u. Landmarks lie on a lattice; their targets follow that deformation.

    Args:
        source: any source whose pairs know the truth.
        amplitude: mm, times the difficulty.
        control: approximate distance of the control points, mm.
    """

    amplitude: float = 12.0
    control: float = 48.0

    def __post_init__(self) -> None:
        if not (self.amplitude >= 0 and self.control > 0):
            raise ValueError(f"deformed: amplitude is {self.amplitude} mm and control {self.control} mm; the first "
                             "must not be negative, the second positive.")

    def changed(self, pair: PairBatch, rngs: Sequence[np.random.Generator], grid: Grid, difficulty: float) -> PairBatch:
        """The pair with its moving image bent."""
        lanes, device = len(rngs), pair.fixed.device
        field = random_bending(rngs, grid, self.control, self.amplitude * difficulty).to(device)
        to_moving = matmul(matmul(pair.world_to_moving, pair.truth), pair.fixed_to_world)
        aligned = warp_through(pair.moving, to_moving, torch.zeros_like(field), grid.shape)
        labels = None if pair.moving_labels is None else warp_through(pair.moving_labels, to_moving, field, grid.shape,
                                                                      mode="nearest")
        to_world, to_voxel = (repeated(matrix, lanes, device) for matrix in (grid.voxel_to_world, grid.world_to_voxel))
        points = repeated(landmarks.lattice(grid, 5, 0.2), lanes, device)
        targets = warp_points(transform_points(to_voxel, points), invert(field)).to(torch.float64)
        return replace(pair, moving=warp_dense(aligned, field), moving_labels=labels, fixed_to_world=to_world,
                       world_to_moving=to_voxel, truth=repeated(np.eye(self.ndim + 1), lanes, device),
                       known=torch.zeros_like(pair.known), landmarks=points,
                       targets=transform_points(to_world, targets))
