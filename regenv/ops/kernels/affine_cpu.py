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
    _warp(volume.contiguous().numpy(), np.ascontiguousarray(rows.numpy()), out.numpy())
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


@numba.njit(inline="always", error_model="numpy")
def span(start, step, low, high, count):  # type: ignore[no-untyped-def]
    """First and one past the last i of 0 to count with low <= start + step i <= high, but for rounding."""
    if abs(step) * np.float32(count) < np.float32(1e-6):
        return (0, count) if low <= start <= high else (0, 0)
    first, last = (low - start) / step, (high - start) / step
    if first > last:
        first, last = last, first
    if not (last >= 0 and first <= count):  # nor where a number is NaN
        return 0, 0
    return int(np.ceil(max(first, np.float32(0)))), int(min(last, np.float32(count - 1))) + 1


@numba.njit(error_model="numpy", cache=True)
def _start(m, k, j):  # type: ignore[no-untyped-def]
    """Where a row begins."""
    k, j = np.float32(k), np.float32(j)
    return (m[0, 3] + m[0, 0] * k + m[0, 1] * j, m[1, 3] + m[1, 0] * k + m[1, 1] * j,
            m[2, 3] + m[2, 0] * k + m[2, 1] * j)


@numba.njit(error_model="numpy", cache=True)
def _edge(image, start, m, out, b, k, j, i):  # type: ignore[no-untyped-def]
    """A voxel that may look beyond the image. Rounded as the reference rounds, for half a voxel off all changes."""
    d, h, w = image.shape[2:]
    half, along = np.float32(0.5), np.float32(i)
    z, y, x = start[0] + m[0, 2] * along, start[1] + m[1, 2] * along, start[2] + m[2, 2] * along
    if z >= -half and y >= -half and x >= -half and z < d - half and y < h - half and x < w - half:
        interpolate(image, b, z, y, x, out, k, j, i)
    else:
        for c in range(out.shape[1]):
            out[b, c, k, j, i] = 0.0


@numba.njit(parallel=True, cache=True, nogil=True, error_model="numpy", fastmath={"contract", "nsz"})
def _warp(image, matrix, out):  # type: ignore[no-untyped-def]
    lanes, channels, depth, height, width = out.shape
    d, h, w = image.shape[2:]
    flat = image.reshape(lanes, channels, d * h * w)
    one, down, back = np.uint64(1), np.uint64(w), np.uint64(h * w)  # unsigned: no place counts from the end
    for row in numba.prange(lanes * depth * height):
        b, k, j = row // (depth * height), row // height % depth, row % height
        m = matrix[b]
        z0, y0, x0 = _start(m, k, j)
        dz, dy, dx = m[0, 2], m[1, 2], m[2, 2]
        first, last, begin, end = 0, width, 0, width  # surely within [0, size - 1), perhaps within half a voxel of it
        for start, step, size, thick in ((z0, dz, d, d > 1), (y0, dy, h, True), (x0, dx, w, True)):
            margin = np.float32(1e-3) * np.float32(size)  # more than rounding may be off
            low, high = span(start, step, -np.float32(0.5) - margin, np.float32(size - 0.5) + margin, width)
            begin, end = max(begin, low - 1), min(end, high + 1)
            if thick:
                low, high = span(start, step, margin, np.float32(size - 1) - margin, width)
                first, last = max(first, low), min(last, high)
            elif not abs(start) + abs(step) * np.float32(width) < np.float32(0.5):
                last = 0
        if end <= begin:
            begin = end = first = last = width
        elif last <= first:
            first = last = end
        for c in range(channels):
            out[b, c, k, j, :begin] = 0
            out[b, c, k, j, end:] = 0
        for i in range(begin, first):
            _edge(image, (z0, y0, x0), m, out, b, k, j, i)
        for i in range(last, end):
            _edge(image, (z0, y0, x0), m, out, b, k, j, i)
        for c in range(channels):
            v, line = flat[b, c], out[b, c, k, j]
            for i in range(first, last):
                fi = np.float32(i)
                z, y, x = z0 + dz * fi, y0 + dy * fi, x0 + dx * fi
                yi, xi = np.int32(y), np.int32(x)
                fy, fx = y - np.float32(yi), x - np.float32(xi)
                if d > 1:
                    zi = np.int32(z)
                    fz = z - np.float32(zi)
                    p = np.uint64((zi * h + yi) * w + xi)
                    q = p + down
                    r, s = p + back, q + back
                    a0, a1 = v[p] + fx * (v[p + one] - v[p]), v[q] + fx * (v[q + one] - v[q])
                    b0, b1 = v[r] + fx * (v[r + one] - v[r]), v[s] + fx * (v[s + one] - v[s])
                    a0, b0 = a0 + fy * (a1 - a0), b0 + fy * (b1 - b0)
                    line[i] = a0 + fz * (b0 - a0)
                else:
                    p = np.uint64(yi * w + xi)
                    q = p + down
                    a0, a1 = v[p] + fx * (v[p + one] - v[p]), v[q] + fx * (v[q + one] - v[q])
                    line[i] = a0 + fy * (a1 - a0)
