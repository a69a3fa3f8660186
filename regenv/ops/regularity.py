"""Regularity of displacement fields: roughness penalties and the Jacobian determinant, the same code in 2D and 3D.

Fields u are (B, D, *shape), voxels, array-axis order, of the map ``x -> x + u(x)``. A penalty is one differentiable
number a lane, (B,), an average over voxels and components. With ``spacing`` (mm, ITK order x, y[, z]) displacements and
distances count in millimetres, without it in voxels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from math import factorial, prod

import torch
from torch import Tensor

_CROP = 2  # voxels that Learn2Reg cuts off on each side
_CLIP = (1e-9, 1e9)  # of the determinant, before Learn2Reg takes its logarithm


def diffusion(displacement: Tensor, spacing: Sequence[float] | None = None) -> Tensor:
    """Mean of ``(du_k/dx_a)^2`` over voxels, components k and axes a, by forward differences.

    VoxelMorph's "l2" (Balakrishnan et al. 2019), unitless. MONAI's is another: the sum over the axes, and from central
    differences of the inner voxels.
    """
    u, steps = _scaled("diffusion", displacement, spacing, least=2)
    slopes = [torch.diff(u, dim=axis + 2) / step for axis, step in enumerate(steps)]
    return torch.stack([(slope**2).flatten(1).mean(1) for slope in slopes]).mean(0)


def bending(displacement: Tensor, spacing: Sequence[float] | None = None) -> Tensor:
    """Bending energy of a thin plate, mean of ``sum_a (d2u/da2)^2 + 2 sum_{a<b} (d2u/da db)^2`` (Rueckert et al. 1999).

    Central second differences of the inner voxels. A mean over components, as MONAI's (of 1.6); the paper's is their
    sum, D times as much. Unit: 1 (voxels), or 1/mm^2.
    """
    u, steps = _scaled("bending", displacement, spacing, least=3)
    energy = torch.zeros_like(_inner(u, {}))
    for a in range(len(steps)):
        pure = _inner(u, {a: 1}) - 2 * _inner(u, {}) + _inner(u, {a: -1})
        energy = energy + (pure / steps[a] ** 2) ** 2
        for b in range(a + 1, len(steps)):
            mixed = (_inner(u, {a: 1, b: 1}) - _inner(u, {a: 1, b: -1})
                     - _inner(u, {a: -1, b: 1}) + _inner(u, {a: -1, b: -1})) / 4
            energy = energy + 2 * (mixed / (steps[a] * steps[b])) ** 2
    return energy.flatten(1).mean(1)


def jacobian(displacement: Tensor) -> Tensor:
    """Determinant of ``I + grad u`` at every voxel, (B, *shape): the local change of volume; 0 or less is a fold.

    Central differences, one-sided at the borders, as ``numpy.gradient``. The same in voxels and in millimetres.
    """
    _check("jacobian", displacement, least=2)
    ndim = displacement.shape[1]
    rows = []
    for k in range(ndim):
        slopes = torch.gradient(displacement[:, k], dim=tuple(range(1, ndim + 1)))
        rows.append([slope + 1 if axis == k else slope for axis, slope in enumerate(slopes)])
    return _determinant(rows)


def folding(displacement: Tensor, mask: Tensor | None = None) -> Tensor:
    """Share of voxels whose Jacobian determinant is 0 or less, (B,) in [0, 1].

    Args: mask: (B, 1, *shape) bool, the voxels that count; a lane with none gives NaN.
    """
    folded = (jacobian(displacement) <= 0).to(displacement.dtype).flatten(1)
    counts = torch.ones_like(folded) if mask is None else mask.flatten(1).to(folded.dtype)
    return (folded * counts).sum(1) / counts.sum(1)


def non_diffeomorphic_volume(displacement: Tensor, mask: Tensor | None = None) -> Tensor:
    """Share of the volume that is folded, exactly, of the map that is linear on triangles or tetrahedra, (B,).

    :func:`folding` counts voxels by central differences, which miss a voxel that jumps over its neighbours. Here each
    cell between voxels is cut in the two ways into two triangles or five tetrahedra; summed is the volume of those that
    are turned inside out, half for each way (Liu et al. 2024, "On finite difference Jacobian computation in deformable
    image registration"; NDV of the LUMIR challenge, there in percent). What lies about the outermost voxels is left
    out, as there.

    Args:
        displacement: (B, D, *shape), 2D or 3D, at least 3 voxels an axis.
        mask: (B, 1, *shape) bool, the voxels that count; a lane with none gives NaN.
    """
    _check("non_diffeomorphic_volume", displacement, least=3)
    ndim = displacement.shape[1]
    axes = range(ndim)
    middle = _inner(displacement, {})

    def edge(step: Mapping[int, int]) -> Tensor:
        """From a voxel to a neighbour, after the map: (B, D, *inner shape)."""
        way = displacement.new_tensor([step.get(axis, 0) for axis in axes]).view(1, -1, *(1,) * ndim)
        return _inner(displacement, step) - middle + way

    simplices = [(prod(signs), [edge({axis: sign}) for axis, sign in zip(axes, signs, strict=True)])
                 for signs in product((1, -1), repeat=ndim)]
    if ndim == 3:       # what is left in the middle of a cell, for the two ways to cut it
        simplices += [(1, [edge({a: s, b: s}) for a, b in pairs])
                      for s, pairs in ((1, ((0, 1), (1, 2), (0, 2))), (-1, ((0, 1), (0, 2), (1, 2))))]
    folded = torch.zeros_like(middle[:, 0])
    for sign, edges in simplices:
        folded += (-sign * _determinant([list(row.unbind(1)) for row in edges])).clamp_min(0)
    share = folded.flatten(1) / (2 * factorial(ndim))
    counts = torch.ones_like(share) if mask is None else _inner(mask, {}).flatten(1).to(share.dtype)
    return (share * counts).sum(1) / counts.sum(1)


def sd_log_jacobian(displacement: Tensor, mask: Tensor | None = None, offset: float = 0.0) -> Tensor:
    """Standard deviation over voxels of ``log(clip(det J + offset, 1e-9, 1e9))``, two voxels cut off on each side.

    Args:
        displacement: (B, D, *shape), at least 5 voxels an axis.
        mask: (B, 1, *shape) bool, the voxels that count; a lane with none gives NaN.
        offset: 0 for the logarithm of the determinant; 3 is exactly the Learn2Reg challenge's number ("SDlogJ").
    Returns: (B,).
    """
    _check("sd_log_jacobian", displacement, least=2 * _CROP + 1)
    logs = (_cropped(jacobian(displacement)) + offset).clamp(*_CLIP).log().flatten(1)
    counts = torch.ones_like(logs) if mask is None else _cropped(mask[:, 0]).flatten(1).to(logs.dtype)
    total = counts.sum(1)
    mean = (logs * counts).sum(1) / total
    return (((logs - mean[:, None]) ** 2 * counts).sum(1) / total).sqrt()


def _check(name: str, displacement: Tensor, least: int) -> None:
    ndim = displacement.ndim - 2
    if displacement.shape[1] != ndim or min(displacement.shape[2:]) < least:
        raise ValueError(f"{name}: the displacement is {tuple(displacement.shape)}; it must be (B, D, *shape) with "
                         f"D = {ndim} components and at least {least} voxels an axis.")


def _scaled(name: str, displacement: Tensor, spacing: Sequence[float] | None,
            least: int) -> tuple[Tensor, tuple[float, ...]]:
    """The field and the steps between voxels along the array axes, both in millimetres if there is a spacing."""
    _check(name, displacement, least)
    ndim = displacement.shape[1]
    if spacing is None:
        return displacement, (1.0,) * ndim
    if len(spacing) != ndim:
        raise ValueError(f"{name}: spacing is {tuple(spacing)}; a {ndim}D field needs {ndim} numbers (x, y[, z]).")
    steps = tuple(float(s) for s in spacing[::-1])
    return torch.stack([displacement[:, k] * steps[k] for k in range(ndim)], dim=1), steps


def _cropped(values: Tensor) -> Tensor:
    """(B, *shape) without the voxels that Learn2Reg cuts off."""
    for axis in range(1, values.ndim):
        values = values.narrow(axis, _CROP, values.shape[axis] - 2 * _CROP)
    return values


def _inner(u: Tensor, shift: Mapping[int, int]) -> Tensor:
    """The neighbours of the voxels not on the border, ``shift`` voxels on along the axes it names."""
    for axis in range(u.ndim - 2):
        u = u.narrow(axis + 2, 1 + shift.get(axis, 0), u.shape[axis + 2] - 2)
    return u


def _determinant(rows: list[list[Tensor]]) -> Tensor:
    """Determinant of a small matrix of tensors, by expansion along its first row."""
    if len(rows) == 1:
        return rows[0][0]
    total = torch.zeros_like(rows[0][0])
    for column, entry in enumerate(rows[0]):
        minor = [row[:column] + row[column + 1:] for row in rows[1:]]
        total = total + (-1) ** column * entry * _determinant(minor)
    return total
