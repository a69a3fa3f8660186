"""A task: the parts that make an episode, and the contract of each part.

B counts lanes, P parameters of a pose, A discrete actions, D dimensions; poses are millimetres and degrees unless a
transform says otherwise. A part is a frozen object whose methods are pure functions of tensors: a user's own class
needs nothing but these methods, no base class.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol, TypeGuard

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from regenv.data.pairs import PairBatch, PairSource
from regenv.grid import Grid
from regenv.state import EpisodeState

SUCCESS_MM = 10.0
Measure = Callable[[Tensor], Tensor]
"""D (B, ...) of poses (B, ..., P), for the pairs of an episode."""


class Transform(Protocol):
    """What a pose means: the residual of the map from fixed to moving world, and how an action changes it."""

    linear: ClassVar[bool]
    """Whether every pose is a matrix and nothing else; then it is a :class:`LinearTransform` too."""

    @property
    def ndim(self) -> int:
        """2 or 3."""

    @property
    def names(self) -> tuple[str, ...]:
        """Of the parameters of a pose."""

    def matrix(self, pose: Tensor) -> Tensor:
        """Linear part of the residual pull-back, (..., D+1, D+1) float64, world mm about the origin, of (..., P)."""

    def displacement(self, pose: Tensor) -> Tensor | None:
        """Displacements (B, D, *shape) float32, voxels of the fixed grid, array-axis order; None where there are none.
        Points are displaced first, then taken by the matrix."""

    def apply(self, pose: Tensor, delta: Tensor) -> Tensor:
        """Poses after actions that change the parameters by ``delta``, of broadcastable shape."""

    def from_draws(self, draws: Tensor) -> Tensor:
        """Poses of what a :class:`Start` draws."""

    def rebase(self, anchor: Tensor, residual: Tensor, pose: Tensor) -> tuple[Tensor, Tensor]:
        """Anchor and pose to go on from where the truth is unknown.

        Args: anchor (B, D+1, D+1): what the residual is appended to; residual (B, D+1, D+1): of ``pose``.
        """


class LinearTransform(Transform, Protocol):
    """A transform whose poses are matrices."""

    def parameters(self, matrix: Tensor) -> Tensor:
        """Poses (..., P) float64 of residual pull-backs (..., D+1, D+1)."""

    def distance(self, pose: Tensor) -> Tensor:
        """Norm (...,) of the parameters (..., P), in the transform's own mix of units."""


def is_linear(transform: Transform) -> TypeGuard[LinearTransform]:
    """Whether poses are matrices: what the type checker is told by ``transform.linear``."""
    return transform.linear


class Actions(Protocol):
    """How an agent's action becomes a change of parameters."""

    @property
    def deltas(self) -> NDArray[np.float64]:
        """Change of the parameters by each discrete action, (A, P); (0, D) where there are none. Continuous steps
        give their unit steps, by which the stopping rule is judged."""

    def space(self) -> gym.Space[Any]:
        """Of one lane's action."""

    def delta(self, action: Tensor, table: Tensor) -> Tensor:
        """Change of the parameters (B, P), or of a field (B, D, *shape), by actions (B, ...).

        Args: table: ``deltas`` on the device. Raises ValueError for actions that are out of the space.
        """


class Start(Protocol):
    """Where episodes begin."""

    def draw(self, rngs: Sequence[np.random.Generator], scale: float = 1.0,
             pair: PairBatch | None = None) -> NDArray[Any]:
        """One draw a generator, (B, ...), for ``Transform.from_draws``.

        Args: scale: in (0, 1], shrinks the range; pair: the lanes' images and what is known of them.
        """


class Distance(Protocol):
    """How far a pose is from alignment."""

    def __call__(self, transform: Transform, pair: PairBatch, pose: Tensor) -> Tensor:
        """D (B, ...) of poses (B, ..., P); NaN where the truth is unknown."""


class Observation(Protocol):
    """What an agent sees."""

    view: ClassVar[str]
    """What of it the step that warps the image makes in the same pass: "warped", "difference" or "pair"."""

    def space(self, shape: tuple[int, ...]) -> gym.Space[Any]:
        """Of one lane, for images (*shape)."""

    def __call__(self, state: EpisodeState) -> Tensor | dict[str, Tensor]:
        """(B, *space.shape) each, of the space's dtype."""


class Reward(Protocol):
    """What a step earns."""

    def score(self, state: EpisodeState) -> Tensor:
        """(B,) float64, kept in ``state.score``: what the reward is the gain of."""

    def __call__(self, before: EpisodeState, after: EpisodeState) -> Tensor:
        """Rewards (B,) float64 of a step."""


class Termination(Protocol):
    """When an episode has arrived."""

    endless: ClassVar[bool]
    """Whether nothing but the time limit ends an episode."""

    def __call__(self, transform: Transform, measure: Measure, state: EpisodeState, deltas: Tensor) -> Tensor:
        """(B,) bool. Args: measure: D of poses; deltas (A, P): the discrete actions."""


class Expert(Protocol):
    """What a perfect agent knows: a target for every action."""

    def __call__(self, transform: Transform, measure: Measure, pose: Tensor, deltas: Tensor) -> Tensor:
        """Targets (B, A) float64 of poses (B, P)."""

    def weights(self, deltas: NDArray[np.float64]) -> NDArray[np.float64]:
        """Factors (A,) from targets to values by which actions compare."""


class Guard(Protocol):
    """Which actions are let through."""

    def accepted(self, pose: Tensor, delta: Tensor, chance: Tensor) -> Tensor:
        """(B, A, P) bool: which parameters' parts of changes ``delta`` (B, A, P) have an effect on poses (B, P).

        Args: chance (B, 2 P): uniform numbers, 2 p for raising parameter p, 2 p + 1 for lowering it.
        """


@dataclass(frozen=True)
class Task:
    """One row of the catalogue: the parts that make an episode.

    Args:
        source: where pairs come from.
        grid: the fixed image's grid, on which the agent sees both images.
        transform: what a pose means. actions: how an action changes it. start: where episodes begin.
        distance: the D of a pose, if there is one. observation: what the agent sees. reward, termination: as named.
        expert: targets for ``privileged=True``, where there are any.
        max_episode_steps: time limit.
        success_mm: landmark error at which a registration counts as a success.
        guard: which actions are let through; None lets all.

    Raises ValueError for a time limit below 1.
    """

    source: PairSource
    grid: Grid
    transform: Transform
    actions: Actions
    start: Start
    distance: Distance | None
    observation: Observation
    reward: Reward
    termination: Termination
    expert: Expert | None
    max_episode_steps: int
    success_mm: float = SUCCESS_MM
    guard: Guard | None = None

    def __post_init__(self) -> None:
        if self.max_episode_steps < 1:
            raise ValueError(f"Task: max_episode_steps is {self.max_episode_steps}; it must be at least 1.")

    @property
    def endless(self) -> bool:
        """Whether nothing but the time limit ends an episode."""
        return self.termination.endless

    def limited(self, max_episode_steps: int) -> Task:
        """The same task with another time limit."""
        return replace(self, max_episode_steps=max_episode_steps)
