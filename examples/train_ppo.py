"""Stable-Baselines3's PPO on sixteen lanes of a native batch, and what it has learnt after a minute."""

import sys

import gymnasium as gym
from stable_baselines3 import PPO
from stable_baselines3.common.evaluation import evaluate_policy

import regenv  # noqa: F401
from regenv.wrappers.metrics import EpisodeMetrics
from regenv.wrappers.sb3 import SB3VecEnv

STEPS = int(sys.argv[1]) if len(sys.argv) > 1 else 50_000
ENV = {"size": 48, "spacing": 5.0, "observation": "pair", "autoreset_mode": "SameStep", "max_episode_steps": 50}

env = SB3VecEnv(gym.make_vec("RegRigid2D-v0", num_envs=16, **ENV))
model = PPO("CnnPolicy", env, n_steps=64, batch_size=256, n_epochs=4, learning_rate=5e-4, gamma=0.9, seed=0)
before = evaluate_policy(model, env, n_eval_episodes=32)[0]
model.learn(STEPS, callback=EpisodeMetrics(), progress_bar=sys.stdout.isatty())
print(f"return before {before:.1f}, after {STEPS} steps {evaluate_policy(model, env, n_eval_episodes=32)[0]:.1f}")
