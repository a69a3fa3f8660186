"""Gaussian smoothing of images and fields: batched, the same code in 2D and 3D."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from regenv.ops.kernels import operators

REACH = 3.0  # of the filter, in sigmas


def gaussian(image: Tensor, sigma: float) -> Tensor:
    """An image or a field smoothed by a sampled Gaussian; beyond the border the last value holds. Not differentiable.

    Args: image (B, C, *shape) float; sigma: voxels; 0 returns the image itself.
    Returns: (B, C, *shape).
    Raises: ValueError: sigma is negative or not finite.
    """
    if not 0 <= sigma < math.inf:
        raise ValueError(f"gaussian: sigma is {sigma} voxels; it must be 0 or more, and finite.")
    if sigma == 0:
        return image
    taps = torch.exp(-0.5 * (torch.arange(math.ceil(REACH * sigma) + 1, device=image.device) / sigma) ** 2)
    return operators.smoothed(image, taps / (taps[0] + 2 * taps[1:].sum()))
