"""Pseudo-labels of any source's images: K-means clusters of their intensities (Luo et al. 2022, DIR environment)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from regenv.data.pairs import PairBatch, PairSource
from regenv.grid import Grid
from regenv.ops.kmeans import kmeans


@dataclass(frozen=True)
class Clustered:
    """A source whose pairs carry the clusters of each image's intensities, darkest first.

    Args: source; clusters: how many.
    """

    source: PairSource
    clusters: int = 3

    def __post_init__(self) -> None:
        if self.clusters < 2:
            raise ValueError(f"clusters is {self.clusters}; at least 2 are needed.")

    @property
    def ndim(self) -> int:
        return self.source.ndim

    def draw(self, rngs: Sequence[np.random.Generator], grid: Grid, device: torch.device,
             difficulty: float = 1.0) -> PairBatch:
        """As the wrapped source."""
        pair = self.source.draw(rngs, grid, device, difficulty)
        fixed, moving = (kmeans(image[:, :1], self.clusters)[0] for image in (pair.fixed, pair.moving))
        return replace(pair, fixed_clusters=fixed, moving_clusters=moving)
