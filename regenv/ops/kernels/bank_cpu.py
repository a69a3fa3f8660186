"""Volumes of several channels resampled along their own axes and mixed, on the CPU: no copy of a volume in between."""

from __future__ import annotations

from collections.abc import Sequence

import numba
import numpy as np
from numpy.typing import NDArray

Axis = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]
"""Of each output voxel along an axis, of every lane: the voxel below, the one above, and the share of the latter."""


def resampled(volumes: NDArray[np.float32], chosen: NDArray[np.int64], axes: Sequence[Axis], mix: NDArray[np.float32],
              out: NDArray[np.float32]) -> None:
    """Writes images (B, K, *shape) of the chosen (B,) of volumes (P, C, D, H, W): linear along each axis, then weights
    (B, K, C) of the channels.

    Raises IndexError where a lane asks for what is not there.
    """
    if not 0 <= chosen.min() <= chosen.max() < len(volumes):
        raise IndexError(f"volumes {chosen.tolist()} of {len(volumes)}")
    for voxels, (low, high, _) in zip(volumes.shape[2:], axes, strict=True):
        if min(low.min(), high.min()) < 0 or max(low.max(), high.max()) >= voxels:
            raise IndexError(f"voxels {low.min()} to {high.max()} of {voxels}")
    _resample(volumes, chosen, *axes[0], *axes[1], *axes[2], mix, out)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _resample(volumes, chosen, z0, z1, dz, y0, y1, dy, x0, x1, dx, mix, out):  # type: ignore[no-untyped-def]
    for lane in range(len(out)):
        _one(volumes[chosen[lane]], z0[lane], z1[lane], dz[lane], y0[lane], y1[lane], dy[lane], x0[lane], x1[lane],
             dx[lane], mix[lane], out[lane])


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _one(volume, z0, z1, dz, y0, y1, dy, x0, x1, dx, mix, out):  # type: ignore[no-untyped-def]
    channels, _, height, width = volume.shape
    row, planes = np.empty(width, np.float32), np.empty((len(mix), height, width), np.float32)
    for z in range(len(z0)):
        for y in range(height):
            for c in range(channels):
                _between(volume[c, z0[z], y], volume[c, z1[z], y], dz[z], row)
                for k in range(len(mix)):
                    _mix(row, mix[k, c], c == 0, planes[k, y])
        for k in range(len(mix)):
            for y in range(len(y0)):
                _between(planes[k, y0[y]], planes[k, y1[y]], dy[y], row)
                line = out[k, z, y]
                for x in range(len(line)):
                    low = row[x0[x]]
                    line[x] = (row[x1[x]] - low) * dx[x] + low


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _between(a, b, share, out):  # type: ignore[no-untyped-def]
    for i in range(len(out)):
        out[i] = (b[i] - a[i]) * share + a[i]


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _mix(line, weight, first, out):  # type: ignore[no-untyped-def]
    if first:
        for i in range(len(out)):
            out[i] = line[i] * weight
    else:
        for i in range(len(out)):
            out[i] += line[i] * weight
