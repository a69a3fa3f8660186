"""Cubic B-spline free-form deformations: a dense field from a coarse lattice of coefficients.

The lattice is ITK's: ``BSplineTransformInitializer`` with a mesh of m cells an axis lays m + 3 control points over the
box of the image, evenly, the first of them one cell before the box. Here its axes are the array's, whatever the image's
direction. Fields are (B, D, *shape) and coefficients (B, D, *control_shape), both in voxels, array-axis order.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from regenv.ops.kernels import bspline_cpu, operators

ORDER = 3
_MARGIN = 0.625  # voxels from the first voxel's centre to the face of ITK's box: half a voxel, and an eighth as padding


def control_shape(shape: Sequence[int], spacing: float | Sequence[float]) -> tuple[int, ...]:
    """Control points an axis for a wanted distance between them, such as 16 x 16 x 8 voxels (Krebs et al. 2017).

    Args: shape: of the field; spacing: voxels, one number or one an axis in array order (8, 16, 16).
    Returns: as many as give the nearest whole number of cells over the box, at least 4.
    """
    steps = np.broadcast_to(np.asarray(spacing, dtype=np.float64), len(shape))
    if not all(np.isfinite(step) and step > 0 for step in steps):
        raise ValueError(f"bspline: spacing is {spacing}; control points need positive, finite distances in voxels.")
    return tuple(max(1, round(_length(n) / step)) + ORDER for n, step in zip(shape, steps.tolist(), strict=True))


def displacement(coefficients: Tensor, shape: Sequence[int]) -> Tensor:
    """Dense field of a lattice of coefficients, ``u(x) = sum_i B3(x - x_i) c_i`` (Rueckert et al. 1999, T_local).

    Args:
        coefficients: (B, D, *control_shape) float, voxels; at least 4 control points an axis.
        shape: of the field, which the lattice spans.
    Returns: (B, D, *shape), dtype of ``coefficients``. A lane's values do not depend on the number of lanes.
    """
    _check("coefficients", coefficients, len(shape))
    control = coefficients.shape[2:]
    bases = [_basis(n, c, coefficients.device, coefficients.dtype) for n, c in zip(shape, control, strict=True)]
    return bspline_cpu.dense(coefficients, bases) if operators.plain(coefficients) else _product(coefficients, bases)


def adjoint(displacement: Tensor, control_shape: Sequence[int]) -> Tensor:
    """Transpose of :func:`displacement`: at each control point the sum over voxels x of ``B3(x - x_i) u(x)``.

    Args: displacement (B, D, *shape); control_shape.
    Returns: (B, D, *control_shape).
    """
    _check("displacement", displacement, len(control_shape))
    shape = displacement.shape[2:]
    return _product(displacement, [_basis(n, c, displacement.device, displacement.dtype).T
                                   for n, c in zip(shape, control_shape, strict=True)])


def _check(name: str, field: Tensor, ndim: int) -> None:
    if field.ndim != ndim + 2 or field.shape[1] != ndim:
        raise ValueError(f"bspline: {name} is {tuple(field.shape)}; on a {ndim}D grid it must be "
                         f"(B, {ndim}, and {ndim} axes).")


def _length(voxels: int) -> float:
    """Length of ITK's box along an axis, voxels."""
    return voxels - 1 + 2 * _MARGIN


def _product(field: Tensor, matrices: Sequence[Tensor]) -> Tensor:
    """A matrix (m, n) along each axis of a field (B, C, *n): (B, C, *m).

    Every product moves the next axis to the front, so the last one restores their order. Its sizes do not depend on
    the number of lanes, nor does its rounding.
    """
    images = field.shape[0] * field.shape[1]
    flat = field
    for matrix in matrices:
        rows = flat.reshape(images, matrix.shape[1], -1).transpose(1, 2)
        flat = torch.bmm(rows, matrix.T.expand(images, -1, -1))
    return flat.view(*field.shape[:2], *(matrix.shape[0] for matrix in matrices))


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # cached tensors must serve autograd later
def _basis(voxels: int, control: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Weights of the control points of an axis in its voxels: (voxels, control). Shared: do not write to it."""
    if control <= ORDER:
        raise ValueError(f"bspline: an axis has {control} control points; a cubic B-spline needs at least {ORDER + 1}.")
    cells = (torch.arange(voxels, dtype=torch.float64) + _MARGIN) * (control - ORDER) / _length(voxels)
    away = (cells[:, None] - torch.arange(-1, control - 1, dtype=torch.float64)).abs()
    near = (4 - 6 * away**2 + 3 * away**3) / 6
    far = (2 - away).clamp_min(0) ** 3 / 6
    return torch.where(away < 1, near, far).to(device=device, dtype=dtype)
