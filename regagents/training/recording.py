"""Minari datasets of the expert's and of agents' episodes, for offline learning and imitation."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from regagents.agents import load
from regagents.common.player import Player, player_of
from regenv.registry import CATALOGUE, build

EXPERT = "expert"
Choose = Callable[[Any, Mapping[str, Any], Any], tuple[Any, Any]]
"""From an observation, its info and the memory of the step before to an action and the memory for the next step."""


def record(dataset_id: str, env_id: str | None = None, agent: str = EXPERT, episodes: int = 100, seed: int = 0,
           env_kwargs: Mapping[str, Any] | None = None, progress: Callable[[str, float], None] | None = None) -> Any:
    """Play episodes and keep them as a dataset of Minari, in its folder (``MINARI_DATASETS_PATH``).

    Args:
        dataset_id: such as "regenv/rigid2d/expert-v0"; there must be none of that id.
        env_id: an id of regenv; default the agent's.
        agent: "expert", which takes the action of the highest ``info["q_star"]`` (ids with an expert and discrete
            actions), or the name of shipped weights or a checkpoint's path, whose environment's arguments are used.
        episodes: how many, with seeds ``seed``, ``seed + 1``, ...
        env_kwargs: arguments of the environment that replace the agent's.
        progress: called with the agent's name and the share of work done.
    Returns: the ``minari.MinariDataset``, which can make its environment again.
    Raises: ValueError: an unknown id, an id without an expert, a dataset id in use, or Minari is not installed.
        CheckpointError: bad weights.
    """
    try:
        minari = importlib.import_module("minari")
    except ImportError as error:
        raise ValueError(f'record: {error}; pip install "regenv[clients]".') from None
    if episodes < 1:
        raise ValueError(f"record: episodes is {episodes}; it must be at least 1.")
    if dataset_id in minari.list_local_datasets():
        raise ValueError(f"record: dataset {dataset_id!r} is there already; give another id, or delete it "
                         f"(minari delete {dataset_id}).")
    setup = (_of_expert if agent == EXPERT else _of_agent)(agent, env_id, dict(env_kwargs or {}))
    env = minari.DataCollector(gym.make(setup.env_id, **setup.arguments))
    for episode in range(episodes):
        play_episode(env, setup.choose, seed + episode)
        if progress is not None:
            progress(agent, (episode + 1) / episodes)
    dataset = env.create_dataset(
        dataset_id, algorithm_name=agent, requirements=["regenv"],
        description=f"{episodes} episodes of {agent} on {setup.env_id}, seeds {seed} and on.")
    env.close()
    return dataset


def play_episode(env: gym.Env[Any, Any], choose: Choose, seed: int) -> None:
    """One episode of an environment from a seed to its end."""
    observation, info = env.reset(seed=seed)
    memory, ended = None, False
    while not ended:
        action, memory = choose(observation, info, memory)
        observation, _, terminated, truncated, info = env.step(action)
        ended = terminated or truncated


def best_by_expert(observation: Any, info: Mapping[str, Any], memory: None) -> tuple[Any, None]:
    """The action of the highest ``q_star``, which privileged environments put into ``info``."""
    return np.argmax(info["q_star"]), None


def chosen_by(player: Player) -> Choose:
    """A player on the observations of one environment: arrays in, arrays out."""
    def choose(observation: Any, info: Mapping[str, Any], memory: Any) -> tuple[Any, Any]:
        with torch.inference_mode():
            action, memory = player.play(batch_of_one(observation), None, memory)
        return action[0].cpu().numpy(), memory

    return choose


def batch_of_one(observation: Any) -> Any:
    """An observation of one environment as a batch (1, ...) of tensors."""
    if isinstance(observation, dict):
        return {name: batch_of_one(part) for name, part in observation.items()}
    tensor: Tensor = torch.as_tensor(observation)
    return tensor[None]


@dataclass(frozen=True)
class _Setup:
    """Which environment is played, and by whom."""

    env_id: str
    arguments: dict[str, Any]
    choose: Choose


def _of_expert(name: str, env_id: str | None, arguments: dict[str, Any]) -> _Setup:
    env_id = _known(env_id)
    if build(env_id, **arguments).expert is None or not isinstance(gym.make(env_id, **arguments).action_space,
                                                                  gym.spaces.Discrete):
        raise ValueError(f"record: {env_id} has no expert; give an agent.")
    return _Setup(env_id, {**arguments, "privileged": True}, best_by_expert)


def _of_agent(name: str, env_id: str | None, arguments: dict[str, Any]) -> _Setup:
    agent = load(name, **arguments)
    own: str = agent.card["env"]
    if env_id not in (None, own):
        raise ValueError(f"record: {name} plays {own}, not {env_id!r}.")
    return _Setup(_known(own), {**agent.card["config"]["env_kwargs"], **arguments}, chosen_by(player_of(agent)))


def _known(env_id: str | None) -> str:
    if env_id not in CATALOGUE:
        raise ValueError(f"record: env is {env_id!r}; it must be one of {', '.join(CATALOGUE)}.")
    assert env_id is not None
    return env_id
