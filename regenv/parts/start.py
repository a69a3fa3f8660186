"""Starting poses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from regenv.data.pairs import PairBatch


@dataclass(frozen=True)
class UniformStart:
    """Starting poses, uniform within +-ranges, a share of them near the solution (Liao et al. 2017, denser sampling).
    Without such a share, none of them is a success already.

    Args:
        ranges: half-widths of the P parameters, mm and degrees (Rx Ry Rz angles).
        near: share of the lanes that are drawn within ``near_scale`` times the ranges.
        whole: only whole units, equally likely, so that unit steps reach the solution exactly.
        units: of the parameters; default 1 each.
    """

    ranges: tuple[float, ...]
    near: float = 0.0
    near_scale: float = 0.15
    whole: bool = False
    units: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not all(width >= 0 and np.isfinite(width) for width in self.ranges):
            raise ValueError(f"UniformStart: ranges is {self.ranges}; half-widths must be finite and not negative.")
        for name in ("near", "near_scale"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"UniformStart: {name} is {getattr(self, name)}; it must lie in [0, 1].")

    @property
    def redrawn(self) -> bool:
        """Whether a start that already is a success is drawn anew: not where some are meant to lie near."""
        return self.near == 0

    def draw(self, rngs: Sequence[np.random.Generator], scale: float = 1.0,
             pair: PairBatch | None = None) -> NDArray[np.float64]:
        """Poses (B, P) float64; ``scale`` in (0, 1] shrinks the ranges, for curricula."""
        width, units = np.asarray(self.ranges) * scale, np.asarray(self.units or 1.0)
        if self.whole:
            width = (np.floor(width / units + 1e-9) + 0.5) * units
        poses = np.stack([rng.uniform(-width, width) * (self.near_scale if rng.random() < self.near else 1.0)
                          for rng in rngs])
        return np.round(poses / units) * units if self.whole else poses


@dataclass(frozen=True)
class OnTheWay:
    """Starting poses of a deformation model: zero, or near the straight line from zero to the target.

    Args:
        deviations: of the P amplitudes.
        wander: share of lanes that start near the line, for training; evaluation starts at zero.
        stray: largest standard deviation of these starts about the line, in deviations.
    """

    redrawn: ClassVar[bool] = False

    deviations: tuple[float, ...]
    wander: float = 0.0
    stray: float = 0.3

    def __post_init__(self) -> None:
        if not 0 <= self.wander <= 1 or not self.stray >= 0:
            raise ValueError(f"OnTheWay: wander is {self.wander} and stray {self.stray}; wander must lie in [0, 1], "
                             "stray must not be negative.")

    def draw(self, rngs: Sequence[np.random.Generator], scale: float = 1.0,
             pair: PairBatch | None = None) -> NDArray[np.float64]:
        """Poses (B, P) float64; ``scale`` has no meaning here."""
        sigma = np.asarray(self.deviations)
        draws = [(rng.random() < self.wander, rng.random(), rng.random(), rng.normal(0, sigma)) for rng in rngs]
        if pair is None or pair.target_pose is None:
            return np.zeros((len(rngs), len(sigma)))
        targets = pair.target_pose.cpu().numpy()
        return np.stack([on * (way * target + self.stray * off * spread)
                         for (on, way, spread, off), target in zip(draws, targets, strict=True)])


@dataclass(frozen=True)
class ZeroStart:
    """Dense episodes begin with no displacement. Args: shape: of the fields."""

    redrawn: ClassVar[bool] = False

    shape: tuple[int, ...]

    def draw(self, rngs: Sequence[np.random.Generator], scale: float = 1.0,
             pair: PairBatch | None = None) -> NDArray[np.float32]:
        """Fields (B, D, *shape) float32, zero."""
        return np.zeros((len(rngs), len(self.shape), *self.shape), dtype=np.float32)
