"""Warps, local correlation and smoothing by torch alone: what the other implementations are measured against.

Shapes of warps as in ``regenv.ops.warp``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from regenv.ops.kernels.layout import LOCALLY_FLAT
from regenv.ops.sampling import affine_coordinates, identity, sample, sample_labels, sample_vjp
from regenv.ops.windows import window_sum


def points(lanes: int, matrix: Tensor | None, displacement: Tensor | None, shape: tuple[int, ...]) -> Tensor:
    """Source points (B, *shape, D) of the voxels of a grid."""
    if matrix is not None:
        found = affine_coordinates(matrix, shape, displacement)
    else:
        assert displacement is not None
        found = (identity(shape, displacement.device) + displacement).movedim(1, -1)
    return found.expand(lanes, *shape, len(shape))


def warp(image: Tensor, matrix: Tensor | None, displacement: Tensor | None, shape: tuple[int, ...], border: bool,
         add: bool = False) -> Tensor:
    """Linear values (B, C, *shape), dtype of ``image``; ``add``: plus the displacement, of as many channels."""
    values = sample(image, points(len(image), matrix, displacement, shape), "border" if border else "zeros")
    return values + displacement if add and displacement is not None else values


def warp_labels(labels: Tensor, matrix: Tensor | None, displacement: Tensor | None, shape: tuple[int, ...]) -> Tensor:
    """Nearest voxels' values (B, C, *shape)."""
    return sample_labels(labels, points(len(labels), matrix, displacement, shape))


def fused_warp(fixed: Tensor, moving: Tensor, matrix: Tensor | None, displacement: Tensor | None,
               view: str) -> tuple[Tensor, Tensor]:
    """A view of the warped image, and the moments of both images."""
    still = fixed.to(torch.float32)
    moved = warp(moving.to(torch.float32), matrix, displacement, tuple(fixed.shape[2:]), border=False)
    if view == "difference":
        image = still - moved
    else:
        image = torch.cat([still, moved], 1).clamp_(0, 1) if view == "pair" else moved
    a, b = (each.flatten(2).to(torch.float64) for each in (still, moved))
    return image, torch.stack([product.sum(-1) for product in (a, b, a * a, b * b, a * b)], -1)


def vjp(grad: Tensor, image: Tensor, matrix: Tensor | None, displacement: Tensor | None, border: bool,
        want_image: bool, want_points: bool) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of :func:`warp`, contracted with ``grad``: of the image, and of the points (B, D, *shape)."""
    where = points(len(image), matrix, displacement, tuple(grad.shape[2:]))
    of_image, of_points = sample_vjp(grad, image, where, "border" if border else "zeros", want_image, want_points)
    return of_image, None if of_points is None else of_points.movedim(-1, 1)


def lncc_force(fixed: Tensor, warped: Tensor, mask: Tensor | None, standard: Tensor,
               window: int, want_force: bool) -> tuple[Tensor, Tensor]:
    """Sum over the voxels of a channel of the local correlations, and its gradient by ``warped``.

    Args:
        fixed, warped: (B, C, *shape); mask: (B, 1, *shape).
        standard: (B, C, 4), mean and 1 / deviation of each channel of ``fixed``, then of ``warped``.
    Returns: (B, C) float64; (B, C, *shape) float32, or float64 of such images; empty if not wanted.
    """
    kind = torch.promote_types(fixed.dtype, torch.float32)
    mean_a, scale_a, mean_b, scale_b = standard.to(kind).view(*standard.shape, *(1,) * (fixed.ndim - 2)).unbind(2)
    a, b = (fixed.to(kind) - mean_a) * scale_a, (warped.to(kind) - mean_b) * scale_b
    weight = torch.ones_like(a[:, :1]) if mask is None else mask.to(a.dtype)
    count = window_sum(weight, window)                      # voxels in the window, inside the image and the mask
    share = torch.where(count > 0, 1 / count, 0.0)
    means = [window_sum(each * weight, window) * share for each in (a, b, a * a, b * b, a * b)]
    cov, var_a, var_b = means[4] - means[0] * means[1], means[2] - means[0] ** 2, means[3] - means[1] ** 2
    flat, var_a, var_b = var_b <= 0, var_a.clamp_min(0), var_b.clamp_min(0)
    d = 1 / (var_a * var_b + LOCALLY_FLAT)
    sums = (cov * cov * d * weight).flatten(2).sum(-1, dtype=torch.float64)
    if not want_force:
        return sums, a.new_empty(0)
    p = 2 * cov * d * weight * share
    q = torch.where(flat, 0.0, p * cov * d * var_a)
    p_sum, q_sum, r_sum = (window_sum(each, window) for each in (p, q, p * means[0] - q * means[1]))
    return sums, weight * scale_b * (p_sum * a - q_sum * b - r_sum)


def smoothed(image: Tensor, taps: Tensor) -> Tensor:
    """(B, C, *shape) filtered along every axis; beyond the border the last value holds.

    Args: taps (radius + 1,): of a symmetric filter, from its middle.
    """
    image = image.to(torch.promote_types(image.dtype, torch.float32))
    taps = taps.to(image.dtype)
    for axis in range(2, image.ndim):
        last = image.shape[axis] - 1
        place = torch.arange(last + 1, device=image.device)
        total = image * taps[0]
        for reach in range(1, len(taps)):
            total = total + taps[reach] * (image.index_select(axis, (place - reach).clamp_min(0))
                                           + image.index_select(axis, (place + reach).clamp_max(last)))
        image = total
    return image


def central_force(force: Tensor, image: Tensor) -> Tensor:
    """``sum_c q_c dI_c/dx`` (B, D, *shape) of q and I (B, C, *shape), by central differences; beyond the border the
    last value holds."""
    slopes, kind = [], torch.promote_types(image.dtype, torch.float32)
    force, image = force.to(kind), image.to(kind)
    for axis in range(2, image.ndim):
        last = image.shape[axis] - 1
        place = torch.arange(last + 1, device=image.device)
        after, before = (image.index_select(axis, at) for at in ((place + 1).clamp_max(last), (place - 1).clamp_min(0)))
        slopes.append((0.5 * force * (after - before)).sum(1))
    return torch.stack(slopes, 1)
