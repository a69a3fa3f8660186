"""Asynchronous advantage actor-critic (Mnih et al. 2016) as Sun et al. 2018 train it for registration."""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback

from regagents.a3c.lookahead import Lookahead, best_temperature, best_threshold
from regagents.a3c.policies import A3CPolicy
from regagents.a3c.value import ValueFit
from regagents.a3c.workers import POOLS, Episode, WorkerConfig, shared_adam
from regagents.common.algorithm import Algorithm, check_counts
from regagents.common.curriculum import Curriculum
from regenv.core import RegistrationCore
from regenv.parts.termination import Never
from regenv.state import EpisodeState

LANES = 32      # pairs played at once where the temperature is chosen
ATTEMPTS = 4    # of a registration that its values say has gone astray, the first included


class A3C(Algorithm):
    """Asynchronous advantage actor-critic on SB3's frame.

    Worker processes share the network and Adam's moments. Each plays its own pairs with a copy of the network, and
    after ``n_steps`` applies its gradient of eq. 1 and 2 to the shared network. The main process counts steps, logs
    and runs callbacks. Scripts need ``if __name__ == "__main__":``. ``learn`` counts environment steps of all workers
    together; it raises WorkerError when a worker dies, ends the others, and what callbacks have saved stays.

    Args:
        policy: "CnnLstmPolicy", "CnnPolicy" (a dense layer for the LSTM), or an A3CPolicy subclass.
        env: id or environment of regenv with discrete actions; its spec is what the workers build theirs from.
        learning_rate: of the shared Adam. decay: whether it falls linearly to zero over training.
        n_steps: steps between updates (the paper's bootstrapping length). gamma: discount.
        ent_coef: weight of the entropy (eq. 1's beta). vf_coef: of the squared value error, 1/2 in eq. 2.
        max_grad_norm: largest norm of a gradient.
        n_workers: how many. lanes: episodes that each of them plays side by side.
        engine: "processes" of this machine, which share memory, or "ray", actors of a cluster.
        episodes_per_pair: episodes on a pair before a new one is drawn.
        supervised: the paper's SL twin: workers take the optimal action (largest decrease of D), the policy learns it
            by cross entropy, the value still by its squared error.
        reward_scale: factor of the rewards in training.
        value_first: share of training in which only the value's last layer learns. The policy, which may come from
            another training, is frozen until the value is fitted to it.
        value_pairs: pairs on which the value head is fitted after training, see :class:`regagents.a3c.value.ValueFit`;
            0 keeps the value of eq. 2.
        stop_values: values at which a registration has arrived, without and with look-ahead; default the paper's 10
            and 9, which training replaces by :meth:`calibrate`.
        temperature: of the look-ahead's weights, see :class:`Lookahead`; training replaces it where it has fitted the
            value.
        curriculum: see Curriculum; None plays at full difficulty from the start.
        device: "cpu" only. sb3: SB3's other arguments, see Algorithm.
    """

    policy_aliases: ClassVar[dict[str, type]] = {"CnnLstmPolicy": A3CPolicy,  # type: ignore[assignment]
                                                 "CnnPolicy": A3CPolicy}
    amp_argument: ClassVar[bool] = False
    distributed: ClassVar[bool] = False
    action_spaces: ClassVar[tuple[type[gym.Space[Any]], ...]] = (gym.spaces.Discrete,)
    policy: A3CPolicy
    optimizer: torch.optim.Adam

    def __init__(self, policy: str | type[A3CPolicy] = "CnnLstmPolicy", env: Any = None, learning_rate: float = 1e-4,
                 decay: bool = True, n_steps: int = 30, gamma: float = 0.99, ent_coef: float = 0.1,
                 vf_coef: float = 0.5, max_grad_norm: float = 40.0, n_workers: int = 8, engine: str = "processes",
                 lanes: int = 1, episodes_per_pair: int = 2, supervised: bool = False, reward_scale: float = 1.0,
                 value_first: float = 0.0, value_pairs: int = 0, stop_values: tuple[float, float] = (10.0, 9.0),
                 temperature: float | None = None,
                 curriculum: Curriculum | None = None, policy_kwargs: dict[str, Any] | None = None,
                 device: str = "cpu", **sb3: Any) -> None:
        name = type(self).__name__
        check_counts(name, n_steps=n_steps, n_workers=n_workers, lanes=lanes, episodes_per_pair=episodes_per_pair)
        if engine not in POOLS:
            raise ValueError(f"{name}: engine is {engine!r}; it must be one of {', '.join(POOLS)}.")
        if device != "auto" and torch.device(device).type != "cpu":
            raise ValueError(f"{name}: device is {device!r}; its workers share memory on the CPU, use 'cpu'.")
        if policy == "CnnPolicy":
            policy_kwargs = {**(policy_kwargs or {}), "recurrent": False}
        self.decay, self.engine = decay, engine
        self.n_steps, self.gamma, self.ent_coef, self.vf_coef = n_steps, gamma, ent_coef, vf_coef
        self.max_grad_norm, self.n_workers, self.lanes = max_grad_norm, n_workers, lanes
        self.episodes_per_pair, self.supervised, self.reward_scale = episodes_per_pair, supervised, reward_scale
        self.value_first, self.value_pairs = value_first, value_pairs
        self.stop_values, self.temperature, self.curriculum = stop_values, temperature, curriculum
        super().__init__(policy, env, learning_rate, policy_kwargs=policy_kwargs, device="cpu", **sb3)

    def make_optimizer(self) -> torch.optim.Optimizer:
        return shared_adam(self.policy, self.lr_schedule(1.0))

    def train_until(self, total: int, callbacks: BaseCallback, log_interval: int) -> None:
        losses: deque[list[float]] = deque(maxlen=log_interval)
        episodes: deque[Episode] = deque(maxlen=self._stats_window_size)
        progress = torch.tensor([self.num_timesteps / total]).share_memory_()
        pool_class = POOLS[self.engine]
        with pool_class(self.policy, self.optimizer, self._config(), progress, self.updates, self.n_workers) as pool:
            while self.num_timesteps < total:
                for report in pool.reports():
                    self.updates += 1
                    losses.append(report["losses"])
                    episodes.extend(report["episodes"])
                    if not self._counted(report["steps"], callbacks, total):
                        return
                    progress[0] = self.num_timesteps / total
                    if self.updates % log_interval == 0:
                        self._log(losses, episodes)

    def _counted(self, steps: int, callbacks: BaseCallback, total: int) -> bool:
        """Count a worker's steps and call back after each of all its lanes; False where a callback ends training."""
        for _ in range(steps // self.lanes):
            self.num_timesteps += self.lanes
            self._update_current_progress_remaining(self.num_timesteps, total)
            callbacks.update_locals(locals())
            if not callbacks.on_step():
                return False
        return True

    def _log(self, losses: deque[list[float]], episodes: deque[Episode]) -> None:
        names = ("train/policy_loss", "train/value_loss", "train/entropy")
        numbers = dict(zip(names, np.mean(losses, 0).tolist(), strict=True))
        if episodes:
            names = ("rollout/ep_rew_mean", "rollout/ep_len_mean", "rollout/ep_arrived")
            numbers |= dict(zip(names, np.mean(episodes, 0).tolist(), strict=True))
        self.log_progress(numbers)

    def _config(self) -> WorkerConfig:
        return WorkerConfig(*self.env_spec(), self.n_steps, self.gamma, self.ent_coef, self.vf_coef,
                            self.max_grad_norm, self.lanes, self.episodes_per_pair, self.supervised,
                            self.reward_scale, self.lr_schedule(1.0), self.decay, self.value_first, self.curriculum,
                            self.seed or 0)

    def after_training(self) -> dict[str, Any]:
        """The stop values and the temperature, calibrated, after the value head is fitted."""
        if self.value_pairs:
            ValueFit(self.value_pairs)(self.policy, self.task())
        return {"stop_values": list(self.calibrate()), "temperature": self.temperature}

    def calibrate(self, pairs: int = 128, steps: int = 150, seed: int = 9_000_000) -> tuple[float, float]:
        """Set ``stop_values`` and, where the value is fitted, ``temperature`` to those that end nearest to alignment on
        training pairs from new random starts.

        Args: pairs: for the stop values, and four times as many for the temperature, whose choices differ less; steps:
        at most so many a registration; the best path takes 40 on average and 85 at most; seed: of the first pair.
        """
        core = RegistrationCore(replace(self.task(), termination=Never()))

        def drawn(first: int, count: int) -> EpisodeState:
            return core.reset([np.random.default_rng(seed + first + lane) for lane in range(count)])

        state = drawn(0, pairs)
        plain, ahead = (best_threshold(self.policy, core, state, steps, lookahead) for lookahead in (None, Lookahead()))
        self.stop_values = (plain, ahead)
        if self.value_pairs:
            fresh = (drawn(first, LANES) for first in range(pairs, 5 * pairs, LANES))
            self.temperature = best_temperature(self.policy, core, fresh, ahead, steps)
        return self.stop_values

    def lookahead(self) -> Lookahead:
        """As this agent takes it: with more than one attempt where the value is fitted."""
        return Lookahead(temperature=self.temperature, attempts=ATTEMPTS if self.value_pairs else 1)
