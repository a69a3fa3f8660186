"""Warp through a displacement and an affine map on the CPU: no sampling grid is ever in memory."""

from __future__ import annotations

import numba
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from regenv.ops.kernels.affine_cpu import SERIAL_BELOW, interpolate


def warp_through_cpu(image: Tensor, matrix: Tensor, displacement: Tensor, padding: str = "zeros",
                     mode: str = "bilinear") -> Tensor:
    """As ``regenv.ops.warp.warp_through``, without gradients; two dimensions are a volume of one slice.

    Args: image (B, C, *input_shape) float32, or integers with ``mode="nearest"``; matrix (B or 1, D+1, D+1);
    displacement (B, D, *shape) float32.
    """
    flat = image.ndim == 4
    rows = matrix.detach().to(torch.float32)
    volume, field = image.detach().contiguous(), displacement.detach().contiguous()
    if flat:
        rows, volume, field = pad(rows, (1, 0, 1, 0)), volume.unsqueeze(2), field.unsqueeze(2)
    out = torch.empty(volume.shape[:2] + field.shape[2:], dtype=image.dtype)
    threads = numba.get_num_threads()
    if out.numel() < SERIAL_BELOW:
        numba.set_num_threads(1)
    kernel = _nearest if mode == "nearest" else _linear
    kernel(volume.numpy(), rows.expand(len(image), 4, 4).contiguous().numpy(), field.numpy(), padding == "border",
           out.numpy())
    numba.set_num_threads(threads)
    return out.squeeze(2) if flat else out


@numba.njit(error_model="numpy", cache=True)
def _point(m, field, b, k, j, i):  # type: ignore[no-untyped-def]
    first = field.shape[1] - 2
    z, y, x = np.float32(k), np.float32(j) + field[b, first, k, j, i], np.float32(i) + field[b, first + 1, k, j, i]
    if first:
        z += field[b, 0, k, j, i]
    return (m[0, 0] * z + m[0, 1] * y + m[0, 2] * x + m[0, 3], m[1, 0] * z + m[1, 1] * y + m[1, 2] * x + m[1, 3],
            m[2, 0] * z + m[2, 1] * y + m[2, 2] * x + m[2, 3])


@numba.njit(inline="always", error_model="numpy")
def _inside(z, y, x, d, h, w):  # type: ignore[no-untyped-def]
    half = np.float32(0.5)
    return z >= -half and y >= -half and x >= -half and z < d - half and y < h - half and x < w - half


@numba.njit(inline="always", error_model="numpy")
def _voxel(at, size):  # type: ignore[no-untyped-def]
    """The nearest voxel, halves up as in ITK; 0 at NaN."""
    at = np.floor(at + np.float32(0.5))
    return min(int(at), size - 1) if 0 < at < size else (size - 1 if at >= size else 0)


@numba.njit(parallel=True, cache=True, nogil=True, error_model="numpy", fastmath={"contract", "nsz"})
def _linear(image, matrix, field, border, out):  # type: ignore[no-untyped-def]
    lanes, channels, depth, height, width = out.shape
    d, h, w = image.shape[2:]
    flat = image.reshape(lanes, channels, d * h * w)
    one, down, back = np.uint64(1), np.uint64(w), np.uint64(h * w if d > 1 else 0)  # unsigned: none counts from the end
    zero, top, end, side = np.float32(0), np.float32(max(d - 1, 1)), np.float32(h - 1), np.float32(w - 1)
    for row in numba.prange(lanes * depth * height):
        b, k, j = row // (depth * height), row // height % depth, row % height
        m = matrix[b]
        for i in range(width):
            z, y, x = _point(m, field, b, k, j, i)
            if z >= zero and y >= zero and x >= zero and z < top and y < end and x < side and (d > 1 or z == zero):
                zi, yi, xi = np.int32(z), np.int32(y), np.int32(x)
                fz, fy, fx = z - np.float32(zi), y - np.float32(yi), x - np.float32(xi)
                p = np.uint64((zi * h + yi) * w + xi)
                q, r = p + down, p + back
                s = q + back
                for c in range(channels):
                    v = flat[b, c]
                    a0, a1 = v[p] + fx * (v[p + one] - v[p]), v[q] + fx * (v[q + one] - v[q])
                    b0, b1 = v[r] + fx * (v[r + one] - v[r]), v[s] + fx * (v[s + one] - v[s])
                    a0, b0 = a0 + fy * (a1 - a0), b0 + fy * (b1 - b0)
                    out[b, c, k, j, i] = a0 + fz * (b0 - a0)
            elif border or _inside(z, y, x, d, h, w):
                interpolate(image, b, z, y, x, out, k, j, i)
            else:
                for c in range(channels):
                    out[b, c, k, j, i] = 0.0


@numba.njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def _nearest(image, matrix, field, border, out):  # type: ignore[no-untyped-def]
    lanes, channels, depth, height, width = out.shape
    d, h, w = image.shape[2:]
    for row in numba.prange(lanes * depth * height):
        b, k, j = row // (depth * height), row // height % depth, row % height
        m = matrix[b]
        for i in range(width):
            z, y, x = _point(m, field, b, k, j, i)
            seen = border or _inside(z, y, x, d, h, w)
            for c in range(channels):
                out[b, c, k, j, i] = image[b, c, _voxel(z, d), _voxel(y, h), _voxel(x, w)] if seen else 0
