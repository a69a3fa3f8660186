"""Small environments of every family, for contracts that hold over all ids."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import torch

from regenv.core import RegistrationCore
from regenv.registry import CATALOGUE, build
from regenv.state import EpisodeState

LINEAR = [name for name in CATALOGUE if not re.search("SDM|Dense|Keypoint", name)]  # whose poses are matrices


def ndim(name: str) -> int:
    """Dimension of an id."""
    return 3 if "3D" in name else 2


def small(name: str) -> dict[str, Any]:
    """Arguments that make an id's images small; a deformation model has its own grid."""
    return {} if "SDM" in name or "Digits" in name else {"size": 36 if ndim(name) == 2 else 12}


def usual(name: str) -> dict[str, Any]:
    """Nothing, or what an id of huge images needs to be tried in seconds."""
    return {"size": 24} if re.match("Reg(Dense|Keypoint)3D", name) else {}


def info_keys(name: str, privileged: bool) -> set[str]:
    """What an id tells: what the reward is made of, D where it is defined, Dice where there are labels, the mask of
    fuzzy control."""
    keys = {"score"} | ({"dice"} if "Digits" in name else {"tre", "is_success"})
    if re.match("RegKeypoint|RegDense[23]D|RegSDM", name):
        keys |= {"keypoints", "keypoint_targets"} if privileged else set()
    if "Keypoint" in name:
        keys |= {"dice"}
    if not re.match("Reg(Dense|Keypoint)", name):
        keys |= {"distance"} | ({"target", "q_star"} if privileged else set())
    return keys | ({"dice", "action_mask"} if "SDM" in name else set())


def near(name: str) -> dict[str, Any]:
    """Arguments by which episodes start so close that random actions often arrive, where they can."""
    if name not in LINEAR:
        return {}
    return {"ranges": [1.5] * (3 if ndim(name) == 2 else 6) + ([0.05] if "Similarity" in name else [])}


def core_of(name: str, **arguments: Any) -> RegistrationCore:
    """The core of an id with small images."""
    return RegistrationCore(build(name, **{**small(name), **arguments}))


def begun(core: RegistrationCore, pose: list[list[float]]) -> EpisodeState:
    """Episodes of seeds 0, 1, ... from given poses."""
    pair = core.reset([np.random.default_rng(i) for i in range(len(pose))]).pair
    return core.begin(pair, torch.tensor(pose, dtype=torch.float64))
