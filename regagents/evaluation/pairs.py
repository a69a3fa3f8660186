"""Held-out pairs: drawn from an environment, some at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from torch import Tensor

from regenv.core import RegistrationCore
from regenv.data.io.images import Image
from regenv.grid import Grid
from regenv.ops.affine import transform_points
from regenv.registry import CATALOGUE, build
from regenv.state import EpisodeState

CHUNK = 16          # pairs drawn at once; results do not depend on it
HELD_OUT: dict[str, tuple[str, dict[str, Any]]] = {
    "whole-head": ("RegRigid3D-v0", {"size": 64, "spacing": 3.25,
                                     "source": {"name": "heads", "subjects": ["colin27", "csi3"], "person": 0.0,
                                                "appearance": {"flat": 0, "skull": 0, "strip": 0, "crop": 0,
                                                               "plain_fixed": True, "bias": 0.15, "noise": 0.02}}}),
    "spine": ("RegRigid3D-v0", {"size": [96, 48, 48], "spacing": 4.0, "source": {"name": "spine", "split": "test"}}),
}
_LAST: list[tuple[Any, Chunk]] = []  # the chunk that this process drew last


def _chunk(env_id: str, arguments: Mapping[str, Any], first: int, count: int, seed: int) -> Chunk:
    """Pairs ``first`` and on of an evaluation; those of the last call are not drawn again."""
    wanted = (env_id, arguments, first, count, seed)
    if not _LAST or _LAST[0][0] != wanted:
        env = _env(env_id, count, arguments)
        env.reset(seed=seed + first)
        core, state = env.unwrapped.core, env.unwrapped.state  # type: ignore[attr-defined]
        if state.tre.isnan().any():
            raise ValueError(f"evaluate: {env_id} gives pairs of unknown truth; they need a truth or landmarks.")
        _LAST[:] = [(wanted, Chunk(core, state, tuple(
            _case(state, lane, f"{env_id} seed {seed + first + lane}", seed + first + lane) for lane in range(count))))]
    return _LAST[0][1]


def chunks(env_id: str, pairs: int, seed: int, env_kwargs: Mapping[str, Any]) -> Iterator[Chunk]:
    """The pairs of an evaluation, some at a time."""
    for first in range(0, pairs, CHUNK):
        yield _chunk(env_id, env_kwargs, first, min(CHUNK, pairs - first), seed)


def _case(state: EpisodeState, lane: int, name: str, seed: int) -> Case:
    one = state.pair.select(slice(lane, lane + 1))
    to_moving_world = np.linalg.inv(one.world_to_moving[0].cpu().numpy())
    assert one.landmarks is not None  # as in every pair whose error is known
    targets = transform_points(one.truth, one.landmarks) if one.targets is None else one.targets
    return Case(fixed=_image(one.fixed, one.fixed_to_world[0].cpu().numpy(), f"{name} (fixed)"),
                moving=_image(one.moving, to_moving_world, f"{name} (moving)"),
                start=state.pull_back[lane].cpu().numpy(), landmarks=one.landmarks[0].cpu().numpy(),
                targets=targets[0].cpu().numpy(), center=one.center[0].cpu().numpy(), seed=seed)


def _env(env_id: str, lanes: int, env_kwargs: Mapping[str, Any]) -> gym.vector.VectorEnv:
    if env_id in CATALOGUE and not build(env_id).transform.linear:
        raise ValueError(f"evaluate: env is {env_id!r}, which deforms; linear maps are measured here. Run "
                         "benchmarks/organs.py, dense.py or keypoints.py.")
    try:
        return gym.make_vec(env_id, num_envs=lanes, **{**env_kwargs, "stop": "never"})
    except gym.error.Error as error:
        raise ValueError(f"evaluate: env is {env_id!r}; it must be an id of regenv or one of {', '.join(HELD_OUT)} "
                         f"({error}).") from None
    except TypeError as error:
        raise ValueError(f"evaluate: {env_id} does not take these env_kwargs ({error}).") from None


def _image(tensor: Tensor, voxel_to_world: np.ndarray, name: str) -> Image:
    array = tensor[0, 0].cpu().numpy()
    return Image(np.ascontiguousarray(array), grid_of(voxel_to_world, array.shape), name)


def grid_of(voxel_to_world: np.ndarray, shape: Sequence[int]) -> Grid:
    """The grid of a matrix (D+1, D+1) from voxel points, array-axis order, to world mm; inverse of
    ``Grid.voxel_to_world``. The direction of a sheared one is sheared."""
    n = len(shape)
    steps = voxel_to_world[:n, :n][:, ::-1]
    spacing = np.linalg.norm(steps, axis=0)
    return Grid(tuple(shape), tuple(spacing.tolist()), tuple(voxel_to_world[:n, n].tolist()),
                tuple((steps / spacing).ravel().tolist()))

PAIRS = ("size", "spacing", "source", "ranges", "perturbation", "landmarks", "whole", "model", "max_episode_steps")


def _pairs_of(game: Mapping[str, Any]) -> dict[str, Any]:
    """Those arguments of an environment that its pairs and starts depend on."""
    return {name: value for name, value in game.items() if name in PAIRS}


def drawn(env_id: str, arguments: Mapping[str, Any], pairs: int, seed: int) -> list[Chunk]:
    """Held-out pairs at their start, some at a time."""
    found = []
    for first in range(0, pairs, CHUNK):
        env: Any = gym.make_vec(env_id, num_envs=min(CHUNK, pairs - first), **arguments)
        env.reset(seed=seed + first)
        found.append(Chunk(env.unwrapped.core, env.unwrapped.state, ()))
    return found


@dataclass(frozen=True)
class Case:
    """One held-out pair.

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
    start: np.ndarray
    landmarks: np.ndarray
    targets: np.ndarray
    center: np.ndarray
    seed: int

    def error(self, pull_back: np.ndarray) -> float:
        """Mean distance of the landmarks from where they belong in the moving world, mm."""
        n = self.landmarks.shape[1]
        moved = self.landmarks @ pull_back[:n, :n].T + pull_back[:n, n]
        return float(np.linalg.norm(moved - self.targets, axis=1).mean())


@dataclass(frozen=True)
class Chunk:
    """Pairs that were drawn together: the environment's core, its fresh episodes, and each of them as a case."""

    core: RegistrationCore
    state: EpisodeState
    cases: tuple[Case, ...]
