"""What an agent plays, and what a checkpoint of it holds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from regagents.common import checkpoints
from regenv.registry import build
from regenv.task import Task


def made_with(agent: Any) -> tuple[str, dict[str, Any]]:
    """The id of an SB3 algorithm's environment, and the arguments that make others like it."""
    spec = agent.get_env().get_attr("spec")[0]
    arguments = {k: v for k, v in spec.kwargs.items() if k not in ("task", "render_mode", "privileged")}
    if spec.max_episode_steps is not None:
        arguments["max_episode_steps"] = spec.max_episode_steps
    return spec.id, arguments


def task_of(agent: Any) -> Task:
    """The task of an SB3 algorithm's environment: its id's, with the arguments it was made with."""
    spec = agent.get_env().get_attr("spec")[0]
    arguments = {k: v for k, v in spec.kwargs.items() if k not in ("task", "render_mode", "privileged")}
    task = build(spec.kwargs["task"], **arguments)
    return task if spec.max_episode_steps is None else task.limited(spec.max_episode_steps)


class PolicyTrained:
    """An SB3 algorithm whose policy is all that its training changes; what it was playing is begun anew on resuming.

    An algorithm names this class before its SB3 base.
    """

    policy: Any

    @property
    def network(self) -> torch.nn.Module:
        """What training changes and a checkpoint holds."""
        return self.policy

    @property
    def resumable(self) -> bool:
        """Whether a checkpoint written now can be gone on from: always."""
        return True

    def adopt(self, tensors: Mapping[str, Tensor], path: str | Path) -> None:
        """Take over a checkpoint's weights. Raises CheckpointError where they do not fit."""
        checkpoints.fit(self.policy, tensors, path)

    def task(self) -> Task:
        """The task of the environment's id and arguments."""
        return task_of(self)
