"""The algebra of affine maps: small homogeneous matrices, batched."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regenv.ops.kernels import cpu, operators, poses_cpu


def homogeneous(linear: Tensor, translation: Tensor) -> Tensor:
    """Matrices (..., D+1, D+1) of ``x -> linear x + translation``."""
    top = torch.cat([linear, translation.unsqueeze(-1)], dim=-1)
    bottom = torch.zeros_like(top[..., :1, :])
    bottom[..., 0, -1] = 1
    return torch.cat([top, bottom], dim=-2)


def invert_affine(matrix: Tensor) -> Tensor:
    """Inverse of homogeneous matrices (..., D+1, D+1), by adjugates: its rounding does not depend on the lanes."""
    n = matrix.shape[-1] - 1
    a = matrix[..., :n, :n]
    if n == 2:
        adjugate = torch.stack([a[..., 1, 1], -a[..., 0, 1], -a[..., 1, 0], a[..., 0, 0]], -1).unflatten(-1, (2, 2))
    else:
        rows = [torch.linalg.cross(a[..., :, i], a[..., :, j]) for i, j in ((1, 2), (2, 0), (0, 1))]
        adjugate = torch.stack(rows, dim=-2)
    determinant = matmul(adjugate, a)[..., 0, 0]
    linear = adjugate / determinant[..., None, None]
    return homogeneous(linear, -matmul(linear, matrix[..., :n, n:]).squeeze(-1))


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """Product of small matrices (..., n, m) and (..., m, k), summed in a fixed order.

    Unlike a batched GEMM its rounding does not depend on the number of lanes, so lane i of N equals a single env.
    """
    out = a[..., :, 0, None] * b[..., None, 0, :]
    for inner in range(1, a.shape[-1]):
        out = out + a[..., :, inner, None] * b[..., None, inner, :]
    return out


def products(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """Product ``a b c`` of homogeneous matrices (B, D+1, D+1), as :func:`matmul` twice. Not differentiable."""
    if operators.backend(b.device) is not cpu:
        return matmul(matmul(a, b), c)
    out = torch.empty_like(b, dtype=torch.float64, memory_format=torch.contiguous_format)
    first, second, third = (each.to(torch.float64).contiguous().numpy() for each in (a, b, c))
    poses_cpu.products(first, second, third, out.numpy())
    return out


def transform_points(matrix: Tensor, points: Tensor) -> Tensor:
    """Points (B, N, D) through homogeneous matrices (B, D+1, D+1)."""
    ndim = points.shape[-1]
    return matmul(points, matrix[:, :ndim, :ndim].transpose(1, 2)) + matrix[:, None, :ndim, ndim]


def about(center: NDArray[np.float64] | Tensor, matrix: Tensor) -> Tensor:
    """Maps (B, D+1, D+1) given about the origin, now about ``center`` (D,) or (B, D)."""
    middle = torch.as_tensor(center, dtype=matrix.dtype, device=matrix.device)
    n = matrix.shape[-1] - 1
    shift = middle - matmul(matrix[..., :n, :n], middle.expand(matrix.shape[0], n).unsqueeze(-1)).squeeze(-1)
    moved = matrix.clone()
    moved[..., :n, n] = moved[..., :n, n] + shift
    return moved
