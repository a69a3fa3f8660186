"""The measures of the Learn2Reg challenge, as its evaluation (version 2.0) computes them, and regularity without its
offset, which hides folds.

A case is one pair on one grid: labels (Z, Y, X), points (N, 3) voxels, displacement (3, Z, Y, X), voxels of the fixed
grid, all in array-axis order. The challenge stores fields in the order of nibabel's axes: see :func:`to_submission`.

Hering et al. 2022, *Learn2Reg: comprehensive multi-task medical image registration challenge*. HD95 needs
``pip install "regenv[learn2reg]"``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

from regenv.ops.regularity import folding, sd_log_jacobian

OFFSET = 3.0                # the challenge adds it to det J, which hides folds
ROBUST = {"tre": 0.7, "sd_log_jacobian": 0.7, "dice": 0.3, "hd95": 0.3}  # quantiles over the cases: tre30 and so on


def measured(displacement: NDArray[Any], fixed_labels: NDArray[Any] | None = None,
             moving_labels: NDArray[Any] | None = None, fixed_points: NDArray[Any] | None = None,
             moving_points: NDArray[Any] | None = None, spacing: Sequence[float] = (1.0, 1.0, 1.0),
             mask: NDArray[Any] | None = None) -> dict[str, float]:
    """The measures of one case.

    Args:
        displacement: (3, Z, Y, X), voxels: from a voxel of the fixed image to its place in the moving one.
        fixed_labels, moving_labels: (Z, Y, X) integer, 0 the background.
        fixed_points, moving_points: (N, 3) corresponding points, voxels.
        spacing: of the moving image, mm, ITK order (x, y, z).
        mask: (Z, Y, X), where the regularity counts, default everywhere.
    Returns:
        ``sd_log_jacobian``: standard deviation of log(det J + 3), as the challenge defines it;
        ``sd_log_jacobian_honest``: of log det J; ``folding``: share of voxels with det J <= 0 (the challenge's own
        count is always 0). With labels ``dice``, the mean over the labels that both images have, and ``hd95``, always
        in voxels, from surface elements weighted by area. With points ``tre``, mm; cubic splines interpolate the field.
    Raises: ValueError: only one of a pair is given, or shapes do not fit together.
    """
    shape = tuple(displacement.shape[1:])
    if displacement.ndim != 4 or len(displacement) != 3:
        raise ValueError(f"learn2reg: the displacement is {displacement.shape}; it must be (3, Z, Y, X).")
    for name, array in (("fixed labels", fixed_labels), ("moving labels", moving_labels), ("mask", mask)):
        if array is not None and array.shape != shape:
            raise ValueError(f"learn2reg: the {name} are {array.shape}; the displacement is one of {shape}.")
    for name, one, other in (("labels", fixed_labels, moving_labels), ("points", fixed_points, moving_points)):
        if (one is None) != (other is None):
            raise ValueError(f"learn2reg: only one image has {name}; give both.")
    field = torch.from_numpy(np.ascontiguousarray(displacement, dtype=np.float64))[None]
    where = None if mask is None else torch.from_numpy(np.ascontiguousarray(mask > 0))[None, None]
    found = {"sd_log_jacobian": sd_log_jacobian(field, where, OFFSET).item(),
             "sd_log_jacobian_honest": sd_log_jacobian(field, where).item(), "folding": folding(field, where).item()}
    if fixed_labels is not None and moving_labels is not None:
        warped = map_coordinates(moving_labels, np.indices(shape) + displacement, order=0)
        found |= {"dice": dice(fixed_labels, moving_labels, warped), "hd95": hd95(fixed_labels, moving_labels, warped)}
    if fixed_points is not None and moving_points is not None:
        if fixed_points.shape != moving_points.shape or fixed_points.shape[1:] != (3,):
            raise ValueError(f"learn2reg: points are {fixed_points.shape} and {moving_points.shape}; both must be "
                             "(N, 3).")
        moved = fixed_points + np.stack([map_coordinates(part, fixed_points.T) for part in displacement], 1)
        found["tre"] = float(np.linalg.norm((moved - moving_points) * np.asarray(spacing)[::-1], axis=1).mean())
    return found


def summary(cases: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Means over the cases, and by the names ``tre30`` and so on the 70th percentile (30th for Dice and HD95)."""
    if not cases:
        raise ValueError("learn2reg: there are no cases to sum up.")
    values = {name: np.array([case[name] for case in cases]) for name in cases[0]}
    return {**{name: float(np.nanmean(value)) for name, value in values.items()},
            **{f"{name}30": float(np.nanquantile(values[name], share)) for name, share in ROBUST.items()
               if name in values}}


def dice(fixed: NDArray[Any], moving: NDArray[Any], warped: NDArray[Any]) -> float:
    """Mean of ``2 |A and B| / (|A| + |B|)`` over the labels that both images have; NaN where there are none."""
    scores = []
    for label in _shared(fixed, moving):
        a, b = fixed == label, warped == label
        scores.append(2 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b)))
    return float(np.mean(scores)) if scores else float("nan")


def hd95(fixed: NDArray[Any], moving: NDArray[Any], warped: NDArray[Any]) -> float:
    """Mean 95 % Hausdorff distance, voxels, over the labels that both images have; NaN where there are none.

    A surface consists of elements between the centres of voxels, each with an area. In either direction the distance is
    the smallest one within which 95 % of the area lies. It is infinite where the warp has lost a label.
    """
    surfaces, labels = _surfaces(), _shared(fixed, moving)
    if not set(labels) <= set(np.unique(warped).tolist()):
        return float("inf")
    scores = [surfaces.compute_robust_hausdorff(surfaces.compute_surface_distances(
        (fixed == label).T, (warped == label).T, (1.0, 1.0, 1.0)), 95.0) for label in labels]
    return float(np.mean(scores)) if scores else float("nan")


def to_submission(displacement: NDArray[Any]) -> NDArray[Any]:
    """A field (3, Z, Y, X) as the challenge stores it in files: (X, Y, Z, 3), components in that order."""
    return np.ascontiguousarray(displacement[::-1].transpose(3, 2, 1, 0))


def from_submission(field: NDArray[Any]) -> NDArray[Any]:
    """The reverse of :func:`to_submission`."""
    return np.ascontiguousarray(field.transpose(3, 2, 1, 0)[::-1])


def _shared(fixed: NDArray[Any], moving: NDArray[Any]) -> list[int]:
    return [int(label) for label in np.intersect1d(fixed, moving) if label != 0]


def _surfaces() -> Any:
    try:
        import surface_distance
    except ImportError as error:
        raise ImportError('hd95: it needs DeepMind\'s surface-distance; install it with pip install '
                          '"regenv[learn2reg]".') from error
    return surface_distance
