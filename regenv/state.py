"""EpisodeState: all that an episode is, as batched tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from regenv.data.pairs import PairBatch
from regenv.ops.warp import look, matmul, warp_through


@dataclass(frozen=True)
class EpisodeState:
    """B lanes of running episodes. Nothing here is changed in place.

    Attributes:
        pair: the images and what is known of them.
        anchor: (B, D+1, D+1) float64, pull-back that the pose's residual is appended to: the truth where it is known.
        pose: (B, P) float64, parameters of the residual.
        pull_back: (B, D+1, D+1) float64, fixed world to moving world: anchor times residual.
        displacement: (B, D, *shape) float32 or None, voxels of the fixed grid, array-axis order: points are displaced
            first, then pulled back.
        warped: (B, C, *shape) float32, the moving image seen through both on the fixed grid.
        labels: (B, 1, *shape) int16 or None, the moving labels seen through both, nearest neighbour.
        distance: (B,) float64, D of the pose; NaN where the truth is unknown.
        tre: (B,) float64, mean landmark error, mm; NaN where the truth is unknown.
        score: (B,) float64, what the reward is the gain of.
        arrived: (B,) bool, the stopping rule holds.
        steps: (B,) int64, steps taken.
        luck: (B,) int64 or None, seed of what is random in the transition.
        views: (B, ...) float32, what is to be seen of fixed and warped, by name: those that the last step has made.
        moments: (B, C, 5) float64 or None, sums over the voxels of fixed and warped, as :func:`regenv.ops.warp.look`.
    """

    pair: PairBatch
    anchor: Tensor
    pose: Tensor
    pull_back: Tensor
    displacement: Tensor | None
    warped: Tensor
    labels: Tensor | None
    distance: Tensor
    tre: Tensor
    score: Tensor
    arrived: Tensor
    steps: Tensor
    luck: Tensor | None = None
    views: Mapping[str, Tensor] = field(default_factory=dict)
    moments: Tensor | None = None

    def see(self, image: Tensor, mode: str = "bilinear") -> Tensor:
        """An image of the moving grid on the fixed grid, at ``pull_back(x + displacement(x))``; nearest for labels."""
        return warp_through(image, self._voxels, self.displacement, tuple(self.pair.fixed.shape[2:]), mode)

    def looked(self, view: str) -> EpisodeState:
        """The same with the moving image warped, what is seen of it ("difference", "pair" or "") and their moments."""
        pair = self.pair
        warped, seen, moments = look(pair.fixed, pair.moving, self._voxels, self.displacement, view)
        return replace(self, warped=warped, views={view: seen} if view else {}, moments=moments)

    @property
    def _voxels(self) -> Tensor:
        """Voxel points of the fixed grid to those of the moving one, (B, D+1, D+1), without the displacement."""
        return matmul(matmul(self.pair.world_to_moving, self.pull_back), self.pair.fixed_to_world)

    @property
    def lanes(self) -> int:
        return self.pose.shape[0]

    def select(self, mask: Tensor) -> EpisodeState:
        """The lanes of ``mask`` (B,) bool."""
        kept = {name: value[mask] for name, value in self._tensors()}
        return replace(self, pair=self.pair.select(mask), **kept, **_UNMADE)

    def seen(self) -> EpisodeState:
        """The same after its views have been given away, so that nobody else gets that memory."""
        return replace(self, views={})

    def put(self, mask: Tensor, other: EpisodeState) -> EpisodeState:
        """A copy whose lanes of ``mask`` (B,) bool are those of ``other``, which has as many lanes as mask has True."""
        changes: dict[str, Any] = {"pair": self.pair.put(mask, other.pair), **_UNMADE}
        for name, value in self._tensors():
            changes[name] = value.clone()
            changes[name][mask] = getattr(other, name)
        return replace(self, **changes)

    def keep(self, mask: Tensor, before: EpisodeState) -> EpisodeState:
        """A copy whose lanes of ``mask`` (B,) bool are as they were in ``before`` (same pairs)."""
        changes: dict[str, Any] = {
            name: torch.where(mask.view(-1, *(1,) * (value.ndim - 1)), getattr(before, name), value)
            for name, value in self._tensors()}
        return replace(self, **changes, **_UNMADE)

    def _tensors(self) -> list[tuple[str, Any]]:
        """Names and tensors of all that changes in an episode."""
        return [(f.name, value) for f in fields(self)
                if f.name not in ("pair", *_UNMADE) and (value := getattr(self, f.name)) is not None]


_UNMADE: dict[str, Any] = {"views": {}, "moments": None}  # what states that are mixed have to make anew
