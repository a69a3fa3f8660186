"""Minari datasets of the expert's and of agents' episodes, for offline learning and imitation."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium as gym
import numpy as np

from regagents.agents import load, resolve
from regagents.common import checkpoints
from regenv.registry import CATALOGUE, build

EXPERT = "expert"


def record(dataset_id: str, env_id: str | None = None, agent: str = EXPERT, episodes: int = 100, seed: int = 0,
           env_kwargs: Mapping[str, Any] | None = None, progress: Callable[[str, float], None] | None = None) -> Any:
    """Play episodes and keep them as a dataset of Minari, in its folder (``MINARI_DATASETS_PATH``).

    Args:
        dataset_id: such as "regenv/rigid2d/expert-v0"; there must be none of that id.
        env_id: an id of regenv; default the agent's.
        agent: "expert", who takes the action that the environment's expert values most (ids with discrete actions), or
            the name of shipped weights or a checkpoint's path, whose environment's arguments are taken over.
        episodes: how many, of the seeds ``seed``, ``seed + 1``, ...
        env_kwargs: arguments of the environment; they go before the agent's.
        progress: called with the agent's name and the share of work done.
    Returns: the ``minari.MinariDataset``, which can make its environment again.
    Raises: ValueError: an unknown id, one without an expert, a dataset that is there, or no Minari. CheckpointError:
        bad weights.
    """
    try:
        minari = importlib.import_module("minari")
    except ImportError as error:
        raise ValueError(f'record: {error}; install the extra: pip install "regenv[clients]".') from None
    if episodes < 1:
        raise ValueError(f"record: episodes is {episodes}; it must be at least 1.")
    if dataset_id in minari.list_local_datasets():
        raise ValueError(f"record: dataset {dataset_id!r} is there already; give another id, or delete it "
                         f"(minari delete {dataset_id}).")
    arguments, player = dict(env_kwargs or {}), None
    if agent != EXPERT:
        card = checkpoints.load(resolve(agent))[1]
        player = load(agent, algorithm=card["algorithm"], **arguments)
        env_id, arguments = env_id or card["env"], {**card["config"]["env_kwargs"], **arguments}
        if env_id != card["env"]:
            raise ValueError(f"record: {agent} plays {card['env']}, not {env_id!r}.")
    if env_id not in CATALOGUE:
        raise ValueError(f"record: env is {env_id!r}; it must be one of {', '.join(CATALOGUE)}.")
    if player is None:
        if build(env_id, **arguments).expert is None or not isinstance(gym.make(env_id, **arguments).action_space,
                                                                      gym.spaces.Discrete):
            raise ValueError(f"record: {env_id} has no expert; give an agent.")
        arguments["privileged"] = True
    env = minari.DataCollector(gym.make(env_id, **arguments))
    for episode in range(episodes):
        observation, info = env.reset(seed=seed + episode)
        memory, ended = None, False
        starts = np.ones(1, dtype=bool)
        while not ended:
            if player is None:
                action: Any = np.argmax(info["q_star"])
            else:
                action, memory = player.predict(observation, memory, starts, deterministic=True)
            observation, _, terminated, truncated, info = env.step(action)
            ended, starts = terminated or truncated, np.zeros(1, dtype=bool)
        if progress is not None:
            progress(agent, (episode + 1) / episodes)
    made = env.create_dataset(dataset_id, algorithm_name=agent, requirements=["regenv"],
                              description=f"{episodes} episodes of {agent} on {env_id}, seeds {seed} and on.")
    env.close()
    return made
