"""Small A3C agents, and a policy whose every step is known beforehand."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch

import regenv  # noqa: F401  registers the ids
from regagents.a3c import A3C, A3CPolicy
from regagents.a3c.workers import Worker, WorkerConfig, apply
from regenv.core import RegistrationCore
from regenv.registry import build

ID = "RegSimilarity2DNormalized-v0"
SMALL = {"size": 44}


def make(**arguments: Any) -> gym.Env:
    return gym.make(ID, **SMALL, **arguments)


def agent(**arguments: Any) -> A3C:
    return A3C("CnnLstmPolicy", make(), **{"n_workers": 2, "lanes": 2, "n_steps": 8, "seed": 1, **arguments})


def config(**changes: Any) -> WorkerConfig:
    values = {"env_id": ID, "env_kwargs": SMALL, "n_steps": 5, "gamma": 0.9, "ent_coef": 0.1, "vf_coef": 0.5,
              "max_grad_norm": 40.0, "lanes": 2, "episodes_per_pair": 2, "supervised": False, "reward_scale": 1.0,
              "learning_rate": 1e-3, "decay": True, "value_first": 0.0, "curriculum": None, "seed": 0}
    return WorkerConfig(**{**values, **changes})


def turn(worker: Worker, shared: A3CPolicy, optimizer: torch.optim.Optimizer, progress: float) -> None:
    """What a worker does again and again."""
    gradients, report = worker.round(shared.state_dict(), progress)
    apply(gradients, shared, optimizer, worker.config, report["progress"])


class Puppet:
    """A policy that does as told: always one action; its value rises by one a step."""

    def __init__(self, action: int) -> None:
        self.action = action

    def begin(self, lanes: int) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.zeros(lanes, 1), torch.zeros(lanes, 1)

    def __call__(self, observations: torch.Tensor, memory: Any, starts: Any = None) -> Any:
        logits = torch.full((len(observations), 8), -1e4)
        logits[:, self.action] = 0.0
        return logits, memory[0][:, 0] + 1, (memory[0] + 1, memory[1])


def started(lanes: int) -> tuple[RegistrationCore, Any]:
    core = RegistrationCore(build("RegSimilarity2D-v0", size=44, stop="never"))
    return core, core.reset([np.random.default_rng(i) for i in range(lanes)])
