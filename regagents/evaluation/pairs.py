"""Held-out pairs: drawn from an id of regenv, some at a time, the same ones for every method."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from regenv.core import RegistrationCore
from regenv.data.io.images import Image
from regenv.grid import Grid
from regenv.ops.affine import transform_points
from regenv.parts.termination import Never
from regenv.registry import CATALOGUE, build
from regenv.state import EpisodeState
from regenv.task import Task

CHUNK = 16  # pairs drawn at once; results do not depend on it
HELD_OUT: dict[str, tuple[str, dict[str, Any]]] = {
    "whole-head": ("RegRigid3D-v0", {"size": 64, "spacing": 3.25,
                                     "source": {"name": "heads", "subjects": ["colin27", "csi3"], "person": 0.0,
                                                "appearance": {"flat": 0, "skull": 0, "strip": 0, "crop": 0,
                                                               "plain_fixed": True, "bias": 0.15, "noise": 0.02}}}),
    "spine": ("RegRigid3D-v0", {"size": [96, 48, 48], "spacing": 4.0, "source": {"name": "spine", "split": "test"}}),
}
OF_PAIRS = ("size", "spacing", "source", "ranges", "perturbation", "landmarks", "whole", "model", "max_episode_steps")


@dataclass(frozen=True)
class Case:
    """One held-out pair of images that a pose aligns.

    Attributes:
        fixed, moving: the images, all that a method sees.
        start: (D+1, D+1) pull-back that every method starts from.
        landmarks: (N, D) fixed world, mm, on which the error is measured.
        targets: (N, D) where they belong in the moving world, mm.
        center: (D,) centre of the starting rotations, mm.
        seed: the pair's own.
    """

    fixed: Image
    moving: Image
    start: NDArray[np.float64]
    landmarks: NDArray[np.float64]
    targets: NDArray[np.float64]
    center: NDArray[np.float64]
    seed: int

    def error(self, pull_back: NDArray[np.float64]) -> float:
        """Mean distance of the landmarks from where they belong in the moving world, mm."""
        n = self.landmarks.shape[1]
        moved = self.landmarks @ pull_back[:n, :n].T + pull_back[:n, n]
        return float(np.linalg.norm(moved - self.targets, axis=1).mean())


@dataclass(frozen=True, eq=False)
class Chunk:
    """Pairs that were drawn together, at their start.

    Attributes: core: of the id, where only the time limit ends an episode; state: the fresh episodes; env: the id;
    seed: of the first pair.
    """

    core: RegistrationCore
    state: EpisodeState
    env: str
    seed: int

    @cached_property
    def cases(self) -> tuple[Case, ...]:
        """The pairs one by one; their landmarks must have known targets, as those of linear ids have."""
        return tuple(_case(self.state, lane, self.env, self.seed + lane) for lane in range(self.state.lanes))


def task_of(env_id: str, env_kwargs: Mapping[str, Any]) -> Task:
    """The task of an id, whose episodes only the time limit ends, so that no agent is told that it has arrived.

    Raises ValueError for an unknown id, and for arguments that it does not take.
    """
    if env_id not in CATALOGUE:
        raise ValueError(f"evaluate: env is {env_id!r}; it must be an id of regenv ({', '.join(CATALOGUE)}) or one of "
                         f"{', '.join(HELD_OUT)}.")
    try:
        return replace(build(env_id, **env_kwargs), termination=Never())
    except TypeError as error:
        raise ValueError(f"evaluate: {env_id} does not take these env_kwargs ({error}).") from None


def drawn(env_id: str, env_kwargs: Mapping[str, Any], first: int, count: int, seed: int) -> Chunk:
    """Pairs ``first`` to ``first + count - 1``; pair i is what a reset of the id gives for the seed ``seed + i``.

    Raises ValueError as :func:`task_of`, and where a linear id gives pairs whose truth is unknown.
    """
    core = RegistrationCore(task_of(env_id, env_kwargs))
    state = core.reset([np.random.default_rng(seed + first + lane) for lane in range(count)])
    if core.task.transform.linear and state.tre.isnan().any():
        raise ValueError(f"evaluate: {env_id} gives pairs of unknown truth; they need a truth or landmarks.")
    return Chunk(core, state, env_id, seed + first)


def chunks(env_id: str, pairs: int, seed: int, env_kwargs: Mapping[str, Any]) -> Iterator[Chunk]:
    """The pairs of an evaluation, some at a time."""
    for first in range(0, pairs, CHUNK):
        yield drawn(env_id, env_kwargs, first, min(CHUNK, pairs - first), seed)


def of_pairs(env_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Those arguments of an environment that its pairs, starts and time limit depend on."""
    return {name: value for name, value in env_kwargs.items() if name in OF_PAIRS}


def grid_of(voxel_to_world: NDArray[np.float64], shape: Sequence[int]) -> Grid:
    """The grid of a matrix (D+1, D+1) from voxel points, array-axis order, to world mm; inverse of
    ``Grid.voxel_to_world``. Of a sheared matrix the grid's direction is sheared too."""
    n = len(shape)
    steps = voxel_to_world[:n, :n][:, ::-1]
    spacing = np.linalg.norm(steps, axis=0)
    return Grid(tuple(shape), tuple(spacing.tolist()), tuple(voxel_to_world[:n, n].tolist()),
                tuple((steps / spacing).ravel().tolist()))


def _case(state: EpisodeState, lane: int, env_id: str, seed: int) -> Case:
    one = state.pair.select(slice(lane, lane + 1))
    name, to_moving_world = f"{env_id} seed {seed}", np.linalg.inv(one.world_to_moving[0].cpu().numpy())
    if one.landmarks is None:
        raise ValueError(f"{name}: the pair has no landmarks to measure an error on.")
    targets = transform_points(one.truth, one.landmarks) if one.targets is None else one.targets
    return Case(fixed=_image(one.fixed, one.fixed_to_world[0].cpu().numpy(), f"{name} (fixed)"),
                moving=_image(one.moving, to_moving_world, f"{name} (moving)"),
                start=state.pull_back[lane].cpu().numpy(), landmarks=one.landmarks[0].cpu().numpy(),
                targets=targets[0].cpu().numpy(), center=one.center[0].cpu().numpy(), seed=seed)


def _image(tensor: Tensor, voxel_to_world: NDArray[np.float64], name: str) -> Image:
    array = tensor[0, 0].cpu().numpy()
    return Image(np.ascontiguousarray(array), grid_of(voxel_to_world, array.shape), name)
