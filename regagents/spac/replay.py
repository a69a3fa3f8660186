"""Replay of dense registration episodes: each pair is stored once, and each step's field, action, plan and reward."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from torch import Tensor

from regenv.ops.warp import compose, warp_dense


@dataclass(frozen=True)
class Batch:
    """Transitions from the replay, each (B, ...).

    Attributes: fixed, moving (B, 1, *shape); before (B, D, *shape), the accumulated field; action (B, D, *shape), what
    the step added to it; plan (B, D, *lattice), what it was made of; reward and ended (B,) float.
    """

    fixed: Tensor
    moving: Tensor
    before: Tensor
    action: Tensor
    plan: Tensor
    reward: Tensor
    ended: Tensor

    @property
    def state(self) -> Tensor:
        """Fixed and warped image before the step, (B, 2, *shape)."""
        return torch.cat([self.fixed, warp_dense(self.moving, self.before)], 1)

    @property
    def next_state(self) -> Tensor:
        """The same after it."""
        return torch.cat([self.fixed, warp_dense(self.moving, compose(self.before, self.action))], 1)

    def rows(self, rows: Tensor) -> Self:
        """Some of the transitions."""
        return replace(self, **{f.name: getattr(self, f.name)[rows] for f in fields(self)})


class FieldReplay:
    """A ring buffer of transitions without images: a state's moving image is warped again by the stored field.

    A transition takes two float16 fields and its plan: for 128 x 128, 2 x 64 KiB + 256 bytes (the four float32 images
    of two states would take 256 KiB). The pair of images is stored once for each episode of a lane.

    Args: capacity: transitions; episodes: pairs kept, the oldest are replaced first; device: of all tensors.
    """

    def __init__(self, capacity: int, episodes: int, device: torch.device | str = "cpu") -> None:
        if capacity < 1 or episodes < 1:
            raise ValueError(f"FieldReplay: capacity is {capacity} and episodes {episodes}; both must be at least 1.")
        self.capacity, self.episodes, self.device = capacity, episodes, torch.device(device)
        self.size = self.place = self.begun = 0
        self._pairs: dict[str, Tensor] = {}
        self._steps: dict[str, Tensor] = {}

    def begin(self, fixed: Tensor, moving: Tensor) -> Tensor:
        """Store new pairs (B, 1, *shape). Returns: their places (B,) for :meth:`add`."""
        if not self._pairs:
            self._pairs = {name: torch.zeros(self.episodes, *image.shape[1:], dtype=torch.float16, device=self.device)
                           for name, image in (("fixed", fixed), ("moving", moving))}
        places = (self.begun + torch.arange(len(fixed), device=self.device)) % self.episodes
        self.begun += len(fixed)
        for name, image in (("fixed", fixed), ("moving", moving)):
            self._pairs[name][places] = image.to(self.device, torch.float16)
        return places

    def add(self, pairs: Tensor, before: Tensor, action: Tensor, plan: Tensor, reward: Tensor, ended: Tensor) -> None:
        """Store transitions (B, ...) of the pairs at places ``pairs`` (B,)."""
        values = {"pair": pairs, "before": before.half(), "action": action.half(), "plan": plan.float(),
                  "reward": reward.float(), "ended": ended.float()}
        if not self._steps:
            self._steps = {name: torch.zeros(self.capacity, *value.shape[1:], dtype=value.dtype, device=self.device)
                           for name, value in values.items()}
            self._steps["age"] = torch.zeros(self.capacity, dtype=torch.int64, device=self.device)
        places = (self.place + torch.arange(len(pairs), device=self.device)) % self.capacity
        for name, value in values.items():
            self._steps[name][places] = value.to(self.device)
        self._steps["age"][places] = self.begun
        self.place = (self.place + len(pairs)) % self.capacity
        self.size = min(self.capacity, self.size + len(pairs))

    def sample(self, count: int, generator: torch.Generator | None = None) -> Batch:
        """Transitions drawn uniformly from those whose pair is still stored."""
        fresh = torch.nonzero(self._steps["age"][:self.size] > self.begun - self.episodes).flatten()
        rows = fresh[torch.randint(len(fresh), (count,), generator=generator).to(self.device)]
        step = {name: value[rows] for name, value in self._steps.items()}
        return Batch(self._pairs["fixed"][step["pair"]].float(), self._pairs["moving"][step["pair"]].float(),
                     step["before"].float(), step["action"].float(), step["plan"], step["reward"], step["ended"])
