"""Recorded episodes are played as ``predict`` plays, or as the expert does; the dataset itself: tests/clients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from regagents.agents import create
from regagents.common.player import player_of
from regagents.training.recording import best_by_expert, chosen_by, play_episode
from tests.regagents.toys import toy_config

PHANTOMS: dict[str, Any] = {"name": "phantoms", "patients": 2, "bank_spacing": 8.0}
KWARGS: dict[str, Any] = {"size": 44, "source": PHANTOMS, "max_episode_steps": 4}
CONFIGS: dict[str, dict[str, Any]] = {
    "DSL": toy_config(2, 1.0, source=PHANTOMS, max_episode_steps=6),
    "A3C": {"agent": "A3C", "env": "RegSimilarity2D-v0", "env_kwargs": KWARGS},
    "OneShot": {"agent": "OneShot", "env": "RegSimilarity2DContinuous-v0", "env_kwargs": KWARGS},
    "SPAC": {"agent": "SPAC", "env": "RegDense2D-v0",
             "env_kwargs": {"size": 32, "spacing": 8.0, "max_episode_steps": 3}},
    "L2O": {"agent": "L2O", "env": "RegKeypoint2D-v0",
            "env_kwargs": {"size": 32, "observation": "dict", "max_episode_steps": 3}},
}
SEED = 3


class Recorded(gym.Wrapper[Any, Any, Any, Any]):
    """Keeps the actions."""

    actions: list[Any]

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        self.actions = []
        return super().reset(**kwargs)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        self.actions.append(action)
        return super().step(action)


def predicted_by(model: Any) -> Callable[[Any, Any, Any], tuple[Any, Any]]:
    """The choice of Stable-Baselines3's contract: the state comes back, ``episode_start`` is true at first."""
    return lambda observation, info, state: model.predict(observation, state, np.array([state is None]),
                                                          deterministic=True)


@pytest.mark.parametrize("algorithm", CONFIGS)
def test_an_agents_actions_are_those_of_predict(algorithm: str) -> None:
    config = CONFIGS[algorithm]
    agent, env = create(config, seed=1), Recorded(gym.make(config["env"], **config["env_kwargs"]))
    play_episode(env, chosen_by(player_of(agent)), SEED)
    played = env.actions
    play_episode(env, predicted_by(agent), SEED)
    assert len(played) == len(env.actions) > 0
    for one, other in zip(played, env.actions, strict=True):
        np.testing.assert_array_equal(one, other)
        assert np.asarray(one).dtype == np.asarray(other).dtype


def test_the_expert_takes_the_action_of_the_highest_value() -> None:
    env = Recorded(gym.make("RegRigid2D-v0", privileged=True, size=16, spacing=8.0, source=PHANTOMS,
                            max_episode_steps=5))
    play_episode(env, best_by_expert, SEED)
    taken = env.actions
    _, info = env.reset(seed=SEED)
    for action in taken:
        assert info["q_star"][action] == info["q_star"].max()
        info = env.step(action)[-1]
