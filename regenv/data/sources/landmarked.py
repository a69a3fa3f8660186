"""Landmarks for any source's pairs: points of the fixed image at which the landmark error is measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from regenv.data.pairs import PairBatch
from regenv.data.sources.common import Wrapping, repeated
from regenv.grid import Grid
from regenv.ops import landmarks

KINDS = ("lattice", "between", "sift")
MARGIN = 0.1


@dataclass(frozen=True)
class Landmarked(Wrapping):
    """A source whose pairs carry landmarks of the fixed image's grid instead of their own.

    Args:
        source: any source whose pairs know the truth.
        kind: "lattice", regular points over the grid; "between", the middles of its cells, to measure on points that
            no reward was made of; or "sift", key-points of each fixed image (Lowe 2004; 2D only;
            Sun et al. 2018). Where an image has too few, they are repeated in turn; without any, the lattice is used.
        count: number of points; a lattice takes the next lower square or cube, "between" one point less along each
            axis.
    """

    kind: str = "lattice"
    count: int = 900

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"landmarks is {self.kind!r}; it must be one of {', '.join(KINDS)}.")
        if self.kind == "sift" and self.ndim != 2:
            raise ValueError("landmarks is 'sift'; SIFT key-points exist in 2D only, use 'lattice'.")
        if self.count < 2**self.ndim:
            raise ValueError(f"landmarks: count is {self.count}; at least {2**self.ndim} points are needed.")

    def changed(self, pair: PairBatch, rngs: Sequence[np.random.Generator], grid: Grid, difficulty: float) -> PairBatch:
        """The pair with these landmarks; their targets follow from the truth."""
        per_axis = int(self.count ** (1 / self.ndim) + 1e-9)
        regular = landmarks.lattice(grid, per_axis, MARGIN)
        if self.kind == "lattice":
            points = repeated(regular, pair.lanes)
        elif self.kind == "between":
            half_cell = (0.5 - MARGIN) / (per_axis - 1)
            points = repeated(landmarks.lattice(grid, per_axis - 1, MARGIN + half_cell), pair.lanes)
        else:
            points = torch.stack([self._key_points(image, grid, regular) for image in pair.fixed[:, 0].cpu()])
        return replace(pair, landmarks=points.to(pair.fixed.device), targets=None)

    def _key_points(self, image: Tensor, grid: Grid, regular: Tensor) -> Tensor:
        found = landmarks.sift(image, self.count)
        points = torch.from_numpy(grid.to_world(found)) if len(found) else regular
        return points[torch.arange(self.count) % len(points)]
