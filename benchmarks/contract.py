"""Every id under random actions: Gymnasium's contract, and the truth of what it says of errors and success. One table.

    python benchmarks/contract.py                                 # 10,000 lane-steps an id, 2,000 of large volumes
    python benchmarks/contract.py --steps 320 --ids RegRigid2D-v0 # a first look
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from time import perf_counter
from typing import Any

import gymnasium as gym
import numpy as np

from regenv.registry import CATALOGUE
from regenv.testing import check_truths, check_vector_env

LANES = 16
LARGE, FEW = 64, 2_000          # voxels along an axis, from which on an id takes fewer steps: so many
SMALL = {2: 48, 3: 24}          # voxels an axis, where the contract's and the truth's own episodes are played
COLUMNS = ("id", "shape", "lane-steps", "episodes", "rewards", "TRE, mm", "successes", "contract", "truth", "s")


def played(env_id: str, steps: int) -> dict[str, Any]:
    """Random actions in an id at its own size: what came out, after checks of every step."""
    env: Any = gym.make_vec(env_id, num_envs=LANES, output="numpy")
    shape = env.unwrapped.core.task.grid.shape
    total = min(steps, FEW) if len(shape) == 3 and max(shape) >= LARGE else steps
    env.action_space.seed(0)
    observation, infos = env.reset(seed=0)
    keys, rewards, errors, ended, successes = set(infos), [], [], 0, 0
    for _ in range(max(1, total // LANES)):
        observation, reward, terminated, truncated, infos = env.step(env.action_space.sample())
        assert env.observation_space.contains(observation), f"{env_id}: an observation is out of its space"
        assert set(infos) == keys, f"{env_id}: infos have {sorted(set(infos) ^ keys)} at one step and not at another"
        assert np.isfinite(reward).all(), f"{env_id}: rewards are {reward}"
        rewards.append((reward.min(), reward.max()))
        ended += int((terminated | truncated).sum())
        if "tre" in infos:
            errors.append((infos["tre"].min(), infos["tre"].max()))
            assert (infos["is_success"] == (infos["tre"] <= env.unwrapped.core.task.success_mm)).all(), env_id
            successes += int(infos["is_success"].sum())
    return {"id": env_id, "shape": " x ".join(map(str, shape)), "lane-steps": max(1, total // LANES) * LANES,
            "episodes": ended, "rewards": span(rewards), "TRE, mm": span(errors), "successes": successes}


def span(pairs: Sequence[tuple[float, float]]) -> str:
    """Least and greatest of some ranges."""
    return f"{min(low for low, _ in pairs):.2f} to {max(high for _, high in pairs):.2f}" if pairs else "unknown"


def checked(env_id: str) -> dict[str, str]:
    """Whether the checks of regenv.testing hold, else the sentence on what does not."""
    ndim = 3 if "3D" in env_id else 2
    size = {} if "SDM" in env_id or "Digits" in env_id else {"size": SMALL[ndim]}
    found = {}
    for name, check in (("contract", check_vector_env), ("truth", check_truths)):
        try:
            check(env_id, **size)
            found[name] = "holds"
        except AssertionError as error:
            found[name] = str(error)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10_000, help="lane-steps of each id (default 10000)")
    parser.add_argument("--ids", nargs="+", default=list(CATALOGUE), help="default all")
    arguments = parser.parse_args(argv)
    print(f"| {' | '.join(COLUMNS)} |\n|{' --- |' * len(COLUMNS)}")
    failed = False
    for env_id in arguments.ids:
        begun = perf_counter()
        row = {**played(env_id, arguments.steps), **checked(env_id)}
        row["s"] = f"{perf_counter() - begun:.0f}"
        failed |= row["contract"] != "holds" or row["truth"] != "holds"
        print(f"| {' | '.join(str(row[column]) for column in COLUMNS)} |", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
