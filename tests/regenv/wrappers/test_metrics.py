"""Numbers of episodes' ends in a training's log."""

from __future__ import annotations

import csv
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import configure

from regenv.wrappers.metrics import EpisodeMetrics
from regenv.wrappers.sb3 import SB3VecEnv

SMALL = {"size": 16, "spacing": 16.0, "max_episode_steps": 4}


class Ends(BaseCallback):
    """Keeps what all episodes ended with."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[dict[str, float]] = []

    def _on_step(self) -> bool:
        self.seen += [info for info in self.locals["infos"] if "episode" in info]
        return True


@pytest.mark.parametrize("kind", ["native", "monitor", "off-policy"])
def test_the_log_has_the_means_of_the_ends(kind: str, tmp_path: Path) -> None:
    env = (make_vec_env("RegRigid2D-v0", 2, env_kwargs=SMALL) if kind == "monitor" else
           SB3VecEnv(gym.make_vec("RegRigid2D-v0", num_envs=2, autoreset_mode="SameStep", **SMALL)))
    flat = {"policy_kwargs": {"net_arch": [4], "normalize_images": False}, "seed": 0}
    model = (DQN("MlpPolicy", env, learning_starts=4, train_freq=8, **flat) if kind == "off-policy" else
             PPO("MlpPolicy", env, n_steps=8, batch_size=8, **flat))
    model.set_logger(configure(str(tmp_path), ["csv"]))
    ends = Ends()
    model.learn(32, callback=[EpisodeMetrics(), ends], log_interval=1)
    rows = [row for row in csv.DictReader((tmp_path / "progress.csv").open()) if row["rollout/tre"]]
    told = [float(row["rollout/tre"]) for row in rows]
    means = np.cumsum([info["tre"] for info in ends.seen]) / np.arange(1, len(ends.seen) + 1)
    assert told and all(np.abs(means - value).min() < 1e-4 for value in told)
    assert "rollout/dice" not in rows[0] and float(rows[-1]["rollout/distance"]) > 0


def test_numbers_that_are_unknown_are_left_out() -> None:
    callback = EpisodeMetrics(("tre", "dice"))
    callback.locals = {"infos": [{"episode": {}, "tre": float("nan")}, {"tre": 1.0}, {"episode": {}, "dice": 0.5}]}
    written: dict[str, float] = {}

    class Model:
        class logger:
            record = written.__setitem__

    callback.model = Model()
    callback._on_step()
    callback._on_rollout_end()
    assert written == {"rollout/dice": 0.5}
