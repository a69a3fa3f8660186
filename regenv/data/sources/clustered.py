"""Pseudo-labels of any source's images: K-means clusters of their intensities (Luo et al. 2022, DIR environment)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from regenv.data.pairs import PairBatch
from regenv.data.sources.common import Wrapping
from regenv.grid import Grid
from regenv.ops.kmeans import kmeans


@dataclass(frozen=True)
class Clustered(Wrapping):
    """A source whose pairs carry the clusters of each image's intensities, darkest first.

    Args: source: any; clusters: their number.
    """

    clusters: int = 3

    def __post_init__(self) -> None:
        if self.clusters < 2:
            raise ValueError(f"clusters is {self.clusters}; at least 2 are needed.")

    def changed(self, pair: PairBatch, rngs: Sequence[np.random.Generator], grid: Grid, difficulty: float) -> PairBatch:
        """The pair with its clusters."""
        fixed, moving = (kmeans(image[:, :1], self.clusters)[0] for image in (pair.fixed, pair.moving))
        return replace(pair, fixed_clusters=fixed, moving_clusters=moving)
