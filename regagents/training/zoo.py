"""rl-zoo3 with this project's ids, algorithms and tuned settings, on native batches.

Its commands:

    python -m regagents.training.zoo train --algo ppo --env RegRigid2D-v0 -f logs --seed 0
    python -m regagents.training.zoo enjoy --algo ppo --env RegRigid2D-v0 -f logs
    python -m regagents.training.zoo record_video --algo ppo --env RegRigid2D-v0 -f logs -n 50 -o videos
    python -m regagents.training.zoo plot --algo ppo --env RegRigid2D-v0 -f logs --output curves.png
    python -m regagents.training.zoo benchmark --log-dir logs --test-mode

Every command takes rl-zoo3's own options. ``train --vec-env dummy | subproc`` plays on rl-zoo3's vector environments
instead of a native batch. To sweep with several processes, start ``train -optimize --storage logs/sweep.log
--study-name NAME`` in each: they share that journal. Loading a file that the zoo saved executes code, as with all files
of Stable-Baselines3.
"""

from __future__ import annotations

import importlib
import runpy
import subprocess
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium as gym
import yaml
from sb3_contrib import TQC, MaskablePPO, RecurrentPPO
from stable_baselines3 import A2C, DQN, PPO, SAC
from stable_baselines3.common.vec_env import VecEnv, VecMonitor

from regagents import agents
from regagents.common.sb3_policies import NoisyTD3
from regenv import shell
from regenv.wrappers.sb3 import SB3VecEnv

SB3_ALGORITHMS: dict[str, type[Any]] = {"ppo": PPO, "a2c": A2C, "dqn": DQN, "sac": SAC, "td3": NoisyTD3, "tqc": TQC,
                                        "recurrent_ppo": RecurrentPPO, "maskable_ppo": MaskablePPO}
NAME = "regagents.training.zoo"


# ---------------------------------------------------------------------------------------------------------- settings

def own_algorithms() -> dict[str, agents.Row]:
    """This package's algorithms by their names in the zoo. They make their own batches."""
    return {row.hyperparams.stem: row for row in agents.ALGORITHMS.values() if row.hyperparams is not None}


def algorithms() -> dict[str, type[Any]]:
    """The classes of all algorithms, SB3's and this package's, by their names in the zoo."""
    return {**SB3_ALGORITHMS, **{name: row.algorithm for name, row in own_algorithms().items()}}


def learns_from(algo: str) -> str:
    """What teaches an algorithm, see :class:`regagents.agents.Row`; SB3's learn from the reward alone."""
    own = own_algorithms().get(algo)
    return own.learns_from if own else "reward"


def hyperparams(algo: str) -> Path:
    """The YAML file of an algorithm's settings by id."""
    own = own_algorithms().get(algo)
    return (own and own.hyperparams) or agents.HYPERPARAMS / f"{algo}.yml"


@dataclass(frozen=True)
class Settings:
    """How an algorithm is tuned for an id.

    Attributes: n_timesteps: environment steps of a training; n_envs: lanes; env_kwargs: arguments of the environment;
    policy: its name or class; arguments: of the algorithm.
    """

    n_timesteps: int
    n_envs: int
    env_kwargs: dict[str, Any]
    policy: Any
    arguments: dict[str, Any] = field(default_factory=dict)


def settings(algo: str, env_id: str) -> Settings:
    """An algorithm's settings for an id. Raises ValueError where the algorithm or the id is not known."""
    if algo not in algorithms():
        raise ValueError(f"zoo: algo is {algo!r}; it must be one of {', '.join(algorithms())}.")
    known = yaml.safe_load(hyperparams(algo).read_text())
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
    """An untrained agent with its tuned settings. Args: env_kwargs: of the environment; they replace the settings'."""
    tuned = settings(algo, env_id)
    arguments = {**tuned.env_kwargs, **(env_kwargs or {})}
    env: Any = gym.make(env_id, **arguments) if algo in own_algorithms() else native(env_id, tuned.n_envs, arguments)
    return algorithms()[algo](tuned.policy, env, seed=seed, device=device, **tuned.arguments)


def native(env_id: str, lanes: int, env_kwargs: Mapping[str, Any]) -> SB3VecEnv:
    """A native batch of an id, for Stable-Baselines3."""
    return SB3VecEnv(gym.make_vec(env_id, num_envs=lanes, autoreset_mode="SameStep", **env_kwargs))


# ----------------------------------------------------------------------------------------------------------- commands

def main(argv: Sequence[str] | None = None) -> int:
    """Run a command of the zoo. Returns the exit status, see :func:`regenv.shell.run`."""
    typed = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in typed
    return shell.run(NAME, lambda: _run([word for word in typed if word != "--debug"]), debug)


def _run(typed: list[str]) -> int:
    if not typed or typed[0] not in COMMANDS:
        raise ValueError(f"command is {typed[0] if typed else None!r}; it must be one of {', '.join(COMMANDS)}.")
    rl_zoo3 = importlib.import_module("rl_zoo3")
    rl_zoo3.ALGOS.update(algorithms())
    command, *options = typed
    before, sys.argv = sys.argv, [f"{NAME} {command}", *options]
    try:
        COMMANDS[command]()
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
        sys.argv += ["--conf-file", str(hyperparams(algo))]
    kind = _option("--vec-env") or "native"
    if kind == "native":
        _option("--vec-env", remove=True)
    if algo in own_algorithms():
        for name in ("EvalCallback", "TrialEvalCallback"):
            setattr(exp_manager, name, _by_time(getattr(exp_manager, name)))
    train.ExperimentManager = _manager(train.ExperimentManager, kind == "native")  # type: ignore[misc]
    train.train()


def _manager(base: type[Any], on_batches: bool) -> type[Any]:
    """rl-zoo3's manager. Its evaluation environment takes the settings' arguments, too; SB3's algorithms play on native
    batches where nothing wraps single environments."""

    class Manager(base):  # type: ignore[misc]
        eval_env_kwargs: dict[str, Any]

        def create_envs(self, n_envs: int, eval_env: bool = False, no_log: bool = False) -> VecEnv:
            self.eval_env_kwargs = self.eval_env_kwargs or self.env_kwargs
            ours = gym.spec(self.env_name.gym_id).vector_entry_point == "regenv.vector:RegistrationVectorEnv"
            if not on_batches or self.algo in own_algorithms() or not ours or self.env_wrapper or self.vec_env_wrapper \
                    or self.frame_stack:
                return super().create_envs(n_envs, eval_env, no_log)
            env = native(self.env_name.gym_id, n_envs, self.eval_env_kwargs if eval_env else self.env_kwargs)
            env.seed(self.seed)
            log = None if eval_env or no_log else str(Path(self.save_path) / "0")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the batch keeps a Monitor's statistics, but no file
                return self._maybe_normalize(VecMonitor(env, log, **self.monitor_kwargs), eval_env)

    return Manager


def _by_time(base: type[Any]) -> type[Any]:
    """An evaluation callback whose frequency counts steps, not calls: these algorithms call it once for many steps."""

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
    """rl-zoo3's command, in the environment of the settings."""
    from rl_zoo3 import utils

    make = utils.create_test_env

    def as_trained(env_id: str, **named: Any) -> VecEnv:
        arguments = {**named["hyperparams"].pop("env_kwargs", {}), **named.pop("env_kwargs")}
        return make(env_id, env_kwargs=arguments, **named)

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
    """rl-zoo3's command on the agents in ``--log-dir`` alone, played by this module."""
    call = subprocess.call

    def ours(command: Sequence[str], **kwargs: Any) -> int:
        return call([sys.executable, "-m", NAME, "enjoy", *command[2:]], **kwargs)

    Path(_option("--benchmark-dir") or "logs/benchmark").mkdir(parents=True, exist_ok=True)
    if "--no-hub" not in sys.argv:
        sys.argv.append("--no-hub")
    subprocess.call = ours  # type: ignore[assignment]
    try:
        runpy.run_module("rl_zoo3.benchmark", run_name="__main__")
    finally:
        subprocess.call = call


COMMANDS: dict[str, Callable[[], None]] = {"train": _train, "enjoy": _enjoy, "record_video": _record_video,
                                           "plot": _plot, "benchmark": _benchmark}

if __name__ == "__main__":
    sys.exit(main())
