"""Image features that are independent of contrast: pure batched functions, the same code in 2D and 3D."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import combinations

import torch
import torch.nn.functional as F
from torch import Tensor

from regenv.ops.kernels import cpu, operators
from regenv.ops.kernels.costs_cpu import costs_cpu
from regenv.ops.sampling import LINEAR
from regenv.ops.warp import warp_dense

_VARIANCE = (1e-3, 1e3)  # bounds of the local variance, in units of the image's mean variance
_TINY = 1e-30            # variance of an image without any contrast, whose features are all 1


def mind_ssc(image: Tensor, radius: int = 1, dilation: int = 2) -> Tensor:
    """Self-similarity context, ``exp(-(d - min d) / V)``: how similar the patches around a voxel are (Heinrich et al.
    2013; MIND is of 2012).

    d is the mean squared difference of the patches about two of a voxel's nearest neighbours, one channel per pair at
    a distance of sqrt(2): 12 pairs of the 6 neighbours in 3D, 4 of the 4 in 2D. V is the mean over the channels of
    d - min d, clamped to 1e-3 to 1e3 times its mean over the image. Beyond the border the last value holds,
    for the image and for the squared differences. An image times a gain (not 0) plus an offset has the same features.

    The neighbours' order is -1, +1 along the first array axis, -1, +1 along the second, and so on; the channels are
    their pairs (i, j), i < j, in lexicographic order, less those of opposite neighbours.

    Args:
        image: (B, 1, *shape) float32 or float64, of any range.
        radius: of the patches, voxels: their side is 2 radius + 1.
        dilation: distance of the neighbours, voxels.
    Returns: (B, 12, *shape) in 3D, (B, 4, *shape) in 2D, in (0, 1], dtype of ``image``; differentiable.
    Raises: ValueError: the image has another shape or type, or radius or dilation is out of range.
    """
    if image.ndim not in (4, 5) or image.shape[1] != 1:
        raise ValueError(f"mind_ssc: the image is {tuple(image.shape)}; it must be (B, 1, H, W) or (B, 1, D, H, W).")
    if image.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"mind_ssc: the image is of type {image.dtype}; it must be float32 or float64.")
    if radius < 0:
        raise ValueError(f"mind_ssc: radius is {radius} voxels; it must not be negative.")
    if dilation < 1:
        raise ValueError(f"mind_ssc: dilation is {dilation} voxels; it must be at least 1.")
    distance = torch.cat([box_mean((one - other).square(), radius) for one, other in _neighbours(image, dilation)], 1)
    distance = distance - distance.amin(1, keepdim=True)
    variance = distance.mean(1, keepdim=True)
    typical = variance.mean(tuple(range(1, image.ndim)), keepdim=True).clamp_min(_TINY)
    variance = torch.minimum(torch.maximum(variance, _VARIANCE[0] * typical), _VARIANCE[1] * typical)
    return (distance * (-1 / variance)).exp_()


def box_mean(image: Tensor, radius: int = 1) -> Tensor:
    """Mean over the cube of side 2 radius + 1 about each voxel; beyond the border the last value holds.

    Args: image (B, C, *shape) float; radius, voxels.
    Returns: (B, C, *shape).
    """
    for axis in range(2, image.ndim):
        n = image.shape[axis]
        first, last = image.narrow(axis, 0, 1), image.narrow(axis, n - 1, 1)
        total = image.clone()
        for step in range(1, radius + 1):
            near = min(step, n)
            total.narrow(axis, near, n - near).add_(image.narrow(axis, 0, n - near))
            total.narrow(axis, 0, near).add_(first)
            total.narrow(axis, 0, n - near).add_(image.narrow(axis, near, n - near))
            total.narrow(axis, n - near, near).add_(last)
        image = total
    return image / (2 * radius + 1) ** (image.ndim - 2)


def pooled(image: Tensor, stride: int) -> Tensor:
    """Means (B, C, *coarse) over blocks of ``stride`` voxels per axis; the last block holds the remaining voxels."""
    pool: Callable[..., Tensor] = {2: F.avg_pool2d, 3: F.avg_pool3d}[image.ndim - 2]
    return pool(image, stride, ceil_mode=True)


def spread(field: Tensor, stride: int, shape: tuple[int, ...]) -> Tensor:
    """A displacement field on the grid of :func:`pooled` blocks, in blocks, as one (B, D, *shape) of voxels."""
    fine = stride * F.interpolate(field, scale_factor=float(stride), mode=LINEAR[len(shape)], align_corners=False)
    for axis, n in enumerate(shape):
        fine = fine.narrow(axis + 2, 0, n)
    return fine.contiguous()


def costs(fixed: Tensor, moving: Tensor, displacement: Tensor, offsets: Tensor) -> Tensor:
    """Costs of displacements about an estimate: ``mean_c (F_c(x) - M_c(x + u(x) + offset))^2`` for each offset.

    Beyond the border M's last value holds. Differentiable, but faster on the CPU if no gradient is needed.

    Args:
        fixed, moving: F and M, features (B, C, *shape) float32.
        displacement: u (B, D, *shape), voxels.
        offsets: (K, D), voxels, array-axis order.
    Returns: (B, K, *shape).
    """
    operators.check("costs", moving, None, displacement, fixed.shape[2:])
    if fixed.shape != moving.shape or offsets.shape[1:] != displacement.shape[1:2]:
        raise ValueError(f"costs: fixed is {tuple(fixed.shape)}, moving {tuple(moving.shape)}, offsets "
                         f"{tuple(offsets.shape)}; the first two must agree, offsets be (K, {displacement.shape[1]}).")
    given = (fixed, moving, displacement, offsets)
    differentiable = torch.is_grad_enabled() and any(each.requires_grad for each in given)
    if operators.backend(fixed.device) is cpu and fixed.dtype == torch.float32 and not differentiable:
        return costs_cpu(fixed, moving, displacement, offsets)
    ndim = displacement.shape[1]
    return torch.stack([(fixed - warp_dense(moving, displacement + offset.view(ndim, *(1,) * ndim), padding="border")
                         ).square().mean(1) for offset in offsets], 1)


def _neighbours(image: Tensor, dilation: int) -> Iterator[tuple[Tensor, Tensor]]:
    """For every pair of neighbours, the image shifted to each of them: two (B, 1, *shape)."""
    ndim = image.ndim - 2
    padded = F.pad(image, [dilation] * (2 * ndim), mode="replicate")
    shifts = [tuple(sign * (axis == moved) for axis in range(ndim)) for moved in range(ndim) for sign in (-1, 1)]
    shifted = {}
    for shift in shifts:
        view = padded
        for axis, step in enumerate(shift):
            view = view.narrow(axis + 2, dilation * (1 + step), image.shape[axis + 2])
        shifted[shift] = view
    for a, b in combinations(shifts, 2):
        if sum((p - q) ** 2 for p, q in zip(a, b, strict=True)) == 2:
            yield shifted[a], shifted[b]
