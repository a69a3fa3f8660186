"""The environments that environments.py compares: ours and the same task with SimpleITK, in every vectoriser."""

# Workers import this file: what not every process needs is imported where it is needed.
from __future__ import annotations

import multiprocessing
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import SimpleITK as sitk
from scipy.spatial.transform import Rotation

ENV, RANGE = "RegRigid3D-v0", 30.0                 # starting poses, mm and degrees
ENDLESS = 1_000_000                                # steps, a limit that no episode here reaches
TIERS = {1: "steps", 2: "steps and inference", 3: "steps, inference and learning"}
PRELOADED = {"regenv": ["regenv.env"], "SimpleITK": ["gymnasium", "SimpleITK", "scipy.spatial.transform"],
             "SubprocVecEnv": ["stable_baselines3.common.vec_env"], "AsyncVectorEnv": ["gymnasium.vector"]}
CPUS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class Kind:
    """An environment in a vectoriser. Args: lanes: None for as many as asked for; tiers: that it can be measured in."""

    engine: str
    way: str
    device: str = "cpu"
    lanes: int | None = None
    tiers: tuple[int, ...] = tuple(TIERS)

    @property
    def label(self) -> str:
        return f"{self.engine}, {self.way}" + (", CUDA" if self.device == "cuda" else "")

    @property
    def threads(self) -> int:
        """Of each process that steps environments."""
        return 1 if self.way in PRELOADED else CPUS


KINDS = {
    "native": Kind("regenv", "native"),
    "dummy": Kind("regenv", "DummyVecEnv"),
    "subproc": Kind("regenv", "SubprocVecEnv"),
    "async": Kind("regenv", "AsyncVectorEnv"),
    "sitk-dummy": Kind("SimpleITK", "DummyVecEnv"),
    "sitk-subproc": Kind("SimpleITK", "SubprocVecEnv"),
    "sitk-async": Kind("SimpleITK", "AsyncVectorEnv"),
    "cuda": Kind("regenv", "native", "cuda"),
    "cuda-1024": Kind("regenv", "native", "cuda", 1024, (1, 2)),  # whose rollouts would fill the memory
}


def as_image(array: np.ndarray, voxel_to_world: np.ndarray) -> sitk.Image:
    """Args: array (D, H, W); voxel_to_world (4, 4), of voxel points in the order of its axes."""
    image = sitk.GetImageFromArray(array)
    columns = voxel_to_world[:3, 2::-1]
    spacing = np.linalg.norm(columns, axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((columns / spacing).ravel().tolist())
    image.SetOrigin(voxel_to_world[:3, 3].tolist())
    return image


class SimpleITKRigid(gym.Env):
    """``RegRigid3D-v0`` as one would write it with SimpleITK: one filter, kept, that resamples once a step.

    Args: path: of the pair that ``keep_pair`` wrote.
    """

    def __init__(self, path: Path) -> None:
        with np.load(path) as kept:
            pair = {name: kept[name][0] for name in kept}
        self.fixed = pair["fixed"][0]
        self.moving = as_image(pair["moving"][0], np.linalg.inv(pair["world_to_moving"]))
        self.truth, self.center = pair["truth"], pair["center"]
        self.resample = sitk.ResampleImageFilter()
        self.resample.SetReferenceImage(as_image(self.fixed, pair["fixed_to_world"]))
        self.resample.SetInterpolator(sitk.sitkLinear)
        self.observation_space = gym.spaces.Box(-1.0, 1.0, (1, *self.fixed.shape), np.float32)
        self.action_space = gym.spaces.Discrete(12)
        self.pose = np.zeros(6)

    def reset(self, *, seed: int | None = None,
              options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.pose = self.np_random.uniform(-RANGE, RANGE, 6)
        return self._look(), {"distance": self._distance()}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        before = self._distance()
        self.pose[action // 2] += 1 - 2 * (action % 2)
        distance = self._distance()
        arrived = distance <= 0.5 or bool(np.abs(self.pose).max() <= 0.5)
        return self._look(), before - distance + 10 * arrived, arrived, False, {"distance": distance}

    def _distance(self) -> float:
        return float(np.linalg.norm(self.pose))

    def _look(self) -> np.ndarray:
        """Fixed minus warped, (1, D, H, W)."""
        residual = np.eye(4)
        residual[:3, :3] = Rotation.from_euler("XYZ", self.pose[3:], degrees=True).as_matrix()
        residual[:3, 3] = self.pose[:3] + self.center - residual[:3, :3] @ self.center
        pull_back = self.truth @ residual
        transform = sitk.AffineTransform(3)
        transform.SetMatrix(pull_back[:3, :3].ravel().tolist())
        transform.SetTranslation(pull_back[:3, 3].tolist())
        self.resample.SetTransform(transform)
        warped = self.resample.Execute(self.moving)  # which must outlive its view
        return (self.fixed - sitk.GetArrayViewFromImage(warped))[None]


@dataclass(frozen=True)
class Kept:
    """A source that always gives the pair of ``keep_pair``, so a reset costs next to nothing."""

    path: Path
    ndim: int = 3

    def draw(self, rngs: Sequence[np.random.Generator], grid: Any, device: Any, difficulty: float = 1.0) -> Any:
        import torch

        from regenv import PairBatch
        with np.load(self.path) as kept:
            return PairBatch(**{name: torch.from_numpy(kept[name]).to(device).repeat_interleave(len(rngs), 0)
                                for name in kept})


def keep_pair(folder: Path, size: int) -> Path:
    """Draw the id's first pair and write its fields into a file."""
    from regenv.core import RegistrationCore
    from regenv.registry import build
    pair = RegistrationCore(build(ENV, size=size)).reset([np.random.default_rng(0)]).pair
    known = {field.name: value.numpy() for field in fields(pair) if (value := getattr(pair, field.name)) is not None}
    np.savez(folder / f"pair-{size}.npz", **known)
    return folder / f"pair-{size}.npz"


def single(engine: str, size: int, path: Path) -> gym.Env:
    """One environment."""
    if engine == "SimpleITK":
        return SimpleITKRigid(path)
    import regenv  # noqa: F401  registers the ids
    return gym.make(ENV, size=size, source=Kept(path), max_episode_steps=ENDLESS)


def native(lanes: int, size: int, path: Path, device: str = "cpu") -> gym.vector.VectorEnv:
    """Our vector environment: arrays from the CPU, tensors that stay where they are from another device."""
    from regenv.vector import RegistrationVectorEnv
    return RegistrationVectorEnv(ENV, num_envs=lanes, device=device, output="numpy" if device == "cpu" else "torch",
                                 autoreset_mode="SameStep", max_episode_steps=ENDLESS, size=size, source=Kept(path))


def vectorised(kind: Kind, lanes: int, size: int, path: Path) -> Any:
    """A VectorEnv of Gymnasium or a VecEnv of SB3 that does not overwrite its observations later, as ours does not.

    Workers come from a server that has imported what they need: they start fast and share its memory.
    """
    if kind.way == "native":
        return native(lanes, size, path, kind.device)
    functions = [partial(single, kind.engine, size, path)] * lanes
    if kind.way in PRELOADED:
        multiprocessing.set_forkserver_preload(PRELOADED[kind.engine] + PRELOADED[kind.way])
    if kind.way == "AsyncVectorEnv":
        return gym.vector.AsyncVectorEnv(functions, shared_memory=True, context="forkserver",
                                         autoreset_mode="SameStep")
    from stable_baselines3.common import vec_env
    return getattr(vec_env, kind.way)(functions)


def difference(size: int, path: Path) -> float:
    """The largest difference of a voxel or a reward between SimpleITK's environment and ours, over 12 steps."""
    ours, theirs = single("regenv", size, path), single("SimpleITK", size, path)
    off = [np.abs(ours.reset(seed=0)[0] - theirs.reset(seed=0)[0]).max()]
    for action in range(12):
        one, other = ours.step(action), theirs.step(action)
        off += [np.abs(one[0] - other[0]).max(), abs(float(one[1]) - float(other[1]))]
    return float(max(off))
