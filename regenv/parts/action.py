"""How an agent's action becomes a change of parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regenv.ops import bspline


@dataclass(frozen=True)
class DiscreteSteps:
    """One parameter up or down: action 2i raises parameter i by one unit, 2i + 1 lowers it.

    With several step sizes the same pairs follow once per size: action 2 P k + 2 i + sign moves by ``step_sizes[k]``.

    Args: units: of the P parameters (mm, degrees, ...); step_sizes: units per step.
    """

    units: tuple[float, ...]
    step_sizes: tuple[float, ...] = (1.0,)

    @property
    def deltas(self) -> NDArray[np.float64]:
        """Change of the parameters by each action, (A, P)."""
        unit = np.kron(np.diag(self.units), np.array([[1.0], [-1.0]]))
        return np.concatenate([unit * size for size in self.step_sizes])

    def space(self) -> gym.Space[Any]:
        return gym.spaces.Discrete(len(self.step_sizes) * 2 * len(self.units))

    def delta(self, action: Tensor, table: Tensor) -> Tensor:
        """Change of the parameters (B, P) float64 by actions (B,) of integers; ``table`` is ``deltas`` on device.

        An action that is not in the table changes nothing: on a GPU nobody has looked at it before.
        """
        known = (action >= 0) & (action < len(table))
        return table[torch.where(known, action, 0)] * known[:, None]


@dataclass(frozen=True)
class ContinuousSteps:
    """All parameters at once, each by at most the largest step size: Box [-1, 1] of P numbers, as SAC needs it."""

    units: tuple[float, ...]
    step_sizes: tuple[float, ...] = (1.0,)

    @property
    def deltas(self) -> NDArray[np.float64]:
        """The discrete unit steps, which the stopping rule tries."""
        return DiscreteSteps(self.units, self.step_sizes).deltas

    def space(self) -> gym.Space[Any]:
        return gym.spaces.Box(-1.0, 1.0, (len(self.units),), np.float32)

    def delta(self, action: Tensor, table: Tensor) -> Tensor:
        """Change of the parameters (B, P) float64 by actions (B, P), clipped to [-1, 1]; ``table`` is ``deltas``."""
        return bounded(action.to(torch.float64), 1.0) * table.amax(0)


def bounded(action: Tensor, bound: float) -> Tensor:
    """Actions (B, ...) clipped to +-bound; NaN changes nothing on a GPU, where nobody has looked at it before."""
    seen = action if action.device.type == "cpu" else action.nan_to_num(nan=0.0)
    return seen.clamp(-bound, bound)


@dataclass(frozen=True)
class Field:
    """A displacement of every voxel, each component within +-bound: Box of (D, *shape), voxels, array-axis order."""

    shape: tuple[int, ...]
    bound: float

    @property
    def deltas(self) -> NDArray[np.float64]:
        """No discrete actions: (0, D)."""
        return np.zeros((0, len(self.shape)))

    def space(self) -> gym.Space[Any]:
        return gym.spaces.Box(-self.bound, self.bound, (len(self.shape), *self.shape), np.float32)

    def delta(self, action: Tensor, table: Tensor) -> Tensor:
        """Displacements (B, D, *shape) float32 by actions of that shape, clipped."""
        return bounded(action.to(torch.float32), self.bound)


@dataclass(frozen=True)
class ControlGrid:
    """Coefficients of a cubic B-spline over the image in units of the bound: Box [-1, 1] of (D, *control).

    Args: shape: of the image; control: control points along each axis, at least 4; bound: voxels.
    """

    shape: tuple[int, ...]
    control: tuple[int, ...]
    bound: float

    def __post_init__(self) -> None:
        if min(self.control) <= bspline.ORDER:
            raise ValueError(f"control_grid is {self.control}; a cubic B-spline needs at least {bspline.ORDER + 1} "
                             "control points an axis.")

    @property
    def deltas(self) -> NDArray[np.float64]:
        """No discrete actions: (0, D)."""
        return np.zeros((0, len(self.shape)))

    def space(self) -> gym.Space[Any]:
        return gym.spaces.Box(-1.0, 1.0, (len(self.shape), *self.control), np.float32)

    def delta(self, action: Tensor, table: Tensor) -> Tensor:
        """Displacements (B, D, *shape) float32 by actions (B, D, *control), clipped."""
        return bspline.displacement(bounded(action.to(torch.float32), 1.0) * self.bound, self.shape)
