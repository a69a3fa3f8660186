"""The task that an agent plays."""

from __future__ import annotations

from typing import Any

from regenv.core import Task
from regenv.registry import build


def task_of(agent: Any) -> Task:
    """The task of an SB3 algorithm's environment: its id's, with the arguments it was made with."""
    spec = agent.get_env().get_attr("spec")[0]
    arguments = {k: v for k, v in spec.kwargs.items() if k not in ("task", "render_mode", "privileged")}
    task = build(spec.kwargs["task"], **arguments)
    return task if spec.max_episode_steps is None else task.limited(spec.max_episode_steps)
