"""Deformable registration of an environment's pairs, by agents and classical methods, and how it is measured."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import SimpleITK as sitk
import torch
from torch import Tensor

from regagents.classical.common import to_sitk
from regagents.common.threads import one_thread
from regenv.core import RegistrationCore
from regenv.grid import Grid
from regenv.ops import overlap, regularity
from regenv.ops.warp import warp_through
from regenv.state import EpisodeState


class Search(Protocol):
    """A classical method, such as FreeForm or Demons."""

    def register(self, fixed: sitk.Image, moving: sitk.Image) -> np.ndarray: ...


class Player(Protocol):
    """A policy on tensors."""

    def play(self, observation: Any, allowed: Tensor | None, memory: Any) -> tuple[Tensor, Any]:
        """Actions (B, ...), and what to remember for the next step.

        Args: allowed: actions that will have an effect (B, A), where some will not; memory: of the step before, None at
        first.
        """


def walk(agent: Any, core: RegistrationCore, state: EpisodeState, steps: int | None = None) -> Iterator[EpisodeState]:
    """The episodes after each of an agent's ``steps`` (default the task's limit) on every lane.

    Args: agent: whose policy is a :class:`Player`: DSL's, SPAC's or L2O's.
    """
    memory = None
    for _ in range(steps or core.task.max_episode_steps):
        action, memory = agent.policy.play(core.observe(state), core.action_mask(state), memory)
        state = core.step(state, action)[0]
        yield state


@one_thread()
@torch.inference_mode()
def deform(agent: Any, core: RegistrationCore, state: EpisodeState, steps: int | None = None) -> EpisodeState:
    """The last of the episodes that :func:`walk` gives."""
    return deque(walk(agent, core, state, steps), maxlen=1).pop()


def searched(search: Search, state: EpisodeState, grid: Grid) -> Tensor:
    """Displacements (B, D, *shape), voxels, that a classical method finds for the episodes' images."""
    fields = [search.register(to_sitk(fixed[0], grid), to_sitk(moving[0], grid))
              for fixed, moving in zip(state.pair.fixed, state.pair.moving, strict=True)]
    return torch.from_numpy(np.stack(fields))


@dataclass(frozen=True)
class Metrics:
    """Of each pair: mean Dice and Hausdorff distance (mm) over the labels, share of folded voxels, and the standard
    deviation of log det J; each (B,) float64. Where a label was lost, its pair has a Dice of 0 and the field's diagonal
    as its Hausdorff distance."""

    dice: np.ndarray
    hausdorff: np.ndarray
    folding: np.ndarray
    sd_log_jacobian: np.ndarray

    @classmethod
    def of(cls, state: EpisodeState, displacement: Tensor | None, grid: Grid) -> Metrics:
        """Of fields (B, D, *shape) on the episodes' pairs, the same grid for fixed and moving; None: no deformation."""
        pair: Any = state.pair
        n = grid.ndim
        field = torch.zeros(pair.lanes, n, *grid.shape) if displacement is None else displacement
        matrix = torch.eye(n + 1, dtype=torch.float64).expand(pair.lanes, -1, -1)
        warped = warp_through(pair.moving_labels, matrix, field, grid.shape, mode="nearest")
        apart = overlap.hausdorff(pair.fixed_labels, warped, pair.classes, grid.spacing)
        lost = math.hypot(*grid.extent)
        return cls(*(each.double().numpy() for each in (
            overlap.mean_dice(pair.fixed_labels, warped, pair.classes).nan_to_num(), apart.nan_to_num(lost).mean(-1),
            regularity.folding(field), regularity.sd_log_jacobian(field))))
