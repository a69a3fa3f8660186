"""EpisodeState: everything about running episodes, as batched tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

from torch import Tensor

from regenv.data.pairs import PairBatch
from regenv.ops import overlap
from regenv.ops.affine import products
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
        distance: (B,) float64, D of the pose; NaN where the truth is unknown.
        tre: (B,) float64, mean landmark error, mm; NaN where the truth is unknown.
        score: (B,) float64, the score whose gain is the reward.
        arrived: (B,) bool, whether the stopping rule holds.
        steps: (B,) int64, steps taken.
        guard_seed: (B,) int64 or None, seeds of the guard's random numbers.
        views: images cached by the last step, by name: "warped" (B, C, *shape), "difference" (B, C, *shape) or "pair"
            (B, 2C, *shape), or in uint8, as of :func:`regenv.ops.warp.fused_warp`.
        moments: (B, C, 5) float64 or None, sums over the voxels of fixed and warped, as of
            :func:`regenv.ops.warp.fused_warp`.
    """

    pair: PairBatch
    anchor: Tensor
    pose: Tensor
    pull_back: Tensor
    displacement: Tensor | None
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

    @cached_property
    def labels(self) -> Tensor | None:
        """The moving labels resampled on the fixed grid, nearest neighbour, (B, 1, *shape) integer, if there are any.
        """
        moving = self.pair.moving_labels
        return None if moving is None else self.resample(moving, "nearest")

    @cached_property
    def dice(self) -> Tensor | None:
        """Mean Dice (B,) float32 of the labels, where there are some of both images; NaN where there is nothing to
        compare."""
        fixed, moving = self.pair.fixed_labels, self.pair.moving_labels
        return None if fixed is None or moving is None else self.overlap(fixed, moving, self.pair.classes)

    def overlap(self, fixed: Tensor, moving: Tensor, classes: tuple[int, ...]) -> Tensor:
        """Mean Dice (B,) float32 of labels of the fixed and of the moving grid, over those of ``classes`` that a lane
        has in both; NaN where there are none."""
        return overlap.warped_dice(fixed, moving, self._voxels, self.displacement, classes)

    def look(self, view: str) -> tuple[dict[str, Tensor], Tensor]:
        """A view, by its name, and the moments of fixed and warped, in one pass."""
        image, moments = fused_warp(self.pair.fixed, self.pair.moving, self._voxels, self.displacement, view)
        return {view: image}, moments

    @cached_property
    def _voxels(self) -> Tensor:
        """Maps (B, D+1, D+1) from voxel points of the fixed to those of the moving grid, without the displacement."""
        return products(self.pair.world_to_moving, self.pull_back, self.pair.fixed_to_world)

    @property
    def lanes(self) -> int:
        return self.pose.shape[0]

    def after(self, **changes: Any) -> EpisodeState:
        """The same state with other values of some fields, a tenth of the time of ``replace``. What has been worked out
        of the place (warped images, labels, Dice) is kept where that is the same."""
        new = object.__new__(EpisodeState)
        kept = self.__dict__ if changes.keys().isdisjoint(_PLACE) else {name: self.__dict__[name] for name in _FIELDS}
        new.__dict__.update(kept)
        new.__dict__.update(changes)
        return new

    def select(self, mask: Tensor) -> EpisodeState:
        """The lanes of ``mask`` (B,) bool."""
        views = {name: view[mask] for name, view in self.views.items()}
        kept = {name: value[mask] for name, value in self._tensors()}
        return self.after(pair=self.pair.select(mask), views=views, moments=None, **kept)

    def release_views(self) -> EpisodeState:
        """The same state without its cached views, so that their callers own them."""
        released = self.after(views={})
        released.__dict__.pop("warped", None)
        return released

    def put(self, mask: Tensor, other: EpisodeState) -> EpisodeState:
        """A copy whose lanes of ``mask`` (B,) bool are those of ``other``, which has as many lanes as mask has True."""
        views = {name: _put(view, mask, other.views[name]) for name, view in self.views.items() if name in other.views}
        changed = {name: _put(value, mask, getattr(other, name)) for name, value in self._tensors()}
        return self.after(pair=self.pair.put(mask, other.pair), views=views, moments=None, **changed)

    def _tensors(self) -> list[tuple[str, Any]]:
        """Names and values of the tensors that change during an episode."""
        return [(f.name, value) for f in fields(self)
                if f.name not in ("pair", "views", "moments") and (value := getattr(self, f.name)) is not None]


_FIELDS = tuple(f.name for f in fields(EpisodeState))
_PLACE = {"pair", "pull_back", "displacement"}      # what the warped images depend on


def _put(value: Tensor, mask: Tensor, other: Tensor) -> Tensor:
    mixed = value.clone()
    mixed[mask] = other
    return mixed
