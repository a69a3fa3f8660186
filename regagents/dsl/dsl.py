"""Deep supervised learning: regress the Q of the greedy path from fresh random poses (Liao et al. 2017)."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import gymnasium as gym
import torch
import torch.nn.functional as F
from stable_baselines3 import DQN
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.type_aliases import MaybeCallback
from torch import Tensor

from regagents.common import checkpoints
from regagents.common.curriculum import Curriculum
from regagents.dsl.policies import DSLPolicy, PaperPolicy
from regenv.core import Task
from regenv.registry import build

DECAY_EVERY, DECAY = 10_000, 0.7


class DSL(DQN):
    """Deep supervised learning on SB3's DQN frame.

    ``learn`` draws batches of fresh poses from a native vector environment of the same id and regresses
    ``info["q_star"]`` for all actions (eq. 5): no exploration, no replay. ``finetune`` is DQN on the learned Q, the
    paper's outlook. ``predict``, ``save``, ``load``, callbacks and logging are SB3's.

    Args:
        policy: "CompactPolicy" (default network), "PaperPolicy", or a DSLPolicy subclass.
        env: id or environment; its spec is what the training batches are drawn from.
        learning_rate: peak rate.
        batch_size: samples a step.
        schedule: "cosine" (AdamW, decays to zero at the end of ``learn``) or "paper" (RMSprop without momentum, rate
            times 0.7 every 10,000 steps; use learning_rate=6e-5).
        repose: steps on the same images, each from fresh poses, before new images are drawn.
        curriculum: see Curriculum; None trains at full difficulty from the start.
        amp: bfloat16 layers.
        sampler_kwargs: arguments of the training environment that differ from env's (``near=0.4``, ...).
        buffer_size, ...: SB3's DQN arguments, used by ``finetune`` only; the buffer is allocated there.
    """

    policy_aliases: ClassVar[dict[str, type]] = {"CompactPolicy": DSLPolicy, "CnnPolicy": DSLPolicy,
                                                 "PaperPolicy": PaperPolicy}  # type: ignore[assignment]

    def __init__(self, policy: str | type[DSLPolicy] = "CompactPolicy", env: Any = None, learning_rate: float = 1e-3,
                 batch_size: int = 48, schedule: str = "cosine", repose: int = 4, curriculum: Curriculum | None = None,
                 amp: bool = False, sampler_kwargs: dict[str, Any] | None = None, gamma: float = 0.9,
                 buffer_size: int = 2_000, exploration_initial_eps: float = 0.2, **kwargs: Any) -> None:
        if schedule not in ("cosine", "paper"):
            raise ValueError(f"DSL: schedule is {schedule!r}; it must be 'cosine' or 'paper'.")
        if repose < 1:
            raise ValueError(f"DSL: repose is {repose}; it must be at least 1.")
        self.schedule = schedule
        self.repose = repose
        self.curriculum = curriculum
        self.amp = amp
        self.sampler_kwargs = sampler_kwargs or {}
        self._sampler: gym.vector.VectorEnv | None = None
        super().__init__(policy, env, learning_rate=learning_rate, batch_size=batch_size, gamma=gamma,
                         buffer_size=buffer_size, exploration_initial_eps=exploration_initial_eps, **kwargs)

    def _setup_model(self) -> None:
        wanted, self.buffer_size = self.buffer_size, 1
        super()._setup_model()
        self.buffer_size, self.replay_buffer = wanted, None
        self.updates = getattr(self, "updates", 0)
        if self.env is not None:
            task = self.task()
            self.action_weights = task.expert.weights(task.actions.deltas)
        self.policy.action_weights.copy_(  # type: ignore[operator]
            torch.as_tensor(self.action_weights))
        parameters = self.q_net.parameters()
        self.optimizer: torch.optim.Optimizer = (
            torch.optim.RMSprop(parameters, self.learning_rate) if self.schedule == "paper"  # type: ignore[arg-type]
            else torch.optim.AdamW(parameters, self.learning_rate, weight_decay=1e-4))  # type: ignore[arg-type]

    def learn(self, total_timesteps: int, callback: MaybeCallback = None, log_interval: int = 100,
              tb_log_name: str = "DSL", reset_num_timesteps: bool = True, progress_bar: bool = False) -> DSL:
        """Supervised training on ``total_timesteps`` samples (one sample = one pose seen once)."""
        total, callbacks = self._setup_learn(total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar)
        callbacks.on_training_start(locals(), globals())
        self.policy.set_training_mode(True)
        sampler, losses, started, at_start = self.sampler(), [], time.monotonic(), self.num_timesteps
        while self.num_timesteps < total:
            progress = self.num_timesteps / total
            observations, targets = self._draw(sampler, progress)
            losses.append(self._fit(observations, targets, self._rate(progress)))
            self.num_timesteps += self.batch_size
            callbacks.update_locals(locals())
            if not callbacks.on_step():
                break
            if self.updates % log_interval == 0:
                self.logger.record("train/loss", torch.stack(losses).mean().item())
                self.logger.record("train/learning_rate", self.optimizer.param_groups[0]["lr"])
                self.logger.record("time/fps", (self.num_timesteps - at_start) / (time.monotonic() - started))
                self.logger.record("time/total_timesteps", self.num_timesteps)
                for name, value in self._options(progress).items():
                    self.logger.record(f"curriculum/{name}", value)
                self.logger.dump(self.num_timesteps)
                losses.clear()
        self.q_net_target.load_state_dict(self.q_net.state_dict())
        self.policy.set_training_mode(False)
        callbacks.on_training_end()
        return self

    def finetune(self, total_timesteps: int, **kwargs: Any) -> DSL:
        """DQN on the learned Q, with exploration and replay (the paper's outlook). Takes SB3's ``learn`` arguments."""
        self.replay_buffer = ReplayBuffer(self.buffer_size, self.observation_space, self.action_space, self.device,
                                          n_envs=self.n_envs, **self.replay_buffer_kwargs)
        DQN.learn(self, total_timesteps, **kwargs)
        return self

    @property
    def network(self) -> torch.nn.Module:
        """What training changes and a checkpoint holds."""
        return self.q_net

    @property
    def resumable(self) -> bool:
        """Whether a checkpoint written now goes on exactly as this run would: images are drawn anew next."""
        return self.updates % self.repose == 0

    def adopt(self, tensors: Mapping[str, Tensor], path: str | Path) -> None:
        """Take over a checkpoint's weights. Raises CheckpointError where they do not fit."""
        checkpoints.fit(self.q_net, tensors, path)
        self.q_net_target.load_state_dict(self.q_net.state_dict())

    def task(self) -> Task:
        """The task of the environment's id and arguments."""
        spec = self.get_env().get_attr("spec")[0]  # type: ignore[union-attr]
        arguments = {k: v for k, v in spec.kwargs.items() if k not in ("task", "render_mode", "privileged")}
        return build(spec.kwargs["task"], **arguments)

    def sampler(self) -> gym.vector.VectorEnv:
        """The native batch of the same id that training samples come from."""
        if self._sampler is None:
            spec = self.get_env().get_attr("spec")[0]  # type: ignore[union-attr]
            arguments = {**spec.kwargs, **self.sampler_kwargs}
            for name in ("render_mode", "max_episode_steps"):
                arguments.pop(name, None)
            self._sampler = gym.make_vec(spec.id, num_envs=self.batch_size, privileged=True, output="torch",
                                         device=str(self.device), **arguments)
        return self._sampler

    def _draw(self, sampler: gym.vector.VectorEnv, progress: float) -> tuple[Tensor, Tensor]:
        """Observations (B, ...) and targets (B, A) of fresh poses; every batch has its seed, so a resumed run goes on
        as the first would have."""
        seed = ((self.seed or 0) * 1_000_003 + self.updates) * self.batch_size % (1 << 31)
        options: dict[str, Any] = self._options(progress)
        if self.updates % self.repose and sampler.unwrapped._state is not None:  # type: ignore[attr-defined]
            options["same_pairs"] = True
        observations, infos = sampler.reset(seed=seed, options=options)
        return observations, infos["q_star"].to(torch.float32)

    def _options(self, progress: float) -> dict[str, float]:
        return {} if self.curriculum is None else self.curriculum.at(progress)

    def _rate(self, progress: float) -> float:
        peak = float(self.learning_rate)  # type: ignore[arg-type]
        if self.schedule == "paper":
            return peak * DECAY ** (self.updates // DECAY_EVERY)
        return peak * min(1.0, (self.updates + 1) / 200) * 0.5 * (1 + math.cos(math.pi * progress))

    def _fit(self, observations: Tensor, targets: Tensor, rate: float) -> Tensor:
        """One step on eq. 5; the loss, detached."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.amp):
            values = self.q_net(observations)
        loss = F.mse_loss(values.float(), targets)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.q_net.parameters(), self.max_grad_norm)
        self.optimizer.step()
        self.updates += 1
        return loss.detach()

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_sampler", "optimizer"]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        return ["policy", "policy.optimizer", "optimizer"], []
