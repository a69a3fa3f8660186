"""Supervised learning from fresh random poses, without exploration or replay: what DSL and OneShot share."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import gymnasium as gym
import torch
from stable_baselines3.common.callbacks import BaseCallback
from torch import Tensor

from regagents.common.algorithm import Algorithm, check_counts
from regagents.common.curriculum import Curriculum
from regagents.common.distributed import average, rank, world

DECAY_EVERY, DECAY = 10_000, 0.7
WARM_UP = 200
SCHEDULES = ("cosine", "liao")


class FreshPoses(Algorithm):
    """Training on batches of fresh poses, drawn from a native vector environment of the algorithm's own id.

    A step of training is one sample: one pose seen once. A subclass calls :meth:`settings` before the ``__init__`` of
    its base and gives :meth:`loss`.

    Args of :meth:`settings`:
        schedule: "cosine" (AdamW, decays to zero at the end of ``learn``) or "liao" (RMSprop without momentum; the
            learning rate is multiplied by 0.7 every 10,000 updates).
        batch_size: samples an update.
        poses_per_image: updates on the same images, each with fresh poses, before new images are drawn.
        curriculum: see Curriculum; None trains at full difficulty from the start.
        amp: bfloat16 layers, where fast.
        sampler_kwargs: arguments of the training environment that differ from env's (``near=0.4``, ...).
    """

    unsaved: ClassVar[tuple[str, ...]] = ("_sampler", "optimizer")
    max_grad_norm: float = 10.0

    def settings(self, batch_size: int, schedule: str, poses_per_image: int, curriculum: Curriculum | None, amp: bool,
                 sampler_kwargs: dict[str, Any] | None) -> None:
        """Keep the arguments. Raises ValueError for those out of range."""
        name = type(self).__name__
        if schedule not in SCHEDULES:
            raise ValueError(f"{name}: schedule is {schedule!r}; it must be 'cosine' or 'liao'.")
        check_counts(name, poses_per_image=poses_per_image, batch_size=batch_size)
        self.batch_size, self.schedule, self.poses_per_image = batch_size, schedule, poses_per_image
        self.curriculum, self.amp, self.sampler_kwargs = curriculum, amp, sampler_kwargs or {}
        self._sampler: gym.vector.VectorEnv[Any, Any, Any] | None = None

    def loss(self, observations: Tensor, infos: dict[str, Tensor]) -> Tensor:
        """Mean loss of a batch: observations (B, ...), infos with the privileged keys."""
        raise NotImplementedError

    def make_optimizer(self) -> torch.optim.Optimizer:
        parameters, lr = self.network.parameters(), self.peak_lr
        if self.schedule == "liao":
            return torch.optim.RMSprop(parameters, lr)
        return torch.optim.AdamW(parameters, lr, weight_decay=1e-4)

    def train_until(self, total: int, callbacks: BaseCallback, log_interval: int) -> None:
        self.policy.set_training_mode(True)
        sampler, losses = self.sampler(), []
        while self.num_timesteps < total:
            progress = self.num_timesteps / total
            losses.append(self._fit(*self._draw(sampler, progress), self.lr(progress)))
            self.num_timesteps += self.batch_size * world()
            callbacks.update_locals(locals())
            if not callbacks.on_step():
                break
            if self.updates % log_interval == 0:
                self._log(losses, progress)
                losses.clear()
        self.policy.set_training_mode(False)

    def _log(self, losses: list[Tensor], progress: float) -> None:
        rises = {f"curriculum/{name}": value for name, value in self.reset_options(progress).items()}
        self.log_progress({"train/loss": torch.stack(losses).mean().item(),
                           "train/learning_rate": self.optimizer.param_groups[0]["lr"], **rises})

    @property
    def resumable(self) -> bool:
        """Whether training resumed from a checkpoint written now equals this run: the next update draws new images."""
        return self.updates % self.poses_per_image == 0

    def sampler(self) -> gym.vector.VectorEnv[Any, Any, Any]:
        """The native batch of the same id that training samples come from."""
        if self._sampler is None:
            self._sampler = self.batch(self.batch_size, privileged=True, **self.sampler_kwargs)
        return self._sampler

    def _draw(self, sampler: gym.vector.VectorEnv[Any, Any, Any],
              progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        """Fresh poses. Every batch has its own seed, so that a resumed run draws what the interrupted one would."""
        drawn = ((self.seed or 0) * 1_000_003 + self.updates) * world() + rank()
        seed = drawn * self.batch_size % (1 << 31)
        options: dict[str, Any] = dict(self.reset_options(progress))
        env: Any = sampler.unwrapped
        if self.updates % self.poses_per_image and env._state is not None:
            options["same_pairs"] = True
        return sampler.reset(seed=seed, options=options)

    @property
    def peak_lr(self) -> float:
        """The highest learning rate."""
        assert isinstance(self.learning_rate, (int, float))
        return self.learning_rate

    def lr(self, progress: float) -> float:
        """The learning rate at a share of training in [0, 1]."""
        if self.schedule == "liao":
            return self.peak_lr * DECAY ** (self.updates // DECAY_EVERY)
        return self.peak_lr * min(1.0, (self.updates + 1) / WARM_UP) * 0.5 * (1 + math.cos(math.pi * progress))

    def _fit(self, observations: Tensor, infos: dict[str, Tensor], lr: float) -> Tensor:
        """One update; its loss, detached."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        loss = self.loss(observations, infos)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        average(self.network.parameters())
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.max_grad_norm)
        self.optimizer.step()
        self.updates += 1
        return loss.detach()
