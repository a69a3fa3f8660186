"""Dense displacements through scattered points."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from scipy.interpolate import RBFInterpolator

_MODE = {2: "bilinear", 3: "trilinear"}


def thin_plate(points: np.ndarray, values: np.ndarray, shape: tuple[int, ...], spacing: int = 4,
               smoothing: float = 0.1) -> np.ndarray:
    """Thin-plate spline through scattered values (Bookstein 1989), found on a coarse lattice and interpolated linearly.

    Points are scaled by half of the grid's longest side first, so that ``smoothing`` means the same for every grid.

    Args:
        points: (N, D), voxels, array-axis order, N > D; values: (N, K) there.
        shape: of the grid. spacing: of the lattice, voxels. smoothing: 0 interpolates; more lets the spline pass by.
    Returns: (K, *shape) float64.
    Raises: ValueError: too few points, or smoothing or spacing out of range.
    """
    ndim = len(shape)
    if len(points) <= ndim:
        raise ValueError(f"thin_plate: there are {len(points)} points; it needs more than {ndim}.")
    if spacing < 1 or smoothing < 0:
        raise ValueError(f"thin_plate: spacing is {spacing} and smoothing {smoothing}; they must be at least 1 and 0.")
    unit = max(shape) / 2
    knots = [np.linspace(0, n - 1, max(2, -(-n // spacing))) for n in shape]
    lattice = np.stack(np.meshgrid(*knots, indexing="ij"), -1)
    spline = RBFInterpolator(points / unit, values, smoothing=smoothing, kernel="thin_plate_spline", degree=1)
    coarse = np.moveaxis(spline(lattice.reshape(-1, ndim) / unit).reshape(*lattice.shape[:-1], -1), -1, 0)
    dense = F.interpolate(torch.from_numpy(np.ascontiguousarray(coarse))[None], tuple(shape), mode=_MODE[ndim],
                          align_corners=True)
    return dense[0].numpy()
