"""What callers give an environment, checked in one place: arguments, devices, seeds, options and actions.

Everything is checked before any of it is used. Errors are ValueErrors of one line that name the argument and its value.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

RESET_OPTIONS = ("difficulty", "reach", "same_pairs")
_LENGTH = 120   # of a value in an error, characters

# -------------------------------------------------------------------------------------------------------------- numbers


def number(name: str, value: Any, low: float = -math.inf, high: float = math.inf, positive: bool = False) -> float:
    """A finite number within [low, high], above 0 if ``positive``. Raises ValueError for others, and for True."""
    found = math.nan if isinstance(value, (bool, np.bool_)) or not isinstance(value, Real) else float(value)
    if not (math.isfinite(found) and low <= found <= high) or (positive and found <= 0):
        kind = "positive" if positive else "finite"
        bounds = "" if low == -math.inf and high == math.inf else f" in [{low:g}, {high:g}]"
        raise ValueError(f"{name} is {shown(value)}; it must be a {kind} number{bounds}.")
    return found


def numbers(name: str, values: Any, count: int | None = None, positive: bool = False) -> tuple[float, ...]:
    """A sequence of finite numbers, ``count`` of them. Raises ValueError for others."""
    if isinstance(values, (str, Mapping)) or not isinstance(values, (Sequence, np.ndarray)) or len(values) == 0 or (
            count is not None and len(values) != count):
        raise ValueError(f"{name} is {shown(values)}; it must be {'a list of' if count is None else count} numbers.")
    return tuple(number(f"{name}[{at}]", value, positive=positive) for at, value in enumerate(values))


def whole(name: str, value: Any, least: int = 1) -> int:
    """A whole number of at least ``least``. Raises ValueError for others, for 2.0 and for True."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, Integral) or value < least:
        raise ValueError(f"{name} is {shown(value)}; it must be a whole number of at least {least}.")
    return int(value)


def flag(name: str, value: Any) -> bool:
    """True or False. Raises ValueError for anything else."""
    if not isinstance(value, (bool, np.bool_)):
        raise ValueError(f"{name} is {shown(value)}; it must be True or False.")
    return bool(value)


def shown(value: Any) -> str:
    """A value as an error shows it: on one line, not too long."""
    text = " ".join(repr(value).split())
    return text if len(text) <= _LENGTH else text[:_LENGTH - 3] + "..."


# --------------------------------------------------------------------------------------------- devices, seeds, options

def checked_device(device: Any) -> torch.device:
    """A device that is there. Raises ValueError for others."""
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError):
        raise ValueError(f"device is {shown(device)}; it must be 'cpu', 'cuda' or 'cuda:N'.") from None
    if found.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device is {shown(str(found))}; torch finds no CUDA here, use device='cpu'.")
    if found.type not in ("cpu", "cuda"):
        raise ValueError(f"device is {shown(str(found))}; it must be 'cpu', 'cuda' or 'cuda:N'.")
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device is {shown(str(found))}; there are {torch.cuda.device_count()} CUDA devices here.")
    return found


def checked_seed(seed: Any) -> int | None:
    """A seed of one episode: None, or a whole number, Python's or NumPy's. Raises ValueError for others."""
    return None if seed is None else whole("reset: seed", seed, least=0)


def checked_seeds(seed: Any, lanes: int) -> list[int | None]:
    """A seed for every lane, of one number (lane i gets it plus i), or of a list or array.

    Raises ValueError for others.
    """
    if seed is None or isinstance(seed, Real):
        first = checked_seed(seed)
        return [None if first is None else first + lane for lane in range(lanes)]
    if isinstance(seed, (str, bytes, Mapping)) or not isinstance(seed, (Sequence, np.ndarray)):
        raise ValueError(f"reset: seed is {shown(seed)}; it must be a whole number, or a list of {lanes} of them.")
    if np.ndim(seed) != 1 or len(seed) != lanes:
        raise ValueError(f"reset: seed has {len(seed) if np.ndim(seed) else 1} entries; num_envs is {lanes}.")
    return [checked_seed(each) for each in seed]


@dataclass(frozen=True)
class ResetOptions:
    """Options of a reset: see ``RegistrationVectorEnv``. Args: reset_mask (num_envs,) bool, or None for all lanes."""

    difficulty: float = 1.0
    reach: float = 1.0
    same_pairs: bool = False
    reset_mask: NDArray[np.bool_] | None = None


def checked_options(options: Any, lanes: int | None = None) -> ResetOptions:
    """Options of a reset. Args: lanes: of a batch, which takes ``reset_mask`` too. Raises ValueError for wrong ones."""
    known = RESET_OPTIONS if lanes is None else (*RESET_OPTIONS, "reset_mask")
    if options is None:
        return ResetOptions()
    if not isinstance(options, Mapping):
        raise ValueError(f"reset: options is {shown(options)}; it must be a dict with any of {', '.join(known)}.")
    unknown = sorted(map(shown, set(options) - set(known)))
    if unknown:
        raise ValueError(f"reset: options has {', '.join(unknown)}; known are {', '.join(known)}.")
    difficulty, reach = checked_amounts(options.get("difficulty", 1.0), options.get("reach", 1.0))
    mask = options.get("reset_mask")
    return ResetOptions(difficulty, reach, flag("reset: same_pairs", options.get("same_pairs", False)),
                        None if mask is None or lanes is None else _checked_mask(mask, lanes))


def checked_amounts(difficulty: Any, reach: Any) -> tuple[float, float]:
    """Difficulty in [0, 1] and reach in (0, 1]. Raises ValueError for others."""
    return number("reset: difficulty", difficulty, 0, 1), number("reset: reach", reach, 0, 1, positive=True)


def _checked_mask(given: Any, lanes: int) -> NDArray[np.bool_]:
    mask = given.detach().cpu().numpy() if isinstance(given, Tensor) else np.asarray(given)
    if mask.dtype != bool or mask.shape != (lanes,):
        raise ValueError(f"reset: reset_mask has dtype {mask.dtype} and shape {mask.shape}; "
                         f"it must be bool of shape ({lanes},).")
    if not mask.any():
        raise ValueError("reset: reset_mask has no True lane; leave the call out instead.")
    return mask


# -------------------------------------------------------------------------------------------------------------- actions

def checked_actions(actions: Any, space: gym.Space[Any], lanes: int, device: torch.device) -> Tensor:
    """Actions (B, *space.shape) of all lanes, on the device: int64 of a Discrete space, numbers of a Box.

    Shape and type are checked always, values where they are on the CPU: every discrete action must be in the space, no
    number may be NaN. Numbers outside a Box are for the actions to clip. On a GPU looking at values would cost a
    synchronisation; there, the actions let a wrong one have no effect.

    Raises ValueError for actions that do not fit.
    """
    discrete = isinstance(space, gym.spaces.Discrete)
    given = actions if isinstance(actions, Tensor) else _as_tensor(actions, discrete)
    if device.type == "cpu":
        given = given.to(device)
    kind, shape = given.dtype, (lanes, *(space.shape or ()))
    if kind.is_complex or kind == torch.bool or (discrete and kind.is_floating_point):
        raise ValueError(f"step: actions are of type {str(kind).removeprefix('torch.')}; they must be "
                         f"{'whole ' if discrete else ''}numbers.")
    if given.shape != shape:
        raise ValueError(f"step: actions have shape {tuple(given.shape)}; it must be {shape}.")
    if given.device.type == "cpu":
        _check_values(given, space)
    return given.to(device, torch.int64 if discrete else None, non_blocking=True)


def _as_tensor(actions: Any, discrete: bool) -> Tensor:
    """Actions of NumPy or Python as a tensor. Raises ValueError where they are no numbers."""
    try:
        array = np.asarray(actions)
    except (ValueError, TypeError, RuntimeError):
        raise ValueError(f"step: actions are {shown(actions)}; they must be numbers of one shape.") from None
    if array.dtype.kind not in ("iu" if discrete else "iuf"):
        raise ValueError(f"step: actions are {shown(actions)}, of type {array.dtype}; they must be "
                         f"{'whole ' if discrete else ''}numbers.")
    if array.dtype == np.uint64 and array.size and array.max() > np.iinfo(np.int64).max:
        raise ValueError(f"step: actions are {shown(actions)}; they are too large.")
    exact = np.int64 if array.dtype.kind in "iu" else np.float32 if array.dtype.itemsize <= 4 else np.float64
    array = array if array.dtype == exact else array.astype(exact)
    return torch.from_numpy(array if array.flags.c_contiguous and array.flags.writeable else array.copy())


def _check_values(actions: Tensor, space: gym.Space[Any]) -> None:
    """Raise ValueError for a discrete action out of its space, and for NaN."""
    if isinstance(space, gym.spaces.Discrete):
        low, high = int(space.start), int(space.start + space.n - 1)
        values = actions.numpy()
        if values.min() < low or values.max() > high:
            raise ValueError(f"step: actions are {shown(values.tolist())}; each must lie in {low} to {high}.")
    elif actions.is_floating_point() and actions.isnan().any():
        lanes = actions.isnan().flatten(1).any(1).nonzero().flatten().tolist()
        raise ValueError(f"step: actions of lanes {lanes} are NaN; each must be a number.")
