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
from regenv import __version__
from regenv.registry import CATALOGUE, build

EXPERT = "expert"
AUTHOR, CONTACT = "the regenv authors", "see CITATION.cff of regenv"
CODE = f"regenv {__version__}, module regagents.training.recording"
REFERENCES = 100        # episodes that reference scores are means of, at most
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
    Returns: the ``minari.MinariDataset``, which can make its environment again. It keeps infos (errors, success, the
        expert's values), and reference scores.
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
    played = gym.make(setup.env_id, **setup.arguments)
    env = minari.DataCollector(played, record_infos=True)
    for episode in range(episodes):
        play_episode(env, setup.choose, seed + episode)
        if progress is not None:
            progress(agent, (episode + 1) / episodes)
    low, high = reference_scores(setup, min(episodes, REFERENCES), seed)
    dataset = env.create_dataset(
        dataset_id, eval_env=played.spec, algorithm_name=agent, requirements=[f"regenv=={__version__}"], author=AUTHOR,
        author_email=CONTACT, code_permalink=CODE,
        ref_min_score=low, ref_max_score=high,
        description=f"{episodes} episodes of {agent} on {setup.env_id}, seeds {seed} and on. Reference scores are mean "
                    "returns from the same starts: of random actions, and of the expert where the id has one, else of "
                    f"{agent}.")
    env.close()
    return dataset


def play_episode(env: gym.Env[Any, Any], choose: Choose, seed: int) -> float:
    """One episode of an environment from a seed to its end. Returns its undiscounted return."""
    observation, info = env.reset(seed=seed)
    memory, ended, total = None, False, 0.0
    while not ended:
        action, memory = choose(observation, info, memory)
        observation, reward, terminated, truncated, info = env.step(action)
        ended, total = terminated or truncated, total + float(reward)
    return total


def reference_scores(setup: _Setup, episodes: int, seed: int) -> tuple[float, float]:
    """Mean returns of random actions, and of the expert where the id has one, else of the setup's own player."""
    arguments, best = setup.arguments, setup.choose
    if _has_expert(setup.env_id, arguments):
        arguments, best = {**arguments, "privileged": True}, best_by_expert
    env = gym.make(setup.env_id, **arguments)
    env.action_space.seed(seed)
    scores = [float(np.mean([play_episode(env, choose, seed + episode) for episode in range(episodes)]))
              for choose in (lambda *seen: (env.action_space.sample(), None), best)]
    env.close()
    return scores[0], scores[1]


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
    if not _has_expert(env_id, arguments):
        raise ValueError(f"record: {env_id} has no expert; give an agent.")
    return _Setup(env_id, {**arguments, "privileged": True}, best_by_expert)


def _of_agent(name: str, env_id: str | None, arguments: dict[str, Any]) -> _Setup:
    agent = load(name, **arguments)
    own: str = agent.card["env"]
    if env_id not in (None, own):
        raise ValueError(f"record: {name} plays {own}, not {env_id!r}.")
    return _Setup(_known(own), {**agent.card["config"]["env_kwargs"], **arguments}, chosen_by(player_of(agent)))


def _has_expert(env_id: str, arguments: dict[str, Any]) -> bool:
    task = build(env_id, **{name: value for name, value in arguments.items() if name != "privileged"})
    return task.expert is not None and isinstance(task.actions.space(), gym.spaces.Discrete)


def _known(env_id: str | None) -> str:
    if env_id not in CATALOGUE:
        raise ValueError(f"record: env is {env_id!r}; it must be one of {', '.join(CATALOGUE)}.")
    assert env_id is not None
    return env_id
