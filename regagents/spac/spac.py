"""Stochastic planner-actor-critic (Luo et al. 2022): soft actor-critic on a plan, registration loss on the field."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import torch
import torch.nn.functional as F
from stable_baselines3.common.callbacks import BaseCallback
from torch import Tensor, nn

from regagents.common.algorithm import Algorithm, check_counts
from regagents.common.curriculum import Curriculum
from regagents.common.distributed import average, rank, world
from regagents.common.precision import mixed
from regagents.spac.gauges import Gauges, gauged
from regagents.spac.plans import Proposal, squashed
from regagents.spac.policies import SPACPolicy, look
from regagents.spac.replay import Batch, FieldReplay
from regenv.core import RegistrationCore
from regenv.ops import regularity
from regenv.ops.similarity import lncc
from regenv.ops.warp import compose, warp_dense
from regenv.task import Task

Losses = dict[str, Tensor]
"""What is logged of an update, by name."""
MAX_GRAD_NORM = 1.0
SPREADS = 0.2       # of the temperature's rate: a deviation that moves faster runs away before the temperature falls
GAUGED = 2          # times in a training
GAUGE_SEED = 77
SMALLEST = 1e-12    # length of a gradient


class SPAC(Algorithm):
    """Planner, actor and critics trained together, on SB3's frame.

    The planner draws a plan, a displacement of a coarse lattice; the actor turns it into a displacement of every voxel
    and adds what is fine; the critics judge the plan as in soft actor-critic (eq. 6 and 7). Planner and actor follow
    the gradient of an unsupervised registration loss through the accumulated field (eq. 8), on the mean plan. The
    critics steer the planner late, once they know plans, and with a gradient of a fixed share of the registration
    loss's: critics that steer from the start value what they have not seen too highly, and plans saturate. Episodes
    come from a native batch of the environment; a step of training is a step of one lane. The temperature is learned
    (Haarnoja et al. 2018); the target is the entropy of normal plans of the policy's ``sigma``.

    Args:
        policy: "CnnPolicy", or a SPACPolicy subclass.
        env: id or environment of dense registration (RegDense...).
        learning_rate: of planner and actor; critic_lr: of the critics; temperature_lr: of the temperature, and by it
            of the plans' deviation.
        batch_size: transitions of an update. lanes: episodes played side by side. updates: per step of all lanes.
        buffer_size: transitions kept. learning_starts: transitions before the first update.
        gamma, tau: discount, and rate at which the target critics follow. Steps repair what steps before them left, so
            that a return over the whole episode hardly depends on a plan; a short one does.
        reward_scale: times the environment's reward, for the critics.
        rl: False trains by the registration loss alone, and plays mean plans (the paper's "without RL").
        steer: norm of the gradient that reinforcement learning gives the planner, times the registration loss's;
            steer_from: the share of training after which it does.
        reg_coef: weight of the registration loss; 0 is the paper's "without registration loss": reinforcement learning
            then steers throughout.
        smooth: lambda of eq. 4, on the mean squared gradient of the accumulated field, voxels.
        smooth_step: the same on the step's own field, as in the released code. Without it the actor, which does not see
            the accumulated field, never comes to rest, and the roughness that a step cannot take back adds up.
        window: of the local correlation.
        curriculum: see Curriculum. decay: whether the learning rates fall linearly to zero; the temperature's stays.
        amp: bfloat16 networks, where fast.
        sb3: SB3's arguments, see Algorithm.
    """

    policy_aliases: ClassVar[dict[str, type]] = {"CnnPolicy": SPACPolicy}  # type: ignore[assignment]
    unsaved: ClassVar[tuple[str, ...]] = ("optimizer", "_replay")
    policy: SPACPolicy

    def __init__(self, policy: str | type[SPACPolicy] = "CnnPolicy", env: Any = None, learning_rate: float = 3e-3,
                 critic_lr: float = 2e-3, temperature_lr: float = 1e-2, batch_size: int = 32, lanes: int = 16,
                 updates: int = 1, buffer_size: int = 8_000, learning_starts: int = 640, gamma: float = 0.2,
                 tau: float = 0.01, reward_scale: float = 10.0, rl: bool = True, steer: float = 0.3,
                 steer_from: float = 0.5, reg_coef: float = 1.0, smooth: float = 0.03, smooth_step: float = 0.5,
                 window: int = 9, curriculum: Curriculum | None = None, decay: bool = True, amp: bool = False,
                 **sb3: Any) -> None:
        name = type(self).__name__
        check_counts(name, batch_size=batch_size, lanes=lanes, updates=updates, buffer_size=buffer_size)
        for argument, weight in (("reg_coef", reg_coef), ("smooth", smooth), ("smooth_step", smooth_step),
                                 ("steer", steer)):
            if not weight >= 0:
                raise ValueError(f"{name}: {argument} is {weight}; it must not be negative.")
        if not reward_scale > 0:
            raise ValueError(f"{name}: reward_scale is {reward_scale}; it must be positive.")
        if not rl and reg_coef == 0:
            raise ValueError(f"{name}: rl is False and reg_coef is 0; nothing would be learnt.")
        self.critic_lr, self.temperature_lr = critic_lr, temperature_lr
        self.batch_size, self.lanes, self.per_step = batch_size, lanes, updates
        self.buffer_size, self.learning_starts, self.gamma, self.tau = buffer_size, learning_starts, gamma, tau
        self.reward_scale, self.steer, self.steer_from = reward_scale, steer, steer_from
        self.rl, self.reg_coef, self.window = rl, reg_coef, window
        self.smooth, self.smooth_step = smooth, smooth_step
        self.curriculum, self.decay, self.amp = curriculum, decay, amp
        super().__init__(policy, env, learning_rate, **sb3)

    def _setup_model(self) -> None:
        super()._setup_model()
        normal = math.log(self.policy.sigma) + 0.5 * math.log(2 * math.pi * math.e)
        self.target_entropy = self.policy.plan_size * normal
        self._replay: FieldReplay | None = None

    def make_optimizer(self) -> torch.optim.Optimizer:
        groups: list[dict[str, Any]] = [
            {"params": self._movers(), "lr": self.learning_rate},
            {"params": list(self.policy.critics.parameters()), "lr": self.critic_lr},
            {"params": [self.policy.planner.log_std], "lr": SPREADS * self.temperature_lr},
            {"params": [self.policy.log_alpha], "lr": self.temperature_lr}]
        return torch.optim.Adam(groups)

    def _movers(self) -> list[nn.Parameter]:
        """What makes the mean plan and the field of it."""
        return [p for part in (self.policy.planner, self.policy.actor) for p in part.parameters()
                if p is not self.policy.planner.log_std]

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
            if self.rl and int(GAUGED * progress) < int(GAUGED * self.num_timesteps / total):
                self.log_progress({f"gauge/{name}": value for name, value in asdict(self.gauges()).items()})

    def gauges(self, pairs: int = 16) -> Gauges:
        """Whether plans and critics do something, on pairs that no training episode has shown from their start."""
        core = RegistrationCore(self.task(), self.device)
        start = core.reset([np.random.default_rng([GAUGE_SEED, lane]) for lane in range(pairs)])
        return gauged(self.policy, core, start, self.gamma)

    def summary(self) -> str:
        return str(self.gauges(pairs=32)) if self.rl else ""

    def _steps(self, env: gym.vector.VectorEnv[Any, Any, Any], task: Task,
               progress: float) -> Iterator[tuple[Batch, bool, bool]]:
        """Play an episode in every lane: the transitions of each step, and whether it is the first and the last."""
        played: Any = env.unwrapped
        observation, _ = played.reset(seed=self._episode_seeds(), options=self.reset_options(progress))
        fixed, moving = played.state.pair.fixed, played.state.warped
        for step in range(task.max_episode_steps):
            with torch.no_grad(), self._mixed():
                plan, _, field = self.policy.act(self.policy.scaled(observation), self.rl)
            before = played.state.displacement
            observation, reward, terminated, _, _ = env.step(field.float())
            last = step == task.max_episode_steps - 1 or (not task.endless and bool(terminated.any()))
            yield Batch(fixed, moving, before, field.float(), plan.float(), self.reward_scale * reward.float(),
                        terminated.float()), step == 0, last
            if last:
                return

    def _episode_seeds(self) -> list[int]:
        """Of the lanes. Every batch of episodes has its own, so that a resumed run draws other pairs than the first."""
        first = ((self.seed or 0) * 1_000_003 + self.num_timesteps + rank() * self.lanes) % (1 << 31)
        return [first + lane for lane in range(self.lanes)]

    def _learn_from(self, seen: Batch, first: bool, last: bool) -> Iterator[Losses]:
        """Updates after a step of all lanes: the losses of each. Args: first, last: whether it is the episodes' first
        or last step."""
        if self._replay is None:
            episodes = 2 * self.lanes + self.buffer_size // self.task().max_episode_steps
            self._replay = FieldReplay(self.buffer_size, episodes, self.device)
        if first:
            self._places = self._replay.begin(seen.fixed, seen.moving)
        self._replay.add(self._places, seen.before, seen.action, seen.plan, seen.reward, seen.ended)
        if self._replay.size >= self.learning_starts:
            for _ in range(self.per_step):
                yield self._update(self._replay.sample(self.batch_size))

    def _set_lr(self, progress: float) -> None:
        left = max(0.0, 1 - progress) if self.decay else 1.0
        assert isinstance(self.learning_rate, (int, float))
        for group, lr in zip(self.optimizer.param_groups, (self.learning_rate, self.critic_lr), strict=False):
            group["lr"] = lr * left
        self._share = self.steer if progress >= self.steer_from else 0.0

    def _log(self, losses: deque[Losses], returns: Iterable[Tensor]) -> None:
        numbers = {f"train/{name}": torch.stack([each[name] for each in losses if name in each]).mean().item()
                   for name in losses[-1]}
        earned = tuple(returns)
        if earned:
            numbers["rollout/ep_rew_mean"] = torch.stack(earned).mean().item()
        self.log_progress(numbers)

    # --------------------------------------------------------------------------------------------------------- updates

    def _update(self, batch: Batch) -> Losses:
        """One step of the optimizer, of all networks; its losses."""
        state = batch.state.contiguous(memory_format=self.policy.layout)
        with self._mixed():
            proposal = self.policy.planner(state)
        movers, losses = self._movers(), Losses()
        self.optimizer.zero_grad(set_to_none=True)
        steers = self._share > 0 or not self.reg_coef
        if self.rl:
            loss, losses = self._rl_loss(batch, state, proposal if steers else proposal.unsteered())
            loss.backward(retain_graph=bool(self.reg_coef))
        if self.reg_coef:
            wanted = [p.grad for p in movers]
            for parameter in movers:
                parameter.grad = None
            with self._mixed():
                field = self.policy.actor(squashed(proposal.mean), state, proposal.features)
            registration, parts = self._registration_loss(batch, field)
            (self.reg_coef * registration).backward()
            losses |= parts
            if self.rl and steers:
                losses |= self._steered(movers, wanted)
        average(p for group in self.optimizer.param_groups for p in group["params"])
        for group in self.optimizer.param_groups:
            torch.nn.utils.clip_grad_norm_(group["params"], MAX_GRAD_NORM)
        self.optimizer.step()
        with torch.no_grad():
            for learned, target in self.policy.followed():
                target.lerp_(learned, self.tau)
        self.updates += 1
        return {name: value.detach() for name, value in losses.items()}

    def _steered(self, movers: Sequence[nn.Parameter], wanted: Sequence[Tensor | None]) -> Losses:
        """Add what reinforcement learning wants to the registration loss's gradients, ``_share`` times as long; both
        lengths, before that, are what to log."""
        lengths = torch.stack([torch.stack([g.norm() for g in gradients if g is not None]).norm()
                               for gradients in ([p.grad for p in movers], wanted)])
        scale = self._share * lengths[0] / lengths[1].clamp(min=SMALLEST)
        for parameter, gradient in zip(movers, wanted, strict=True):
            if gradient is not None:
                parameter.grad = gradient * scale if parameter.grad is None else parameter.grad + scale * gradient
        return {"gradient_registration": lengths[0], "gradient_rl": lengths[1]}

    def _registration_loss(self, batch: Batch, field: Tensor) -> tuple[Tensor, Losses]:
        """Eq. 8, of the field that has accumulated after a step's ``field``, and what to log of it."""
        total = compose(batch.before, field.float())
        alike = lncc(batch.fixed, warp_dense(batch.moving, total), window=self.window).mean()
        rough, rough_step = regularity.diffusion(total).mean(), regularity.diffusion(field.float()).mean()
        return self.smooth * rough + self.smooth_step * rough_step - alike, {"lncc": alike, "roughness": rough}

    def _rl_loss(self, batch: Batch, state: Tensor, proposal: Proposal) -> tuple[Tensor, Losses]:
        """Loss of critics, planner and temperature, and what to log of it: soft actor-critic on the plan."""
        policy, alpha = self.policy, self.policy.log_alpha.exp().detach()
        with torch.no_grad(), self._mixed():
            after = batch.next_state.contiguous(memory_format=policy.layout)
            ahead = policy.planner(after)
            raw = ahead.drawn()
            next_value = self._value(after, squashed(raw), ahead, targets=True)
            target = soft_target(batch.reward, batch.ended, next_value.float(), ahead.log_prob(raw), alpha, self.gamma)
        raw = proposal.drawn()
        log_prob = proposal.log_prob(raw)
        critic_loss = self._critic_loss(batch, state, target)                                     # eq. 6
        planner_loss = (alpha * log_prob - self._frozen_value(state, squashed(raw), proposal)).mean()   # eq. 7
        temperature_loss = -(policy.log_alpha * (log_prob.detach() + self.target_entropy)).mean()
        return critic_loss + planner_loss + temperature_loss, {
            "critic_loss": critic_loss, "planner_loss": planner_loss, "alpha": alpha, "entropy": -log_prob.mean(),
            "entropy_target": torch.tensor(self.target_entropy), "sigma": proposal.log_std.exp().mean()}

    def _critic_loss(self, batch: Batch, state: Tensor, target: Tensor) -> Tensor:
        """Mean squared error of both critics on stored plans, or on the actions that were made of them."""
        plans = self.policy.critic_on == "plan"
        field = self.policy.actor.coarse(batch.plan, tuple(state.shape[2:])) if plans else batch.action
        with self._mixed():
            seen = look(state, field)
            values = [critic(seen) for critic in self.policy.critics]
        return torch.stack([F.mse_loss(value.float(), target.float()) for value in values]).mean()

    def _frozen_value(self, state: Tensor, plan: Tensor, proposal: Proposal) -> Tensor:
        """As :meth:`_value`; the critics get no gradient from it."""
        self.policy.critics.requires_grad_(False)
        with self._mixed():
            value = self._value(state, plan, proposal)
        self.policy.critics.requires_grad_(True)
        return value

    def _value(self, state: Tensor, plan: Tensor, proposal: Proposal, targets: bool = False) -> Tensor:
        """The lower of both critics' values (B,) of plans, or of what the actor makes of them."""
        field = self.policy.actor(plan, state, proposal.features) if self.policy.critic_on == "action" else None
        return self.policy.weighed(state, plan, field, targets)

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


def soft_target(reward: Tensor, ended: Tensor, next_value: Tensor, next_log_prob: Tensor, alpha: Tensor | float,
                gamma: float) -> Tensor:
    """What critics learn (B,): ``r + gamma (1 - d) (min Q(s', p') - alpha log kappa(p' | s'))``, eq. 6."""
    return reward + gamma * (1 - ended) * (next_value - alpha * next_log_prob)
