"""Stochastic planner-actor-critic (Luo et al. 2022): soft actor-critic on a plan, registration loss on the field."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import torch
import torch.nn.functional as F
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.type_aliases import MaybeCallback
from torch import Tensor

from regagents.common.algorithm import PolicyTrained, made_with
from regagents.common.curriculum import Curriculum
from regagents.common.distributed import average, rank, world
from regagents.common.precision import mixed
from regagents.spac.policies import SPACPolicy, divergence
from regagents.spac.replay import Batch, FieldReplay
from regenv.ops import regularity
from regenv.ops.similarity import lncc
from regenv.ops.warp import compose, warp_dense


class SPAC(PolicyTrained, BaseAlgorithm):
    """Planner, actor and critics trained together, on SB3's frame.

    The planner draws a plan of few numbers, the actor turns it into a displacement of every voxel, the critics judge
    the plan as in soft actor-critic (eq. 6 and 7), and planner and actor also follow the gradient of an unsupervised
    registration loss through the accumulated field (eq. 8). Episodes come from a native batch of the environment.

    Args:
        policy: "CnnPolicy", or a SPACPolicy subclass.
        env: id or environment of dense registration (RegDense...).
        learning_rate: of planner and actor; critic_lr: of the critics and the temperature.
        batch_size: transitions of an update. lanes: episodes played side by side. updates: per step of all lanes.
        buffer_size: transitions kept. learning_starts: transitions before the first update.
        gamma, tau: discount and rate of the target critics.
        rl: False trains by the registration loss alone (the paper's "without RL").
        reg_coef: weight of the registration loss; 0 is the paper's "without registration loss".
        smooth: lambda of eq. 4, on the mean squared gradient of the accumulated field, voxels.
        smooth_step: the same on the step's own field, as in the released code. Without it the actor, which does not see
            the accumulated field, never comes to rest, and the roughness that a step cannot take back adds up.
        kl_coef: of the plan's divergence from a standard normal, mean over its numbers (the released 3D code: 0.01).
        window: of the local correlation.
        noise: whether plans are drawn; False takes their means, as a one-shot network does.
        curriculum: see Curriculum. decay: whether the rates fall linearly to zero. amp: bfloat16 networks, where fast.
    """

    policy_aliases: ClassVar[dict[str, type]] = {"CnnPolicy": SPACPolicy}  # type: ignore[assignment]
    policy: SPACPolicy
    draws = True  # whether what is learnt from are drawn plans, or means

    def __init__(self, policy: str | type[SPACPolicy] = "CnnPolicy", env: Any = None, learning_rate: float = 1e-3,
                 critic_lr: float = 3e-4, batch_size: int = 32, lanes: int = 16, updates: int = 1,
                 buffer_size: int = 8_000, learning_starts: int = 640, gamma: float = 0.99, tau: float = 0.005,
                 rl: bool = True, reg_coef: float = 1.0, smooth: float = 0.03, smooth_step: float = 0.5,
                 kl_coef: float = 0.0, window: int = 9, noise: bool = True,
                 curriculum: Curriculum | None = None, decay: bool = True, amp: bool = False,
                 policy_kwargs: dict[str, Any] | None = None, stats_window_size: int = 100,
                 tensorboard_log: str | None = None, verbose: int = 0, seed: int | None = None, device: str = "cpu",
                 _init_setup_model: bool = True) -> None:
        for name, value in (("batch_size", batch_size), ("lanes", lanes), ("updates", updates),
                            ("buffer_size", buffer_size)):
            if value < 1:
                raise ValueError(f"SPAC: {name} is {value}; it must be at least 1.")
        for name, weight in (("reg_coef", reg_coef), ("smooth", smooth), ("smooth_step", smooth_step),
                             ("kl_coef", kl_coef)):
            if not weight >= 0:
                raise ValueError(f"SPAC: {name} is {weight}; it must not be negative.")
        if not rl and reg_coef == 0:
            raise ValueError("SPAC: rl is False and reg_coef is 0; nothing would be learnt.")
        self.critic_lr, self.batch_size, self.lanes, self.per_step = critic_lr, batch_size, lanes, updates
        self.buffer_size, self.learning_starts, self.gamma, self.tau = buffer_size, learning_starts, gamma, tau
        self.rl, self.reg_coef, self.window, self.noise = rl, reg_coef, window, noise
        self.smooth, self.smooth_step, self.kl_coef = smooth, smooth_step, kl_coef
        self.curriculum, self.decay, self.amp = curriculum, decay, amp
        super().__init__(policy, env, learning_rate, policy_kwargs=policy_kwargs, stats_window_size=stats_window_size,
                         tensorboard_log=tensorboard_log, verbose=verbose, device=device, seed=seed,
                         support_multi_env=True, supported_action_spaces=(gym.spaces.Box,))
        if _init_setup_model:
            self._setup_model()

    def _setup_model(self) -> None:
        self._setup_lr_schedule()
        self.set_random_seed(self.seed)
        self.policy = self.policy_class(self.observation_space, self.action_space, self.lr_schedule,  # type: ignore[assignment]
                                        **self.policy_kwargs).to(self.device)
        self.target_entropy = -float(self.policy.plan_size)
        movers = [*self.policy.planner.parameters(), *self.policy.actor.parameters()]
        groups: list[dict[str, Any]] = [{"params": movers, "lr": self.learning_rate},
                                        {"params": list(self.policy.critics.parameters()), "lr": self.critic_lr},
                                        {"params": [self.policy.log_alpha], "lr": self.critic_lr}]
        self.optimizer = torch.optim.Adam(groups)
        self.updates = getattr(self, "updates", 0)
        self._replay: FieldReplay | None = None

    def learn(self, total_timesteps: int, callback: MaybeCallback = None, log_interval: int = 100,
              tb_log_name: str = "SPAC", reset_num_timesteps: bool = True, progress_bar: bool = False) -> SPAC:
        """Train for ``total_timesteps`` environment steps of all lanes together; log every ``log_interval`` updates."""
        total, callbacks = self._setup_learn(total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar)
        callbacks.on_training_start(locals(), globals())
        task = self.task()
        env, steps = self._batch(), task.max_episode_steps
        if world() > 1:
            torch.manual_seed((self.seed or 0) * world() + rank())  # noise and memories of its own
        losses: deque[dict[str, Tensor]] = deque(maxlen=log_interval)
        gains: deque[Tensor] = deque(maxlen=self._stats_window_size)
        begun, at_start, going = time.monotonic(), self.num_timesteps, True
        while going and self.num_timesteps < total:
            progress = self.num_timesteps / total
            options = {} if self.curriculum is None else self.curriculum.at(progress)
            observation, _ = env.reset(seed=self._episode_seed(), options=options)
            state: Any = env.unwrapped.state  # type: ignore[attr-defined]
            fixed, moving = state.pair.fixed, state.warped
            returns = torch.zeros((), device=self.device)
            for step in range(steps):
                with torch.no_grad(), self._mixed():
                    plan, _, field = self.policy.act(self.policy.scaled(observation), self.noise)
                before = state.displacement
                observation, reward, terminated, _, _ = env.step(field.float())
                state = env.unwrapped.state  # type: ignore[attr-defined]
                returns = returns + reward.mean()
                self.num_timesteps += self.lanes * world()
                self._update_current_progress_remaining(self.num_timesteps, total)
                self._set_rates(progress)
                seen = Batch(fixed, moving, before, state.displacement, plan.float(), reward.float(),
                             terminated.float())
                over = step == steps - 1 or (not task.endless and bool(terminated.any()))
                for told in self._learnt_from(seen, step == 0, over):
                    losses.append(told)
                    if self.updates % log_interval == 0:
                        self._log(losses, gains, begun, at_start)
                callbacks.update_locals(locals())
                going = callbacks.on_step()
                if not going or over:
                    break
            gains.append(returns)
        callbacks.on_training_end()
        return self

    def _learnt_from(self, seen: Batch, first: bool, last: bool) -> Iterator[dict[str, Tensor]]:
        """Updates after a step of all lanes, and what to log of each. Args: first, last: of the episodes."""
        if self._replay is None:
            episodes = 2 * self.lanes + self.buffer_size // self.task().max_episode_steps
            self._replay = FieldReplay(self.buffer_size, episodes, self.device)
        if first:
            self._places = self._replay.begin(seen.fixed, seen.moving)
        self._replay.add(self._places, seen.before, seen.after, seen.plan, seen.reward, seen.ended)
        if self._replay.size >= self.learning_starts:
            for _ in range(self.per_step):
                yield self._update(self._replay.sample(self.batch_size))

    def _update(self, batch: Batch) -> dict[str, Tensor]:
        """One step of all that learns."""
        state = torch.cat([batch.fixed, warp_dense(batch.moving, batch.before)], 1)
        told: dict[str, Tensor] = {}
        loss = torch.zeros((), device=self.device)
        with self._mixed():
            plan, density, field = self.policy.act(state, self.noise and self.draws)
        if self.rl:
            loss, told = self._planning(batch, state, plan, density, field)
        if self.reg_coef:
            total = compose(batch.before, field.float())
            alike = lncc(batch.fixed, warp_dense(batch.moving, total), window=self.window).mean()
            rough, rough_step = regularity.diffusion(total).mean(), regularity.diffusion(field.float()).mean()
            loss = loss + self.reg_coef * (self.smooth * rough + self.smooth_step * rough_step - alike)  # eq. 8
            told |= {"lncc": alike, "roughness": rough}
        if self.kl_coef:
            away = divergence(plan, density).mean() / self.policy.plan_size
            loss, told = loss + self.kl_coef * away, told | {"kl": away}
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        average(p for group in self.optimizer.param_groups for p in group["params"])
        for group in self.optimizer.param_groups:
            torch.nn.utils.clip_grad_norm_(group["params"], 10.0)
        self.optimizer.step()
        with torch.no_grad():
            for mine, theirs in self.policy.followed():
                theirs.lerp_(mine, self.tau)
        self.updates += 1
        return {name: value.detach() for name, value in told.items()}

    def _planning(self, batch: Batch, state: Tensor, plan: Tensor, density: Tensor,
                  field: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of critics, planner and temperature, and what to log of it: soft actor-critic on the plan."""
        policy, alpha = self.policy, self.policy.log_alpha.exp().detach()
        judged = self._judged(batch.plan, state)
        with torch.no_grad(), self._mixed():
            after = torch.cat([batch.fixed, warp_dense(batch.moving, batch.after)], 1)
            next_plan, next_density, features = policy.drawn(after, noise=True)
            judged_next = self._of(next_plan, lambda: policy.actor(next_plan, after, features))
            following = torch.stack([critic(after, judged_next) for critic in policy.targets])
            target = batch.reward + self.gamma * (1 - batch.ended) * (following.amin(0) - alpha * next_density)
        critic_loss = self._critic_loss(state, judged, target)                                    # eq. 6
        planner_loss = (alpha * density - self._value(state, plan, field)).mean()                 # eq. 7
        temperature = -(policy.log_alpha * (density.detach() + self.target_entropy)).mean()
        return critic_loss + planner_loss + temperature, {
            "critic_loss": critic_loss, "planner_loss": planner_loss, "alpha": alpha}

    def _critic_loss(self, state: Tensor, judged: Tensor, target: Tensor) -> Tensor:
        with self._mixed():
            values = [critic(state, judged) for critic in self.policy.critics]
        return torch.stack([F.mse_loss(value.float(), target.float()) for value in values]).mean()

    def _value(self, state: Tensor, plan: Tensor, field: Tensor) -> Tensor:
        """The lowest of the critics (B,), which learn nothing from it."""
        self.policy.critics.requires_grad_(False)
        with self._mixed():
            judged = self._of(plan, lambda: field)
            value = torch.stack([critic(state, judged) for critic in self.policy.critics]).amin(0)
        self.policy.critics.requires_grad_(True)
        return value

    def _judged(self, plan: Tensor, state: Tensor) -> Tensor:
        """What the critics look at, of stored plans."""
        with torch.no_grad(), self._mixed():
            return self._of(plan, lambda: self.policy.actor(plan, state, self.policy.planner(state)[2]))

    def _of(self, plan: Tensor, field: Callable[[], Tensor]) -> Tensor:
        return plan if self.policy.critic_on == "plan" else field()

    def _set_rates(self, progress: float) -> None:
        left = max(0.0, 1 - progress) if self.decay else 1.0
        rates = (float(self.learning_rate), self.critic_lr, self.critic_lr)  # type: ignore[arg-type]
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * left

    def _mixed(self) -> torch.autocast:
        return mixed(self.device, self.amp)

    def _log(self, losses: deque[dict[str, Tensor]], gains: deque[Tensor], begun: float, at_start: int) -> None:
        for name in losses[-1]:
            self.logger.record(f"train/{name}", torch.stack([each[name] for each in losses]).mean().item())
        if gains:
            self.logger.record("rollout/ep_rew_mean", torch.stack(tuple(gains)).mean().item())
        self.logger.record("time/fps", (self.num_timesteps - at_start) / (time.monotonic() - begun))
        self.logger.record("time/total_timesteps", self.num_timesteps)
        self.logger.dump(self.num_timesteps)

    def _batch(self) -> gym.vector.VectorEnv:
        """The native batch of the same id that episodes are played in."""
        env_id, arguments = made_with(self)
        return gym.make_vec(env_id, num_envs=self.lanes, output="torch", device=str(self.device),
                            autoreset_mode=AutoresetMode.DISABLED, **arguments)

    def _episode_seed(self) -> int:
        """Every batch of episodes has its own, so that a resumed run draws other pairs than the first did."""
        return ((self.seed or 0) * 1_000_003 + self.num_timesteps + rank() * self.lanes) % (1 << 31)

    def adopt(self, tensors: Mapping[str, Tensor], path: str | Path) -> None:
        """As the base; target networks that the checkpoint leaves out begin as what they follow."""
        whole = dict(tensors)
        for name in self.policy.state_dict():
            if name.startswith("target") and name not in whole:
                followed = name.replace("targets.", "critics.", 1).replace("target_planner.", "planner.", 1)
                whole |= {name: tensors[followed]} if followed in tensors else {}
        super().adopt(whole, path)

    def predict(self, observation: Any, state: Any = None, episode_start: Any = None,
                deterministic: bool = False) -> tuple[np.ndarray, Any]:
        return self.policy.predict(observation, state, episode_start, deterministic)

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "optimizer", "_replay"]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        return ["policy", "optimizer"], []
