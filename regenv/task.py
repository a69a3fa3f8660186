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
from regenv.inputs import number, whole
from regenv.state import EpisodeState

SUCCESS_MM = 10.0
Measure = Callable[[Tensor], Tensor]
"""D (B, ...) of poses (B, ..., P), for the pairs of an episode."""


class Transform(Protocol):
    """What a pose means: the residual of the map from fixed to moving world, and how an action changes it."""

    linear: ClassVar[bool]
    """Whether every pose is a matrix and nothing else; if so, the transform is a :class:`LinearTransform`."""

    @property
    def ndim(self) -> int:
        """2 or 3."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of a pose's parameters."""

    def matrix(self, pose: Tensor) -> Tensor:
        """Linear part (..., D+1, D+1) float64 of the residual pull-back of poses (..., P), mm about the origin."""

    def displacement(self, pose: Tensor) -> Tensor | None:
        """Displacements (B, D, *shape) float32, voxels of the fixed grid, array-axis order; None for linear transforms.
        Points are displaced first, then mapped by the matrix."""

    def apply(self, pose: Tensor, delta: Tensor) -> Tensor:
        """Poses after actions that change the parameters by ``delta``, which broadcasts with ``pose``."""

    def from_draws(self, draws: Tensor) -> Tensor:
        """Poses that correspond to the draws of a :class:`Start`."""

    def rebase(self, anchor: Tensor, residual: Tensor, pose: Tensor) -> tuple[Tensor, Tensor]:
        """Anchor and pose from which a step goes on in lanes whose truth is unknown.

        Args: anchor (B, D+1, D+1): pull-backs to which the residuals are appended; residual (B, D+1, D+1): of ``pose``.
        """


class LinearTransform(Transform, Protocol):
    """A transform whose poses are matrices."""

    def parameters(self, matrix: Tensor) -> Tensor:
        """Poses (..., P) float64 of residual pull-backs (..., D+1, D+1)."""

    def distance(self, pose: Tensor) -> Tensor:
        """Norm (...,) of the parameters (..., P), in the transform's own mix of units."""


def is_linear(transform: Transform) -> TypeGuard[LinearTransform]:
    """Whether poses are matrices, as ``transform.linear`` says; narrows the type for the type checker."""
    return transform.linear


class Actions(Protocol):
    """How an agent's action becomes a change of parameters."""

    @property
    def deltas(self) -> NDArray[np.float64]:
        """Change of the parameters by each discrete action, (A, P); (0, D) for actions that are fields. Continuous
        actions give their unit steps, which the stopping rule tries."""

    def space(self) -> gym.Space[Any]:
        """Space of one lane's action."""

    def delta(self, action: Tensor, table: Tensor) -> Tensor:
        """Change of the parameters (B, P), or of a field (B, D, *shape), by actions (B, ...).

        Args: table: ``deltas`` on the device; action: checked by :func:`regenv.inputs.checked_actions`. On a GPU nobody
        has looked at its values: those outside the space must do no harm.
        """


class Start(Protocol):
    """Where episodes begin."""

    @property
    def redrawn(self) -> bool:
        """Whether a start that already is a success, its landmark error at most ``success_mm``, is drawn anew."""

    def draw(self, rngs: Sequence[np.random.Generator], scale: float = 1.0,
             pair: PairBatch | None = None) -> NDArray[Any]:
        """One draw per generator, (B, ...), for ``Transform.from_draws``.

        Args: scale: in (0, 1], shrinks the range; pair: the lanes' images and known truth.
        """


class Distance(Protocol):
    """How far a pose is from alignment."""

    def __call__(self, transform: Transform, pair: PairBatch, pose: Tensor) -> Tensor:
        """D (B, ...) of poses (B, ..., P); NaN where the truth is unknown."""


class Observation(Protocol):
    """What an agent sees."""

    @property
    def view(self) -> str:
        """The image that the step's warp computes in the same pass, by its name in :data:`regenv.ops.warp.VIEWS`."""

    def space(self, shape: tuple[int, ...]) -> gym.Space[Any]:
        """Space of one lane's observation, for images of (*shape)."""

    def __call__(self, state: EpisodeState) -> Tensor | dict[str, Tensor]:
        """Observations (B, *space.shape) of the space's dtype, or a dict of such."""


class Reward(Protocol):
    """What a step earns."""

    def score(self, state: EpisodeState) -> Tensor:
        """The score (B,) float64 whose gain is the reward; kept in ``state.score``."""

    def __call__(self, before: EpisodeState, after: EpisodeState) -> Tensor:
        """Rewards (B,) float64 of a step."""


class Termination(Protocol):
    """When an episode has arrived."""

    endless: ClassVar[bool]
    """Whether nothing but the time limit ends an episode."""

    def __call__(self, transform: Transform, measure: Measure, state: EpisodeState, deltas: Tensor) -> Tensor:
        """Which lanes have arrived, (B,) bool. Args: measure: D of poses; deltas (A, P): the discrete actions."""


class Expert(Protocol):
    """Supervised targets for every action, computed from the true pose."""

    def __call__(self, transform: Transform, measure: Measure, pose: Tensor, deltas: Tensor) -> Tensor:
        """Targets (B, A) float64 of poses (B, P)."""

    def weights(self, deltas: NDArray[np.float64]) -> NDArray[np.float64]:
        """Factors (A,) from targets to values by which actions compare."""


class Guard(Protocol):
    """Which actions have an effect."""

    def accepted(self, pose: Tensor, delta: Tensor, chance: Tensor) -> Tensor:
        """Which parameters' parts of changes ``delta`` (B, A, P) have an effect on poses (B, P): (B, A, P) bool.

        Args: chance (B, 2 P): uniform numbers; column 2 p is for raising parameter p, 2 p + 1 for lowering it.
        """


@dataclass(frozen=True)
class Task:
    """One row of the catalogue: the parts that make an episode.

    Args:
        source: draws the image pairs.
        grid: the fixed image's grid, on which the agent sees both images.
        transform: what a pose means. actions: how an action changes it. start: where episodes begin.
        distance: D of a pose, or None. observation: what the agent sees. reward, termination: as named.
        expert: targets of ``privileged=True``, or None.
        max_episode_steps: time limit.
        success_mm: landmark error at which a registration counts as a success.
        guard: which actions have an effect; None for all.

    Raises ValueError for a time limit that is no whole number of at least 1, and a negative error.
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
        whole("max_episode_steps", self.max_episode_steps)
        number("success_mm", self.success_mm, low=0)

    @property
    def endless(self) -> bool:
        """Whether nothing but the time limit ends an episode."""
        return self.termination.endless

    def limited(self, max_episode_steps: int) -> Task:
        """The same task with another time limit."""
        return replace(self, max_episode_steps=max_episode_steps)
