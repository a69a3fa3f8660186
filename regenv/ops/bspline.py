"""Cubic B-spline free-form deformations: a dense field from a coarse lattice of coefficients, and back.

The lattice is ITK's: ``BSplineTransformInitializer`` with a mesh of m cells an axis lays m + 3 control points over the
box of the image, evenly, the first of them one cell before the box. Here its axes are the array's, whatever the image's
direction. Fields are (B, D, *shape) and coefficients (B, D, *control_shape), both in voxels, array-axis order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache, reduce

import numpy as np
import SimpleITK as sitk
import torch
from torch import Tensor

from regenv.grid import Grid

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
    return _product(coefficients, [_basis(n, c, coefficients.device, coefficients.dtype)
                                   for n, c in zip(shape, control, strict=True)])


def adjoint(displacement: Tensor, control_shape: Sequence[int]) -> Tensor:
    """Transpose of :func:`displacement`: at each control point the sum over voxels x of ``B3(x - x_i) u(x)``.

    Args: displacement (B, D, *shape); control_shape.
    Returns: (B, D, *control_shape).
    """
    _check("displacement", displacement, len(control_shape))
    shape = displacement.shape[2:]
    return _product(displacement, [_basis(n, c, displacement.device, displacement.dtype).T
                                   for n, c in zip(shape, control_shape, strict=True)])


def fit(displacement: Tensor, control_shape: Sequence[int], ridge: float = 0.0) -> Tensor:
    """Coefficients c whose field is nearest to a dense one u, ``argmin |B c - u|^2 + ridge h |c|^2``, in float64.

    Without a ridge they are exact for the fields that :func:`displacement` makes, and the smallest solution where an
    axis has fewer voxels than control points. But a control point outside a corner hardly shows in the image: for a
    field rougher than the lattice its coefficient can become a thousand times the field. A ridge of 1e-4 prevents that
    and makes the residual 2 to 5 % larger in 2D, 10 to 30 % in 3D.

    Args:
        displacement: (B, D, *shape) float, voxels.
        control_shape: at least 4 an axis.
        ridge: weight of the coefficients' squares, relative to the number h of voxels in a cell.
    Returns: (B, D, *control_shape), dtype of ``displacement``.
    """
    _check("displacement", displacement, len(control_shape))
    if not 0 <= ridge < math.inf:
        raise ValueError(f"bspline: ridge is {ridge}; it must be finite and not negative.")
    shape, device = displacement.shape[2:], displacement.device
    left, singular, right = zip(*(_decomposition(n, c, device) for n, c in zip(shape, control_shape, strict=True)),
                                strict=True)
    gain = reduce(lambda outer, axis: outer[..., None] * axis, singular)
    voxels = math.prod(_length(n) / (c - ORDER) for n, c in zip(shape, control_shape, strict=True))
    inverse = torch.where(gain > 0, gain / (gain**2 + ridge * voxels), 0)
    return _product(_product(displacement.to(torch.float64), left) * inverse, right).to(displacement.dtype)


def to_sitk(coefficients: Tensor, grid: Grid) -> sitk.BSplineTransform:
    """One lattice as SimpleITK's transform: it maps the world point of voxel x to the world point of x + u(x).

    Args: coefficients (D, *control_shape), voxels of ``grid``, array-axis order; grid: of the fixed image.
    Returns: displacements in mm, ITK axis order. Outside its box (an eighth of a voxel around the image) ITK's
        transform moves nothing.
    """
    n = grid.ndim
    _check("coefficients", coefficients[None], n)
    shifts_mm = np.tensordot(grid.voxel_to_world[:n, :n], coefficients.detach().cpu().to(torch.float64).numpy(), axes=1)
    transform = sitk.BSplineTransform(n, ORDER)
    transform.SetTransformDomainOrigin(grid.to_world(np.full(n, -_MARGIN)).tolist())
    transform.SetTransformDomainPhysicalDimensions([_length(s) * mm for s, mm in
                                                    zip(grid.size, grid.spacing, strict=True)])
    transform.SetTransformDomainDirection(grid.direction)
    transform.SetTransformDomainMeshSize([c - ORDER for c in coefficients.shape[:0:-1]])
    transform.SetParameters(shifts_mm.ravel().tolist())
    return transform


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
@torch.inference_mode(False)  # what is kept must serve autograd later
def _basis(voxels: int, control: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Weights of the control points of an axis in its voxels: (voxels, control). Shared: do not write to it."""
    if control <= ORDER:
        raise ValueError(f"bspline: an axis has {control} control points; a cubic B-spline needs at least {ORDER + 1}.")
    cells = (torch.arange(voxels, dtype=torch.float64) + _MARGIN) * (control - ORDER) / _length(voxels)
    away = (cells[:, None] - torch.arange(-1, control - 1, dtype=torch.float64)).abs()
    near = (4 - 6 * away**2 + 3 * away**3) / 6
    far = (2 - away).clamp_min(0) ** 3 / 6
    return torch.where(away < 1, near, far).to(device=device, dtype=dtype)


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def _decomposition(voxels: int, control: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """U^T (r, voxels), s (r,) and V (control, r) float64 of an axis's basis U s V^T; s of mere rounding are 0."""
    basis = _basis(voxels, control, torch.device("cpu"), torch.float64)
    u, s, vt = torch.linalg.svd(basis, full_matrices=False)
    rounding = s[0] * max(voxels, control) * torch.finfo(s.dtype).eps
    return u.T.to(device), torch.where(s > rounding, s, 0).to(device), vt.T.to(device)
