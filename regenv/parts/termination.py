"""When an episode has arrived."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from regenv.ops.kernels.poses_cpu import TIE
from regenv.state import EpisodeState
from regenv.task import Measure, Transform


@dataclass(frozen=True)
class Arrived:
    """D <= tolerance, or no action lowers D.

    The paper stops at D <= 0.5 only, which unit steps cannot reach from most fractional poses: the residual after
    rounding has norm up to sqrt(6)/2 = 1.22 and lies within 0.5 for 8 % of uniform poses. The second rule closes that
    gap: for additive unit steps it means "every |v_i| <= 1/2". Lanes of unknown truth never arrive. Distances that
    differ by rounding alone count as equal.
    """

    tolerance: float = 0.5
    endless: ClassVar[bool] = False
    kernel: ClassVar[tuple[str, ...]] = ("arrived", "tolerance")

    def __call__(self, transform: Transform, measure: Measure, state: EpisodeState, deltas: Tensor) -> Tensor:
        """(B,) bool. Args: measure: D of poses; deltas (A, P), the discrete actions."""
        distance = measure(state.pose)
        reachable = measure(transform.apply(state.pose[:, None], deltas))
        return state.pair.known & ((distance <= self.tolerance + TIE) | (reachable.amin(1) >= distance - TIE))


@dataclass(frozen=True)
class ScoreReached:
    """The reward's score reaches a level: ``reward_scale`` times a Dice of 0.98 (Luo et al. 2022, released code)."""

    level: float
    endless: ClassVar[bool] = False

    def __call__(self, transform: Transform, measure: Measure, state: EpisodeState, deltas: Tensor) -> Tensor:
        """(B,) bool."""
        return state.score >= self.level


@dataclass(frozen=True)
class Never:
    """Episodes run to their time limit: for evaluation, where arrival must not be revealed to the agent."""

    endless: ClassVar[bool] = True
    kernel: ClassVar[tuple[str, ...]] = ("never",)

    def __call__(self, transform: Transform, measure: Measure, state: EpisodeState, deltas: Tensor) -> Tensor:
        """(B,) bool, False."""
        return state.pair.known & False
