"""Asynchronous advantage actor-critic (Mnih et al. 2016) as Sun et al. 2018 train it for registration."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import replace
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.type_aliases import MaybeCallback

from regagents.a3c.lookahead import Lookahead, best_threshold
from regagents.a3c.policies import A3CPolicy
from regagents.a3c.workers import POOLS, WorkerConfig, shared_adam
from regagents.common.algorithm import PolicyTrained, made_with
from regagents.common.curriculum import Curriculum
from regenv.core import RegistrationCore
from regenv.parts.termination import Never


class A3C(PolicyTrained, BaseAlgorithm):
    """Asynchronous advantage actor-critic on SB3's frame.

    Worker processes share the network and Adam's moments. Each plays its own pairs with a copy of the network, and
    after ``n_steps`` adds its gradient of eq. 1 and 2 to what is shared. The main process counts steps, logs and runs
    callbacks. Scripts need ``if __name__ == "__main__":``.

    Args:
        policy: "CnnLstmPolicy", "CnnPolicy" (a dense layer for the LSTM), or an A3CPolicy subclass.
        env: id or environment of regenv with discrete actions; its spec is what the workers build theirs from.
        learning_rate: of the shared Adam. decay: whether it falls linearly to zero over training.
        n_steps: steps between updates (the paper's bootstrapping length). gamma: discount.
        ent_coef: weight of the entropy (eq. 1's beta). vf_coef: of the squared value error, 1/2 in eq. 2.
        max_grad_norm: bound of each gradient.
        n_workers: how many. lanes: episodes that each of them plays side by side.
        engine: "processes" of this machine, which share memory, or "ray", actors of a cluster.
        episodes_per_pair: episodes on a pair before a new one is drawn.
        supervised: the paper's SL twin: workers take the optimal action (largest decrease of D), the policy learns it
            by cross entropy, the value still by its squared error.
        reward_scale: factor of the rewards in training.
        value_first: share of training in which only the value's last layer learns: a policy that comes from elsewhere
            is not pushed about by a value that does not know it yet.
        stop_values: values at which a registration has arrived, without and with look-ahead; default the paper's 10
            and 9, which training replaces by :meth:`calibrate`.
        curriculum: see Curriculum; None plays at full difficulty from the start.
    """

    policy_aliases: ClassVar[dict[str, type]] = {"CnnLstmPolicy": A3CPolicy,  # type: ignore[assignment]
                                                 "CnnPolicy": A3CPolicy}
    policy: A3CPolicy

    def __init__(self, policy: str | type[A3CPolicy] = "CnnLstmPolicy", env: Any = None, learning_rate: float = 1e-4,
                 decay: bool = True, n_steps: int = 30, gamma: float = 0.99, ent_coef: float = 0.1,
                 vf_coef: float = 0.5, max_grad_norm: float = 40.0, n_workers: int = 8, engine: str = "processes",
                 lanes: int = 1,
                 episodes_per_pair: int = 2,
                 supervised: bool = False, reward_scale: float = 1.0, value_first: float = 0.0,
                 stop_values: tuple[float, float] = (10.0, 9.0), curriculum: Curriculum | None = None,
                 policy_kwargs: dict[str, Any] | None = None, stats_window_size: int = 100,
                 tensorboard_log: str | None = None, verbose: int = 0, seed: int | None = None, device: str = "cpu",
                 _init_setup_model: bool = True) -> None:
        for name, value in (("n_steps", n_steps), ("n_workers", n_workers), ("lanes", lanes),
                            ("episodes_per_pair", episodes_per_pair)):
            if value < 1:
                raise ValueError(f"A3C: {name} is {value}; it must be at least 1.")
        if engine not in POOLS:
            raise ValueError(f"A3C: engine is {engine!r}; it must be one of {', '.join(POOLS)}.")
        if device != "auto" and torch.device(device).type != "cpu":
            raise ValueError(f"A3C: device is {device!r}; its workers share memory on the CPU, use 'cpu'.")
        if policy == "CnnPolicy":
            policy_kwargs = {**(policy_kwargs or {}), "recurrent": False}
        self.decay, self.engine = decay, engine
        self.n_steps, self.gamma, self.ent_coef, self.vf_coef = n_steps, gamma, ent_coef, vf_coef
        self.max_grad_norm, self.n_workers, self.lanes = max_grad_norm, n_workers, lanes
        self.episodes_per_pair, self.supervised, self.reward_scale = episodes_per_pair, supervised, reward_scale
        self.value_first = value_first
        self.stop_values, self.curriculum = stop_values, curriculum
        super().__init__(policy, env, learning_rate, policy_kwargs=policy_kwargs, stats_window_size=stats_window_size,
                         tensorboard_log=tensorboard_log, verbose=verbose, device="cpu", seed=seed,
                         support_multi_env=True, supported_action_spaces=(gym.spaces.Discrete,))
        if _init_setup_model:
            self._setup_model()

    def _setup_model(self) -> None:
        self._setup_lr_schedule()
        self.set_random_seed(self.seed)
        self.policy = self.policy_class(self.observation_space, self.action_space, self.lr_schedule,  # type: ignore[assignment]
                                        **self.policy_kwargs)
        self.optimizer = shared_adam(self.policy, self.lr_schedule(1.0))
        self.updates = getattr(self, "updates", 0)

    def learn(self, total_timesteps: int, callback: MaybeCallback = None, log_interval: int = 100,
              tb_log_name: str = "A3C", reset_num_timesteps: bool = True, progress_bar: bool = False) -> A3C:
        """Train for ``total_timesteps`` environment steps of all workers together; log every ``log_interval`` updates.

        Raises WorkerError where a worker dies; the others are ended then, and what callbacks have saved stays.
        """
        total, callbacks = self._setup_learn(total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar)
        callbacks.on_training_start(locals(), globals())
        begun, at_start = time.monotonic(), self.num_timesteps
        losses: deque[list[float]] = deque(maxlen=log_interval)
        episodes: deque[tuple[float, int, float]] = deque(maxlen=self._stats_window_size)
        progress = torch.tensor([self.num_timesteps / total]).share_memory_()
        pool_class = POOLS[self.engine]
        with pool_class(self.policy, self.optimizer, self._config(), progress, self.updates, self.n_workers) as pool:
            while self.num_timesteps < total:
                for report in pool.reports():
                    self.updates += 1
                    losses.append(report["losses"])
                    episodes.extend(report["episodes"])
                    if not self._counted(report["steps"], callbacks, total):
                        total = self.num_timesteps
                        break
                    progress[0] = self.num_timesteps / total
                    if self.updates % log_interval == 0:
                        self._log(losses, episodes, begun, at_start)
        callbacks.on_training_end()
        return self

    def _counted(self, steps: int, callbacks: Any, total: int) -> bool:
        for _ in range(steps // self.lanes):
            self.num_timesteps += self.lanes
            self._update_current_progress_remaining(self.num_timesteps, total)
            callbacks.update_locals(locals())
            if not callbacks.on_step():
                return False
        return True

    def _log(self, losses: deque[Any], episodes: deque[Any], begun: float, at_start: int) -> None:
        for name, value in zip(("policy_loss", "value_loss", "entropy"), np.mean(losses, 0), strict=True):
            self.logger.record(f"train/{name}", float(value))
        if episodes:
            rewards, lengths, ends = np.mean(episodes, 0)
            self.logger.record("rollout/ep_rew_mean", float(rewards))
            self.logger.record("rollout/ep_len_mean", float(lengths))
            self.logger.record("rollout/ep_arrived", float(ends))
        self.logger.record("time/fps", (self.num_timesteps - at_start) / (time.monotonic() - begun))
        self.logger.record("time/total_timesteps", self.num_timesteps)
        self.logger.dump(self.num_timesteps)

    def _config(self) -> WorkerConfig:
        return WorkerConfig(*made_with(self), self.n_steps, self.gamma, self.ent_coef, self.vf_coef, self.max_grad_norm,
                      self.lanes, self.episodes_per_pair, self.supervised, self.reward_scale,
                      self.lr_schedule(1.0), self.decay, self.value_first, self.curriculum, self.seed or 0)  # type: ignore[arg-type]

    def calibrate(self, pairs: int = 128, steps: int = 150, seed: int = 9_000_000) -> tuple[float, float]:
        """Set ``stop_values`` to those that end nearest to alignment on training pairs from new random starts.

        Args: steps: at most so many a registration; the best path takes 40 on average and 85 at most.
        """
        core = RegistrationCore(replace(self.task(), termination=Never()))
        state = core.reset([np.random.default_rng(seed + i) for i in range(pairs)])
        self.stop_values = tuple(best_threshold(self.policy, core, state, steps, lookahead)  # type: ignore[assignment]
                                 for lookahead in (None, Lookahead()))
        return self.stop_values

    def predict(self, observation: Any, state: tuple[np.ndarray, ...] | None = None,
                episode_start: np.ndarray | None = None, deterministic: bool = False) -> Any:
        return self.policy.predict(observation, state, episode_start, deterministic)

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "optimizer"]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        return ["policy", "optimizer"], []
