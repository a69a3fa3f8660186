"""Affine warp on the CPU: coordinates are computed in the loop, no sampling grid is ever in memory."""

from __future__ import annotations

import numba
import numpy as np
import torch
from torch import Tensor

SERIAL_BELOW = 1 << 21  # voxels: threads that wake for less cost more than they save, ten times so on a busy machine


def warp_affine_cpu(image: Tensor, matrix: Tensor, shape: tuple[int, ...]) -> Tensor:
    """As ``regenv.ops.warp.warp_affine``, linear, float32, no gradients; two dimensions are a volume of one slice."""
    flat = image.ndim == 4
    volume = image.detach().unsqueeze(2) if flat else image.detach()
    rows = matrix.detach().to(torch.float32)
    if flat:
        rows = torch.nn.functional.pad(rows, (1, 0, 1, 0))
    out = torch.empty(image.shape[:2] + ((1, *shape) if flat else tuple(shape)), dtype=torch.float32)
    threads = numba.get_num_threads()
    if out.numel() < SERIAL_BELOW:
        numba.set_num_threads(1)
    _warp(volume.numpy(), np.ascontiguousarray(rows.numpy()), out.numpy())
    numba.set_num_threads(threads)
    return out.squeeze(2) if flat else out


@numba.njit(inline="always", error_model="numpy")
def interpolate(image, b, z, y, x, out, k, j, i):  # type: ignore[no-untyped-def]
    """Linear values of lane b's channels at a point, the edges repeated, into voxel (k, j, i); NaN at NaN."""
    d, h, w = image.shape[2:]
    z = min(max(z, np.float32(0.0)), np.float32(d - 1))
    y = min(max(y, np.float32(0.0)), np.float32(h - 1))
    x = min(max(x, np.float32(0.0)), np.float32(w - 1))
    zi, yi, xi = int(z) if z > 0 else 0, int(y) if y > 0 else 0, int(x) if x > 0 else 0
    fz, fy, fx = z - np.float32(zi), y - np.float32(yi), x - np.float32(xi)
    zj, yj, xj = min(zi + 1, d - 1), min(yi + 1, h - 1), min(xi + 1, w - 1)
    for c in range(image.shape[1]):
        v = image[b, c]
        a0 = v[zi, yi, xi] + fx * (v[zi, yi, xj] - v[zi, yi, xi])
        a1 = v[zi, yj, xi] + fx * (v[zi, yj, xj] - v[zi, yj, xi])
        value = a0 + fy * (a1 - a0)
        if d > 1:
            b0 = v[zj, yi, xi] + fx * (v[zj, yi, xj] - v[zj, yi, xi])
            b1 = v[zj, yj, xi] + fx * (v[zj, yj, xj] - v[zj, yj, xi])
            value += fz * (b0 + fy * (b1 - b0) - value)
        out[b, c, k, j, i] = value


@numba.njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def _warp(image, matrix, out):  # type: ignore[no-untyped-def]
    lanes, channels, depth, height, width = out.shape
    d, h, w = image.shape[2:]
    half = np.float32(0.5)
    for row in numba.prange(lanes * depth):
        b, k = row // depth, row % depth
        m = matrix[b]
        fk = np.float32(k)
        for j in range(height):
            fj = np.float32(j)
            z0 = m[0, 3] + m[0, 0] * fk + m[0, 1] * fj
            y0 = m[1, 3] + m[1, 0] * fk + m[1, 1] * fj
            x0 = m[2, 3] + m[2, 0] * fk + m[2, 1] * fj
            for i in range(width):
                fi = np.float32(i)
                z, y, x = z0 + m[0, 2] * fi, y0 + m[1, 2] * fi, x0 + m[2, 2] * fi
                if not (z >= -half and y >= -half and x >= -half and z < d - half and y < h - half and x < w - half):
                    for c in range(channels):
                        out[b, c, k, j, i] = 0.0
                    continue
                interpolate(image, b, z, y, x, out, k, j, i)
