"""Supervised learning from fresh random poses: no exploration, no replay. What DSL and OneShot share."""

from __future__ import annotations

import math
import time
from typing import Any

import gymnasium as gym
import torch
from stable_baselines3.common.type_aliases import MaybeCallback
from torch import Tensor

from regagents.common.algorithm import task_of
from regagents.common.curriculum import Curriculum
from regagents.common.distributed import average, rank, world
from regenv.task import Task

DECAY_EVERY, DECAY = 10_000, 0.7
WARM_UP = 200
SCHEDULES = ("cosine", "liao")


class FreshPoses:
    """Training of an SB3 algorithm on batches of fresh poses, drawn from a native vector environment of its own id.

    An algorithm names this class before its SB3 base, sets :meth:`settings` before the base's ``__init__``, calls
    :meth:`make_optimizer` once the network is there, and gives ``network`` and :meth:`loss`.

    Args of :meth:`settings`:
        schedule: "cosine" (AdamW, decays to zero at the end of ``learn``) or "liao" (RMSprop without momentum, rate
            times 0.7 every 10,000 steps).
        batch_size: samples a step.
        poses_per_image: steps on the same images, each from fresh poses, before new images are drawn.
        curriculum: see Curriculum; None trains at full difficulty from the start.
        amp: bfloat16 layers, where fast.
        sampler_kwargs: arguments of the training environment that differ from env's (``near=0.4``, ...).
    """

    max_grad_norm: float = 10.0

    def settings(self, batch_size: int, schedule: str, poses_per_image: int, curriculum: Curriculum | None, amp: bool,
                 sampler_kwargs: dict[str, Any] | None) -> None:
        """Keep the arguments. Raises ValueError for those out of range."""
        name = type(self).__name__
        if schedule not in SCHEDULES:
            raise ValueError(f"{name}: schedule is {schedule!r}; it must be 'cosine' or 'liao'.")
        for argument, value in (("poses_per_image", poses_per_image), ("batch_size", batch_size)):
            if value < 1:
                raise ValueError(f"{name}: {argument} is {value}; it must be at least 1.")
        self.batch_size, self.schedule, self.poses_per_image = batch_size, schedule, poses_per_image
        self.curriculum, self.amp, self.sampler_kwargs = curriculum, amp, sampler_kwargs or {}
        self._sampler: gym.vector.VectorEnv | None = None

    @property
    def network(self) -> torch.nn.Module:
        """What training changes and a checkpoint holds."""
        raise NotImplementedError

    def loss(self, observations: Tensor, infos: dict[str, Tensor]) -> Tensor:
        """Mean loss of a batch: observations (B, ...), infos with the privileged keys."""
        raise NotImplementedError

    def make_optimizer(self) -> None:
        parameters = self.network.parameters()
        rate: float = self.learning_rate  # type: ignore[attr-defined]
        self.updates = getattr(self, "updates", 0)
        self.optimizer: torch.optim.Optimizer = (
            torch.optim.RMSprop(parameters, rate) if self.schedule == "liao"
            else torch.optim.AdamW(parameters, rate, weight_decay=1e-4))

    def learn(self: Any, total_timesteps: int, callback: MaybeCallback = None, log_interval: int = 100,
              tb_log_name: str = "run", reset_num_timesteps: bool = True, progress_bar: bool = False) -> Any:
        """Supervised training on ``total_timesteps`` samples (one sample = one pose seen once)."""
        total, callbacks = self._setup_learn(total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar)
        callbacks.on_training_start(locals(), globals())
        self.policy.set_training_mode(True)
        sampler, losses, started, at_start = self.sampler(), [], time.monotonic(), self.num_timesteps
        while self.num_timesteps < total:
            progress = self.num_timesteps / total
            losses.append(self._fit(*self._draw(sampler, progress), self._rate(progress)))
            self.num_timesteps += self.batch_size * world()
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
        self.policy.set_training_mode(False)
        callbacks.on_training_end()
        return self

    @property
    def resumable(self) -> bool:
        """Whether a checkpoint written now goes on exactly as this run would: images are drawn anew next."""
        return self.updates % self.poses_per_image == 0

    def task(self) -> Task:
        """The task of the environment's id and arguments."""
        return task_of(self)

    def sampler(self: Any) -> gym.vector.VectorEnv:
        """The native batch of the same id that training samples come from."""
        if self._sampler is None:
            spec = self.get_env().get_attr("spec")[0]
            arguments = {**spec.kwargs, **self.sampler_kwargs}
            for name in ("render_mode", "max_episode_steps"):
                arguments.pop(name, None)
            self._sampler = gym.make_vec(spec.id, num_envs=self.batch_size, privileged=True, output="torch",
                                         device=str(self.device), **arguments)
        return self._sampler

    def _draw(self: Any, sampler: gym.vector.VectorEnv, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        """Fresh poses; every batch has its seed, so a resumed run goes on as the first would have."""
        drawn = ((self.seed or 0) * 1_000_003 + self.updates) * world() + rank()
        seed = drawn * self.batch_size % (1 << 31)
        options: dict[str, Any] = self._options(progress)
        if self.updates % self.poses_per_image and sampler.unwrapped._state is not None:  # type: ignore[attr-defined]
            options["same_pairs"] = True
        return sampler.reset(seed=seed, options=options)

    def _options(self, progress: float) -> dict[str, float]:
        return {} if self.curriculum is None else self.curriculum.at(progress)

    def _rate(self, progress: float) -> float:
        peak: float = self.learning_rate  # type: ignore[attr-defined]
        if self.schedule == "liao":
            return peak * DECAY ** (self.updates // DECAY_EVERY)
        return peak * min(1.0, (self.updates + 1) / WARM_UP) * 0.5 * (1 + math.cos(math.pi * progress))

    def _fit(self, observations: Tensor, infos: dict[str, Tensor], rate: float) -> Tensor:
        """One step; the loss, detached."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss = self.loss(observations, infos)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        average(self.network.parameters())
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.max_grad_norm)
        self.optimizer.step()
        self.updates += 1
        return loss.detach()

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_sampler", "optimizer"]  # type: ignore[misc]
