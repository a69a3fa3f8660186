"""How an agent plays: one contract for this project's policies and Stable-Baselines3's models, and roll-outs by it."""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regagents.common.algorithm import Algorithm
from regagents.common.threads import one_thread
from regenv.core import RegistrationCore
from regenv.state import EpisodeState
from regenv.wrappers.sb3 import host


class Player(Protocol):
    """A policy on tensors."""

    def play(self, observation: Any, allowed: Tensor | None, memory: Any) -> tuple[Tensor, Any]:
        """Actions (B, ...) and the memory for the next step.

        Args:
            observation: (B, ...), or a dict of such tensors.
            allowed: (B, A) bool, the discrete actions that will have an effect; None where all have one.
            memory: what the step before returned, None at first: None or a (named) tuple of tensors, lanes first.
        """


class Predictor(Protocol):
    """A model with the ``predict`` of Stable-Baselines3: PPO, DQN, RecurrentPPO, ..."""

    def predict(self, observation: Any, state: Any = ..., episode_start: Any = ...,
                deterministic: bool = ...) -> tuple[Any, Any]: ...


@dataclass(frozen=True)
class SB3Player:
    """A model of Stable-Baselines3 as a :class:`Player`: its deterministic ``predict``, on arrays.

    Action masks go to models whose ``predict`` takes them. A recurrent state, (layers, lanes, hidden) arrays in
    sb3-contrib, is kept with lanes first; a state that is no tuple is handed back as it came.
    """

    model: Predictor

    @cached_property
    def takes_masks(self) -> bool:
        """Whether ``predict`` has an argument ``action_masks``."""
        return "action_masks" in inspect.signature(self.model.predict).parameters

    def play(self, observation: Any, allowed: Tensor | None, memory: Any) -> tuple[Tensor, Any]:
        """See :class:`Player`."""
        first: Tensor = next(iter(observation.values())) if isinstance(observation, dict) else observation
        starts = np.full(len(first), memory is None)
        masks = {"action_masks": host(allowed)} if allowed is not None and self.takes_masks else {}
        actions, state = self.model.predict(host(observation), _to_sb3(memory), starts, True, **masks)
        return torch.as_tensor(actions).to(first.device), _from_sb3(state)


def _to_sb3(memory: Any) -> Any:
    if not isinstance(memory, tuple):
        return memory
    return tuple(part.transpose(0, 1).numpy() for part in memory)


def _from_sb3(state: Any) -> Any:
    if not isinstance(state, tuple):
        return state
    arrays: tuple[NDArray[np.float32], ...] = state
    return tuple(torch.from_numpy(part).transpose(0, 1) for part in arrays)


def player_of(agent: Any) -> Player:
    """The policy of one of this project's agents, in evaluation mode; any other model by :class:`SB3Player`."""
    if not isinstance(agent, Algorithm):
        return SB3Player(agent)
    agent.policy.set_training_mode(False)
    return cast(Player, agent.policy)


def selected(memory: Any, lanes: Tensor) -> Any:
    """The memory of some lanes. Args: memory: None or a (named) tuple of tensors; lanes: mask (B,) or indices."""
    if memory is None:
        return None
    return getattr(memory, "_make", tuple)(part[lanes] for part in memory)


def rollout(player: Player, core: RegistrationCore, state: EpisodeState,
            steps: int | None = None) -> Iterator[EpisodeState]:
    """The episodes after each step that a player takes in every lane. Args: steps: default the task's time limit."""
    memory = None
    for _ in range(steps or core.task.max_episode_steps):
        action, memory = player.play(core.observe(state), core.action_mask(state), memory)
        state = core.step(state, action)[0]
        yield state


@one_thread()
@torch.inference_mode()
def played(player: Player, core: RegistrationCore, state: EpisodeState, steps: int | None = None) -> EpisodeState:
    """The last of the episodes that :func:`rollout` gives."""
    return deque(rollout(player, core, state, steps), maxlen=1).pop()
