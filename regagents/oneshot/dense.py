"""Dense registration by one network, without reinforcement learning: by similarity, and by labels if there are any."""

from __future__ import annotations

import math
from collections import deque
from typing import Any, ClassVar

import torch
from stable_baselines3.common.callbacks import BaseCallback
from torch import Tensor

from regagents.common.algorithm import Algorithm, check_counts
from regagents.common.curriculum import Curriculum
from regagents.common.distributed import average, rank, world
from regagents.common.precision import mixed
from regagents.oneshot.dense_policies import DensePolicy
from regenv.data.pairs import PairBatch
from regenv.ops.features import pooled
from regenv.ops.overlap import classes
from regenv.ops.regularity import diffusion
from regenv.ops.similarity import lncc
from regenv.ops.warp import compose, warp_dense

LABEL_STRIDE = 2        # voxels: labels are compared on averages over blocks, as shares of each class
MAX_GRAD_NORM = 1.0
EMPTY = 1e-3


class DenseOneShot(Algorithm):
    """The one-shot twin of SPAC (Luo et al. 2022, "without RL"), with the supervision by labels of VoxelMorph
    (Balakrishnan et al. 2019).

    The network is called once for each step of the environment, on what the steps before have left; every step's loss
    is that of the field accumulated so far, and its gradient ends at that step. A pair counts as many environment steps
    as an episode has.

    Args:
        policy: "CnnPolicy", or a DensePolicy subclass.
        env: id or environment of dense registration (RegDense...).
        learning_rate: at first; it falls to zero as a half cosine. lanes: pairs of an update.
        smooth: weight of the mean squared gradient of the accumulated field, voxels.
        labels: weight of 1 minus the mean Dice of the labels' classes, where pairs have labels.
        window: of the local correlation.
        curriculum: see Curriculum. amp: bfloat16 networks, where fast.
        sb3: SB3's arguments, see Algorithm.
    """

    policy_aliases: ClassVar[dict[str, type]] = {"CnnPolicy": DensePolicy}  # type: ignore[assignment]
    log_every: ClassVar[int] = 60
    policy: DensePolicy

    def __init__(self, policy: str | type[DensePolicy] = "CnnPolicy", env: Any = None, learning_rate: float = 1e-3,
                 lanes: int = 1, smooth: float = 0.3, labels: float = 0.5, window: int = 7,
                 curriculum: Curriculum | None = None, amp: bool = False, **sb3: Any) -> None:
        name = type(self).__name__
        check_counts(name, lanes=lanes)
        for argument, weight in (("smooth", smooth), ("labels", labels)):
            if not weight >= 0:
                raise ValueError(f"{name}: {argument} is {weight}; it must not be negative.")
        self.lanes, self.smooth, self.labels, self.window = lanes, smooth, labels, window
        self.curriculum, self.amp = curriculum, amp
        super().__init__(policy, env, learning_rate, **sb3)

    def make_optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.policy.parameters(), lr=self.lr_schedule(1.0))

    def train_until(self, total: int, callbacks: BaseCallback, log_interval: int) -> None:
        env, steps = self.batch(self.lanes), self.task().max_episode_steps
        played: Any = env.unwrapped
        losses: deque[dict[str, Tensor]] = deque(maxlen=log_interval)
        going = True
        while going and self.num_timesteps < total:
            progress = self.num_timesteps / total
            for group in self.optimizer.param_groups:
                group["lr"] = self.lr_schedule(1 - progress) * 0.5 * (1 + math.cos(math.pi * progress))
            seed = ((self.seed or 0) * 1_000_003 + self.num_timesteps + rank() * self.lanes) % (1 << 31)
            env.reset(seed=seed, options=self.reset_options(progress))
            before = self.updates
            losses.append(self._update(played.state.pair, steps))
            self.num_timesteps += self.lanes * steps * world()
            self._update_current_progress_remaining(self.num_timesteps, total)
            if self.updates // log_interval > before // log_interval:
                self.log_progress({f"train/{name}": torch.stack([each[name] for each in losses]).mean().item()
                                   for name in losses[-1]})
            callbacks.update_locals(locals())
            going = callbacks.on_step()

    def _update(self, pair: PairBatch, steps: int) -> dict[str, Tensor]:
        """A step of the optimizer for each step of the episodes; what to log of the last, and the first correlation."""
        shares = None if pair.fixed_labels is None or not self.labels else _shares(pair)
        total = pair.fixed.new_zeros(len(pair.fixed), self.policy.ndim, *pair.fixed.shape[2:])
        logged: list[dict[str, Tensor]] = []
        for _ in range(steps):
            with mixed(self.device, self.amp):
                field = self.policy.act(torch.cat([pair.fixed, warp_dense(pair.moving, total)], 1))
            total = compose(total, field)
            loss, parts = self._loss(pair, shares, total)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            average(self.policy.parameters())
            torch.nn.utils.clip_grad_norm_(self.policy.parameters(), MAX_GRAD_NORM)
            self.optimizer.step()
            self.updates += 1
            total = total.detach()
            logged.append(parts)
        return {"first_lncc": logged[0]["lncc"], **logged[-1]}

    def _loss(self, pair: PairBatch, shares: tuple[Tensor, Tensor] | None,
              total: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of an accumulated field (B, D, *shape), and its parts."""
        alike = lncc(pair.fixed, warp_dense(pair.moving, total), window=self.window).mean()
        coarse = pooled(total, LABEL_STRIDE) / LABEL_STRIDE
        rough = diffusion(coarse).mean()
        loss, parts = self.smooth * rough - alike, {"lncc": alike.detach(), "roughness": rough.detach()}
        if shares is not None:
            overlap = soft_dice(shares[0], warp_dense(shares[1], coarse))
            loss, parts = loss + self.labels * (1 - overlap), parts | {"dice": overlap.detach()}
        return loss, parts


def _shares(pair: PairBatch) -> tuple[Tensor, Tensor]:
    """Of both images, the share of each class of labels in blocks of voxels, (B, classes, *coarse)."""
    both = pair.fixed_labels, pair.moving_labels
    found = sorted({c for each in both for c in classes(each)})
    fixed, moving = (pooled(torch.cat([(each == c).to(torch.float32) for c in found], 1), LABEL_STRIDE)
                     for each in both if each is not None)
    return fixed, moving


def soft_dice(a: Tensor, b: Tensor) -> Tensor:
    """Mean Dice of shares (B, classes, *shape) in [0, 1], over lanes and classes (Milletari et al. 2016)."""
    both, either = (2 * a * b).flatten(2).sum(2), (a.square() + b.square()).flatten(2).sum(2)
    return ((both + EMPTY) / (either + EMPTY)).mean()
