"""Stochastic planner-actor-critic (Luo et al. 2022): soft actor-critic on a plan, registration loss on the field."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import gymnasium as gym
import torch
import torch.nn.functional as F
from stable_baselines3.common.callbacks import BaseCallback
from torch import Tensor

from regagents.common.algorithm import Algorithm, check_counts
from regagents.common.curriculum import Curriculum
from regagents.common.distributed import average, rank, world
from regagents.common.precision import mixed
from regagents.spac.policies import SPACPolicy, divergence
from regagents.spac.replay import Batch, FieldReplay
from regenv.ops import regularity
from regenv.ops.similarity import lncc
from regenv.ops.warp import compose, warp_dense
from regenv.task import Task

Losses = dict[str, Tensor]
"""What is logged of an update, by name."""
MAX_GRAD_NORM = 10.0


class SPAC(Algorithm):
    """Planner, actor and critics trained together, on SB3's frame.

    The planner draws a plan of few numbers, the actor turns it into a displacement of every voxel, the critics judge
    the plan as in soft actor-critic (eq. 6 and 7), and planner and actor also follow the gradient of an unsupervised
    registration loss through the accumulated field (eq. 8). Episodes come from a native batch of the environment; a
    step of training is a step of one lane.

    Args:
        policy: "CnnPolicy", or a SPACPolicy subclass.
        env: id or environment of dense registration (RegDense...).
        learning_rate: of planner and actor; critic_lr: of the critics and the temperature.
        batch_size: transitions of an update. lanes: episodes played side by side. updates: per step of all lanes.
        buffer_size: transitions kept. learning_starts: transitions before the first update.
        gamma, tau: discount, and rate at which the target critics follow.
        rl: False trains by the registration loss alone (the paper's "without RL").
        reg_coef: weight of the registration loss; 0 is the paper's "without registration loss".
        smooth: lambda of eq. 4, on the mean squared gradient of the accumulated field, voxels.
        smooth_step: the same on the step's own field, as in the released code. Without it the actor, which does not see
            the accumulated field, never comes to rest, and the roughness that a step cannot take back adds up.
        kl_coef: of the plan's divergence from a standard normal, mean over its numbers (the released 3D code: 0.01).
        window: of the local correlation.
        noise: whether plans are drawn; False takes their means, as a one-shot network does.
        curriculum: see Curriculum. decay: whether the learning rates fall linearly to zero. amp: bfloat16 networks,
            where fast.
        sb3: SB3's arguments, see Algorithm.
    """

    policy_aliases: ClassVar[dict[str, type]] = {"CnnPolicy": SPACPolicy}  # type: ignore[assignment]
    unsaved: ClassVar[tuple[str, ...]] = ("optimizer", "_replay")
    draws: ClassVar[bool] = True
    """Whether updates learn from drawn plans, or from their means."""
    policy: SPACPolicy

    def __init__(self, policy: str | type[SPACPolicy] = "CnnPolicy", env: Any = None, learning_rate: float = 1e-3,
                 critic_lr: float = 3e-4, batch_size: int = 32, lanes: int = 16, updates: int = 1,
                 buffer_size: int = 8_000, learning_starts: int = 640, gamma: float = 0.99, tau: float = 0.005,
                 rl: bool = True, reg_coef: float = 1.0, smooth: float = 0.03, smooth_step: float = 0.5,
                 kl_coef: float = 0.0, window: int = 9, noise: bool = True,
                 curriculum: Curriculum | None = None, decay: bool = True, amp: bool = False, **sb3: Any) -> None:
        name = type(self).__name__
        check_counts(name, batch_size=batch_size, lanes=lanes, updates=updates, buffer_size=buffer_size)
        for argument, weight in (("reg_coef", reg_coef), ("smooth", smooth), ("smooth_step", smooth_step),
                                 ("kl_coef", kl_coef)):
            if not weight >= 0:
                raise ValueError(f"{name}: {argument} is {weight}; it must not be negative.")
        if not rl and reg_coef == 0:
            raise ValueError(f"{name}: rl is False and reg_coef is 0; nothing would be learnt.")
        self.critic_lr, self.batch_size, self.lanes, self.per_step = critic_lr, batch_size, lanes, updates
        self.buffer_size, self.learning_starts, self.gamma, self.tau = buffer_size, learning_starts, gamma, tau
        self.rl, self.reg_coef, self.window, self.noise = rl, reg_coef, window, noise
        self.smooth, self.smooth_step, self.kl_coef = smooth, smooth_step, kl_coef
        self.curriculum, self.decay, self.amp = curriculum, decay, amp
        super().__init__(policy, env, learning_rate, **sb3)

    def _setup_model(self) -> None:
        super()._setup_model()
        self.target_entropy = -float(self.policy.plan_size)
        self._replay: FieldReplay | None = None

    def make_optimizer(self) -> torch.optim.Optimizer:
        movers = [*self.policy.planner.parameters(), *self.policy.actor.parameters()]
        groups: list[dict[str, Any]] = [{"params": movers, "lr": self.learning_rate},
                                        {"params": list(self.policy.critics.parameters()), "lr": self.critic_lr},
                                        {"params": [self.policy.log_alpha], "lr": self.critic_lr}]
        return torch.optim.Adam(groups)

    # ------------------------------------------------------------------------------------------------------- episodes

    def train_until(self, total: int, callbacks: BaseCallback, log_interval: int) -> None:
        task, env = self.task(), self.batch(self.lanes)
        if world() > 1:
            torch.manual_seed((self.seed or 0) * world() + rank())  # each process draws its own noise and transitions
        losses: deque[Losses] = deque(maxlen=log_interval)
        returns: deque[Tensor] = deque(maxlen=self._stats_window_size)
        going = True
        while going and self.num_timesteps < total:
            progress = self.num_timesteps / total
            self._set_lr(progress)
            earned = torch.zeros((), device=self.device)
            for seen, first, last in self._steps(env, task, progress):
                earned = earned + seen.reward.mean()
                self.num_timesteps += self.lanes * world()
                self._update_current_progress_remaining(self.num_timesteps, total)
                for update in self._learn_from(seen, first, last):
                    losses.append(update)
                    if self.updates % log_interval == 0:
                        self._log(losses, returns)
                callbacks.update_locals(locals())
                going = callbacks.on_step()
                if not going:
                    break
            returns.append(earned)

    def _steps(self, env: gym.vector.VectorEnv[Any, Any, Any], task: Task,
               progress: float) -> Iterator[tuple[Batch, bool, bool]]:
        """Play an episode in every lane: the transitions of each step, and whether it is the first and the last."""
        observation, _ = env.reset(seed=self._episode_seed(), options=self.reset_options(progress))
        played: Any = env.unwrapped
        fixed, moving = played.state.pair.fixed, played.state.warped
        for step in range(task.max_episode_steps):
            with torch.no_grad(), self._mixed():
                plan, _, field = self.policy.act(self.policy.scaled(observation), self.noise)
            before = played.state.displacement
            observation, reward, terminated, _, _ = env.step(field.float())
            last = step == task.max_episode_steps - 1 or (not task.endless and bool(terminated.any()))
            yield Batch(fixed, moving, before, played.state.displacement, plan.float(), reward.float(),
                        terminated.float()), step == 0, last
            if last:
                return

    def _episode_seed(self) -> int:
        """Every batch of episodes has its own, so that a resumed run draws other pairs than the first did."""
        return ((self.seed or 0) * 1_000_003 + self.num_timesteps + rank() * self.lanes) % (1 << 31)

    def _learn_from(self, seen: Batch, first: bool, last: bool) -> Iterator[Losses]:
        """Updates after a step of all lanes: the losses of each. Args: first, last: whether it is the episodes' first
        or last step."""
        if self._replay is None:
            episodes = 2 * self.lanes + self.buffer_size // self.task().max_episode_steps
            self._replay = FieldReplay(self.buffer_size, episodes, self.device)
        if first:
            self._places = self._replay.begin(seen.fixed, seen.moving)
        self._replay.add(self._places, seen.before, seen.after, seen.plan, seen.reward, seen.ended)
        if self._replay.size >= self.learning_starts:
            for _ in range(self.per_step):
                yield self._update(self._replay.sample(self.batch_size))

    def _set_lr(self, progress: float) -> None:
        left = max(0.0, 1 - progress) if self.decay else 1.0
        assert isinstance(self.learning_rate, (int, float))
        for group, lr in zip(self.optimizer.param_groups, (self.learning_rate, self.critic_lr, self.critic_lr),
                             strict=True):
            group["lr"] = lr * left

    def _log(self, losses: deque[Losses], returns: Iterable[Tensor]) -> None:
        numbers = {f"train/{name}": torch.stack([each[name] for each in losses]).mean().item() for name in losses[-1]}
        earned = tuple(returns)
        if earned:
            numbers["rollout/ep_rew_mean"] = torch.stack(earned).mean().item()
        self.log_progress(numbers)

    # --------------------------------------------------------------------------------------------------------- updates

    def _update(self, batch: Batch) -> Losses:
        """One step of the optimizer, of all networks; its losses."""
        state = torch.cat([batch.fixed, warp_dense(batch.moving, batch.before)], 1)
        losses: Losses = {}
        loss = torch.zeros((), device=self.device)
        with self._mixed():
            plan, log_prob, field = self.policy.act(state, self.noise and self.draws)
        if self.rl:
            loss, losses = self._rl_loss(batch, state, plan, log_prob, field)
        if self.reg_coef:
            registration, parts = self._registration_loss(batch, field)
            loss, losses = loss + self.reg_coef * registration, losses | parts
        if self.kl_coef:
            kl = divergence(plan, log_prob).mean() / self.policy.plan_size
            loss, losses = loss + self.kl_coef * kl, losses | {"kl": kl}
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        average(p for group in self.optimizer.param_groups for p in group["params"])
        for group in self.optimizer.param_groups:
            torch.nn.utils.clip_grad_norm_(group["params"], MAX_GRAD_NORM)
        self.optimizer.step()
        with torch.no_grad():
            for learned, target in self.policy.followed():
                target.lerp_(learned, self.tau)
        self.updates += 1
        return {name: value.detach() for name, value in losses.items()}

    def _registration_loss(self, batch: Batch, field: Tensor) -> tuple[Tensor, Losses]:
        """Eq. 8, of the field that has accumulated after a step's ``field``, and what to log of it."""
        total = compose(batch.before, field.float())
        alike = lncc(batch.fixed, warp_dense(batch.moving, total), window=self.window).mean()
        rough, rough_step = regularity.diffusion(total).mean(), regularity.diffusion(field.float()).mean()
        return self.smooth * rough + self.smooth_step * rough_step - alike, {"lncc": alike, "roughness": rough}

    def _rl_loss(self, batch: Batch, state: Tensor, plan: Tensor, log_prob: Tensor,
                 field: Tensor) -> tuple[Tensor, Losses]:
        """Loss of critics, planner and temperature, and what to log of it: soft actor-critic on the plan."""
        policy, alpha = self.policy, self.policy.log_alpha.exp().detach()
        judged = self._judged_of_stored(batch.plan, state)
        with torch.no_grad(), self._mixed():
            after = torch.cat([batch.fixed, warp_dense(batch.moving, batch.after)], 1)
            next_plan, next_log_prob, features = policy.drawn(after, noise=True)
            next_judged = self._judged(next_plan, lambda: policy.actor(next_plan, after, features))
            next_value = torch.stack([critic(after, next_judged) for critic in policy.targets])
            target = batch.reward + self.gamma * (1 - batch.ended) * (next_value.amin(0) - alpha * next_log_prob)
        critic_loss = self._critic_loss(state, judged, target)                                    # eq. 6
        planner_loss = (alpha * log_prob - self._lowest_value(state, plan, field)).mean()         # eq. 7
        temperature_loss = -(policy.log_alpha * (log_prob.detach() + self.target_entropy)).mean()
        return critic_loss + planner_loss + temperature_loss, {
            "critic_loss": critic_loss, "planner_loss": planner_loss, "alpha": alpha}

    def _critic_loss(self, state: Tensor, judged: Tensor, target: Tensor) -> Tensor:
        with self._mixed():
            values = [critic(state, judged) for critic in self.policy.critics]
        return torch.stack([F.mse_loss(value.float(), target.float()) for value in values]).mean()

    def _lowest_value(self, state: Tensor, plan: Tensor, field: Tensor) -> Tensor:
        """The lower of both critics' values (B,); the critics get no gradient from it."""
        self.policy.critics.requires_grad_(False)
        with self._mixed():
            judged = self._judged(plan, lambda: field)
            value = torch.stack([critic(state, judged) for critic in self.policy.critics]).amin(0)
        self.policy.critics.requires_grad_(True)
        return value

    def _judged_of_stored(self, plan: Tensor, state: Tensor) -> Tensor:
        """What the critics judge of stored plans."""
        with torch.no_grad(), self._mixed():
            return self._judged(plan, lambda: self.policy.actor(plan, state, self.policy.planner(state)[2]))

    def _judged(self, plan: Tensor, field: Callable[[], Tensor]) -> Tensor:
        """What the critics judge: the plan, or the field that the actor makes of it."""
        return plan if self.policy.critic_on == "plan" else field()

    def _mixed(self) -> torch.autocast:
        return mixed(self.device, self.amp)

    def adopt(self, tensors: Mapping[str, Tensor], path: str | Path) -> None:
        """As the base; target networks that the checkpoint leaves out begin as copies of what they follow."""
        whole = dict(tensors)
        for name in self.policy.state_dict():
            if name.startswith("target") and name not in whole:
                followed = name.replace("targets.", "critics.", 1).replace("target_planner.", "planner.", 1)
                whole |= {name: tensors[followed]} if followed in tensors else {}
        super().adopt(whole, path)
