"""Dense agents as deformation stages: what finds displacements in an environment finds them between two files."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from regagents.agents import ALGORITHMS, load
from regagents.classical.convexadam import AdamInstance, Solver
from regagents.classical.greedy import SETTINGS, Greedy
from regagents.common.checkpoints import CheckpointError
from regagents.l2o.levels import STRIDES as L2O_STRIDES
from regagents.l2o.levels import L2OLevels
from regagents.l2o.policies import L2OPolicy
from regenv.ops.warp import compose, warp_dense


class Refiner(Protocol):
    """A classical solver that starts from given displacements."""

    def solve(self, fixed: Tensor, moving: Tensor, fixed_mask: Tensor | None = None, moving_mask: Tensor | None = None,
              initial: Tensor | None = None) -> Tensor:
        """Displacements (B, D, *shape), voxels. Args: initial: (B, D, *shape), where the field starts."""


@dataclass(frozen=True)
class Played:
    """A solver that plays an agent of the RegDense ids on images of any shape, a step on what the last has left.

    The moving image is warped once by all steps, from the original. What lies outside its mask is 0 in an image.

    Attributes: policy: plays (fixed, warped), see :class:`regagents.common.player.Player`; steps: that it takes;
    bound: largest displacement of a step along an axis, voxels; byte: whether it sees uint8.
    """

    policy: Any
    steps: int
    bound: float
    byte: bool

    @torch.no_grad()
    def solve(self, fixed: Tensor, moving: Tensor, fixed_mask: Tensor | None = None,
              moving_mask: Tensor | None = None) -> Tensor:
        """Displacements (B, D, *shape), voxels, array-axis order. Args: images (B, 1, *shape) float32 in [0, 1]."""
        fixed, moving = (image if mask is None else image * mask
                         for image, mask in ((fixed, fixed_mask), (moving, moving_mask)))
        total, memory = fixed.new_zeros(len(fixed), fixed.ndim - 2, *fixed.shape[2:]), None
        for _ in range(self.steps):
            seen = torch.cat([fixed, warp_dense(moving, total)], 1)
            field, memory = self.policy.play((seen * 255).round().to(torch.uint8) if self.byte else seen, None, memory)
            total = compose(total, field.float().clamp(-self.bound, self.bound))
        return total


@dataclass(frozen=True)
class Stage:
    """A dense agent as a deformation stage.

    Attributes: solver; spacing: of the grid that it takes images on, mm; refiner: continues from its displacements, in
    the image's own voxels.
    """

    solver: Solver
    spacing: float
    refiner: Refiner


FINISH: dict[str, Refiner] = {
    "L2O": AdamInstance(),
    "DenseOneShot": replace(SETTINGS["brain"].deep, strides=(2, 1), iterations=(30, 15)),
}
"""What continues from an algorithm's displacements; :data:`FINISH_OTHERS` from those of one that is not named."""
FINISH_OTHERS = Greedy(strides=(2, 1), iterations=(30, 15), smoothing=1.2, regularity=0.0)


def stage(name: str, ndim: int) -> Stage:
    """The stage of a checkpoint, a path or shipped weights.

    Raises: CheckpointError: bad weights, or an agent that finds no displacements. ValueError: another dimension, or an
    agent that sees something other than fixed and warped image.
    """
    agent = load(name)
    algorithm = agent.card["algorithm"]
    if ALGORITHMS[algorithm].moves != "field":
        raise CheckpointError(f"{name}: algorithm is {algorithm!r}, which moves a pose; to deform, it must be one of "
                              f"{', '.join(key for key, row in ALGORITHMS.items() if row.moves == 'field')}.")
    task = agent.task()
    if task.grid.ndim != ndim:
        raise ValueError(f"{name}: the images are {ndim}D, but this agent registers {task.grid.ndim}D images.")
    refiner = FINISH.get(algorithm, FINISH_OTHERS)
    if isinstance(agent.policy, L2OPolicy):
        return Stage(L2OLevels(agent.policy), task.grid.spacing[0] / L2O_STRIDES[0], refiner)
    space = agent.observation_space
    if space.shape is None or space.shape[0] != 2:
        raise ValueError(f"{name}: it sees {space}; to deform, an agent must see the fixed and the warped image.")
    return Stage(Played(agent.policy, task.max_episode_steps, float(agent.action_space.high.flat[0]),
                        space.dtype == "uint8"), task.grid.spacing[0], refiner)
