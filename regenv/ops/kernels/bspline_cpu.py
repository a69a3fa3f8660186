"""Sums of modes, and dense fields of B-spline coefficients, on the CPU: only control points that count at a voxel."""

from __future__ import annotations

import numba
import numpy as np
import torch
from torch import Tensor

from regenv.ops.kernels.threads import run

TAPS = 4    # control points of a cubic B-spline that count at a voxel


def combined(mean: Tensor, modes: Tensor, theta: Tensor) -> Tensor:
    """``mean + theta modes`` (B, F) of rows mean (F,), modes (K, F) and theta (B, K), summed in order; float32."""
    out = np.empty((len(theta), len(mean)), np.float32)
    _combine(mean.numpy(), modes.numpy(), theta.contiguous().numpy(), out)
    return torch.from_numpy(out)


def dense(coefficients: Tensor, bases: list[Tensor]) -> Tensor:
    """Fields (B, C, *shape) of coefficients (B, C, *control), by weights (voxels, control) an axis; float32."""
    ndim = len(bases)
    lines = coefficients.contiguous().view(-1, *(1,) * (3 - ndim), *coefficients.shape[2:]).numpy()
    weights = [np.ones((1, 1), np.float32)] * (3 - ndim) + [basis.numpy() for basis in bases]
    out = np.empty((len(lines), *(len(weight) for weight in weights)), np.float32)
    run(_dense, lines, *weights[:2], np.ascontiguousarray(weights[2].T), out, voxels=out.size)
    return torch.from_numpy(out).view(*coefficients.shape[:2], *(len(basis) for basis in bases))


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _combine(mean, modes, theta, out):  # type: ignore[no-untyped-def]
    for lane in range(len(out)):
        line = out[lane]
        line[:] = mean
        for k in range(len(modes)):
            _add(theta[lane, k], modes[k], line)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _add(factor, line, out):  # type: ignore[no-untyped-def]
    for i in range(len(out)):
        out[i] += factor * line[i]


@numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract"})
def _blend(weights, lines, out):  # type: ignore[no-untyped-def]
    """Writes the sum of weights (K,) times lines (K, N), of which at most four in a row are not 0."""
    count = len(weights)
    first = 0
    while first < count - TAPS and weights[first] == 0:
        first += 1
    if count < TAPS:
        out[:] = weights[0] * lines[0]
        return
    w0, w1, w2, w3 = weights[first], weights[first + 1], weights[first + 2], weights[first + 3]
    a, b, c, d = lines[first], lines[first + 1], lines[first + 2], lines[first + 3]
    for i in range(len(out)):
        out[i] = w0 * a[i] + w1 * b[i] + w2 * c[i] + w3 * d[i]


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _dense(lines, along_z, along_y, along_x, out, chunk, chunks):  # type: ignore[no-untyped-def]
    images, depth, height, width = out.shape
    cz, cy, cx = lines.shape[1:]
    rows, planes = np.empty((cy, width), np.float32), np.empty((cz, height * width), np.float32)
    flat = out.reshape(images, depth, height * width)
    for image in range(chunk * images // chunks, (chunk + 1) * images // chunks):
        for z in range(cz):
            plane = planes[z] if depth > 1 else flat[image, 0]      # a slice is its only plane
            for y in range(cy):
                rows[y] = 0
                for x in range(cx):
                    _add(lines[image, z, y, x], along_x[x], rows[y])
            for y in range(height):
                _blend(along_y[y], rows, plane[y * width:(y + 1) * width])
        if depth > 1:
            for z in range(depth):
                _blend(along_z[z], planes, flat[image, z])
