"""EpisodeState: everything about running episodes, as batched tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any

from torch import Tensor

from regenv.data.pairs import PairBatch
from regenv.ops.affine import matmul
from regenv.ops.warp import fused_warp, warp_through


@dataclass(frozen=True)
class EpisodeState:
    """B lanes of running episodes. Nothing here is changed in place.

    Attributes:
        pair: the images and what is known of them.
        anchor: (B, D+1, D+1) float64, pull-back to which the pose's residual is appended: the truth where it is known.
        pose: (B, P) float64, parameters of the residual.
        pull_back: (B, D+1, D+1) float64, fixed world to moving world: anchor times residual.
        displacement: (B, D, *shape) float32 or None, voxels of the fixed grid, array-axis order: points are displaced
            first, then pulled back.
        labels: (B, 1, *shape) integer or None, the moving labels resampled through both, nearest neighbour.
        distance: (B,) float64, D of the pose; NaN where the truth is unknown.
        tre: (B,) float64, mean landmark error, mm; NaN where the truth is unknown.
        score: (B,) float64, the score whose gain is the reward.
        arrived: (B,) bool, whether the stopping rule holds.
        steps: (B,) int64, steps taken.
        guard_seed: (B,) int64 or None, seeds of the guard's random numbers.
        views: images cached by the last step, by name: "warped" (B, C, *shape), "difference" (B, C, *shape) or "pair"
            (B, 2C, *shape), as of :func:`regenv.ops.warp.fused_warp`.
        moments: (B, C, 5) float64 or None, sums over the voxels of fixed and warped, as of
            :func:`regenv.ops.warp.fused_warp`.
    """

    pair: PairBatch
    anchor: Tensor
    pose: Tensor
    pull_back: Tensor
    displacement: Tensor | None
    labels: Tensor | None
    distance: Tensor
    tre: Tensor
    score: Tensor
    arrived: Tensor
    steps: Tensor
    guard_seed: Tensor | None = None
    views: Mapping[str, Tensor] = field(default_factory=dict)
    moments: Tensor | None = None

    def resample(self, image: Tensor, mode: str = "bilinear") -> Tensor:
        """An image of the moving grid resampled on the fixed grid at ``pull_back(x + displacement(x))``.

        Args: mode: "bilinear", or "nearest" for labels.
        """
        return warp_through(image, self._voxels, self.displacement, tuple(self.pair.fixed.shape[2:]), mode)

    @cached_property
    def warped(self) -> Tensor:
        """The moving image on the fixed grid, (B, C, *shape) float32: from a cached view, or warped now."""
        fixed = self.pair.fixed
        if "warped" in self.views:
            return self.views["warped"]
        if "difference" in self.views:
            return fixed - self.views["difference"]
        if "pair" in self.views:
            return self.views["pair"][:, fixed.shape[1]:].clone()
        return self.resample(self.pair.moving)

    def with_view(self, view: str) -> EpisodeState:
        """The same state with a view and the moments of fixed and warped computed and cached."""
        image, moments = fused_warp(self.pair.fixed, self.pair.moving, self._voxels, self.displacement, view)
        return replace(self, views={view: image}, moments=moments)

    @property
    def _voxels(self) -> Tensor:
        """Maps (B, D+1, D+1) from voxel points of the fixed to those of the moving grid, without the displacement."""
        return matmul(matmul(self.pair.world_to_moving, self.pull_back), self.pair.fixed_to_world)

    @property
    def lanes(self) -> int:
        return self.pose.shape[0]

    def select(self, mask: Tensor) -> EpisodeState:
        """The lanes of ``mask`` (B,) bool."""
        views = {name: view[mask] for name, view in self.views.items()}
        kept = {name: value[mask] for name, value in self._tensors()}
        return replace(self, pair=self.pair.select(mask), views=views, moments=None, **kept)

    def release_views(self) -> EpisodeState:
        """The same state without its cached views, so that their callers own them."""
        return replace(self, views={})

    def put(self, mask: Tensor, other: EpisodeState) -> EpisodeState:
        """A copy whose lanes of ``mask`` (B,) bool are those of ``other``, which has as many lanes as mask has True."""
        views = {name: _put(view, mask, other.views[name]) for name, view in self.views.items() if name in other.views}
        changed = {name: _put(value, mask, getattr(other, name)) for name, value in self._tensors()}
        return replace(self, pair=self.pair.put(mask, other.pair), views=views, moments=None, **changed)

    def _tensors(self) -> list[tuple[str, Any]]:
        """Names and values of the tensors that change during an episode."""
        return [(f.name, value) for f in fields(self)
                if f.name not in ("pair", "views", "moments") and (value := getattr(self, f.name)) is not None]


def _put(value: Tensor, mask: Tensor, other: Tensor) -> Tensor:
    mixed = value.clone()
    mixed[mask] = other
    return mixed
