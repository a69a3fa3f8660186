"""Where an action brings a pose, and what follows of it: the one step of every task, in torch and in compiled code.

In torch it is made of the task's parts, which may be anybody's. On the CPU a task whose parts are all known to
:mod:`regenv.ops.kernels.poses_cpu` takes one call of that instead, for in torch it is two hundred calls on tensors of a
few numbers, ten times as long as a small image takes to warp. A part says so by its ``kernel``: the name there, and the
names of the fields that are its numbers. A subclass that says nothing is another part.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regenv.data.pairs import PairBatch
from regenv.ops.affine import about, invert_affine, matmul, transform_points
from regenv.ops.kernels import cpu, operators, poses_cpu
from regenv.ops.landmarks import tre
from regenv.ops.random import counter_uniform
from regenv.ops.warp import warp_points
from regenv.state import EpisodeState
from regenv.task import Measure, Task

TRANSFORMS = {"rigid": poses_cpu.RIGID, "motion": poses_cpu.MOTION, "similarity": poses_cpu.SIMILARITY,
              "amplitudes": poses_cpu.AMPLITUDES}
DISTANCES = {"parameters": poses_cpu.PARAMETERS, "landmarks": poses_cpu.LANDMARKS, "target": poses_cpu.TARGET}
STOPS = {"never": poses_cpu.NEVER, "arrived": poses_cpu.ARRIVED}
GUARDS = {"fuzzy": 0}
_NOBODY: NDArray[np.int64] = np.empty(0, np.int64)


class Placement(NamedTuple):
    """What follows of poses: see :class:`regenv.state.EpisodeState`; ``arrived`` None: not known yet."""

    anchor: Tensor
    pose: Tensor
    pull_back: Tensor
    distance: Tensor
    arrived: Tensor | None


def measure_of(task: Task, pair: PairBatch) -> Measure:
    """D of poses (B, ..., P) of these pairs, as a function."""
    if task.distance is None:
        return lambda pose: torch.full(pose.shape[:1], torch.nan, dtype=torch.float64, device=pose.device)
    return partial(task.distance, task.transform, pair)


def accepted(task: Task, state: EpisodeState, pose: Tensor, delta: Tensor) -> Tensor:
    """Which parameters' parts of changes ``delta`` (B, A, P) of poses (B, P) have an effect: (B, A, P) bool."""
    assert task.guard is not None and state.guard_seed is not None
    return task.guard.accepted(pose, delta, counter_uniform(state.guard_seed, state.steps, 2 * pose.shape[-1]))


def placed(task: Task, state: EpisodeState, delta: Tensor | None) -> Placement:
    """What actions of changes ``delta`` make of a state, or None what its poses are, by the task's parts in torch."""
    transform, pair, anchor, pose = task.transform, state.pair, state.anchor, state.pose
    if delta is not None:
        residual = about(pair.center, transform.matrix(pose))
        moved, start = transform.rebase(anchor, residual, pose)    # in lanes whose truth is unknown
        kept = pair.known.view(-1, *(1,) * (pose.ndim - 1))
        anchor = torch.where(pair.known[:, None, None], anchor, moved)
        start = torch.where(kept, pose, start)
        if task.guard is not None:
            delta = delta * accepted(task, state, start, delta[:, None])[:, 0]
        pose = transform.apply(start, delta)
    pull_back = matmul(anchor, about(pair.center, transform.matrix(pose)))
    distance = measure_of(task, pair)(pose) + torch.where(pair.known, 0.0, torch.nan)
    return Placement(anchor, pose, pull_back, distance, None)


@dataclass(frozen=True)
class Compiled:
    """:func:`placed` of tasks whose parts are all known to the kernels; it finds out who has arrived as well.

    Args: codes: transform, distance, stopping rule. units: numbers of the transform and the distance.
    """

    codes: tuple[int, int, int]
    units: tuple[float, float, float]
    tolerance: float
    deviations: NDArray[np.float64]
    k: float

    @classmethod
    def of(cls, task: Task, device: torch.device) -> Compiled | None:
        """None where a part is not known to the kernels, or the device is not theirs."""
        move, stop = _known(task.transform, TRANSFORMS), _known(task.termination, STOPS)
        far = (poses_cpu.NOTHING, []) if task.distance is None else _known(task.distance, DISTANCES)
        guard = (0, [(), 1.0]) if task.guard is None else _known(task.guard, GUARDS)
        if (operators.backend(device) is not cpu or move is None or stop is None or far is None or guard is None
                or (far[0] == poses_cpu.LANDMARKS and not task.transform.linear)):
            return None
        unit, scale_unit = move[1] or (1.0, 1.0)
        return cls((move[0], far[0], stop[0]), (unit, scale_unit, *(far[1] or (1.0,))), *(stop[1] or (0.0,)),
                   np.asarray(guard[1][0], np.float64), guard[1][1])

    def placed(self, state: EpisodeState, delta: Tensor | None, deltas: NDArray[np.float64]) -> Placement:
        """Args: delta (B, P) float64, or None; deltas (A, P), the discrete actions."""
        pair, pose = state.pair, state.pose.contiguous()
        ended, start = torch.empty_like(pose), torch.empty_like(state.pull_back)
        pull_back, distance = torch.empty_like(start), pose.new_empty(len(pose))
        arrived = torch.empty(len(pose), dtype=torch.bool)
        seeds = _NOBODY if state.guard_seed is None else state.guard_seed.numpy()
        poses_cpu.place(
            self.codes, self.units, self.tolerance, deltas, pair.known.numpy(), _array(pair.center),
            _array(pair.landmarks, pair.lanes) if self.codes[1] == poses_cpu.LANDMARKS else _nothing(3),
            _nothing(2) if pair.target_pose is None else _array(pair.target_pose), _array(state.anchor), pose.numpy(),
            _nothing(2) if delta is None else _array(delta), seeds, state.steps.numpy(), self.deviations, self.k,
            ended.numpy(), start.numpy(), pull_back.numpy(), distance.numpy(), arrived.numpy())
        return Placement(start, ended, pull_back, distance, arrived)

    def passing(self, state: EpisodeState, deltas: NDArray[np.float64]) -> Tensor:
        """Which discrete actions the guard will let through, (B, A) bool."""
        assert state.guard_seed is not None
        out = torch.empty((state.lanes, len(deltas)), dtype=torch.bool)
        poses_cpu.passing(_array(state.pose), deltas, state.guard_seed.numpy(), state.steps.numpy(), self.deviations,
                          self.k, out.numpy())
        return out


def error_of(pair: PairBatch, pull_back: Tensor, displacement: Tensor | None) -> Tensor:
    """The landmark error (B,) mm of these maps, displaced first, then pulled back; NaN where it is unknown."""
    if pair.landmarks is None:
        return torch.full((pair.lanes,), torch.nan, dtype=torch.float64, device=pair.fixed.device)
    if operators.backend(pull_back.device) is cpu:
        return _error_cpu(pair, pull_back, displacement)
    return error_by_torch(pair, pull_back, displacement)


def error_by_torch(pair: PairBatch, pull_back: Tensor, displacement: Tensor | None) -> Tensor:
    """:func:`error_of` pairs with landmarks on any device: the kernel's reference."""
    assert pair.landmarks is not None
    points = pair.landmarks
    if displacement is not None:
        points_vox = transform_points(invert_affine(pair.fixed_to_world), points)
        points = transform_points(pair.fixed_to_world, warp_points(points_vox, displacement).to(torch.float64))
    moved = transform_points(pull_back, points)
    if pair.targets is not None:
        return tre(moved, pair.targets)
    error = tre(moved, transform_points(pair.truth, pair.landmarks))
    return torch.where(pair.known, error, torch.nan)


def _error_cpu(pair: PairBatch, pull_back: Tensor, displacement: Tensor | None) -> Tensor:
    points = _array(pair.landmarks, pair.lanes)
    field = np.empty((0, 1, 1, 1, 1), np.float32)
    if displacement is not None:
        field = cpu.volume_of(displacement)
    out = torch.empty(pair.lanes, dtype=torch.float64)
    poses_cpu.errors(points, _array(pull_back), _array(pair.truth), pair.known.numpy(),
                     _nothing(3) if pair.targets is None else _array(pair.targets, pair.lanes),
                     _array(pair.fixed_to_world), field, out.numpy())
    return out


def _known(part: Any, codes: dict[str, int]) -> tuple[int, list[Any]] | None:
    """A part's number in the kernels, and its own numbers there."""
    name, *numbers = vars(type(part)).get("kernel", ("",))
    return (codes[name], [getattr(part, each) for each in numbers]) if name in codes else None


def _array(tensor: Tensor | None, lanes: int | None = None) -> NDArray[Any]:
    """Contiguous float64 memory of a tensor; ``lanes``: of one that may have one lane for all."""
    assert tensor is not None
    if lanes is not None and len(tensor) != lanes:
        tensor = tensor.expand(lanes, *tensor.shape[1:])
    return tensor.detach().to(torch.float64).contiguous().numpy()


def _nothing(ndim: int, kept: Sequence[NDArray[Any]] = tuple(np.empty((0,) * n) for n in range(4))) -> NDArray[Any]:
    return kept[ndim]
