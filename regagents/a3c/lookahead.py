"""How an A3C agent registers: it stops by its value, with or without Monte Carlo look-ahead (Sun et al. 2018)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from regagents.a3c.policies import A3CPolicy, Memory, chosen
from regagents.common.player import selected
from regenv.core import RegistrationCore
from regenv.ops.affine import homogeneous, invert_affine, matmul
from regenv.parts.start import UniformStart
from regenv.state import EpisodeState
from regenv.task import is_linear

THRESHOLDS = 41  # candidates of each kind
TEMPERATURES = (0.025, 0.05, 0.1, 0.2, 0.4, 0.8)    # candidates, besides none
DOUBTFUL = -math.log1p(4.0)     # value below which it has: that of a mean landmark error of four pixels
LEFT = (0, 10)  # steps before the nearest pose whose values are tried as thresholds of look-ahead


@dataclass(frozen=True)
class Lookahead:
    """Monte Carlo roll-outs from a pose whose value says that the images are aligned (Sun et al. 2018, eq. 5).

    The value recognises the neighbourhood of alignment, but hardly the last pixels of the way. So the policy takes
    some more steps, until it moves to and fro about its optimum, before the roll-outs begin.

    Every pose that a roll-out visits is a sample of eq. 5, weighted by the softmax of its own value. The paper weights
    the last pose of a trajectory by the sum of its values, which has no meaning where values are negative.

    Args:
        rollouts: trajectories of a lane, played as one batch. depth: steps of each.
        settle: steps of the policy before them.
        temperature: of the softmax, in units of the value; None weights all poses alike.
        attempts: of a lane that the values say has gone astray, the first included.
        seed: of the roll-outs' actions.
    """

    rollouts: int = 20
    depth: int = 10
    settle: int = 100
    temperature: float | None = None
    attempts: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.rollouts, self.depth, self.attempts) < 1 or self.settle < 0:
            raise ValueError(f"Lookahead: rollouts is {self.rollouts}, depth {self.depth}, attempts {self.attempts} "
                             f"and settle {self.settle}; the first three must be at least 1, the last not negative.")
        if self.temperature is not None and not self.temperature > 0:
            raise ValueError(f"Lookahead: temperature is {self.temperature}; it must be positive, or None.")

    def __call__(self, policy: A3CPolicy, core: RegistrationCore, state: EpisodeState,
                 memory: Memory) -> tuple[Tensor, Tensor]:
        """Poses (B, P), the mean of the poses that the roll-outs visit, and (B,), the mean of their values.

        Poses are averaged relative to the present estimate (translation, scale, cos and sin of the angle; in 3D the
        rotation nearest to the mean matrix), so that the truth is not used.
        """
        maps, values = self.visited(policy, core, state, memory)
        return self.mean(core, state, maps, values), values.mean(1)

    def visited(self, policy: A3CPolicy, core: RegistrationCore, state: EpisodeState,
                memory: Memory) -> tuple[Tensor, Tensor]:
        """Pull-backs (B, K, D+1, D+1) of the poses that the roll-outs visit, relative to the present ones, and their
        values (B, K). The first action is drawn uniformly, the others by the policy."""
        generator = torch.Generator().manual_seed(self.seed)
        each = torch.arange(state.lanes).repeat_interleave(self.rollouts)
        walk, held = state.select(each), selected(memory, each)
        transform = core.task.transform
        assert is_linear(transform)
        back, maps, values = invert_affine(transform.matrix(state.pose))[each], [], []
        logits, _, held = policy(core.observe(walk), held)
        action = chosen(torch.zeros_like(logits), False, generator)
        for _ in range(self.depth):
            walk = core.step(walk, action)[0]
            logits, value, held = policy(core.observe(walk), held)
            action = chosen(logits, False, generator)
            maps.append(matmul(back, transform.matrix(walk.pose)).unflatten(0, (-1, self.rollouts)))
            values.append(value.unflatten(0, (-1, self.rollouts)))
        return torch.cat(maps, 1), torch.cat(values, 1)

    def mean(self, core: RegistrationCore, state: EpisodeState, maps: Tensor, values: Tensor) -> Tensor:
        """Poses (B, P): the present ones with the weighted mean of what :meth:`visited` gives."""
        transform = core.task.transform
        assert is_linear(transform)
        sharpness = 0.0 if self.temperature is None else 1 / self.temperature
        weight = (sharpness * values.double()).softmax(1)
        return transform.parameters(matmul(transform.matrix(state.pose), weighted_mean(maps, weight)))


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
    """Register every lane: the most probable action within reach until the value is ``threshold`` or ``steps`` are
    taken.

    Args: lookahead: a lane that has reached the threshold takes ``settle`` more steps; then, or after ``steps`` without
    reaching it, the mean of the roll-outs replaces its pose. Where their values say that the lane has gone astray, it
    plays again, as often as ``attempts`` allows, from starts moved at random by up to half of the range, the same for
    all lanes; the end of the highest value counts.
    Returns: the episodes with each lane at its final pose, and which lanes (B,) reached the threshold.
    """
    final, reached, value = _ends(policy, core, state, state.pose, threshold, steps, lookahead)
    for attempt in range(1, lookahead.attempts if lookahead else 1):
        astray = value < DOUBTFUL
        if not astray.any():
            break
        lanes = state.select(astray)
        begun = core.begin(lanes.pair, _moved(core, lanes.pose, attempt), lanes.anchor, lanes.guard_seed)
        again = _ends(policy, core, begun, lanes.pose, threshold, steps, lookahead)
        better = torch.zeros_like(astray).masked_scatter(astray, again[2] > value[astray])
        for kept, new in zip((final, reached, value), again, strict=True):
            kept[better] = new[better[astray]]
    return replace(core.begin(state.pair, final, state.anchor), steps=state.steps), reached


def _ends(policy: A3CPolicy, core: RegistrationCore, state: EpisodeState, origin: Tensor, threshold: float, steps: int,
          lookahead: Lookahead | None) -> tuple[Tensor, Tensor, Tensor]:
    """Poses (B, P) in which lanes end, whether they reached the threshold, and the values of their roll-outs (B,)."""
    reached, value, final = torch.zeros(state.lanes, dtype=torch.bool), torch.zeros(state.lanes), state.pose.clone()
    for lanes, ended, memory, there in settled(policy, core, state, origin, threshold, steps, lookahead):
        reached[lanes], final[lanes] = there, ended.pose
        if lookahead is not None:
            final[lanes], value[lanes] = lookahead(policy, core, ended, memory)
    return final, reached, value


def settled(policy: A3CPolicy, core: RegistrationCore, state: EpisodeState, origin: Tensor, threshold: float,
            steps: int, lookahead: Lookahead | None = None) -> Iterator[tuple[Tensor, EpisodeState, Memory, Tensor]]:
    """The lanes that end together, their episodes and memory before the roll-outs, and which reached the threshold.

    Args: as of :func:`register_until_value`; origin: (B, P), poses from which :func:`within_reach` counts.
    """
    memory, reached = policy.begin(state.lanes), torch.zeros(state.lanes, dtype=torch.bool)
    lanes, settle = torch.arange(state.lanes), lookahead.settle if lookahead else 0
    due, running = torch.full((state.lanes,), steps), state
    for step in range(steps + settle + 1):
        logits, value, memory = policy(core.observe(running), memory)
        there = (value >= threshold) & ~reached[lanes]
        due[lanes[there]], reached[lanes[there]] = step + settle, True
        over = due[lanes] <= step
        if over.any():
            yield lanes[over], running.select(over), selected(memory, over), reached[lanes[over]]
            running, lanes, logits = running.select(~over), lanes[~over], logits[~over]
            memory = selected(memory, ~over)
        if not len(lanes):
            return
        allowed = within_reach(core, origin[lanes], running.pose)
        running = core.step(running, logits.masked_fill(~allowed, -torch.inf).argmax(1))[0]


def within_reach(core: RegistrationCore, origin: Tensor, pose: Tensor) -> Tensor:
    """Which actions (B, A) bool keep the motion since the start within the range that starts are drawn from.

    The motion from a start, ``origin`` (B, P), to the solution is the inverse of a drawn pose: what goes further than a
    draw, and a step more to move to and fro, is astray. Where no action stays within, all are allowed.
    """
    transform, drawn = core.task.transform, core.task.start
    assert is_linear(transform) and isinstance(drawn, UniformStart)
    limit = torch.tensor(drawn.ranges, dtype=torch.float64) + core.deltas.abs().amax(0)
    after = transform.matrix(transform.apply(pose[:, None], core.deltas))
    moved = transform.parameters(matmul(invert_affine(after), transform.matrix(origin)[:, None]))
    still = transform.parameters(torch.eye(after.shape[-1], dtype=torch.float64))
    allowed = ((moved - still).abs() <= limit).all(-1)
    return allowed | ~allowed.any(1, keepdim=True)


def _moved(core: RegistrationCore, pose: Tensor, attempt: int) -> Tensor:
    """Poses (B, P) moved by the inverse of a draw of the starts' range, halved: the same for all lanes."""
    transform = core.task.transform
    assert is_linear(transform)
    draw = transform.from_draws(torch.from_numpy(core.task.start.draw([np.random.default_rng(attempt)], 0.5)))
    return transform.parameters(matmul(transform.matrix(pose), invert_affine(transform.matrix(draw))))


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


@torch.inference_mode()
def best_temperature(policy: A3CPolicy, core: RegistrationCore, states: Iterable[EpisodeState], threshold: float,
                     steps: int) -> float | None:
    """The temperature of :class:`Lookahead` whose poses have the least mean ``log(1 + D)``, which those few that have
    gone astray do not decide; None where weights do not help. All are judged on the same roll-outs.

    Args: states: episodes at their start, on pairs of known truth, some at a time.
    """
    ahead = Lookahead()
    looks = {each: replace(ahead, temperature=each) for each in (None, *TEMPERATURES)}
    errors = dict.fromkeys(looks, 0.0)
    for state in states:
        for _, ended, memory, _ in settled(policy, core, state, state.pose, threshold, steps, ahead):
            seen, distance = ahead.visited(policy, core, ended, memory), core.measure(ended.pair)
            for each, look in looks.items():
                errors[each] += float(distance(look.mean(core, ended, *seen)).log1p().sum())
    return min(looks, key=lambda each: errors[each])
