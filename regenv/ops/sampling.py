"""Interpolation of images at points, by torch: any device, any float type, differentiable. The kernels' reference."""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

LINEAR = {2: "bilinear", 3: "trilinear"}  # torch's names of linear interpolation, by dimension


def affine_coordinates(matrix: Tensor, shape: tuple[int, ...], displacement: Tensor | None = None) -> Tensor:
    """Source points of all voxels of a grid under a displacement and then an affine map, ``matrix (x + u(x))``.

    Built by broadcasting: no matrix product over voxels.

    Args:
        matrix: (B, D+1, D+1), voxel points of the output grid to voxel points of the input grid.
        shape: output grid.
        displacement: (B, D, *shape), voxels of the output grid, or None.
    Returns: (B, *shape, D) float32, or the displacement's type; voxel points of the input grid, array-axis order.
    """
    ndim = len(shape)
    matrix = matrix.to(torch.float32 if displacement is None else displacement.dtype)
    ticks = [torch.arange(n, dtype=torch.float32, device=matrix.device).view(-1, *(1,) * (ndim - 1 - axis))
             for axis, n in enumerate(shape)]
    along = ticks if displacement is None else [tick + displacement[:, axis] for axis, tick in enumerate(ticks)]
    columns = []
    for row in range(ndim):
        total = matrix[:, row, ndim].view(-1, *(1,) * ndim)
        for axis in range(ndim):
            total = total + matrix[:, row, axis].view(-1, *(1,) * ndim) * along[axis]
        columns.append(total)
    return torch.stack(columns, dim=-1)


@lru_cache(maxsize=8)
@torch.inference_mode(False)  # cached tensors must serve autograd later
def identity(shape: tuple[int, ...], device: torch.device | str = "cpu") -> Tensor:
    """Voxel points of a grid: (1, D, *shape) float32, array-axis order. Shared: do not write to it."""
    ticks = torch.meshgrid(*(torch.arange(n, dtype=torch.float32, device=device) for n in shape), indexing="ij")
    return torch.stack(ticks)[None]


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def axes(shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Axis lengths and the factors from voxels to normalised coordinates, cached on the device: no copy in a step."""
    sizes = torch.tensor(shape, dtype=dtype, device=device)
    return sizes, 2 / (sizes - 1).clamp(min=1)


def inside(points_vox: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Which points (B, *out, D) lie within the edges of an image's voxels: (B, *out) bool."""
    sizes = axes(shape, points_vox.device, points_vox.dtype)[0]
    return ((points_vox >= -0.5) & (points_vox < sizes - 0.5)).all(-1)


def normalized(points_vox: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The same points in ``grid_sample``'s convention, corners aligned."""
    return (points_vox * axes(shape, points_vox.device, points_vox.dtype)[1] - 1).flip(-1)


def sample(image: Tensor, points_vox: Tensor, padding: str = "zeros") -> Tensor:
    """Linear values of an image at voxel points.

    Args:
        image: (B, C, *input_shape) float; coordinates keep their precision, whatever that of the image.
        points_vox: (B, *shape, D), array-axis order.
        padding: "zeros" (outside the image's edges) or "border" (the nearest voxel's value).
    Returns: (B, C, *shape), dtype of ``image``.
    """
    shape = tuple(image.shape[2:])
    values = F.grid_sample(image.to(points_vox.dtype), normalized(points_vox, shape), padding_mode="border",
                           align_corners=True)
    if padding == "zeros":
        values = values * inside(points_vox, shape).unsqueeze(1)
    return values.to(image.dtype)


def sample_labels(labels: Tensor, points_vox: Tensor) -> Tensor:
    """Labels at voxel points: the nearest voxel's, halves rounded up as in ITK; 0 outside the image's edges.

    Args: labels (B, C, *input_shape) of any type; points_vox (B, *shape, D), array-axis order.
    Returns: (B, C, *shape), dtype of ``labels``.
    """
    shape = tuple(labels.shape[2:])
    rounded = (points_vox + 0.5).floor().nan_to_num()
    place = torch.zeros(points_vox.shape[:-1], dtype=torch.int64, device=labels.device)
    for axis, n in enumerate(shape):
        place = place * n + rounded[..., axis].clamp(0, n - 1).to(torch.int64)
    place = place.flatten(1).unsqueeze(1).expand(-1, labels.shape[1], -1)
    values = labels.flatten(2).gather(2, place).unflatten(2, points_vox.shape[1:-1])
    return torch.where(inside(points_vox, shape).unsqueeze(1), values, torch.zeros((), dtype=labels.dtype,
                                                                                  device=labels.device))


def sample_vjp(grad: Tensor, image: Tensor, points_vox: Tensor, padding: str, want_image: bool,
               want_points: bool) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of :func:`sample`, contracted with ``grad`` (B, C, *shape): of the image, and of the points.

    Returns: (B, C, *input_shape) and (B, *shape, D), None where not wanted.
    """
    shape, ndim = tuple(image.shape[2:]), points_vox.shape[-1]
    grad = grad.to(points_vox.dtype)
    if padding == "zeros":
        grad = grad * inside(points_vox, shape).unsqueeze(1)
    backward = torch.ops.aten.grid_sampler_2d_backward if ndim == 2 else torch.ops.aten.grid_sampler_3d_backward
    bilinear, border = 0, 1
    of_image, of_grid = backward(grad, image.to(points_vox.dtype), normalized(points_vox, shape), bilinear, border,
                                 True, [want_image, True])
    scale = axes(shape, points_vox.device, points_vox.dtype)[1]
    return of_image.to(image.dtype) if want_image else None, of_grid.flip(-1) * scale if want_points else None
