"""Environment steps per second: A3C with 8 workers beside SB3's A2C with DummyVecEnv(8), in turn, in one run.

Both train the same network (the convolutions of Sun et al. 2018, table 1, and a dense layer of 128; A2C has no LSTM)
on the same id and arguments, 30 steps between updates, from random weights.

    python benchmarks/a3c_throughput.py
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from time import perf_counter
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3 import A2C
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv

import regenv  # noqa: F401  registers the ids
from regagents.a3c import A3C
from regagents.common.extractors import SunCNN
from regenv.atomic import atomic

RESULTS = Path(__file__).parent / "results"
ENV, WORKERS, N_STEPS = "RegSimilarity2D-v0", 8, 30


class Stopwatch(BaseCallback):
    """Counts steps and seconds once ``warm_up`` steps are done, when the workers have started."""

    def __init__(self, warm_up: int) -> None:
        super().__init__()
        self.warm_up = warm_up
        self.begun: tuple[int, float] | None = None

    def _on_step(self) -> bool:
        if self.begun is None and self.num_timesteps >= self.warm_up:
            self.begun = self.num_timesteps, perf_counter()
        return True

    @property
    def rate(self) -> float:
        """Steps per second."""
        assert self.begun is not None
        steps, since = self.begun
        return (self.model.num_timesteps - steps) / (perf_counter() - since)


def a3c(lanes: int, arguments: dict[str, Any]) -> A3C:
    return A3C("CnnPolicy", gym.make(ENV, **arguments), n_workers=WORKERS, lanes=lanes, n_steps=N_STEPS, seed=0)


def a2c(arguments: dict[str, Any]) -> A2C:
    envs = make_vec_env(ENV, n_envs=WORKERS, seed=0, env_kwargs=arguments, vec_env_cls=DummyVecEnv)
    network = {"features_extractor_class": SunCNN, "normalize_images": False, "net_arch": [128],
               "activation_fn": torch.nn.ELU, "ortho_init": False}
    return A2C("CnnPolicy", envs, n_steps=N_STEPS, policy_kwargs=network, device="cpu", seed=0)


def main(argv: Sequence[str] | None = None) -> int:
    typed = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=12_000, help="of each turn, after a warm-up of 4,000")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--source", default='"phantoms"', help="JSON; the id's argument")
    parser.add_argument("--out", type=Path, default=RESULTS / "a3c_throughput.json")
    arguments = parser.parse_args(typed)
    kwargs = {"source": json.loads(arguments.source)}
    entrants: dict[str, Callable[[], Any]] = {
        f"A2C, DummyVecEnv({WORKERS})": lambda: a2c(kwargs),
        f"A3C, {WORKERS} workers of 1 lane": lambda: a3c(1, kwargs),
        f"A3C, {WORKERS} workers of 4 lanes": lambda: a3c(4, kwargs),
        f"A3C, {WORKERS} workers of 8 lanes": lambda: a3c(8, kwargs)}
    rates: dict[str, list[float]] = {name: [] for name in entrants}
    for _ in range(arguments.turns):
        for name, make in entrants.items():
            watch = Stopwatch(warm_up=4_000)
            make().learn(4_000 + arguments.steps, callback=watch)
            rates[name].append(watch.rate)
    base = np.median(rates[next(iter(entrants))])
    lines = [f"{name:28} {np.median(each):7.0f} steps/s  {np.median(each) / base:5.2f}x"
             for name, each in rates.items()]
    print("\n".join(lines))
    with atomic(arguments.out) as temporary:
        temporary.write_text(json.dumps({
            "command": " ".join(["python benchmarks/a3c_throughput.py", *typed]), "date": str(date.today()),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}", "env": ENV, **kwargs,
            "steps_per_second": {name: [round(rate, 1) for rate in each] for name, each in rates.items()},
            "ratio_to_a2c": {name: round(float(np.median(each) / base), 2) for name, each in rates.items()}},
            indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
