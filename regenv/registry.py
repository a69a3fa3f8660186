"""Every environment id, one row each: the whole catalogue on one screen."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import gymnasium as gym

if TYPE_CHECKING:
    from regenv.task import Task


@dataclass(frozen=True)
class Row:
    """An id: the family of its task (the module of :mod:`regenv.tasks` and its builder), the builder's arguments, the
    time limit, and the mean return from which on the id counts as solved: nine tenths of the expert's over a hundred
    episodes, None where that is not defined."""

    family: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    steps: int = 200
    threshold: float | None = None

    @property
    def builder(self) -> Callable[..., Task]:
        """The family's builder. It is imported only when asked for: who lists the ids need not wait for torch."""
        builder: Callable[..., Task] = getattr(importlib.import_module(f"regenv.tasks.{self.family}"), self.family)
        return builder


CATALOGUE: dict[str, Row] = {
    "RegRigid2D-v0": Row("rigid", {"ndim": 2}, threshold=33.0),
    "RegRigid2DContinuous-v0": Row("rigid", {"ndim": 2, "continuous": True}, threshold=33.0),
    "RegRigid3D-v0": Row("rigid", {"ndim": 3}, threshold=44.0),
    "RegRigid3DContinuous-v0": Row("rigid", {"ndim": 3, "continuous": True}, threshold=44.0),
    "RegRigid3DGeometric-v0": Row("rigid", {"ndim": 3, "step_sizes": (1.0, 4.0, 16.0), "motion": "disentangled",
                                          "observation": "pair"}, steps=60),
    "RegSimilarity2D-v0": Row("similarity", {"ndim": 2}, steps=500),
    "RegSimilarity2DContinuous-v0": Row("similarity", {"ndim": 2, "continuous": True}, steps=500),
    "RegSimilarity2DNormalized-v0": Row("similarity", {"ndim": 2, "reward": "gain"}, steps=500),
    "RegSimilarity3D-v0": Row("similarity", {"ndim": 3}, steps=500),
    "RegDense2D-v0": Row("dense", {"ndim": 2}, steps=20),
    "RegDenseDigits-v0": Row("dense", {"ndim": 2, "size": 28, "spacing": 1.0, "source": "digits", "reward": "dice"},
                             steps=20),
    "RegDense3D-v0": Row("dense", {"ndim": 3}, steps=20),
    "RegKeypoint2D-v0": Row("keypoint", {"ndim": 2}, steps=8),
    "RegKeypoint3D-v0": Row("keypoint", {"ndim": 3}, steps=8),
    "RegSDM2D-v0": Row("sdm", {"ndim": 2}),
    "RegSDM2DContinuous-v0": Row("sdm", {"ndim": 2, "continuous": True}),
    "RegSDM3D-v0": Row("sdm", {"ndim": 3}),
    "RegSDM3DContinuous-v0": Row("sdm", {"ndim": 3, "continuous": True}),
}


def build(task: Task | str, **arguments: Any) -> Task:
    """The task of an id, with some of its arguments replaced.

    Raises ValueError for an unknown id, TypeError for an argument that the id's builder does not take.
    """
    from regenv.task import Task

    if isinstance(task, Task):
        if arguments:
            raise TypeError(f"build: a Task takes no further arguments; got {sorted(arguments)}.")
        return task
    if task not in CATALOGUE:
        raise ValueError(f"regenv has no environment {task!r}; it has {', '.join(CATALOGUE)}.")
    row = CATALOGUE[task]
    return row.builder(**{**row.arguments, "max_episode_steps": row.steps, **arguments})


def register() -> None:
    """Make every id known to Gymnasium. Safe to call again."""
    for name, row in CATALOGUE.items():
        if name not in gym.registry:
            gym.register(name, entry_point="regenv.env:RegistrationEnv",
                         vector_entry_point="regenv.vector:RegistrationVectorEnv",
                         max_episode_steps=row.steps, reward_threshold=row.threshold, kwargs={"task": name})
