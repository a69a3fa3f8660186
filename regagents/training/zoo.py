"""rl-zoo3 with this project's ids, algorithms and tuned settings, on native batches:

    python -m regagents.training.zoo train --algo ppo --env RegRigid2D-v0 -f logs --seed 0
    python -m regagents.training.zoo enjoy --algo ppo --env RegRigid2D-v0 -f logs
    python -m regagents.training.zoo record_video --algo ppo --env RegRigid2D-v0 -f logs -n 50 -o videos
    python -m regagents.training.zoo plot --algo ppo --env RegRigid2D-v0 -f logs --output curves.png
    python -m regagents.training.zoo benchmark --log-dir logs --test-mode

Every command takes rl-zoo3's own options. ``train --vec-env dummy | subproc`` plays on its vector environments instead
of a native batch. A sweep of several processes shares a journal: ``train -optimize --storage logs/sweep.log
--study-name NAME`` in each. Loading what the zoo has saved executes code, as with all of Stable-Baselines3's files.
"""

from __future__ import annotations

import importlib
import runpy
import subprocess
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium as gym
import yaml
from sb3_contrib import TQC, MaskablePPO, RecurrentPPO
from stable_baselines3 import A2C, DQN, PPO, SAC
from stable_baselines3.common.vec_env import VecEnv, VecMonitor

import regenv  # noqa: F401  registers the ids
from regagents.a3c import A3C
from regagents.common.sb3_policies import NoisyTD3
from regagents.dsl import DSL
from regagents.l2o import L2O
from regagents.spac import SPAC
from regenv.wrappers.sb3 import SB3VecEnv

HYPERPARAMS = Path(__file__).parents[1] / "hyperparams"
SHELF: dict[str, type[Any]] = {"ppo": PPO, "a2c": A2C, "dqn": DQN, "sac": SAC, "td3": NoisyTD3, "tqc": TQC,
                               "recurrent_ppo": RecurrentPPO, "maskable_ppo": MaskablePPO}
OWN: dict[str, type[Any]] = {"dsl": DSL, "a3c": A3C, "spac": SPAC, "l2o": L2O}  # these make their own batches
ALGORITHMS = {**SHELF, **OWN}
COMMANDS = ("train", "enjoy", "record_video", "plot", "benchmark")


# ---------------------------------------------------------------------------------------------------------- settings

@dataclass(frozen=True)
class Settings:
    """How an algorithm is tuned for an id.

    Attributes: n_timesteps; n_envs: lanes; env_kwargs; policy: its name or class; arguments: of the algorithm.
    """

    n_timesteps: int
    n_envs: int
    env_kwargs: dict[str, Any]
    policy: Any
    arguments: dict[str, Any] = field(default_factory=dict)


def settings(algo: str, env_id: str) -> Settings:
    """Those of ``regagents/hyperparams/ALGO.yml``. Raises ValueError where the algorithm or the id is not known."""
    if algo not in ALGORITHMS:
        raise ValueError(f"zoo: algo is {algo!r}; it must be one of {', '.join(ALGORITHMS)}.")
    known = yaml.safe_load((HYPERPARAMS / f"{algo}.yml").read_text())
    if env_id not in known:
        raise ValueError(f"zoo: {algo} has no settings for {env_id!r}; it has them for {', '.join(known)}.")
    arguments = dict(known[env_id])
    policy = arguments.pop("policy")
    if "." in policy:
        module, _, name = policy.rpartition(".")
        policy = getattr(importlib.import_module(module), name)
    return Settings(int(arguments.pop("n_timesteps")), arguments.pop("n_envs", 1), arguments.pop("env_kwargs", {}),
                    policy, arguments)


def create(algo: str, env_id: str, seed: int = 0, device: str = "cpu",
           env_kwargs: Mapping[str, Any] | None = None) -> Any:
    """An untrained agent with its tuned settings on a native batch. ``env_kwargs`` go before those of the settings."""
    tuned = settings(algo, env_id)
    game = {**tuned.env_kwargs, **(env_kwargs or {})}
    env: Any = gym.make(env_id, **game) if algo in OWN else native(env_id, tuned.n_envs, game)
    return ALGORITHMS[algo](tuned.policy, env, seed=seed, device=device, **tuned.arguments)


def native(env_id: str, lanes: int, env_kwargs: Mapping[str, Any]) -> SB3VecEnv:
    """The native batch of an id for Stable-Baselines3."""
    return SB3VecEnv(gym.make_vec(env_id, num_envs=lanes, autoreset_mode="SameStep", **env_kwargs))


# ----------------------------------------------------------------------------------------------------------- commands

def main(argv: Sequence[str] | None = None) -> int:
    """Run a command of the zoo; 2 after one line on stderr where it or rl-zoo3 is missing."""
    typed = list(sys.argv[1:] if argv is None else argv)
    if not typed or typed[0] not in COMMANDS:
        print(f"regagents.training.zoo: command is {typed[0] if typed else None!r}; it must be one of {', '.join(COMMANDS)}.",
              file=sys.stderr)
        return 2
    try:
        rl_zoo3 = importlib.import_module("rl_zoo3")
    except ImportError as error:
        print(f'regagents.training.zoo: {error}; install the extra: pip install "regenv[clients]".', file=sys.stderr)
        return 2
    rl_zoo3.ALGOS.update(ALGORITHMS)
    command, *options = typed
    before, sys.argv = sys.argv, [f"regagents.training.zoo {command}", *options]
    try:
        {"train": _train, "enjoy": _enjoy, "record_video": _record_video, "plot": _plot,
         "benchmark": _benchmark}[command]()
    finally:
        sys.argv = before
    return 0


def _option(*names: str, remove: bool = False) -> str | None:
    """The value given to an option of the command line; None without."""
    for place, word in enumerate(sys.argv):
        name, joined, value = word.partition("=")
        if joined and name in names:
            if remove:
                del sys.argv[place]
            return value
        if word in names and place + 1 < len(sys.argv):
            value = sys.argv[place + 1]
            if remove:
                del sys.argv[place: place + 2]
            return value
    return None


def _train() -> None:
    from rl_zoo3 import exp_manager, train

    from regagents.training import sweeps

    sweeps.register()
    algo = _option("--algo") or "ppo"
    if _option("-conf", "--conf-file") is None:
        sys.argv += ["--conf-file", str(HYPERPARAMS / f"{algo}.yml")]
    kind = _option("--vec-env") or "native"
    if kind == "native":
        _option("--vec-env", remove=True)
    if algo in OWN:
        for name in ("EvalCallback", "TrialEvalCallback"):
            setattr(exp_manager, name, _by_time(getattr(exp_manager, name)))
    train.ExperimentManager = _manager(train.ExperimentManager, kind == "native")  # type: ignore[misc]
    train.train()


def _manager(base: type[Any], on_batches: bool) -> type[Any]:
    """rl-zoo3's manager, whose evaluation has the settings' environment, too; off-the-shelf algorithms play on native
    batches where nothing wraps single environments."""

    class Manager(base):  # type: ignore[misc]
        eval_env_kwargs: dict[str, Any]

        def create_envs(self, n_envs: int, eval_env: bool = False, no_log: bool = False) -> VecEnv:
            self.eval_env_kwargs = self.eval_env_kwargs or self.env_kwargs
            ours = gym.spec(self.env_name.gym_id).vector_entry_point == "regenv.vector:RegistrationVectorEnv"
            if not on_batches or self.algo in OWN or not ours or self.env_wrapper or self.vec_env_wrapper \
                    or self.frame_stack:
                return super().create_envs(n_envs, eval_env, no_log)
            env = native(self.env_name.gym_id, n_envs, self.eval_env_kwargs if eval_env else self.env_kwargs)
            env.seed(self.seed)
            log = None if eval_env or no_log else str(Path(self.save_path) / "0")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # it has a Monitor's statistics, but no file of them
                return self._maybe_normalize(VecMonitor(env, log, **self.monitor_kwargs), eval_env)

    return Manager


def _by_time(base: type[Any]) -> type[Any]:
    """An evaluation callback whose frequency is of steps, not of calls: these algorithms call once for many steps."""

    class ByTime(base):  # type: ignore[misc]
        rounds = 0

        def _on_step(self) -> bool:
            if self.num_timesteps // self.eval_freq == self.rounds:
                return True
            self.rounds = self.num_timesteps // self.eval_freq
            self.n_calls = 0
            return super()._on_step()

    return ByTime


def _enjoy() -> None:
    from rl_zoo3.enjoy import enjoy

    enjoy()


def _record_video() -> None:
    """rl-zoo3's, in the environment of the settings."""
    from rl_zoo3 import utils

    make = utils.create_test_env

    def as_trained(env_id: str, **named: Any) -> VecEnv:
        game = {**named["hyperparams"].pop("env_kwargs", {}), **named.pop("env_kwargs")}
        return make(env_id, env_kwargs=game, **named)

    utils.create_test_env = as_trained  # type: ignore[assignment]
    try:
        runpy.run_module("rl_zoo3.record_video", run_name="__main__")
    finally:
        utils.create_test_env = make


def _plot() -> None:
    """Learning curves; ``--output FILE`` writes them instead of opening a window."""
    out = _option("-o", "--output", remove=True)
    import matplotlib

    if out is not None:
        matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from rl_zoo3.plots.plot_train import plot_train

    if out is not None:
        plt.show = lambda *given, **named: plt.savefig(out, dpi=120)  # type: ignore[assignment]
        sys.argv = [word if word != "--env" else "-e" for word in sys.argv]
    plot_train()


def _benchmark() -> None:
    """rl-zoo3's, of what lies in ``--log-dir`` alone, played by this module."""
    call = subprocess.call

    def ours(command: Sequence[str], **kwargs: Any) -> int:
        return call([sys.executable, "-m", "regagents.training.zoo", "enjoy", *command[2:]], **kwargs)

    Path(_option("--benchmark-dir") or "logs/benchmark").mkdir(parents=True, exist_ok=True)
    if "--no-hub" not in sys.argv:
        sys.argv.append("--no-hub")
    subprocess.call = ours  # type: ignore[assignment]
    try:
        runpy.run_module("rl_zoo3.benchmark", run_name="__main__")
    finally:
        subprocess.call = call


if __name__ == "__main__":
    sys.exit(main())
