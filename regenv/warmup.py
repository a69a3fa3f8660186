"""Compiles what episodes need, ahead of the first one: the kernels are then in a cache on disk."""

from __future__ import annotations

import time
from typing import Any

import gymnasium as gym
import torch

from regenv.ops import similarity, smoothing, warp

PLAYED = {"RegRigid2D-v0": 16, "RegRigid3D-v0": 16, "RegSimilarity2D-v0": 48, "RegDense2D-v0": 32, "RegDense3D-v0": 16,
          "RegKeypoint2D-v0": 32, "RegKeypoint3D-v0": 16, "RegSDM2D-v0": None, "RegSDM3D-v0": None}
"""Ids that between them use every kernel of a step, and the size of their images."""


def warm() -> float:
    """Play a step of every kind of environment and take every gradient once. Returns seconds."""
    begun = time.perf_counter()
    for env_id, size in PLAYED.items():
        arguments: dict[str, Any] = {} if size is None else {"size": size}
        env = gym.make(env_id, **arguments)
        env.reset(seed=0)
        env.step(env.action_space.sample())
        env.close()
    for shape in ((12, 12), (12, 12, 12)):
        image = torch.rand(1, 1, *shape, requires_grad=True)
        field = torch.zeros(1, len(shape), *shape, requires_grad=True)
        warped = warp.warp_dense(image, field)
        (similarity.lncc(image.detach(), warped) + warp.compose(field, field).sum()).sum().backward()
        smoothing.gaussian(image.detach(), 1.0)
    return time.perf_counter() - begun
