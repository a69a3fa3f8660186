"""Where an action brings a pose, and what follows of it: the one step of every task, in torch and in compiled code.

In torch it is made of the task's parts, which may be anybody's. On the CPU a task whose parts are all known to
:mod:`regenv.ops.kernels.poses_cpu` takes one call of that instead, for in torch it is two hundred calls on tensors of a
few numbers, ten times as long as a small image takes to warp. A part says so by its ``kernel``: the name there, and the
names of the fields that are its numbers. A subclass that says nothing is another part.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regenv.data.pairs import Arrays, PairBatch
from regenv.ops.affine import about, invert_affine, matmul, transform_points
from regenv.ops.kernels import cpu, operators, poses_cpu
from regenv.ops.landmarks import tre
from regenv.ops.random import counter_uniform
from regenv.ops.warp import VIEWS, warp_points
from regenv.state import EpisodeState
from regenv.task import Measure, Task

TRANSFORMS = {"rigid": poses_cpu.RIGID, "motion": poses_cpu.MOTION, "similarity": poses_cpu.SIMILARITY,
              "amplitudes": poses_cpu.AMPLITUDES, "field": poses_cpu.FIELD}
DISTANCES = {"parameters": poses_cpu.PARAMETERS, "landmarks": poses_cpu.LANDMARKS, "target": poses_cpu.TARGET}
STOPS = {"never": poses_cpu.NEVER, "arrived": poses_cpu.ARRIVED}
GUARDS = {"fuzzy": 0}
_NOBODY, _NO_POSE, _NO_FIELD = np.empty(0, np.int64), np.empty((1, 0)), np.empty((0, 1, 1, 1, 1), np.float32)


def measure_of(task: Task, pair: PairBatch) -> Measure:
    """D of poses (B, ..., P) of these pairs, as a function."""
    if task.distance is None:
        return lambda pose: torch.full(pose.shape[:1], torch.nan, dtype=torch.float64, device=pose.device)
    return partial(task.distance, task.transform, pair)


def accepted(task: Task, state: EpisodeState, pose: Tensor, delta: Tensor) -> Tensor:
    """Which parameters' parts of changes ``delta`` (B, A, P) of poses (B, P) have an effect: (B, A, P) bool."""
    assert task.guard is not None and state.guard_seed is not None
    return task.guard.accepted(pose, delta, counter_uniform(state.guard_seed, state.steps, 2 * pose.shape[-1]))


def moved(task: Task, state: EpisodeState, delta: Tensor | None, steps: Tensor) -> EpisodeState:
    """The state after changes ``delta`` of its poses, or None for what its poses are: all of it but score and arrival,
    which stay as they are. Images are warped once, and errors measured once; by the task's parts, in torch."""
    transform, pair, anchor, pose = task.transform, state.pair, state.anchor, state.pose
    if delta is not None:
        residual = about(pair.center, transform.matrix(pose))
        there, start = transform.rebase(anchor, residual, pose)    # in lanes whose truth is unknown
        kept = pair.known.view(-1, *(1,) * (pose.ndim - 1))
        anchor = torch.where(pair.known[:, None, None], anchor, there)
        start = torch.where(kept, pose, start)
        if task.guard is not None:
            delta = delta * accepted(task, state, start, delta[:, None])[:, 0]
        pose = transform.apply(start, delta)
    pull_back = matmul(anchor, about(pair.center, transform.matrix(pose)))
    displacement = transform.displacement(pose)
    distance = measure_of(task, pair)(pose) + torch.where(pair.known, 0.0, torch.nan)
    placed = state.after(anchor=anchor, pose=pose, pull_back=pull_back, displacement=displacement, distance=distance,
                         tre=error_of(pair, pull_back, displacement), steps=steps)
    views, moments = placed.look(task.observation.view)
    return placed.after(views=views, moments=moments)


@dataclass(frozen=True)
class Compiled:
    """:func:`moved` of tasks whose parts are all known to the kernels; it finds out who has arrived as well.

    Args: codes: transform, distance, stopping rule. units: numbers of the transform and the distance. deltas (A, P):
    the discrete actions. deviations, k: of the guard.
    """

    task: Task
    codes: tuple[int, int, int]
    units: tuple[float, float, float]
    tolerance: float
    deltas: NDArray[np.float64]
    deviations: NDArray[np.float64]
    k: float

    @classmethod
    def of(cls, task: Task, device: torch.device) -> Compiled | None:
        """None where a part is not known to the kernels, or the device is not theirs."""
        move, stop = _known(task.transform, TRANSFORMS), _known(task.termination, STOPS)
        far = (poses_cpu.NOTHING, []) if task.distance is None else _known(task.distance, DISTANCES)
        guard: tuple[int, list[Any]] | None = (0, [(), 1.0]) if task.guard is None else _known(task.guard, GUARDS)
        if (operators.backend(device) is not cpu or move is None or stop is None or far is None or guard is None
                or (far[0] == poses_cpu.LANDMARKS and not task.transform.linear) or task.observation.view not in VIEWS):
            return None
        deltas, count = task.actions.deltas, len(task.transform.names)
        if move[0] != poses_cpu.FIELD and (deltas.shape[1] != count or (task.guard and len(guard[1][0]) != count)):
            return None     # torch says what does not fit
        unit, scale_unit = move[1] or (1.0, 1.0)
        far_unit, tolerance = (far[1] or [1.0])[0], (stop[1] or [0.0])[0]
        return cls(task, (move[0], far[0], stop[0]), (unit, scale_unit, far_unit), tolerance, deltas,
                   np.asarray(guard[1][0], np.float64), guard[1][1])

    def moved(self, state: EpisodeState, delta: Tensor | None, steps: Tensor) -> EpisodeState:
        """As :func:`moved`, and arrival."""
        transform, pair, known = self.task.transform, state.pair, state.pair.arrays
        lanes, ndim = len(known.center), pair.ndim
        dense = self.codes[0] == poses_cpu.FIELD        # its pose is no row of parameters
        before = _NO_POSE[:1].repeat(lanes, 0) if dense else _array(state.pose)
        if not dense and before.shape != (lanes, len(transform.names)):     # kernels do not look at bounds
            raise ValueError(f"pose has shape {before.shape}; it must be {(lanes, len(transform.names))}.")
        anchor = state.anchor if state.anchor.shape == pair.truth.shape else state.anchor.expand_as(pair.truth)
        ended, start, pull_back = np.empty_like(before), np.empty_like(known.truth), np.empty_like(known.truth)
        seeds = None if self.task.guard is None else state.guard_seed
        rows, distance, arrived = np.empty((lanes, 4, 4), np.float32), np.empty(lanes), np.empty(lanes, np.bool_)
        poses_cpu.place(
            self.codes, self.units, self.tolerance, self.deltas, known.fixed_to_world, known.world_to_moving,
            known.known, known.center, known.landmarks, known.target_pose, _array(anchor), before,
            _NO_POSE[:0] if delta is None or dense else _array(delta.expand_as(state.pose)),
            _NOBODY if seeds is None else seeds.numpy(), state.steps.numpy(), self.deviations, self.k,
            ended, start, pull_back, rows, distance, arrived)
        if dense:
            pose = state.pose if delta is None else transform.apply(state.pose, delta)
        else:
            pose = torch.from_numpy(ended)
        displacement = transform.displacement(pose)
        bent, field = displacement is not None, np.empty((lanes, ndim, 1, 1, 1), np.float32)
        if displacement is not None:
            operators.check("step", pair.moving, None, displacement, pair.fixed.shape[2:])
            field = cpu.volume_of(displacement)
        image, moments = cpu.look(known.fixed, known.moving, (rows, field, True, bent), self.task.observation.view)
        return state.after(
            anchor=torch.from_numpy(start), pose=pose, pull_back=torch.from_numpy(pull_back),
            displacement=displacement, distance=torch.from_numpy(distance),
            tre=_error(known, pull_back, field if bent else _NO_FIELD), steps=steps, moments=moments,
            views={self.task.observation.view: image if ndim == 3 else image.squeeze(2)},
            arrived=torch.from_numpy(arrived))

    def passing(self, state: EpisodeState) -> Tensor:
        """Which discrete actions the guard will let through, (B, A) bool."""
        assert state.guard_seed is not None
        out = torch.empty((state.lanes, len(self.deltas)), dtype=torch.bool)
        poses_cpu.passing(_array(state.pose), self.deltas, state.guard_seed.numpy(), state.steps.numpy(),
                          self.deviations, self.k, out.numpy())
        return out


def error_of(pair: PairBatch, pull_back: Tensor, displacement: Tensor | None) -> Tensor:
    """The landmark error (B,) mm of these maps, displaced first, then pulled back; NaN where it is unknown."""
    if operators.backend(pull_back.device) is cpu:
        if displacement is not None:
            operators.check("landmark error", pair.moving, None, displacement, displacement.shape[2:])
        field = _NO_FIELD if displacement is None else cpu.volume_of(displacement)
        return _error(pair.arrays, _array(pull_back), field)
    return error_by_torch(pair, pull_back, displacement)


def error_by_torch(pair: PairBatch, pull_back: Tensor, displacement: Tensor | None) -> Tensor:
    """:func:`error_of` on any device: the kernel's reference."""
    if pair.landmarks is None:
        return torch.full((pair.lanes,), torch.nan, dtype=torch.float64, device=pair.fixed.device)
    points = pair.landmarks
    if displacement is not None:
        points_vox = transform_points(invert_affine(pair.fixed_to_world), points)
        points = transform_points(pair.fixed_to_world, warp_points(points_vox, displacement).to(torch.float64))
    moved = transform_points(pull_back, points)
    if pair.targets is not None:
        return tre(moved, pair.targets)
    error = tre(moved, transform_points(pair.truth, pair.landmarks))
    return torch.where(pair.known, error, torch.nan)


def _error(known: Arrays, pull_back: NDArray[np.float64], field: NDArray[np.float32]) -> Tensor:
    out = np.full(len(pull_back), np.nan)
    if len(known.landmarks):
        poses_cpu.errors(known.landmarks, pull_back, known.truth, known.known, known.targets, known.fixed_to_world,
                         field, out)
    return torch.from_numpy(out)


def _known(part: Any, codes: dict[str, int]) -> tuple[int, list[Any]] | None:
    """A part's number in the kernels, and its own numbers there."""
    name, *numbers = vars(type(part)).get("kernel", ("",))
    return (codes[name], [getattr(part, each) for each in numbers]) if name in codes else None


def _array(tensor: Tensor) -> NDArray[np.float64]:
    """Contiguous float64 memory of a tensor."""
    return tensor.detach().to(torch.float64).contiguous().numpy()
