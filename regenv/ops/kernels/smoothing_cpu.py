"""Gaussian smoothing, and images' central differences times a force, on the CPU, in one pass over the slices.

Rows, columns and slices are filtered in turn; only the filter's depth of slices is in memory. Two dimensions are a
volume of one slice. The border's value holds beyond it.
"""

from __future__ import annotations

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regenv.ops.kernels.threads import run


def smoothed(image: Tensor, taps: Tensor) -> Tensor:
    """As ``regenv.ops.kernels.reference.smoothed``, float32."""
    values = image.detach().to(torch.float32).contiguous()
    out = torch.empty_like(values)
    weights = taps.detach().to(torch.float32).contiguous().numpy()
    run(_smooth, _planes(values), weights, _planes(out), voxels=values.numel())
    return out


def central_force(force: Tensor, image: Tensor) -> Tensor:
    """As ``regenv.ops.kernels.reference.central_force``, float32."""
    given = [each.detach().to(torch.float32).contiguous() for each in (force, image)]
    out = torch.empty((len(image), image.ndim - 2, *image.shape[2:]), dtype=torch.float32)
    lifted = [(each.unsqueeze(2) if each.ndim == 4 else each).numpy() for each in (*given, out)]
    run(_central, *lifted, voxels=given[0].numel())
    return out


def _planes(image: Tensor) -> NDArray[np.float32]:
    """Every channel of every lane as a volume: (N, D, H, W)."""
    array: NDArray[np.float32] = image.view(-1, *(1,) * (5 - image.ndim), *image.shape[2:]).numpy()
    return array


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _smooth(image, taps, out, chunk, chunks):  # type: ignore[no-untyped-def]
    planes, depth = image.shape[:2]
    at, end = chunk * planes * depth // chunks, (chunk + 1) * planes * depth // chunks
    while at < end:
        plane, first = at // depth, at % depth
        last = min(depth, first + end - at)
        _volume(image[plane], taps, first, last, out[plane])
        at += last - first


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _volume(image, taps, start, stop, out):  # type: ignore[no-untyped-def]
    """Writes slices start to stop of a smoothed volume. Rows and columns are filtered in slices with borders."""
    depth, height, width = image.shape
    radius = len(taps) - 1
    turns, pitch = 2 * radius + 1, width + 2 * radius
    ring = np.empty((turns, height * pitch), np.float32)
    padded, rows = np.empty(height * pitch, np.float32), np.empty((height + 2 * radius) * pitch, np.float32)
    total = np.empty(height * pitch, np.float32)
    for z in range(max(start - radius, 0), stop + radius):
        if z < depth:
            for y in range(height):
                _pad(image[z, y], radius, padded[y * pitch:(y + 1) * pitch])
            inner = rows[radius * pitch:(radius + height) * pitch]
            _filter(padded, 1, taps, inner[:height * pitch - 2 * radius])
            for t in range(radius):
                rows[t * pitch:(t + 1) * pitch] = inner[:pitch]
                rows[(radius + height + t) * pitch:(radius + height + t + 1) * pitch] = inner[(height - 1) * pitch:]
            _filter(rows, pitch, taps, ring[z % turns])
        done = z - radius
        if start <= done < stop:
            _scale(ring[done % turns], taps[0], total)
            for t in range(1, radius + 1):
                _gather(ring[max(done - t, 0) % turns], ring[min(done + t, depth - 1) % turns], taps[t], total)
            for y in range(height):
                out[done, y] = total[y * pitch:y * pitch + width]


@numba.njit(error_model="numpy", cache=True)
def _pad(row, radius, out):  # type: ignore[no-untyped-def]
    """Writes a row with its border repeated."""
    n = len(row)
    out[:radius], out[radius:radius + n], out[radius + n:] = row[0], row, row[n - 1]


@numba.njit(error_model="numpy", cache=True, fastmath={"contract", "nsz"})
def _filter(line, step, taps, out):  # type: ignore[no-untyped-def]
    """Writes sums of values steps apart, weighted by a symmetric filter; the first one begins where the line does."""
    radius = len(taps) - 1
    _scale(line[radius * step:], taps[0], out)
    for t in range(1, radius, 2):
        a, b, c, d = line[(radius - t) * step:], line[(radius + t) * step:], line[(radius - t - 1) * step:], line[(
            radius + t + 1) * step:]
        first, second = taps[t], taps[t + 1]
        for i in range(len(out)):
            out[i] += first * (a[i] + b[i]) + second * (c[i] + d[i])
    if radius % 2:
        _gather(line, line[2 * radius * step:], taps[radius], out)


@numba.njit(error_model="numpy", cache=True, fastmath={"contract", "nsz"})
def _scale(a, weight, out):  # type: ignore[no-untyped-def]
    for i in range(len(out)):
        out[i] = weight * a[i]


@numba.njit(error_model="numpy", cache=True, fastmath={"contract", "nsz"})
def _gather(a, b, weight, out):  # type: ignore[no-untyped-def]
    for i in range(len(out)):
        out[i] += weight * (a[i] + b[i])


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _central(force, image, out, chunk, chunks):  # type: ignore[no-untyped-def]
    lanes, channels, depth, height, width = image.shape
    slab, thin = height * width, 3 - out.shape[1]
    q, v = force.reshape(lanes, channels, depth, slab), image.reshape(lanes, channels, depth, slab)
    found = out.reshape(lanes, 3 - thin, depth, slab)
    for unit in range(chunk * lanes * depth // chunks, (chunk + 1) * lanes * depth // chunks):
        b, z = unit // depth, unit % depth
        for axis in range(3 - thin):
            found[b, axis, z] = np.float32(0)
        for c in range(channels):
            here, values = q[b, c, z], v[b, c, z]
            if thin == 0:
                _slope(here, v[b, c, max(z - 1, 0)], v[b, c, min(z + 1, depth - 1)], found[b, 0, z])
            _differences(here, values, width, height, found[b, 1 - thin, z])
            _along(here, values, width, found[b, 2 - thin, z])


@numba.njit(error_model="numpy", cache=True, fastmath={"contract", "nsz"})
def _slope(q, before, after, out):  # type: ignore[no-untyped-def]
    half = np.float32(0.5)
    for i in range(len(out)):
        out[i] += half * q[i] * (after[i] - before[i])


@numba.njit(error_model="numpy", cache=True)
def _differences(q, values, width, height, out):  # type: ignore[no-untyped-def]
    """Of the columns of a slice."""
    if height > 1:
        last = (height - 1) * width
        _slope(q[:width], values[:width], values[width:], out[:width])
        _slope(q[width:last], values, values[2 * width:], out[width:last])
        _slope(q[last:], values[last - width:], values[last:], out[last:])


@numba.njit(error_model="numpy", cache=True)
def _along(q, values, width, out):  # type: ignore[no-untyped-def]
    """Of the rows of a slice."""
    half, one, count = np.float32(0.5), np.uint64(1), np.uint64(width)
    for row in range(len(values) // width if width > 1 else 0):
        first = np.uint64(row) * count
        last = first + count - one
        out[first] += half * q[first] * (values[first + one] - values[first])
        for i in range(first + one, last):
            out[i] += half * q[i] * (values[i + one] - values[i - one])
        out[last] += half * q[last] * (values[last] - values[last - one])
