"""Learning iterative optimisation for deformable registration with a recurrent network, supervised by key-points."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import replace
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.type_aliases import MaybeCallback
from torch import Tensor

from regagents.common.algorithm import PolicyTrained, made_with
from regagents.common.curriculum import Curriculum
from regagents.common.distributed import average, rank, world
from regagents.common.precision import mixed
from regagents.l2o.policies import L2OPolicy
from regenv.ops.thin_plate import thin_plate
from regenv.ops.warp import warp_points

INITIAL_SPACING = 4         # voxels of the half grid, of the lattice on which initial displacements are found
INITIAL_POINTS = 128        # key-points that they are made of, at most


class L2O(PolicyTrained, BaseAlgorithm):
    """The learned optimiser on SB3's frame: the episode's iterations are unrolled and learnt from as a whole.

    The loss is the key-points' mean distance from where they belong after every iteration, weighted by the iteration's
    number. A pair counts as many environment steps as it has iterations. Half of the pairs and more begin from an
    initial displacement of some error, as pre-registrations leave it: one in six is that of a coupled convex search,
    the others are made of the key-points, see :func:`initial_displacement`.

    Args:
        policy: "MultiInputPolicy", or an L2OPolicy subclass.
        env: id or environment, RegKeypoint with ``update="replace"`` and pairs whose key-points are known.
        learning_rate: at first; it is halved ``halvings`` times, at equal intervals.
        lanes: pairs side by side; accumulate: batches of them whose gradients make an update.
        settle: weight of what the error of an iteration is above the one before, which later iterations are to take
            back; 0 is the paper's loss.
        keypoints: drawn of each pair. augment: whether there are initial displacements.
        gradient_checkpointing: whether to save memory by computing each iteration again for its gradient.
        curriculum: see Curriculum. amp: bfloat16 networks, where fast.
    """

    policy_aliases: ClassVar[dict[str, type]] = {"MultiInputPolicy": L2OPolicy}  # type: ignore[assignment]
    policy: L2OPolicy

    def __init__(self, policy: str | type[L2OPolicy] = "MultiInputPolicy", env: Any = None,
                 learning_rate: float = 1e-3, halvings: int = 7, lanes: int = 1, accumulate: int = 3,
                 settle: float = 0.0, keypoints: int = 1024, augment: bool = True, gradient_checkpointing: bool = True,
                 curriculum: Curriculum | None = None, amp: bool = False,
                 policy_kwargs: dict[str, Any] | None = None, stats_window_size: int = 100,
                 tensorboard_log: str | None = None, verbose: int = 0, seed: int | None = None, device: str = "cpu",
                 _init_setup_model: bool = True) -> None:
        for name, value in (("lanes", lanes), ("accumulate", accumulate), ("keypoints", keypoints)):
            if value < 1:
                raise ValueError(f"L2O: {name} is {value}; it must be at least 1.")
        if halvings < 0:
            raise ValueError(f"L2O: halvings is {halvings}; it must not be negative.")
        if settle < 0:
            raise ValueError(f"L2O: settle is {settle}; it must not be negative.")
        self.halvings, self.lanes, self.accumulate, self.settle = halvings, lanes, accumulate, settle
        self.keypoints, self.augment, self.gradient_checkpointing = keypoints, augment, gradient_checkpointing
        self.curriculum, self.amp = curriculum, amp
        super().__init__(policy, env, learning_rate, policy_kwargs=policy_kwargs, stats_window_size=stats_window_size,
                         tensorboard_log=tensorboard_log, verbose=verbose, device=device, seed=seed,
                         support_multi_env=True, supported_action_spaces=(gym.spaces.Box,))
        if _init_setup_model:
            self._setup_model()

    def _setup_model(self) -> None:
        self._setup_lr_schedule()
        self.set_random_seed(self.seed)
        if self.env is not None:
            update = getattr(self.task().transform, "update", None)
            if update != "replace":
                raise ValueError(f'L2O: update is {update!r}; it needs a RegKeypoint id with "replace".')
        self.policy = self.policy_class(self.observation_space, self.action_space, self.lr_schedule,  # type: ignore[assignment]
                                        **self.policy_kwargs).to(self.device)
        self.optimizer = torch.optim.Adam(self.policy.parameters(), lr=self.lr_schedule(1.0))
        self.updates = getattr(self, "updates", 0)

    def learn(self, total_timesteps: int, callback: MaybeCallback = None, log_interval: int = 10,
              tb_log_name: str = "L2O", reset_num_timesteps: bool = True, progress_bar: bool = False) -> L2O:
        """Train for ``total_timesteps`` iterations of all pairs together; log every ``log_interval`` updates."""
        total, callbacks = self._setup_learn(total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar)
        callbacks.on_training_start(locals(), globals())
        env_id, arguments = made_with(self)
        env = gym.make_vec(env_id, num_envs=self.lanes, output="torch", device=str(self.device), privileged=True,
                           autoreset_mode=AutoresetMode.DISABLED, **arguments)
        steps, rng = self.task().max_episode_steps, np.random.default_rng((self.seed or 0, self.num_timesteps + rank()))
        told: deque[tuple[Tensor, Tensor]] = deque(maxlen=log_interval * self.accumulate)
        begun, at_start, going = time.monotonic(), self.num_timesteps, True
        while going and self.num_timesteps < total:
            progress = self.num_timesteps / total
            for group in self.optimizer.param_groups:
                group["lr"] = self.lr_schedule(1 - progress) * 0.5 ** int(progress * (self.halvings + 1))
            self.optimizer.zero_grad(set_to_none=True)
            for _ in range(self.accumulate):
                options = {} if self.curriculum is None else self.curriculum.at(progress)
                seen, info = env.reset(seed=int(rng.integers(1 << 31)), options=options)
                if "keypoints" not in info:
                    raise ValueError("L2O: the environment's pairs have no key-points that are known in both images; "
                                     'use another source, such as "lungs".')
                loss, errors = self._unrolled(seen, info["keypoints"], info["keypoint_targets"], steps, rng)
                (loss / self.accumulate).backward()
                told.append((loss.detach(), errors.detach()))
                self.num_timesteps += self.lanes * steps * world()
                callbacks.update_locals(locals())
                going = callbacks.on_step() and going
            average(self.policy.parameters())
            torch.nn.utils.clip_grad_norm_(self.policy.parameters(), 1.0)
            self.optimizer.step()
            self.updates += 1
            self._update_current_progress_remaining(self.num_timesteps, total)
            if self.updates % log_interval == 0:
                self._log(told, begun, at_start)
        callbacks.on_training_end()
        return self

    def _unrolled(self, seen: dict[str, Tensor], keypoints: Tensor, targets: Tensor, steps: int,
                  rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Loss of some pairs, and the error after no and every iteration (1 + steps,), voxels of the image."""
        chosen = torch.from_numpy(rng.permutation(keypoints.shape[1])[: self.keypoints]).to(keypoints.device)
        points, wanted = halved(keypoints[:, chosen]), halved(targets[:, chosen])
        with mixed(self.device, self.amp):
            memory = self.policy.begin(seen)
            if self.augment:
                shape = tuple(memory.initial.shape[2:])
                initial = [
                    self.policy.searched({name: part[lane: lane + 1] for name, part in seen.items()})
                    if not rng.integers(6) else initial_displacement(p, w - p, shape, rng).to(p)
                    for lane, (p, w) in enumerate(zip(points, wanted, strict=True))]
                memory = replace(memory, initial=torch.cat(initial))
            errors = [apart(points, wanted, memory.total)]
            for _ in range(steps):
                memory = (self.policy.advance_checkpointed if self.gradient_checkpointing else self.policy.advance)(memory)
                errors.append(apart(points, wanted, memory.total))
        after = torch.stack(errors[1:])
        weight = torch.arange(1, steps + 1, device=after.device, dtype=after.dtype)
        loss = (weight * after).sum() / weight.sum()
        if self.settle:
            loss = loss + self.settle * (after[1:] - after[:-1].detach()).clamp(min=0).sum()
        return loss, 2 * torch.stack(errors)

    def _log(self, told: deque[tuple[Tensor, Tensor]], begun: float, at_start: int) -> None:
        losses, errors = zip(*told, strict=True)
        curve = torch.stack(errors).mean(0)
        self.logger.record("train/loss", torch.stack(losses).mean().item())
        for name, place in (("initial", 0), ("first", 1), ("last", -1)):
            self.logger.record(f"rollout/error_{name}", curve[place].item())
        self.logger.record("train/learning_rate", self.optimizer.param_groups[0]["lr"])
        self.logger.record("time/fps", (self.num_timesteps - at_start) / (time.monotonic() - begun))
        self.logger.record("time/total_timesteps", self.num_timesteps)
        self.logger.dump(self.num_timesteps)

    def predict(self, observation: Any, state: Any = None, episode_start: Any = None,
                deterministic: bool = False) -> tuple[np.ndarray, Any]:
        """Displacements, and the state that the next step needs; ``episode_start`` is true where a pair is new."""
        return self.policy.predict(observation, state, episode_start, deterministic)

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "optimizer"]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        return ["policy", "optimizer"], []


def halved(points: Tensor) -> Tensor:
    """Voxel points (..., D) of the image, in voxels of the half grid, whose first voxel holds the image's first two."""
    return ((points - 0.5) / 2).to(torch.float32)


def apart(points: Tensor, wanted: Tensor, field: Tensor) -> Tensor:
    """Mean distance of points (B, N, D), moved by a field (B, D, *shape), from ``wanted``; voxels."""
    return torch.linalg.vector_norm(warp_points(points, field) - wanted, dim=-1).mean()


def initial_displacement(points: Tensor, motion: Tensor, shape: tuple[int, ...], rng: np.random.Generator) -> Tensor:
    """A displacement to begin from (1, D, *shape), one of five, each as likely: none; what a pre-registration would
    give (part of the truth with an error); half of that; its mean with the truth; and that mean with a coarse error.

    Dense by a thin-plate spline through some of the points. Args: points, motion (N, D), voxels of the grid.
    """
    kind = int(rng.integers(5))
    if kind == 0:
        return torch.zeros(1, len(shape), *shape)
    some = rng.permutation(len(points))[:INITIAL_POINTS]
    place, truth = points[some].double().cpu().numpy(), motion[some].double().cpu().numpy()
    error = rng.normal(0, 1, (2, *truth.shape)) * 0.2 * np.linalg.norm(truth, axis=1).mean()
    guess = rng.uniform(0.3, 1) * truth + rng.uniform(0, 1) * error[0]
    aim = {1: guess, 2: guess / 2, 3: (guess + truth) / 2, 4: (guess + truth) / 2 + error[1]}[kind]
    field = thin_plate(place, aim, shape, INITIAL_SPACING, smoothing=1.0 if kind == 4 else 0.1)
    return torch.from_numpy(field)[None].to(torch.float32)
