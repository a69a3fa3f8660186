"""Warps: an image, labels or points through an affine map or a dense field, and the algebra of those maps.

Everything pulls back, as in ITK: ``warp(moving, T)(x) = moving(T(x))``. Voxel points are in array-axis order.
An image covers its voxels to their edges, as in ITK: half a voxel past the last centre the last value holds, beyond
that the value is zero.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from regenv.ops.kernels.affine_cpu import warp_affine_cpu
from regenv.ops.kernels.dense_cpu import warp_through_cpu


def affine_coordinates(matrix: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Images of all voxels of a grid under an affine map, built by broadcasting (no matrix product over voxels).

    Args:
        matrix: (B, D+1, D+1), voxel points of the output grid to voxel points of the input grid.
        shape: output grid.
    Returns: (B, *shape, D) float32, voxel points of the input grid, array-axis order.
    """
    ndim = len(shape)
    matrix = matrix.to(torch.float32)
    columns = []
    for row in range(ndim):
        total = matrix[:, row, ndim].view(-1, *(1,) * ndim)
        for axis in range(ndim):
            span = [1] * ndim
            span[axis] = shape[axis]
            ticks = torch.arange(shape[axis], dtype=torch.float32, device=matrix.device).view(1, *span)
            total = total + matrix[:, row, axis].view(-1, *(1,) * ndim) * ticks
        columns.append(total)
    return torch.stack(columns, dim=-1)


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # what is kept must serve autograd later
def _axes(shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Axis lengths and the factors from voxels to normalised coordinates, kept on the device: no copy in a step."""
    sizes = torch.tensor(shape, dtype=dtype, device=device)
    return sizes, 2 / (sizes - 1).clamp(min=1)


def sample(image: Tensor, points_vox: Tensor, mode: str = "bilinear", padding: str = "zeros") -> Tensor:
    """Values of an image at voxel points: the one place that knows ``grid_sample``'s conventions.

    Args:
        image: (B, C, *input_shape) float.
        points_vox: (B, *shape, D), array-axis order.
        mode: "bilinear" (linear in any D) or "nearest".
        padding: "zeros" (outside the image's edges) or "border" (the nearest voxel's value).
    Returns: (B, C, *shape).
    """
    sizes, scale = _axes(tuple(image.shape[2:]), points_vox.device, points_vox.dtype)
    nearest = (points_vox + 0.5).floor() if mode == "nearest" else points_vox  # ITK rounds halves up, torch to even
    normalized = (nearest * scale - 1).flip(-1)
    values = F.grid_sample(image, normalized, mode=mode, padding_mode="border", align_corners=True)
    if padding == "border":
        return values
    inside = ((points_vox >= -0.5) & (points_vox < sizes - 0.5)).all(-1)
    return values * inside.unsqueeze(1)


def warp_affine(image: Tensor, matrix: Tensor, shape: tuple[int, ...], mode: str = "bilinear") -> Tensor:
    """An image resampled through an affine map: ``out(x) = image(matrix x)``.

    Args:
        image: (B, C, *input_shape) float32; with ``mode="nearest"`` any type, for labels.
        matrix: (B, D+1, D+1), voxel points of the output grid to voxel points of the input grid.
        shape: output grid.
    Returns: (B, C, *shape), dtype of ``image``.
    """
    if mode == "bilinear" and plain(image, matrix):
        return warp_affine_cpu(image, matrix, shape)
    points = affine_coordinates(matrix, shape)
    return warp_labels(image, points) if mode == "nearest" else sample(image, points)


def plain(image: Tensor, *others: Tensor) -> bool:
    """Whether the CPU kernels apply: float32 in main memory, no gradient asked for."""
    return image.device.type == "cpu" and image.dtype == torch.float32 and not any(
        torch.is_grad_enabled() and each.requires_grad for each in (image, *others))


def warp_labels(labels: Tensor, points_vox: Tensor) -> Tensor:
    """Integer labels at voxel points, nearest neighbour, 0 outside.

    Args: labels (B, 1, *input_shape) integer; points_vox (B, *shape, D).
    Returns: (B, 1, *shape), dtype of ``labels``.
    """
    return sample(labels.to(torch.float32), points_vox, mode="nearest").to(labels.dtype)


@lru_cache(maxsize=8)
@torch.inference_mode(False)  # what is kept must serve autograd later
def identity(shape: tuple[int, ...], device: torch.device | str = "cpu") -> Tensor:
    """Voxel points of a grid: (1, D, *shape) float32, array-axis order. Shared: do not write to it."""
    ticks = torch.meshgrid(*(torch.arange(n, dtype=torch.float32, device=device) for n in shape), indexing="ij")
    return torch.stack(ticks)[None]


def warp_dense(image: Tensor, displacement: Tensor, padding: str = "zeros") -> Tensor:
    """An image resampled through a displacement field: ``out(x) = image(x + displacement(x))``.

    Args:
        image: (B, C, *shape) float32.
        displacement: (B, D, *shape), voxels of the grid, array-axis order.
        padding: "zeros" or "border".
    Returns: (B, C, *shape).
    """
    if plain(image, displacement) and displacement.dtype == torch.float32 and len(image) == len(displacement):
        unmoved = torch.eye(displacement.shape[1] + 1)[None]
        return warp_through_cpu(image, unmoved, displacement, padding)
    points = identity(tuple(displacement.shape[2:]), displacement.device) + displacement
    return sample(image, points.movedim(1, -1), padding=padding)


def warp_through(image: Tensor, matrix: Tensor, displacement: Tensor | None, shape: tuple[int, ...],
                 mode: str = "bilinear") -> Tensor:
    """An image resampled once through a displacement and then an affine map: ``out(x) = image(matrix (x + u(x)))``.

    Args: as :func:`warp_affine`; displacement (B, D, *shape), voxels of the output grid, or None for no displacement.
    Returns: (B, C, *shape), dtype of ``image``.
    """
    if displacement is None:
        return warp_affine(image, matrix, shape, mode)
    if plain(displacement, matrix) and (mode == "nearest" or plain(image)):
        return warp_through_cpu(image, matrix, displacement, mode=mode)
    points = (identity(shape, displacement.device) + displacement).flatten(2).transpose(1, 2)
    moved = transform_points(matrix.to(displacement.dtype), points).unflatten(1, shape)
    return warp_labels(image, moved) if mode == "nearest" else sample(image, moved)


def warp_points(points_vox: Tensor, displacement: Tensor) -> Tensor:
    """Points moved by a displacement field, which is interpolated at them: ``p + displacement(p)``.

    Args: points_vox (B, N, D); displacement (B, D, *shape).
    Returns: (B, N, D).
    """
    ndim = points_vox.shape[-1]
    spread = points_vox.to(displacement.dtype).view(points_vox.shape[0], -1, *(1,) * (ndim - 1), ndim)
    moved = sample(displacement, spread, padding="border").flatten(2).transpose(1, 2)
    return points_vox + moved


def compose(a: Tensor, b: Tensor) -> Tensor:
    """Field of the map ``x -> a(b(x))``, for displacement fields a and b.

    Args: a, b: (B, D, *shape), voxels of the grid, array-axis order.
    Returns: (B, D, *shape), ``b(x) + a(x + b(x))``.
    """
    return b + warp_dense(a, b, padding="border")


def exponential(velocity: Tensor, squarings: int = 7) -> Tensor:
    """Displacement of the flow of a stationary velocity field, by scaling and squaring (Arsigny et al. 2006).

    Args: velocity (B, D, *shape), voxels per unit time; squarings: number of halvings.
    Returns: (B, D, *shape).
    """
    field = velocity / 2**squarings
    for _ in range(squarings):
        field = compose(field, field)
    return field


def invert(displacement: Tensor, iterations: int = 20) -> Tensor:
    """Displacement of the inverse map, by fixed-point iteration ``v <- -u(x + v)`` (Chen et al. 2008).

    Converges where the displacement's Lipschitz constant is below 1 (no folding).

    Args: displacement (B, D, *shape).
    Returns: (B, D, *shape).
    """
    inverse = -displacement
    for _ in range(iterations):
        inverse = -warp_dense(displacement, inverse, padding="border")
    return inverse


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """Product of small matrices (..., n, m) and (..., m, k), summed in a fixed order.

    Unlike a batched GEMM its rounding does not depend on the number of lanes, so lane i of N equals a single env.
    """
    out = a[..., :, 0, None] * b[..., None, 0, :]
    for inner in range(1, a.shape[-1]):
        out = out + a[..., :, inner, None] * b[..., None, inner, :]
    return out


def transform_points(matrix: Tensor, points: Tensor) -> Tensor:
    """Points (B, N, D) through homogeneous matrices (B, D+1, D+1)."""
    ndim = points.shape[-1]
    return matmul(points, matrix[:, :ndim, :ndim].transpose(1, 2)) + matrix[:, None, :ndim, ndim]
