"""Learning iterative optimisation for deformable registration with a recurrent network, supervised by key-points."""

from __future__ import annotations

from collections import deque
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback
from torch import Tensor

from regagents.common.algorithm import Algorithm, check_counts
from regagents.common.curriculum import Curriculum
from regagents.common.distributed import average, rank, world
from regagents.common.precision import mixed
from regagents.l2o.policies import L2OPolicy, Memory
from regenv.ops.thin_plate import thin_plate
from regenv.ops.warp import warp_points
from regenv.task import Transform

INITIAL_SPACING = 4         # voxels of the half grid between the points on which initial displacements are computed
INITIAL_POINTS = 128        # most key-points that an initial displacement is made of
SEARCHED_OF = 6             # one in so many initial displacements is found by a coupled convex search
MAX_GRAD_NORM = 1.0


class L2O(Algorithm):
    """The learned optimiser on SB3's frame: an episode's iterations are unrolled and differentiated as a whole.

    The loss is the key-points' mean distance from where they belong after every iteration, weighted by the iteration's
    number. A pair counts as many environment steps as it has iterations. More than half of the pairs begin from an
    initial displacement with an error, as pre-registrations leave it: one in six is that of a coupled convex search,
    the others are made of the key-points, see :func:`initial_displacement`.

    Args:
        policy: "MultiInputPolicy", or an L2OPolicy subclass.
        env: id or environment, RegKeypoint with ``update="replace"`` and pairs whose key-points are known.
        learning_rate: at first; it is halved ``halvings`` times, at equal intervals.
        lanes: pairs side by side; accumulate: batches of them whose gradients make an update.
        settle: weight of an iteration's increase of the error over the iteration before, which trains the network not
            to drift after convergence; 0 is the paper's loss.
        keypoints: drawn of each pair. augment: whether there are initial displacements.
        gradient_checkpointing: whether to save memory by computing each iteration again for its gradient.
        curriculum: see Curriculum. amp: bfloat16 networks, where fast.
        sb3: SB3's arguments, see Algorithm.
    """

    policy_aliases: ClassVar[dict[str, type]] = {"MultiInputPolicy": L2OPolicy}  # type: ignore[assignment]
    log_every: ClassVar[int] = 10
    policy: L2OPolicy

    def __init__(self, policy: str | type[L2OPolicy] = "MultiInputPolicy", env: Any = None,
                 learning_rate: float = 1e-3, halvings: int = 7, lanes: int = 1, accumulate: int = 3,
                 settle: float = 0.0, keypoints: int = 1024, augment: bool = True, gradient_checkpointing: bool = True,
                 curriculum: Curriculum | None = None, amp: bool = False, **sb3: Any) -> None:
        name = type(self).__name__
        check_counts(name, lanes=lanes, accumulate=accumulate, keypoints=keypoints)
        for argument, value in (("halvings", halvings), ("settle", settle)):
            if value < 0:
                raise ValueError(f"{name}: {argument} is {value}; it must not be negative.")
        self.halvings, self.lanes, self.accumulate, self.settle = halvings, lanes, accumulate, settle
        self.keypoints, self.augment, self.gradient_checkpointing = keypoints, augment, gradient_checkpointing
        self.curriculum, self.amp = curriculum, amp
        super().__init__(policy, env, learning_rate, **sb3)

    def _setup_model(self) -> None:
        if self.env is not None and not replaces(self.task().transform):
            update = self.env_spec()[1].get("update")
            raise ValueError(f'{type(self).__name__}: update is {update!r}; it needs a RegKeypoint id with "replace".')
        super()._setup_model()

    def make_optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.policy.parameters(), lr=self.lr_schedule(1.0))

    def train_until(self, total: int, callbacks: BaseCallback, log_interval: int) -> None:
        env, steps = self.batch(self.lanes, privileged=True), self.task().max_episode_steps
        rng = np.random.default_rng((self.seed or 0, self.num_timesteps + rank()))
        losses: deque[Tensor] = deque(maxlen=log_interval * self.accumulate)
        curves: deque[Tensor] = deque(maxlen=log_interval * self.accumulate)
        going = True
        while going and self.num_timesteps < total:
            progress = self.num_timesteps / total
            self._set_lr(progress)
            self.optimizer.zero_grad(set_to_none=True)
            for _ in range(self.accumulate):
                loss, curve = self._loss(env, steps, progress, rng)
                (loss / self.accumulate).backward()
                losses.append(loss.detach())
                curves.append(curve.detach())
                self.num_timesteps += self.lanes * steps * world()
                callbacks.update_locals(locals())
                going = callbacks.on_step() and going
            average(self.policy.parameters())
            torch.nn.utils.clip_grad_norm_(self.policy.parameters(), MAX_GRAD_NORM)
            self.optimizer.step()
            self.updates += 1
            self._update_current_progress_remaining(self.num_timesteps, total)
            if self.updates % log_interval == 0:
                self._log(torch.stack(tuple(losses)).mean(), torch.stack(tuple(curves)).mean(0))

    def _set_lr(self, progress: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr_schedule(1 - progress) * 0.5 ** int(progress * (self.halvings + 1))

    def _loss(self, env: gym.vector.VectorEnv[Any, Any, Any], steps: int, progress: float,
              rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Loss of new pairs, and their mean error after no and every iteration (1 + steps,), voxels of the image."""
        options: dict[str, Any] = dict(self.reset_options(progress))
        seen, info = env.reset(seed=int(rng.integers(1 << 31)), options=options)
        if "keypoints" not in info:
            raise ValueError(f"{type(self).__name__}: the environment's pairs have no key-points that are known in "
                             'both images; use another source, such as "lungs".')
        return self._unrolled(seen, info["keypoints"], info["keypoint_targets"], steps, rng)

    def _unrolled(self, seen: dict[str, Tensor], keypoints: Tensor, targets: Tensor, steps: int,
                  rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """As :meth:`_loss`, of observations and key-points (B, N, D), voxels of the image."""
        drawn = torch.from_numpy(rng.permutation(keypoints.shape[1])[: self.keypoints]).to(keypoints.device)
        points, wanted = on_half_grid(keypoints[:, drawn]), on_half_grid(targets[:, drawn])
        advance = self.policy.advance_checkpointed if self.gradient_checkpointing else self.policy.advance
        with mixed(self.device, self.amp):
            memory = self.policy.begin(seen)
            if self.augment:
                memory = self._augmented(memory, seen, points, wanted, rng)
            errors = [mean_error(points, wanted, memory.total)]
            for _ in range(steps):
                memory = advance(memory)
                errors.append(mean_error(points, wanted, memory.total))
        after = torch.stack(errors[1:])
        weight = torch.arange(1, steps + 1, device=after.device, dtype=after.dtype)
        loss = (weight * after).sum() / weight.sum()
        if self.settle:
            loss = loss + self.settle * (after[1:] - after[:-1].detach()).clamp(min=0).sum()
        return loss, 2 * torch.stack(errors)

    def _augmented(self, memory: Memory, seen: dict[str, Tensor], points: Tensor, wanted: Tensor,
                   rng: np.random.Generator) -> Memory:
        """The memory with initial displacements. Args: points, wanted (B, N, D): voxels of the half grid."""
        shape = tuple(memory.initial.shape[2:])
        initial = [self.policy.searched({name: part[lane: lane + 1] for name, part in seen.items()})
                   if not rng.integers(SEARCHED_OF) else initial_displacement(p, w - p, shape, rng).to(p)
                   for lane, (p, w) in enumerate(zip(points, wanted, strict=True))]
        return memory._replace(initial=torch.cat(initial))

    def _log(self, loss: Tensor, curve: Tensor) -> None:
        errors = {f"rollout/error_{name}": curve[place].item()
                  for name, place in (("initial", 0), ("first", 1), ("last", -1))}
        self.log_progress({"train/loss": loss.item(), **errors,
                           "train/learning_rate": self.optimizer.param_groups[0]["lr"]})


def replaces(transform: Transform) -> bool:
    """Whether an action is the next displacement field itself, whatever the present one is."""
    if transform.linear:
        return False
    pose = torch.ones(1, transform.ndim, *(4,) * transform.ndim)
    delta = torch.zeros_like(pose)
    return torch.equal(transform.apply(pose, delta), delta)


def on_half_grid(points: Tensor) -> Tensor:
    """Voxel points (..., D) of the image, in voxels of the half grid, whose first voxel holds the image's first two."""
    return ((points - 0.5) / 2).to(torch.float32)


def mean_error(points: Tensor, wanted: Tensor, field: Tensor) -> Tensor:
    """Mean distance of points (B, N, D), moved by a field (B, D, *shape), from ``wanted``; voxels."""
    return torch.linalg.vector_norm(warp_points(points, field) - wanted, dim=-1).mean()


def initial_displacement(points: Tensor, motion: Tensor, shape: tuple[int, ...], rng: np.random.Generator) -> Tensor:
    """A displacement to begin from (1, D, *shape), one of five, each as likely: none; a pre-registration's (part of the
    truth with an error); half of that; its mean with the truth; and that mean with a coarse error.

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
