"""A value that also tells poses apart after arrival, fitted to a frozen policy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from regagents.a3c.policies import A3CPolicy, Memory, chosen
from regagents.common.player import selected
from regenv.core import RegistrationCore
from regenv.parts.start import UniformStart
from regenv.parts.termination import Never
from regenv.state import EpisodeState
from regenv.task import Task

ASTRAY_DEGREES = 180.0  # half-width of the rotations of starts that are astray
ASTRAY_EVERY = 6        # of so many batches of pairs, the starts of one are astray, of the others near the solution
NEAR_SCALE = 0.3        # of the task's ranges
LANES = 16              # pairs played at once
APPROACH, EVERY = 40, 4         # steps of the policy before the roll-outs, and of them those whose states are kept


def closeness(distance: Tensor) -> Tensor:
    """What the value of a pose at distance D is fitted to: ``-log(1 + D)``.

    The paper's returns of -D (eq. 4) end at arrival, where D < 1, and grow with the way that is left: they hardly tell
    poses within a pixel apart. The logarithm has most of its range there and none too much of it far away.
    """
    return -torch.log1p(distance)


@dataclass(frozen=True)
class ValueFit:
    """Fits the value head of an agent whose features and policy stay as they are.

    States come from the policy's own way on pairs of the agent's task, and from roll-outs like those of
    :class:`~regagents.a3c.lookahead.Lookahead` at its end (the first action uniform, the others by their
    probabilities). Most starts are near the solution; the others are turned by up to half a circle, so that the value
    also knows what has gone astray. Measured on training pairs, fitting discounted sums of the same quantity along the
    roll-outs (gamma .5 and .8) weighted them no better.

    Args: pairs: to play; rollouts, depth: on each; epochs: over all states; batch_size, learning_rate: of Adam, which
    falls to zero by a cosine; seed: of pairs, actions and batches.
    """

    pairs: int
    rollouts: int = 6
    depth: int = 10
    epochs: int = 8
    batch_size: int = 512
    learning_rate: float = 1e-3
    seed: int = 8_000_000

    def __call__(self, policy: A3CPolicy, task: Task) -> float:
        """Fit; returns the mean squared error of the last epoch."""
        near, astray = (RegistrationCore(replace(task, termination=Never(), start=start)) for start in _starts(task))
        seen, distance = (torch.cat(parts) for parts in zip(*self._states(policy, near, astray), strict=True))
        generator = torch.Generator().manual_seed(self.seed)
        optimizer = torch.optim.Adam(policy.value_head.parameters(), self.learning_rate)
        steps = max(1, len(seen) // self.batch_size)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.epochs * steps)
        error = 0.0
        for _ in range(self.epochs):
            order, error = torch.randperm(len(seen), generator=generator), 0.0
            for batch in order.chunk(steps):
                loss = F.mse_loss(policy.value_head(seen[batch].float()).squeeze(1), closeness(distance[batch]))
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
                error += loss.item() / steps
        return error

    def _states(self, policy: A3CPolicy, near: RegistrationCore,
                astray: RegistrationCore) -> Iterator[tuple[Tensor, Tensor]]:
        """What the value head takes (N, width), half precision, and D (N,), of some pairs at a time."""
        generator = torch.Generator().manual_seed(self.seed)
        for first in range(0, self.pairs, LANES):
            rngs = [np.random.default_rng(self.seed + first + lane) for lane in range(min(LANES, self.pairs - first))]
            core = near if first // LANES % ASTRAY_EVERY else astray
            yield from self._way(policy, core, core.reset(rngs), generator)

    @torch.no_grad()
    def _way(self, policy: A3CPolicy, core: RegistrationCore, state: EpisodeState,
             generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        memory: Memory = policy.begin(state.lanes)
        for step in range(APPROACH + self.depth + 1):
            if step == APPROACH:
                each = torch.arange(state.lanes).repeat_interleave(self.rollouts)
                state, memory = state.select(each), selected(memory, each)
            seen = core.observe(state)
            assert isinstance(seen, Tensor)
            hidden, judged, memory = policy.encode(seen, memory)
            if step >= APPROACH or step % EVERY == 0:
                yield judged.half(), state.distance.float()
            logits = policy.policy_head(hidden)
            if step == APPROACH:
                logits = torch.zeros_like(logits)
            state = core.step(state, chosen(logits, step < APPROACH, generator))[0]


def _starts(task: Task) -> tuple[UniformStart, UniformStart]:
    """Starts near the solution, and starts turned any way."""
    assert isinstance(task.start, UniformStart)
    turns, ranges = slice(task.grid.ndim, -1), np.array(task.start.ranges)
    ranges[turns] = ASTRAY_DEGREES
    return (replace(task.start, near=1.0, near_scale=NEAR_SCALE),
            replace(task.start, ranges=tuple(ranges.tolist()), near=0.0))
