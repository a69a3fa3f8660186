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


@numba.njit(inline="always", error_model="numpy")
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


@numba.njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def _linear(image, matrix, field, border, out):  # type: ignore[no-untyped-def]
    lanes, channels, depth, height, width = out.shape
    d, h, w = image.shape[2:]
    for row in numba.prange(lanes * depth * height):
        b, k, j = row // (depth * height), row // height % depth, row % height
        m = matrix[b]
        for i in range(width):
            z, y, x = _point(m, field, b, k, j, i)
            if not border and not _inside(z, y, x, d, h, w):
                for c in range(channels):
                    out[b, c, k, j, i] = 0.0
                continue
            interpolate(image, b, z, y, x, out, k, j, i)


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
