"""Pairs of images to be registered, as batches of tensors, and the protocol of their sources."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regenv.grid import Grid
from regenv.ops import overlap
from regenv.ops.kernels.cpu import volume_of

SPLITS = ("train", "test")


class Arrays(NamedTuple):
    """A :class:`PairBatch` for kernels: images (B, C, D, H, W) float32, numbers float64, of no lanes where unknown."""

    fixed: NDArray[np.float32]
    moving: NDArray[np.float32]
    fixed_to_world: NDArray[np.float64]
    world_to_moving: NDArray[np.float64]
    truth: NDArray[np.float64]
    known: NDArray[np.bool_]
    center: NDArray[np.float64]
    landmarks: NDArray[np.float64]
    targets: NDArray[np.float64]
    target_pose: NDArray[np.float64]


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
        landmarks: (B, N, D) float64, points of the fixed world, mm, at which the target registration error is measured;
            None where there are none.
        targets: (B, N, D) float64, where the landmarks lie in the moving world, mm. None: where ``truth`` maps them.
        fixed_labels: (B, 1, *shape) int16, int32 or int64, the user's own numbers, or None; a source has one type.
        moving_labels: (B, 1, *moving_shape), likewise.
        fixed_clusters, moving_clusters: of the labels' shapes, int16, clusters of the intensities (pseudo-labels),
            or None.
        target_pose: (B, P) float64, the pose at alignment where it is not zero (amplitudes of a deformation model), or
            None.
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
        """Labels that occur in ``fixed_labels``, without the background 0; computed once."""
        return overlap.classes(self.fixed_labels)

    @cached_property
    def clusters(self) -> tuple[int, ...]:
        """Clusters that occur in ``fixed_clusters``, without 0; computed once."""
        return overlap.classes(self.fixed_clusters)

    @cached_property
    def arrays(self) -> Arrays:
        """Memory of the tensors, which must be on the CPU, as the kernels there take it; found once."""
        def flat(tensor: Tensor | None, ndim: int) -> NDArray[np.float64]:
            return np.empty((0,) * ndim) if tensor is None else tensor.to(torch.float64).contiguous().numpy()

        found = Arrays(volume_of(self.fixed), volume_of(self.moving), flat(self.fixed_to_world, 3),
                       flat(self.world_to_moving, 3), flat(self.truth, 3), self.known.contiguous().numpy(),
                       flat(self.center, 2), flat(self.landmarks, 3), flat(self.targets, 3), flat(self.target_pose, 2))
        unknown = {"landmarks": self.landmarks, "targets": self.targets, "target_pose": self.target_pose}
        for name, array in found._asdict().items():     # kernels do not look at bounds
            if len(array) != self.lanes and unknown.get(name, array) is not None:
                raise ValueError(f"PairBatch: {name} has {len(array)} lanes; the fixed image has {self.lanes}.")
        if found.fixed.shape[1] != found.moving.shape[1]:
            raise ValueError(f"PairBatch: the fixed image has {found.fixed.shape[1]} channels, the moving one "
                             f"{found.moving.shape[1]}; they must agree.")
        if self.targets is not None and found.targets.shape != found.landmarks.shape:
            raise ValueError(f"PairBatch: targets are {found.targets.shape}, landmarks {found.landmarks.shape}; they "
                             "must agree.")
        return found

    @classmethod
    def stack(cls, pairs: Sequence[PairBatch]) -> PairBatch:
        """Batches of equal shapes, concatenated."""
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
        """A copy in which the lanes selected by ``mask`` (B,) are replaced by the lanes of ``other``, in order.

        ``other`` has as many lanes as ``mask`` has True.
        """
        def merged(mine: Tensor, theirs: Tensor) -> Tensor:
            out = mine.clone()
            out[mask] = theirs
            return out
        return replace(self, **{f.name: merged(v, getattr(other, f.name))
                                for f in fields(self) if (v := getattr(self, f.name)) is not None})


@runtime_checkable
class PairSource(Protocol):
    """Where pairs come from.

    ``draw`` gets one generator per lane and takes its randomness from nothing else, in an order that does not depend on
    the other lanes: lane i drawn with generator g equals a single lane drawn with g, bit for bit on CPU. So each lane
    draws numbers only (numpy, a short loop); the images are then made by batched, lane-independent tensor operations
    (elementwise, ``grid_sample``, ``interpolate``, pooling; no convolution and no float mean over a volume, whose
    rounding may change with the batch size).
    """

    @property
    def ndim(self) -> int: ...

    def draw(self, rngs: Sequence[np.random.Generator], grid: Grid, device: torch.device,
             difficulty: float = 1.0) -> PairBatch:
        """One pair per generator.

        Args:
            rngs: one numpy generator per lane.
            grid: the fixed image's grid (shape and spacing that the environment asks for, centred in the world).
            device: of the tensors.
            difficulty: 0 (plain) to 1 (everything the source can vary); curricula raise it during training.
        """
        ...
