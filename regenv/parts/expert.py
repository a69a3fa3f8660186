"""Supervised targets for every action, computed from the true pose alone."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regenv.task import Measure, Transform


@dataclass(frozen=True)
class GreedyQ:
    """Q of the greedy path in closed form (Liao et al. 2017, eq. 3 and 4), for additive unit steps.

    The greedy path always lowers the largest |v_i| by one, until every |v_i| <= 1/2 or D <= tolerance. So its steps
    are known beforehand: all reductions m -> m - 1 of all parameters, in descending order of m. Squared distances fall
    by ``2 m - 1`` along that list, rewards are differences of the distances, and no roll-out is needed.

    Args: gamma: discount; bonus: reward R on arrival; tolerance: arrival at D <= tolerance.
    """

    gamma: float = 0.9
    bonus: float = 10.0
    tolerance: float = 0.5

    def __call__(self, transform: Transform, measure: Measure, pose: Tensor, deltas: Tensor) -> Tensor:
        """Q (B, A) float64 of every action. Args: pose (B, P) float64; deltas (A, P) of unit steps."""
        after = (pose[:, None] + deltas).abs()
        distance = torch.linalg.vector_norm(after, dim=-1)
        reward = torch.linalg.vector_norm(pose, dim=-1, keepdim=True) - distance
        return reward + torch.where(self._there(after, distance), self.bonus, self.gamma * self.value(after))

    def weights(self, deltas: NDArray[np.float64]) -> NDArray[np.float64]:
        """Factors (A,) from targets to the values of the actions: 1, since these targets are values."""
        return np.ones(len(deltas))

    def value(self, magnitude: Tensor) -> Tensor:
        """Discounted return (...,) of the greedy path from poses of absolute parameters (..., P)."""
        longest = math.ceil(float(magnitude.amax()))
        start = magnitude.unsqueeze(-1) - torch.arange(longest + 1, dtype=magnitude.dtype, device=magnitude.device)
        steps = torch.where(start > 0.5, start, 0.0).flatten(-2).sort(dim=-1, descending=True).values
        live = steps > 0
        squared = magnitude.square().sum(-1, keepdim=True)
        path = (squared - torch.cumsum(torch.where(live, 2 * steps - 1, 0.0), -1)).clamp(min=0).sqrt()
        before = torch.cat([squared.sqrt(), path[..., :-1]], -1)
        live = live & (before > self.tolerance)
        goes_on = live[..., 1:] & (path[..., :-1] > self.tolerance)
        last = live & ~torch.cat([goes_on, torch.zeros_like(live[..., :1])], -1)
        discount = self.gamma ** torch.arange(steps.shape[-1], dtype=magnitude.dtype, device=magnitude.device)
        return (discount * (live * (before - path) + self.bonus * last)).sum(-1)

    def _there(self, magnitude: Tensor, distance: Tensor) -> Tensor:
        return (distance <= self.tolerance) | (magnitude.amax(-1) <= 0.5)


@dataclass(frozen=True)
class DistanceDrop:
    """Immediate decrease of D by every action, per unit of its step: Q with gamma = 0 and no bonus, for any D.

    Targets lie in [-1, 1] for actions of any size, which suits a network; step size times target is the decrease
    itself, by which actions compare. ``per_unit=False`` gives the decrease directly.
    """

    per_unit: bool = True

    def __call__(self, transform: Transform, measure: Measure, pose: Tensor, deltas: Tensor) -> Tensor:
        """Targets (B, A) float64. Args: measure: D of poses; pose (B, P) float64; deltas (A, P)."""
        drop = measure(pose)[:, None] - measure(transform.apply(pose[:, None], deltas))
        return drop / torch.linalg.vector_norm(deltas, dim=-1) if self.per_unit else drop

    def weights(self, deltas: NDArray[np.float64]) -> NDArray[np.float64]:
        """Factors (A,) from targets to the values of the actions."""
        return np.linalg.norm(deltas, axis=1) if self.per_unit else np.ones(len(deltas))
