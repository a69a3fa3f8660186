"""Noise and smooth bias fields, drawn for each lane on its own."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

_NOISE_VALUES = 1 << 21


@lru_cache(maxsize=4)
def _noise(device: str) -> Tensor:
    """A long tape of unit normal noise; reading it from random places is much cheaper than drawing fresh noise."""
    values = np.random.default_rng(20170).standard_normal(_NOISE_VALUES, dtype=np.float32)
    return torch.from_numpy(values).to(device)


def noise_at(u: np.ndarray, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Noise (B, 1, *shape), read from the places ``u`` (B,) in [0, 1) of the tape."""
    count = math.prod(shape)
    tape = _noise(str(device))
    if count > len(tape) // 2:
        tape = tape.repeat(2 * count // len(tape) + 1)
    starts = (u * (len(tape) - count)).astype(int)
    return torch.stack([tape[s:s + count] for s in starts]).view(-1, 1, *shape)


def ramp(count: int, device: torch.device) -> Tensor:
    """Positions -1 to 1 along an axis."""
    return torch.linspace(-1, 1, count) if device.type == "cpu" else torch.linspace(-1, 1, count).to(device)


def bias_field(slopes: np.ndarray, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """A smooth multiplicative field (B, 1, *shape): a product of parabolas along the axes.

    Args: slopes (B, D, 2): linear and quadratic coefficient along each array axis.
    """
    ndim = len(shape)
    field = torch.ones(len(slopes), *(1,) * (ndim + 1), device=device)
    for axis in range(ndim):
        span = [1] * ndim
        span[axis] = shape[axis]
        t = ramp(shape[axis], device).view(1, 1, *span)
        linear, square = (per_lane(slopes[:, axis, i], ndim, device) for i in range(2))
        field = field * (1 + linear * t + square * (t * t))
    return field


def per_lane(values: np.ndarray, ndim: int, device: torch.device) -> Tensor:
    """Numbers (B,) as a tensor that broadcasts over images (B, 1, *shape)."""
    return torch.from_numpy(values.astype(np.float32)).to(device).view(-1, *(1,) * (ndim + 1))


def between(u: np.ndarray, low: float, high: float) -> np.ndarray:
    """Numbers in [0, 1) scaled to [low, high)."""
    return low + (high - low) * u
