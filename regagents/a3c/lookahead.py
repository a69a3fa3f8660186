"""How an A3C agent registers: it stops by its value, with or without Monte Carlo look-ahead (Sun et al. 2018)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from regagents.a3c.policies import A3CPolicy, Memory, chosen
from regagents.common.player import selected
from regenv.core import RegistrationCore
from regenv.ops.affine import homogeneous, invert_affine, matmul
from regenv.state import EpisodeState
from regenv.task import is_linear

THRESHOLDS = 41  # candidates of each kind
LEFT = (0, 10)  # steps before the nearest pose whose values are tried as thresholds of look-ahead


@dataclass(frozen=True)
class Lookahead:
    """Monte Carlo roll-outs from a pose whose value says that the images are aligned (Sun et al. 2018, eq. 5).

    The value recognises the neighbourhood of alignment, but hardly the last pixels of the way. So the policy takes
    some more steps, until it moves to and fro about its optimum, before the roll-outs begin.

    Args: rollouts: trajectories of a lane, played as one batch; depth: steps of each; settle: steps of the policy
    before them; seed: of the roll-outs' actions.
    """

    rollouts: int = 20
    depth: int = 10
    settle: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        if self.rollouts < 1 or self.depth < 1 or self.settle < 0:
            raise ValueError(f"Lookahead: rollouts is {self.rollouts}, depth {self.depth} and settle {self.settle}; "
                             "the first two must be at least 1, the last not negative.")

    def __call__(self, policy: A3CPolicy, core: RegistrationCore, state: EpisodeState, memory: Memory) -> Tensor:
        """Poses (B, P): the mean of the poses along all trajectories, weighted by the sum of the values along each.

        The first action is drawn uniformly, the others by the policy. Poses are averaged relative to the present
        estimate (translation, scale, cos and sin of the angle; in 3D the rotation nearest to the mean matrix), so that
        the truth is not used. A trajectory whose values have a negative sum has no weight.
        """
        generator = torch.Generator().manual_seed(self.seed)
        each = torch.arange(state.lanes).repeat_interleave(self.rollouts)
        walk, held = state.select(each), selected(memory, each)
        transform = core.task.transform
        assert is_linear(transform)
        here = transform.matrix(state.pose)
        back, total, passed = invert_affine(here)[each], torch.zeros(len(each)), []
        for depth in range(self.depth):
            logits, value, held = policy(core.observe(walk), held)
            action = chosen(torch.zeros_like(logits) if depth == 0 else logits, False, generator)
            walk = core.step(walk, action)[0]
            total = total + value
            passed.append(matmul(back, transform.matrix(walk.pose)).unflatten(0, (-1, self.rollouts)))
        total = total + policy(core.observe(walk), held)[1]
        weight = total.clamp(min=0).view(-1, self.rollouts).double()
        weight = torch.where(weight.sum(1, keepdim=True) > 0, weight, 1.0)
        weight = (weight / (self.depth * weight.sum(1, keepdim=True))).repeat(1, self.depth)
        return transform.parameters(matmul(here, weighted_mean(torch.cat(passed, 1), weight)))


def weighted_mean(maps: Tensor, weight: Tensor) -> Tensor:
    """Mean (B, D+1, D+1) of similarity pull-backs (B, K, D+1, D+1): of the parameters of their push-forwards.

    Translations, scales and rotation matrices are averaged, the last mapped to the nearest rotation: in 2D that is the
    mean of cos and sin. Args: weight (B, K), rows sum to one.
    """
    n = maps.shape[-1] - 1
    pushed = invert_affine(maps)
    scale = torch.linalg.det(pushed[..., :n, :n]).pow(1 / n)
    rotation = (weight[..., None, None] * pushed[..., :n, :n] / scale[..., None, None]).sum(1)
    u, _, vt = torch.linalg.svd(rotation)
    shift = (weight[..., None] * pushed[..., :n, n]).sum(1)
    return invert_affine(homogeneous(u @ vt * (weight * scale).sum(1)[:, None, None], shift))


@torch.inference_mode()
def register_until_value(policy: A3CPolicy, core: RegistrationCore, state: EpisodeState, threshold: float, steps: int,
                         lookahead: Lookahead | None = None) -> tuple[EpisodeState, Tensor]:
    """Register every lane: the most probable action until the value reaches ``threshold`` or ``steps`` are taken.

    Args: lookahead: a lane that has reached the threshold takes ``settle`` more steps; then, or after ``steps`` without
    reaching it, the mean of the roll-outs replaces its pose.
    Returns: the episodes with each lane at its final pose, and which lanes (B,) reached the threshold.
    """
    memory, reached = policy.begin(state.lanes), torch.zeros(state.lanes, dtype=torch.bool)
    lanes, final, settle = torch.arange(state.lanes), state.pose.clone(), lookahead.settle if lookahead else 0
    due, running = torch.full((state.lanes,), steps), state
    for step in range(steps + settle + 1):
        logits, value, memory = policy(core.observe(running), memory)
        there = (value >= threshold) & ~reached[lanes]
        due[lanes[there]], reached[lanes[there]] = step + settle, True
        over = due[lanes] <= step
        if over.any():
            ended = running.select(over)
            final[lanes[over]] = (ended.pose if lookahead is None
                                  else lookahead(policy, core, ended, selected(memory, over)))
            running, lanes, logits = running.select(~over), lanes[~over], logits[~over]
            memory = selected(memory, ~over)
        if not len(lanes):
            break
        running = core.step(running, logits.argmax(1))[0]
    return replace(core.begin(state.pair, final, state.anchor), steps=state.steps), reached


@torch.inference_mode()
def best_threshold(policy: A3CPolicy, core: RegistrationCore, state: EpisodeState, steps: int,
                   lookahead: Lookahead | None = None) -> float:
    """The threshold of :func:`register_until_value` whose final poses have the least mean D, on pairs of known truth.

    Without look-ahead, all candidates are judged on one roll-out that no threshold ends. With it, a few are played:
    the median values some steps before the roll-out is nearest.
    """
    memory, running = policy.begin(state.lanes), state
    values, errors = [], []
    for step in range(steps + 1):
        logits, value, memory = policy(core.observe(running), memory)
        values.append(value)
        errors.append(running.distance)
        if step < steps:
            running = core.step(running, logits.argmax(1))[0]
    value, error = torch.stack(values), torch.stack(errors)

    def mean_error(threshold: float) -> float:
        there = value >= threshold
        first = torch.where(there.any(0), there.int().argmax(0), steps)
        return float(error.gather(0, first[None]).mean())

    if lookahead is None:
        shares = torch.linspace(0, 1, THRESHOLDS)
        candidates = torch.cat([torch.quantile(each, shares) for each in (value.flatten(), value.amax(0))]).tolist()
        return min(candidates, key=mean_error)
    nearest = error.argmin(0)
    before = [value.gather(0, (nearest - steps_left).clamp(min=0)[None]).median().item() for steps_left in LEFT]
    return min(before, key=lambda threshold: float(
        register_until_value(policy, core, state, threshold, steps, lookahead)[0].distance.mean()))
