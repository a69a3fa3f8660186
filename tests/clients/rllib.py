"""RLlib's PPO on every id. RLlib pins another Gymnasium, so it has an environment of its own:

    python3 -m venv .venv-rllib && .venv-rllib/bin/pip install torch "ray[rllib]==2.60.0"
    .venv-rllib/bin/pip install -e ".[data]"                 # raises Gymnasium to 1.4 and says that RLlib pins 1.2.2
    .venv-rllib/bin/python tests/clients/rllib.py            # prints the table and writes results/rllib.md
    .venv-rllib/bin/python tests/clients/rllib.py RegRigid2D-v0

RLlib builds networks for vectors and for images whose channels come last; volumes and pairs of images it flattens here
(``flattened``), which shows that an id can be played and learnt on, and is no way to learn well: bring an RLModule of
your own, with ``regagents.common.extractors.CompactCNN`` in it.
"""

from __future__ import annotations

import importlib.metadata
import os
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from time import perf_counter
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import gymnasium as gym
import numpy as np
import ray
from ray.rllib.algorithms.ppo import PPOConfig
from ray.tune.registry import register_env

import regenv  # noqa: F401
from regenv.atomic import atomic
from regenv.registry import CATALOGUE

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
FLAT, SOLID = {"size": 32, "spacing": 7.0}, {"size": 12, "spacing": 16.0}
SDM = {"RegSDM2D-v0", "RegSDM2DContinuous-v0", "RegSDM3D-v0", "RegSDM3DContinuous-v0"}


def flattened(config: dict[str, Any]) -> gym.Env:
    """A small game of an id, observations and actions as vectors."""
    env_id = config["id"]
    small = {} if env_id in SDM else {} if "Digits" in env_id else SOLID if "3D" in env_id else FLAT
    control = {"control_grid": (4,) * (3 if "3D" in env_id else 2)} if "Dense" in env_id or "Keypoint" in env_id else {}
    env: gym.Env = gym.make(env_id, max_episode_steps=8, **small, **control)
    env = gym.wrappers.DtypeObservation(gym.wrappers.FlattenObservation(env), np.float32)
    if isinstance(env.action_space, gym.spaces.Box):
        space, shape = gym.spaces.utils.flatten_space(env.action_space), env.action_space.shape
        env = gym.wrappers.TransformAction(env, lambda action: action.reshape(shape), space)
    return env


def played(env_id: str) -> dict[str, float]:
    """Two iterations of PPO; steps, mean return, and seconds."""
    config = (PPOConfig().environment("flattened", env_config={"id": env_id}).framework("torch")
              .env_runners(num_env_runners=0).learners(num_learners=0)
              .rl_module(model_config={"fcnet_hiddens": [32]})
              .training(train_batch_size=64, minibatch_size=32, num_epochs=2, lr=3e-4))
    algorithm, begun = config.build_algo(), perf_counter()
    for _ in range(2):
        result = algorithm.train()
    algorithm.stop()
    return {"steps": result["num_env_steps_sampled_lifetime"],
            "return": result["env_runners"]["episode_return_mean"], "seconds": perf_counter() - begun}


def main(argv: Sequence[str] | None = None) -> int:
    chosen = list(sys.argv[1:] if argv is None else argv)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    register_env("flattened", flattened)
    lines, failed = ["| id | steps | mean return | s |", "| --- | ---: | ---: | ---: |"], 0
    for env_id in chosen or CATALOGUE:
        try:
            found = played(env_id)
            lines.append(f"| {env_id} | {found['steps']} | {found['return']:.2f} | {found['seconds']:.1f} |")
        except Exception as error:
            lines.append(f"| {env_id} | **FAILS**: {' '.join(str(error).split())[:120]} | | |")
            failed += 1
        print(lines[-1], flush=True)
    ray.shutdown()
    if not chosen:
        versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("ray", "gymnasium", "torch"))
        with atomic(RESULTS / "rllib.md") as temporary:
            temporary.write_text("# Ids under RLlib's PPO\n\nMade by `python tests/clients/rllib.py` on "
                                 f"{date.today()}: {versions}. Two iterations of small games.\n\n"
                                 + "\n".join(lines) + "\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
