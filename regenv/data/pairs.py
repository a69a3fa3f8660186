"""Pairs of images to be registered, as batches of tensors, and the protocol of their sources."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from regenv.grid import Grid
from regenv.ops import overlap


@dataclass(frozen=True)
class PairBatch:
    """Lanes of image pairs. All tensors live on one device; B lanes, D dimensions.

    Attributes:
        fixed: (B, C, *shape) float32, intensities in [0, 1].
        moving: (B, C, *moving_shape) float32, intensities in [0, 1]; its grid may differ from the fixed one.
        fixed_to_world: (B, D+1, D+1) float64, voxel points (array-axis order) of the fixed grid to world mm.
        world_to_moving: (B, D+1, D+1) float64, world mm to voxel points of the moving grid.
        truth: (B, D+1, D+1) float64, the pull-back at perfect alignment: maps a fixed world point to its moving
            world point. Identity where unknown.
        known: (B,) bool, whether ``truth`` is known.
        center: (B, D) float64, centre of rotation in the fixed world, mm.
        landmarks: (B, N, D) float64, points of the fixed world, mm, on which target registration error is measured;
            None where there is nothing to measure it by.
        targets: (B, N, D) float64 or None, where they belong in the moving world, mm. None: where the truth sends them.
        fixed_labels: (B, 1, *shape) int16 or None.
        moving_labels: (B, 1, *moving_shape) int16 or None.
        fixed_clusters, moving_clusters: as the labels, of the intensities' clusters: pseudo-labels.
        target_pose: (B, P) float64 or None, the pose at alignment where it is not zero: amplitudes of a deformation
            model.
    """

    fixed: Tensor
    moving: Tensor
    fixed_to_world: Tensor
    world_to_moving: Tensor
    truth: Tensor
    known: Tensor
    center: Tensor
    landmarks: Tensor | None
    targets: Tensor | None = None
    fixed_labels: Tensor | None = None
    moving_labels: Tensor | None = None
    fixed_clusters: Tensor | None = None
    moving_clusters: Tensor | None = None
    target_pose: Tensor | None = None

    @cached_property
    def classes(self) -> tuple[int, ...]:
        """Of the fixed labels, without the background 0; looked up once."""
        return overlap.classes(self.fixed_labels)

    @cached_property
    def clusters(self) -> tuple[int, ...]:
        """Of the fixed clusters, as ``classes``."""
        return overlap.classes(self.fixed_clusters)

    @classmethod
    def stack(cls, pairs: Sequence[PairBatch]) -> PairBatch:
        """Batches of equal shapes, one after the other."""
        return replace(pairs[0], **{f.name: torch.cat([getattr(pair, f.name) for pair in pairs])
                                    for f in fields(cls) if getattr(pairs[0], f.name) is not None})

    @property
    def lanes(self) -> int:
        return self.fixed.shape[0]

    @property
    def ndim(self) -> int:
        return self.fixed.ndim - 2

    def to(self, device: torch.device | str) -> PairBatch:
        return replace(self, **{f.name: v.to(device) for f in fields(self) if (v := getattr(self, f.name)) is not None})

    def select(self, index: Tensor | slice) -> PairBatch:
        """The lanes at ``index``."""
        return replace(self, **{f.name: v[index] for f in fields(self) if (v := getattr(self, f.name)) is not None})

    def put(self, mask: Tensor, other: PairBatch) -> PairBatch:
        """A copy whose lanes of ``mask`` (B,) are those of ``other`` in order (as many lanes as mask has True)."""
        def merged(mine: Tensor, theirs: Tensor) -> Tensor:
            out = mine.clone()
            out[mask] = theirs
            return out
        return replace(self, **{f.name: merged(v, getattr(other, f.name))
                                for f in fields(self) if (v := getattr(self, f.name)) is not None})


@runtime_checkable
class PairSource(Protocol):
    """Where pairs come from.

    ``draw`` is called with one generator per lane and must use nothing else for its randomness, in an order that does
    not depend on the other lanes: lane i drawn with generator g equals a single lane drawn with g, bit for bit on CPU.
    So per lane only numbers are drawn (numpy, a short loop); images are then made by batched, lane-independent tensor
    operations (elementwise, ``grid_sample``, ``interpolate``, pooling; no convolution and no float mean over a volume,
    whose rounding may change with the batch size).
    """

    @property
    def ndim(self) -> int: ...

    def draw(self, rngs: Sequence[np.random.Generator], grid: Grid, device: torch.device,
             difficulty: float = 1.0) -> PairBatch:
        """One pair per generator.

        Args:
            rngs: one numpy generator per lane.
            grid: the fixed image's grid (shape and spacing as asked by the env, centred in the world).
            device: where the tensors shall live.
            difficulty: 0 (plain) to 1 (everything the source can vary); curricula raise it during training.
        """
        ...
