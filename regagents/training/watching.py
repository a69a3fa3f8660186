"""An episode of anybody who can play, as a page with a slider over its steps."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from sb3_contrib import TQC, MaskablePPO, RecurrentPPO
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from stable_baselines3 import A2C, DQN, PPO, SAC, TD3
from stable_baselines3.common.policies import ActorCriticPolicy

from regagents.a3c.policies import A3CPolicy
from regagents.agents import load
from regagents.common.checkpoints import CheckpointError
from regagents.common.player import player_of
from regagents.training.recording import Choose, batch_of_one, best_by_expert, chosen_by
from regenv.atomic import atomic
from regenv.registry import CATALOGUE, build
from regenv.wrappers.episode import RecordEpisode

RANDOM, EXPERT = "random", "expert"
SIGNS: tuple[tuple[str, type[Any]], ...] = (
    ("top_quantiles_to_drop_per_net", TQC), ("target_entropy", SAC), ("policy_delay", TD3),
    ("exploration_fraction", DQN), ("_last_lstm_states", RecurrentPPO), ("clip_range", PPO), ("n_steps", A2C))
"""Fields by which a saved model of Stable-Baselines3 tells its algorithm; the first one that is there counts."""


@dataclass(frozen=True)
class Thought:
    """What a player thinks of its next actions. Args: title: what the values (A,) are; value: of the state; names: of
    the values, where they are not the discrete actions'."""

    title: str
    values: list[float]
    value: float | None = None
    names: tuple[str, ...] = ()


Think = Callable[[Any, Mapping[str, Any], Any], Thought | None]
"""From an observation, its info and the memory of the step before."""


def watch(env_id: str, agent: str, out: str | Path, seed: int = 0, env_kwargs: Mapping[str, Any] | None = None,
          progress: Callable[[str, float], None] | None = None) -> dict[str, float]:
    """Play one episode and write it as a page.

    Args:
        env_id: an id of regenv.
        agent: "random", "expert" (ids with an expert and discrete actions), the name of shipped weights, a checkpoint's
            path, or a .zip that Stable-Baselines3 or sb3-contrib saved. Loading such a file can run code that is in it:
            give only files that you trust. Weights bring the environment's arguments with them.
        out: the HTML file.
        env_kwargs: arguments of the environment, which replace the weights' own.
    Returns: the numbers of the last step, by name.
    Raises: ValueError: an unknown id, an id without an expert, or an agent of another id. CheckpointError: bad weights.
        OSError: the file cannot be written.
    """
    if env_id not in CATALOGUE:
        raise ValueError(f"watch: env is {env_id!r}; it must be one of {', '.join(CATALOGUE)}.")
    path = Path(out)
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"{out}: folder {path.parent} does not exist. Create it first.")
    arguments, choose, think = _player(env_id, agent, dict(env_kwargs or {}), seed)
    env = RecordEpisode(gym.make(env_id, **arguments), None, player=Path(agent).stem)
    observation, info = env.reset(seed=seed)
    env.action_space.seed(seed)
    limit = env.get_wrapper_attr("core").task.max_episode_steps
    memory, ended, step = None, False, 0
    while not ended:
        thought = think(observation, info, memory)
        action, memory = choose(observation, info, memory) if agent != RANDOM else (env.action_space.sample(), None)
        if thought is not None:
            taken = int(action) if isinstance(env.action_space, gym.spaces.Discrete) else None
            env.note(thought.title, thought.values, taken, thought.names, thought.value)
        observation, _, terminated, truncated, info = env.step(action)
        ended, step = terminated or truncated, step + 1
        if progress is not None:
            progress(agent, step / limit)
    page = env.page()
    with atomic(path) as temporary:
        temporary.write_text(page.html(), encoding="ascii")
    env.close()
    return {name: value for name, value in page.film.steps[-1].numbers.items() if value is not None}


def _player(env_id: str, agent: str, arguments: dict[str, Any], seed: int) -> tuple[dict[str, Any], Choose, Think]:
    """The environment's arguments, who chooses, and what is known of its thoughts."""
    if agent == RANDOM:
        return arguments, _nobody, lambda observation, info, memory: None
    if agent == EXPERT:
        if build(env_id, **arguments).expert is None or not isinstance(build(env_id, **arguments).actions.space(),
                                                                      gym.spaces.Discrete):
            raise ValueError(f"watch: {env_id} has no expert; give an agent, or random.")
        return {**arguments, "privileged": True}, best_by_expert, _of_expert
    if agent.endswith(".zip"):
        model = load_sb3(agent)
        return arguments, chosen_by(player_of(model)), _of_policy(model.policy)
    loaded = load(agent, **arguments)
    own = loaded.card["env"]
    if own != env_id:
        raise ValueError(f"watch: {agent} plays {own}, not {env_id!r}.")
    return ({**loaded.card["config"]["env_kwargs"], **arguments}, chosen_by(player_of(loaded)),
            _of_policy(loaded.policy))


def _nobody(observation: Any, info: Mapping[str, Any], memory: Any) -> tuple[Any, Any]:
    raise AssertionError("a random player does not choose")


def _of_expert(observation: Any, info: Mapping[str, Any], memory: Any) -> Thought:
    return Thought("Target of each action, from the true pose", np.asarray(info["q_star"]).tolist())


def _of_policy(policy: Any) -> Think:
    """What a policy thinks of an observation."""
    def think(observation: Any, info: Mapping[str, Any], memory: Any) -> Thought | None:
        with torch.inference_mode():
            return thought_of(policy, batch_of_one(observation), memory)

    return think


def thought_of(policy: Any, observation: Any, memory: Any) -> Thought | None:
    """The values or probabilities (A,) of a policy on one lane's observation (1, ...); None where it has none.

    Values come from a network of Q (DQN, DSL), probabilities and the state's value from actors and critics (A3C, PPO,
    A2C). Recurrent policies of sb3-contrib and deterministic ones are not asked.
    """
    if hasattr(policy, "q_net"):
        return Thought("Value of each action", policy.q_net(observation)[0].tolist())
    if isinstance(policy, A3CPolicy):
        logits, value, _ = policy(observation, policy.begin(1) if memory is None else memory)
        return Thought("Probability of each action", logits.softmax(1)[0].tolist(), float(value[0]))
    if isinstance(policy, ActorCriticPolicy) and not isinstance(policy, RecurrentActorCriticPolicy):
        told = policy.get_distribution(observation).distribution
        value = float(policy.predict_values(observation)[0])
        if isinstance(told, torch.distributions.Categorical):
            return Thought("Probability of each action", told.probs[0].tolist(), value)
    return None


def load_sb3(path: str | Path) -> Any:
    """A model that Stable-Baselines3 or sb3-contrib saved as a .zip. It may run code that is in the file.

    Raises: CheckpointError: there is no such file, or none of a known algorithm.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            data = json.loads(archive.read("data"))
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path}: it is no saved model of Stable-Baselines3 ({error}).") from None
    algorithm = next((kind for sign, kind in SIGNS if sign in data), None)
    if algorithm is None:
        raise CheckpointError(f"{path}: its algorithm is not known; it must be one of "
                              f"{', '.join(kind.__name__ for _, kind in SIGNS)} or MaskablePPO.")
    if algorithm is PPO and "maskable" in str(data.get("policy_class")):
        algorithm = MaskablePPO
    return algorithm.load(path, device="cpu")
