"""Overlap of two segmentations: Dice, and Hausdorff distances between their surfaces in millimetres.

Labels are (B, 1, *shape) integers. All functions return (B, classes), one column per class, and NaN where the class is
absent from either image (the rule of the Learn2Reg challenge), so that ``.nanmean(-1)`` is the score of a case.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from numpy.typing import NDArray
from torch import Tensor

from regenv.ops.kernels import cpu, operators
from regenv.ops.kernels.overlap_cpu import overlap_counts_cpu
from regenv.ops.warp import warp_through

_WIDEST = 1 << 20   # range of labels up to which a table has a row for each; atlases number regions by nine digits


def dice(labels_a: Tensor, labels_b: Tensor, classes: Sequence[int]) -> Tensor:
    """Dice coefficients, ``2 |A and B| / (|A| + |B|)``, for all classes in one pass over the voxels.

    Args:
        labels_a, labels_b: (B, 1, *shape) integer.
        classes: the labels to score, each once; all others count as background.
    Returns: (B, classes) float32 in [0, 1], NaN where a class is absent from either image.
    """
    _check(labels_a, labels_b, classes)
    if max(classes) - min(classes) >= _WIDEST:
        labels_a, labels_b = (_renumbered(labels, tuple(classes)) for labels in (labels_a, labels_b))
        classes = range(1, len(classes) + 1)
    counts = overlap_counts_cpu if labels_a.device.type == "cpu" else _counts
    size_a, size_b, both = counts(labels_a, labels_b, classes)
    present = (size_a > 0) & (size_b > 0)
    score = 2 * both / (size_a + size_b).clamp_min(1)
    return torch.where(present, score, torch.nan).to(torch.float32)


def classes(labels: Tensor | None) -> tuple[int, ...]:
    """Values of labels, ascending, without the background 0; none where there are no labels."""
    return () if labels is None else tuple(c for c in torch.unique(labels).tolist() if c != 0)


def mean_dice(fixed: Tensor, warped: Tensor, classes: Sequence[int]) -> Tensor:
    """Mean Dice (B,) over those of ``classes`` that a lane has in both images; NaN where there are none."""
    if not classes:
        return torch.full((len(fixed),), torch.nan, device=fixed.device)
    return dice(fixed, warped, classes).nanmean(-1)


def warped_dice(fixed: Tensor, moving: Tensor, matrix: Tensor, displacement: Tensor | None,
                classes: Sequence[int]) -> Tensor:
    """Mean Dice (B,) float32 of fixed labels and of moving ones, resampled at ``matrix (x + displacement(x))``, the
    nearest: :func:`mean_dice` of :func:`regenv.ops.warp.warp_through`. Arguments as of these."""
    if operators.backend(fixed.device, displacement) is cpu and classes and max(classes) - min(classes) < _WIDEST:
        return cpu.warped_dice(fixed, moving, matrix, displacement, classes)
    return mean_dice(fixed, warp_through(moving, matrix, displacement, tuple(fixed.shape[2:]), "nearest"), classes)


def hausdorff(labels_a: Tensor, labels_b: Tensor, classes: Sequence[int], spacing: Sequence[float]) -> Tensor:
    """Hausdorff distances, mm: the largest distance from a surface voxel of either image to the other's surface.

    The surface is the voxels of a class with a face neighbour outside it; the image's outside counts as outside.

    Args:
        labels_a, labels_b: (B, 1, *shape) integer, on one grid.
        classes: the labels to score.
        spacing: of the grid, mm, ITK order (x, y[, z]).
    Returns: (B, classes) float64, NaN where a class is absent from either image.
    """
    return _surface_statistic(labels_a, labels_b, classes, spacing, 100.0)


def hd95(labels_a: Tensor, labels_b: Tensor, classes: Sequence[int], spacing: Sequence[float]) -> Tensor:
    """95 % Hausdorff distances, mm: the 95th percentile instead of the maximum, against single outlying voxels.

    For each direction the percentile (linear, as ``numpy.percentile``) of the distances from the surface voxels of one
    image to the other's surface; then the larger of the two. MONAI defines it so. It is not the Learn2Reg challenge's
    value, which weighs surface elements by their area and ignores the spacing.

    Arguments and result as :func:`hausdorff`.
    """
    return _surface_statistic(labels_a, labels_b, classes, spacing, 95.0)


def _surface_statistic(labels_a: Tensor, labels_b: Tensor, classes: Sequence[int], spacing: Sequence[float],
                       percentile: float) -> Tensor:
    _check(labels_a, labels_b, classes)
    if len(spacing) != labels_a.ndim - 2:
        raise ValueError(f"hausdorff: spacing is {tuple(spacing)}; {labels_a.ndim - 2}D labels need that many numbers.")
    arrays_a, arrays_b = labels_a[:, 0].cpu().numpy(), labels_b[:, 0].cpu().numpy()
    out = np.full((labels_a.shape[0], len(classes)), np.nan)
    for lane, (array_a, array_b) in enumerate(zip(arrays_a, arrays_b, strict=True)):
        for column, label in enumerate(classes):
            a, b = array_a == label, array_b == label
            if a.any() and b.any():
                box = _bounding_box(a | b)
                surface_a, surface_b = _surface(a[box]), _surface(b[box])
                out[lane, column] = max(np.percentile(_distance_to(surface_b, spacing)[surface_a], percentile),
                                        np.percentile(_distance_to(surface_a, spacing)[surface_b], percentile))
    return torch.from_numpy(out).to(labels_a.device)


def _check(labels_a: Tensor, labels_b: Tensor, classes: Sequence[int]) -> None:
    if labels_a.shape != labels_b.shape or labels_a.shape[1] != 1:
        raise ValueError(f"overlap: labels are {tuple(labels_a.shape)} and {tuple(labels_b.shape)}; both must be "
                         f"(B, 1, *shape) on one grid.")
    if len(set(classes)) != len(classes) or not classes:
        raise ValueError(f"overlap: classes is {tuple(classes)}; name at least one label, each once.")


def _counts(labels_a: Tensor, labels_b: Tensor, classes: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Voxels (B, classes) of a, of b and of both."""
    lanes, count = labels_a.shape[0], len(classes) + 1
    a, b = (_class_index(labels, classes).flatten(1) for labels in (labels_a, labels_b))
    joint = torch.zeros(lanes, count * count, dtype=torch.int64, device=a.device)
    joint = joint.scatter_add_(1, a * count + b, torch.ones_like(a)).view(lanes, count, count)
    return joint.sum(2)[:, :-1], joint.sum(1)[:, :-1], joint.diagonal(dim1=1, dim2=2)[:, :-1]


def _class_index(labels: Tensor, classes: Sequence[int]) -> Tensor:
    """Each voxel's position in ``classes``, or ``len(classes)`` if its label is not among them; int64."""
    low, high = min(classes) - 1, max(classes) + 1
    return _column(tuple(classes), labels.device)[labels.to(torch.int64).clamp(low, high) - low]


def _renumbered(labels: Tensor, classes: tuple[int, ...]) -> Tensor:
    """1 to N where a label is one of N classes, in their order, and 0 elsewhere; int64."""
    numbers, order = _sorted(classes, labels.device)
    labels = labels.to(torch.int64).contiguous()
    place = torch.searchsorted(numbers, labels).clamp(max=len(classes) - 1)
    return torch.where(numbers[place] == labels, order[place] + 1, 0)


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def _sorted(classes: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """The labels in ascending order, and where each stands among the classes; cached on the device."""
    numbers, order = torch.tensor(classes, device=device).sort()
    return numbers, order


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def _column(classes: tuple[int, ...], device: torch.device) -> Tensor:
    """Positions of the labels from one below the lowest class to one above the highest; cached on the device."""
    low, high = min(classes) - 1, max(classes) + 1
    column = torch.full((high - low + 1,), len(classes))
    column[torch.tensor(classes) - low] = torch.arange(len(classes))
    return column.to(device)


def _bounding_box(mask: NDArray[np.bool_]) -> tuple[slice, ...]:
    box = []
    for axis in range(mask.ndim):
        filled = np.flatnonzero(mask.any(axis=tuple(i for i in range(mask.ndim) if i != axis)))
        box.append(slice(int(filled[0]), int(filled[-1]) + 1))
    return tuple(box)


def _surface(mask: NDArray[np.bool_]) -> NDArray[Any]:
    """Voxels of the mask with a face neighbour outside it."""
    padded = np.pad(mask, 1)
    inner = (slice(1, -1),) * mask.ndim
    enclosed = mask.copy()
    for axis in range(mask.ndim):
        for shift in (-1, 1):
            enclosed &= np.roll(padded, shift, axis)[inner]
    return mask & ~enclosed


def _distance_to(surface: NDArray[np.bool_], spacing: Sequence[float]) -> NDArray[Any]:
    """Distance of every voxel to the nearest voxel of the surface, mm (Maurer et al. 2003, exact)."""
    # The distance map measures to the contour of its object, so its object is the surface in one voxel of background.
    image = sitk.GetImageFromArray(np.pad(surface, 1).astype(np.uint8))
    image.SetSpacing([float(s) for s in spacing])
    distance = sitk.SignedMaurerDistanceMap(image, insideIsPositive=False, squaredDistance=False, useImageSpacing=True)
    return np.maximum(sitk.GetArrayFromImage(distance)[(slice(1, -1),) * surface.ndim], 0)
