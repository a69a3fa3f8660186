"""Local correlation and its gradient on the CPU, in one pass over the slices of an image.

Box sums run along each axis in turn: along a row by doubling, along columns and slices by adding what enters the window
and subtracting what leaves it. A slice enters; half a window later its own windows are complete and give its
correlations and the three coefficients of the gradient; these are summed over windows likewise, and as much later its
gradient is written. Only a window's depth of slices is in memory, about 32 bytes a voxel of them. Two dimensions are a
volume of one slice.
"""

from __future__ import annotations

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regenv.ops.kernels.layout import LOCALLY_FLAT
from regenv.ops.kernels.threads import run

AFRESH = 16  # slices after which a running sum starts again, so that its rounding errors do not grow


def lncc_force(fixed: Tensor, warped: Tensor, mask: Tensor | None, standard: Tensor,
               window: int, want_force: bool) -> tuple[Tensor, Tensor]:
    """As ``regenv.ops.kernels.reference.lncc_force``, float32."""
    a, b = _volume(fixed), _volume(warped)
    weight = np.empty((len(a), 1, 1, 1, 1), np.float32) if mask is None else _volume(mask)
    force = torch.empty(warped.shape if want_force else 0, dtype=torch.float32)
    sums = np.zeros(a.shape[:3])
    given = standard.detach().to(torch.float32).contiguous().numpy()
    out = force.numpy().reshape(a.shape if want_force else (len(a), a.shape[1], 0, 0, 0))
    run(_lncc, a, b, weight, mask is not None, given, window, want_force, out, sums, voxels=a.size)
    return torch.from_numpy(sums.sum(-1)), force


def _volume(image: Tensor) -> NDArray[np.float32]:
    values = image.detach().to(torch.float32).contiguous()
    array: NDArray[np.float32] = (values.unsqueeze(2) if values.ndim == 4 else values).numpy()
    return array


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _lncc(fixed, warped, mask, masked, standard, window, wanted,  # type: ignore[no-untyped-def]
          force, sums, chunk, chunks):
    lanes, channels, depth = fixed.shape[:3]
    blocks = (depth + AFRESH - 1) // AFRESH     # a chunk is a run of them, so that it does not matter where it starts
    total = lanes * channels * blocks
    at, end = chunk * total // chunks, (chunk + 1) * total // chunks
    while at < end:
        plane, first = at // blocks, at % blocks
        last = min(blocks, first + end - at)
        b, c = plane // channels, plane % channels
        _stream(fixed[b, c], warped[b, c], mask[b, 0], masked, standard[b, c], window, wanted, first * AFRESH,
                min(last * AFRESH, depth), force[b, c], sums[b, c])
        at += last - first


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _stream(a, b, m, masked, standard, window, wanted, start, stop, force, sums):  # type: ignore[no-untyped-def]
    """Writes the sums of the correlations of slices start to stop, and their gradient where it is wanted."""
    depth, height, width = a.shape
    radius, parts = window // 2, 6 if masked else 5
    reach = min(radius, depth - 1)              # of the window over slices: no further than there are any
    slots = 2 * reach + 1
    pitch = width + 2 * radius                  # of a row of one quantity, with the border that doubling needs
    recent, slices, volume, column = _sums(parts * pitch, window, slots, height)
    recent2, slices2, volume2, column2 = _sums(3 * pitch, window, slots, height)
    lines = np.zeros((parts + 1) * pitch, np.float32), np.zeros((parts + 1) * pitch, np.float32)
    lines2 = np.zeros(4 * pitch, np.float32), np.zeros(4 * pitch, np.float32)
    across, up, along = _counts(height, radius), _counts(depth, reach), _counts(width, radius)
    ahead = 2 * reach if wanted else reach    # slices from which those asked for are made
    for z in range(max(start - ahead, 0), stop + ahead):
        recent[:], column[:], recent2[:], column2[:] = 0, 0, 0, 0
        there, mz = z % slots, z if masked else 0
        for y in range(height + radius if z < depth else 0):
            if y < height:
                _products(a[z, y], b[z, y], m[mz, y if masked else 0], masked, standard, lines[0], radius)
                _box(lines, window)
            _down(lines, window, recent[y % window], column, y < height)
            if y >= radius:
                _across(column, slices[there, y - radius], volume[y - radius])
        _leave(slices, volume, there, z >= depth, z % AFRESH == 0)
        here, done = z - reach, z - 2 * reach       # slices whose windows of both kinds are now complete
        if here < max(start + reach - ahead, 0):
            continue
        there, mz = here % slots, here if masked else 0
        for y in range(height + radius if here < depth and wanted else height if here < depth else 0):
            if y < height:
                total = _coefficients(volume[y], pitch, m[mz, y if masked else 0], masked, up[here] * across[y], along,
                                      lines2[0], radius)
                if start <= here < stop:
                    sums[here] += total
                if not wanted:
                    continue
                _box(lines2, window)
            _down(lines2, window, recent2[y % window], column2, y < height)
            if y >= radius:
                _across(column2, slices2[there, y - radius], volume2[y - radius])
        if not wanted:
            continue
        _leave(slices2, volume2, there, here >= depth, done % AFRESH == 0)
        if start <= done < stop:
            for y in range(height):
                _force(volume2[y], pitch, a[done, y], b[done, y], m[done if masked else 0, y if masked else 0], masked,
                       standard, force[done, y])


@numba.njit(error_model="numpy", cache=True)
def _sums(length, window, slots, height):  # type: ignore[no-untyped-def]
    """Of quantities: row sums of the last rows, column sums of the last slices, sums over the window, and of a row."""
    return (np.zeros((window, length), np.float32), np.zeros((slots, height, length), np.float32),
            np.zeros((height, length), np.float32), np.zeros(length, np.float32))


@numba.njit(error_model="numpy", cache=True)
def _counts(n, radius):  # type: ignore[no-untyped-def]
    """Voxels of the window inside the image, along one axis."""
    found = np.empty(n, np.float32)
    for i in range(n):
        found[i] = np.float32(min(i + radius, n - 1) - max(i - radius, 0) + 1)
    return found


@numba.njit(error_model="numpy", cache=True, fastmath={"contract", "reassoc", "nsz"})
def _products(a, b, m, masked, standard, line, radius):  # type: ignore[no-untyped-def]
    """Writes the weighted a, b, a a, b b, a b and weights of a row, one after another, each with its border of 0."""
    mean_a, scale_a, mean_b, scale_b = standard[0], standard[1], standard[2], standard[3]
    n, one = len(a), np.float32(1)
    pitch = n + 2 * radius
    _clear(line, pitch, radius, 6 if masked else 5)
    for i in range(n):
        w = m[i] if masked else one
        p, q = (a[i] - mean_a) * scale_a, (b[i] - mean_b) * scale_b
        wp, wq, at = w * p, w * q, np.uint64(radius + i)
        line[at] = wp
        line[at + np.uint64(pitch)] = wq
        line[at + np.uint64(2 * pitch)] = wp * p
        line[at + np.uint64(3 * pitch)] = wq * q
        line[at + np.uint64(4 * pitch)] = wp * q
    if masked:
        for i in range(n):
            line[5 * pitch + radius + i] = m[i]


@numba.njit(error_model="numpy", cache=True)
def _clear(line, pitch, radius, parts):  # type: ignore[no-untyped-def]
    """The borders of a row's quantities."""
    for k in range(parts):
        line[k * pitch:k * pitch + radius] = 0
        line[(k + 1) * pitch - radius:(k + 1) * pitch] = 0


@numba.njit(error_model="numpy", cache=True, fastmath={"contract", "nsz"})
def _box(lines, window):  # type: ignore[no-untyped-def]
    """From a row of quantities, sums of as many neighbours as the window has, in two summands: ``first[i] +
    second[i + start]``, start = window - the window's highest power of two (for a window of 1: first alone)."""
    first, second = lines
    n = len(first)
    start, length = 1, 2
    for i in range(n - 1):
        second[i] = first[i] + first[i + 1]
    while 2 * length <= window:
        if window & length:
            for i in range(n - start):
                first[i] += second[i + start]
            start += length
        for i in range(n - length):
            second[i] = second[i] + second[i + length]
        length *= 2


@numba.njit(error_model="numpy", cache=True, fastmath={"contract", "nsz"})
def _down(lines, window, old, column, enters):  # type: ignore[no-untyped-def]
    """Moves the sums over rows on by one."""
    first, second = lines
    if not enters:
        for i in range(len(column)):
            column[i] -= old[i]
            old[i] = np.float32(0)
    elif window == 1:
        for i in range(len(column)):
            column[i] = first[i]
    else:
        start = 1
        while 2 * start < window:
            start *= 2
        part = second[window - start:]
        for i in range(len(column)):
            total = first[i] + part[i]
            column[i] += total - old[i]
            old[i] = total


@numba.njit(error_model="numpy", cache=True, fastmath={"contract", "nsz"})
def _across(column, before, volume):  # type: ignore[no-untyped-def]
    """Moves the sums over slices on by one, in one row."""
    for i in range(len(column)):
        volume[i] += column[i] - before[i]
        before[i] = column[i]


@numba.njit(error_model="numpy", cache=True, fastmath={"contract", "nsz"})
def _leave(slices, volume, there, beyond, afresh):  # type: ignore[no-untyped-def]
    """After the rows of a slice: beyond the last one, only what leaves the window; and at times the sum anew."""
    height = len(volume)
    for y in range(height if beyond else 0):
        old, out = slices[there, y], volume[y]
        for i in range(len(out)):
            out[i] -= old[i]
            old[i] = np.float32(0)
    for y in range(height if afresh else 0):
        out = volume[y]
        out[:] = 0
        for slot in range(len(slices)):
            part = slices[slot, y]
            for i in range(len(out)):
                out[i] += part[i]


@numba.njit(error_model="numpy", cache=True, fastmath={"contract", "nsz", "reassoc"})
def _coefficients(sums, pitch, m, masked, across, along, line, radius):  # type: ignore[no-untyped-def]
    """Writes what the gradient sums over windows, and returns the sum of a row's correlations."""
    n = len(along)
    a, b, aa, bb = sums[:n], sums[pitch:pitch + n], sums[2 * pitch:2 * pitch + n], sums[3 * pitch:3 * pitch + n]
    ab, weights = sums[4 * pitch:4 * pitch + n], sums[len(sums) - pitch:]
    p, q, r = line[radius:], line[pitch + radius:], line[2 * pitch + radius:]
    zero, one, two, flat = np.float32(0), np.float32(1), np.float32(2), np.float32(LOCALLY_FLAT)
    _clear(line, pitch, radius, 3)
    total = zero
    for i in range(n):
        count = weights[i] if masked else across * along[i]
        weight = m[i] if masked else one
        share = one / count if count > zero else zero
        mean_a, mean_b = a[i] * share, b[i] * share
        cov = ab[i] * share - mean_a * mean_b
        var_a = max(aa[i] * share - mean_a * mean_a, zero)
        var_b = max(bb[i] * share - mean_b * mean_b, zero)
        d = one / (var_a * var_b + flat)
        value = cov * cov * d
        total += weight * value
        scale = two * d * weight * share
        first = scale * cov
        second = scale * value * var_a if var_b > zero else zero
        p[i], q[i], r[i] = first, second, first * mean_a - second * mean_b
    return total


@numba.njit(error_model="numpy", cache=True, fastmath={"contract", "nsz"})
def _force(sums, pitch, a, b, m, masked, standard, out):  # type: ignore[no-untyped-def]
    """Writes a row of the gradient."""
    mean_a, scale_a, mean_b, scale_b = standard[0], standard[1], standard[2], standard[3]
    p, q, r, one = sums, sums[pitch:], sums[2 * pitch:], np.float32(1)
    for i in range(len(out)):
        weight = scale_b * (m[i] if masked else one)
        out[i] = weight * (p[i] * ((a[i] - mean_a) * scale_a) - q[i] * ((b[i] - mean_b) * scale_b) - r[i])
