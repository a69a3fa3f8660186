"""Random numbers as a function of a seed and a counter: batched, on any device, without a generator's state."""

from __future__ import annotations

import torch
from torch import Tensor

_GOLDEN = -0x61C8864680B583EB  # 0x9E3779B97F4A7C15 as a signed number
_MIX = (-0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15)  # 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def counter_uniform(seed: Tensor, counter: Tensor, count: int) -> Tensor:
    """Uniform numbers in [0, 1), one row a lane: SplitMix64 (Steele et al. 2014) of ``(seed, counter, column)``.

    Args: seed (B,) int64; counter (B,) int64, not negative, such as an episode's step; count: columns.
    Returns: (B, count) float64. A lane's numbers depend on nothing but its own seed and counter.
    """
    state = _mixed(seed + _GOLDEN * (counter + 1))[:, None]
    columns = torch.arange(1, count + 1, device=seed.device)
    return _shifted(_mixed(state + _GOLDEN * columns), 11).to(torch.float64) * 2.0**-53


def _mixed(z: Tensor) -> Tensor:
    z = (z ^ _shifted(z, 30)) * _MIX[0]
    z = (z ^ _shifted(z, 27)) * _MIX[1]
    return z ^ _shifted(z, 31)


def _shifted(z: Tensor, bits: int) -> Tensor:
    """Logical shift to the right."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)
