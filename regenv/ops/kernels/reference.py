"""Warps by torch alone: the implementation that the others are measured against. Shapes as in ``regenv.ops.warp``."""

from __future__ import annotations

import torch
from torch import Tensor

from regenv.ops.sampling import affine_coordinates, identity, sample, sample_labels, sample_vjp


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
