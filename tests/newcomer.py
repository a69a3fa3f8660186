"""What a newcomer tries first, with the wheel alone: play, train, look whether it helped. Run by test_bare.py."""

import sys

import gymnasium as gym
import numpy as np
from stable_baselines3 import PPO

import regenv  # noqa: F401
from regenv.wrappers.metrics import EpisodeMetrics
from regenv.wrappers.sb3 import SB3VecEnv

TASK = {"size": 48, "spacing": 5.0, "observation": "pair", "ranges": [12, 12, 12], "success_mm": 5.0,
        "max_episode_steps": 30}


def success(model: PPO) -> float:
    """Share of 64 fresh pairs that the model ends close to."""
    env = SB3VecEnv(gym.make_vec("RegRigid2D-v0", num_envs=64, autoreset_mode="SameStep", **TASK))
    env.seed(900_000)
    observations, ends = env.reset(), {}
    while len(ends) < 64:
        observations, _, done, infos = env.step(model.predict(observations, deterministic=True)[0])
        for lane in np.flatnonzero(done).tolist():
            ends.setdefault(lane, infos[lane]["is_success"])
    return float(np.mean(list(ends.values())))


env = gym.make("RegRigid2D-v0", render_mode="rgb_array")
observation, info = env.reset(seed=0)
observation, reward, terminated, truncated, info = env.step(env.action_space.sample())
print(f"{info['tre']:.1f} mm apart, a frame is {env.render().shape}")

lanes = SB3VecEnv(gym.make_vec("RegRigid2D-v0", num_envs=16, autoreset_mode="SameStep", **TASK))
model = PPO("CnnPolicy", lanes, n_steps=64, batch_size=256, n_epochs=4, learning_rate=5e-4, gamma=0.9, seed=0)
before = success(model)
model.learn(int(sys.argv[1]), callback=EpisodeMetrics())
print(f"success {before:.2f} before, {success(model):.2f} after")
