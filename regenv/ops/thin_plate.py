"""Interpolation of scattered values by thin-plate splines."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from regenv.ops.sampling import LINEAR


def thin_plate(points: NDArray[np.float64], values: NDArray[np.float64], shape: tuple[int, ...], spacing: int = 4,
               smoothing: float = 0.1) -> NDArray[np.float64]:
    """Thin-plate spline through scattered values (Bookstein 1989), found on a coarse lattice and interpolated linearly.

    Points are scaled by half of the grid's longest side first, so that ``smoothing`` means the same for every grid.

    Args:
        points: (N, D), voxels, array-axis order, N > D; values: (N, K) there.
        shape: of the grid. spacing: of the lattice, voxels. smoothing: 0 interpolates; larger values smooth.
    Returns: (K, *shape) float64.
    Raises: ValueError: too few points, or smoothing or spacing out of range.
    """
    from scipy.interpolate import RBFInterpolator  # half a second, which few need

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
    dense = F.interpolate(torch.from_numpy(np.ascontiguousarray(coarse))[None], tuple(shape), mode=LINEAR[ndim],
                          align_corners=True)
    return dense[0].numpy()
