"""What all algorithms of this package share: the frame of Stable-Baselines3, environments, checkpoints."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

import gymnasium as gym
import torch
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.type_aliases import MaybeCallback
from torch import Tensor

from regagents.common import checkpoints
from regagents.common.curriculum import Curriculum, options_at
from regenv.registry import build
from regenv.task import Task

OWN_ARGUMENTS = ("task", "render_mode", "privileged")  # of one environment, not of others like it


class Algorithm(BaseAlgorithm):
    """An algorithm on Stable-Baselines3's frame that trains a policy in native batches of its environment's id.

    A subclass gives :meth:`make_optimizer` and :meth:`train_until`. A subclass that also has an algorithm of
    Stable-Baselines3 as its base (DQN) names this class first, calls that base's ``__init__`` and, when its network is
    made, :meth:`begin_training`.

    Args:
        policy, env, learning_rate, policy_kwargs, stats_window_size, tensorboard_log, verbose, seed: as of
            Stable-Baselines3.
        device: "cpu" by default, where Stable-Baselines3 has "auto".

    Attributes: curriculum: of the training episodes; card: of the checkpoint it was loaded from, {} for a new one.
    """

    amp_argument: ClassVar[bool] = True
    """Whether the constructor takes ``amp=``."""
    distributed: ClassVar[bool] = True
    """Whether several processes of torchrun may train it together."""
    steps_played: ClassVar[int | None] = None
    """Steps that a trained agent takes in an episode; None: up to the task's limit."""
    action_spaces: ClassVar[tuple[type[gym.Space[Any]], ...]] = (gym.spaces.Box,)
    """Which action spaces its environments may have."""
    log_every: ClassVar[int] = 100
    """Updates between two lines of the log, by default."""
    unsaved: ClassVar[tuple[str, ...]] = ("optimizer",)
    """Attributes that SB3's ``save`` does not pickle."""

    policy: Any
    updates: int
    curriculum: Curriculum | None
    card: dict[str, Any]

    def __init__(self, policy: Any, env: Any, learning_rate: float, policy_kwargs: dict[str, Any] | None = None,
                 stats_window_size: int = 100, tensorboard_log: str | None = None, verbose: int = 0,
                 seed: int | None = None, device: torch.device | str = "cpu", _init_setup_model: bool = True) -> None:
        super().__init__(policy, env, learning_rate, policy_kwargs=policy_kwargs, stats_window_size=stats_window_size,
                         tensorboard_log=tensorboard_log, verbose=verbose, device=device, seed=seed,
                         support_multi_env=True, supported_action_spaces=self.action_spaces)
        if _init_setup_model:
            self._setup_model()

    def _setup_model(self) -> None:
        self._setup_lr_schedule()
        self.set_random_seed(self.seed)
        self.policy = self.policy_class(self.observation_space, self.action_space, self.lr_schedule,
                                        **self.policy_kwargs).to(self.device)
        self.begin_training()

    def begin_training(self) -> None:
        """Set the counters that SB3's ``load`` has not set."""
        self.updates = getattr(self, "updates", 0)
        self.card = getattr(self, "card", {})

    # ------------------------------------------------------------------------------------------------------- training

    @cached_property
    def optimizer(self) -> torch.optim.Optimizer:
        """That of :meth:`make_optimizer`, made where training first asks for it: torch then loads its compiler, for
        seconds, which an agent that only plays does not need."""
        return self.make_optimizer()

    def make_optimizer(self) -> torch.optim.Optimizer:
        """A new optimizer of :attr:`network`."""
        raise NotImplementedError

    def train_until(self, total: int, callbacks: BaseCallback, log_interval: int) -> None:
        """Train until ``num_timesteps`` is ``total`` or a callback ends it; log every ``log_interval`` updates."""
        raise NotImplementedError

    def learn(self, total_timesteps: int, callback: MaybeCallback = None, log_interval: int | None = None,
              tb_log_name: str | None = None, reset_num_timesteps: bool = True, progress_bar: bool = False) -> Self:
        """Train for ``total_timesteps`` steps; the algorithm's class says what a step is.

        Args: log_interval: updates between two lines of the log, default ``log_every``; tb_log_name: default the
        class's name; the others are as of Stable-Baselines3.
        """
        total, callbacks = self._setup_learn(total_timesteps, callback, reset_num_timesteps,
                                             tb_log_name or type(self).__name__, progress_bar)
        callbacks.on_training_start(locals(), globals())
        self.train_until(total, callbacks, log_interval or self.log_every)
        callbacks.on_training_end()
        return self

    def after_training(self) -> dict[str, Any]:
        """Constructor arguments that are found once training has ended."""
        return {}

    def summary(self) -> str:
        """One line on whether what was trained works; empty where an algorithm has nothing to say."""
        return ""

    def reset_options(self, progress: float) -> dict[str, float]:
        """Options of the training environment's ``reset`` at a share of training in [0, 1]."""
        return options_at(self.curriculum, progress)

    def log_progress(self, numbers: Mapping[str, float]) -> None:
        """Write a line of the log: these numbers, steps per second, and steps."""
        for name, value in numbers.items():
            self.logger.record(name, value)
        seconds = max((time.time_ns() - self.start_time) / 1e9, 1e-9)
        self.logger.record("time/fps", (self.num_timesteps - self._num_timesteps_at_start) / seconds)
        self.logger.record("time/total_timesteps", self.num_timesteps)
        self.logger.dump(self.num_timesteps)

    # ---------------------------------------------------------------------------------------------------- environment

    def env_spec(self) -> tuple[str, dict[str, Any]]:
        """The id of the environment, and the arguments that make others like it."""
        spec = self._spec()
        arguments = {name: value for name, value in spec.kwargs.items() if name not in OWN_ARGUMENTS}
        if spec.max_episode_steps is not None:
            arguments["max_episode_steps"] = spec.max_episode_steps
        return spec.id, arguments

    def task(self) -> Task:
        """The task of the environment's id and arguments."""
        _, arguments = self.env_spec()
        limit = arguments.pop("max_episode_steps", None)
        task = build(self._spec().kwargs["task"], **arguments)
        return task if limit is None else task.limited(limit)

    def batch(self, lanes: int, **arguments: Any) -> gym.vector.VectorEnv[Any, Any, Any]:
        """A native batch of the same id, on the algorithm's device. Args: arguments: replace the environment's."""
        env_id, given = self.env_spec()
        return gym.make_vec(env_id, num_envs=lanes, **{"output": "torch", "autoreset_mode": AutoresetMode.DISABLED,
                                                       **given, "device": str(self.device), **arguments})

    def _spec(self) -> Any:
        env = self.get_env()
        assert env is not None
        return env.get_attr("spec")[0]

    # ---------------------------------------------------------------------------------------------------- checkpoints

    @property
    def network(self) -> torch.nn.Module:
        """What training changes and a checkpoint holds."""
        return self.policy

    @property
    def resumable(self) -> bool:
        """Whether training can be resumed from a checkpoint written now."""
        return True

    def adopt(self, tensors: Mapping[str, Tensor], path: str | Path) -> None:
        """Take over a checkpoint's weights. Raises CheckpointError where they do not fit."""
        checkpoints.fit(self.network, tensors, path)

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), *self.unsaved]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        return ["policy", "optimizer"], []


def check_counts(owner: str, **counts: int) -> None:
    """Raises ValueError for an argument of ``owner`` below 1."""
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{owner}: {name} is {count}; it must be at least 1.")

