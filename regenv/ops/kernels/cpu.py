"""Warps on the CPU, row by row: where the row's voxels look is worked out by vector instructions into buffers of one
row, then the values are fetched without a branch. No sampling grid is ever in memory.

Two dimensions are a volume of one slice. A map is an affine matrix (1 or B, 4, 4), a displacement (B, 2 or 3, *shape),
or the first after the second; float32. What is inside an image is decided without fused multiplications, so exactly as
``regenv.ops.sampling`` decides it: half a voxel past the last centre a difference of one bit is the whole value.
"""

from __future__ import annotations

import numba
import numpy as np
import torch
from torch import Tensor

from regenv.ops.kernels.layout import MOMENTS, bits, homogeneous
from regenv.ops.kernels.threads import threads_for

Map = tuple[np.ndarray, np.ndarray, bool, bool]


def warp(image: Tensor, matrix: Tensor | None, displacement: Tensor | None, shape: tuple[int, ...], border: bool,
             add: bool = False) -> Tensor:
    """Linear values (B, C, *shape); ``add``: plus the displacement, of as many channels."""
    volume, where, out = _volume(image, torch.float32), _map(matrix, displacement, len(image)), _empty(image, shape)
    with threads_for(out.numel()) as chunks:
        _warp(volume, *where, border, add, _lifted(out), chunks)
    return out.to(image.dtype)


def warp_labels(labels: Tensor, matrix: Tensor | None, displacement: Tensor | None,
                    shape: tuple[int, ...]) -> Tensor:
    """Nearest voxels' values (B, C, *shape) of any type, which are copied bit by bit."""
    words = bits(labels)
    out = torch.empty((*labels.shape[:2], *shape), dtype=words.dtype)
    with threads_for(out.numel()) as chunks:
        _nearest(_lifted(words), *_map(matrix, displacement, len(labels)), _lifted(out), chunks)
    return out.view(labels.dtype)


def look(fixed: Tensor, moving: Tensor, matrix: Tensor | None, displacement: Tensor | None,
             view: str) -> tuple[Tensor, Tensor, Tensor]:
    """The warped image, what is seen of it and its moments with the fixed one, in one pass over the voxels."""
    lanes, channels, shape = *moving.shape[:2], tuple(fixed.shape[2:])
    warped = _empty(moving, shape)
    seen = torch.empty((lanes, {"difference": 1, "pair": 2, "": 0}[view] * channels, *shape), dtype=torch.float32)
    moments = torch.empty((lanes, channels, MOMENTS), dtype=torch.float64)
    with threads_for(warped.numel()) as chunks:
        _look(_volume(fixed, torch.float32), _volume(moving, torch.float32), *_map(matrix, displacement, lanes),
              _lifted(warped), _lifted(seen), moments.numpy(), chunks)
    return warped.to(moving.dtype), seen if view else seen.view(lanes, 0), moments


def vjp(grad: Tensor, image: Tensor, matrix: Tensor | None, displacement: Tensor | None, border: bool,
            want_image: bool, want_points: bool) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of :func:`warp`, contracted with ``grad``: of the image, and of the points (B, D, *shape)."""
    volume, where, shape = _volume(image, torch.float32), _map(matrix, displacement, len(image)), grad.shape[2:]
    flow, ndim, of_image, of_points = _volume(grad, torch.float32), len(shape), None, None
    with threads_for(grad.numel()) as chunks:
        if want_points:
            of_points = torch.empty((len(image), ndim, *shape), dtype=torch.float32)
            _slopes(flow, volume, *where, border, _lifted(of_points), chunks)
        if want_image:
            total = torch.zeros(image.shape, dtype=torch.float32)
            _scatter(flow, *where, border, _lifted(total))
            of_image = total.to(image.dtype)
    return of_image, of_points


def _volume(image: Tensor, dtype: torch.dtype) -> np.ndarray:
    return _lifted(image.detach().to(dtype).contiguous())


def _lifted(image: Tensor) -> np.ndarray:
    return (image.unsqueeze(2) if image.ndim == 4 else image).numpy()


def _empty(image: Tensor, shape: tuple[int, ...]) -> Tensor:
    return torch.empty((*image.shape[:2], *shape), dtype=torch.float32)


def _map(matrix: Tensor | None, displacement: Tensor | None, lanes: int) -> Map:
    """Matrices (B, 4, 4) and displacements (B, 2 or 3, D, H, W), and whether there are any."""
    field = np.empty((lanes, 3, 1, 1, 1), np.float32) if displacement is None else _volume(displacement, torch.float32)
    if matrix is None:
        return np.empty((lanes, 4, 4), np.float32), field, False, True
    return homogeneous(matrix, lanes).numpy(), field, True, displacement is not None


@numba.njit(error_model="numpy", cache=True)
def _points(m, field, moved, bent, b, k, j, points):  # type: ignore[no-untyped-def]
    """Where a row of voxels looks, into points (3, W). Its products are rounded before they are summed."""
    first, width = field.shape[1] - 2, points.shape[1]
    kk, jj = np.float32(k), np.float32(j)
    if bent:
        up, across, along = field[b, 0, k, j], field[b, first, k, j], field[b, first + 1, k, j]
        zs, ys, xs = points[0], points[1], points[2]
        for i in range(width):
            zs[i] = kk + up[i] if first else kk
        for i in range(width):
            ys[i] = jj + across[i]
        for i in range(width):
            xs[i] = np.float32(np.int32(i)) + along[i]
        if moved:
            m0, m1, m2 = _row(m, 0), _row(m, 1), _row(m, 2)
            for i in range(width):
                z, y, x = zs[i], ys[i], xs[i]
                zs[i] = m0[3] + m0[0] * z + m0[1] * y + m0[2] * x
                ys[i] = m1[3] + m1[0] * z + m1[1] * y + m1[2] * x
                xs[i] = m2[3] + m2[0] * z + m2[1] * y + m2[2] * x
    else:
        for axis in range(3):
            start, step, line = m[axis, 3] + m[axis, 0] * kk + m[axis, 1] * jj, m[axis, 2], points[axis]
            for i in range(width):
                line[i] = start + step * np.float32(np.int32(i))  # AVX2 has no int64 to float32


@numba.njit(inline="always", error_model="numpy")
def _row(m, axis):  # type: ignore[no-untyped-def]
    return m[axis, 0], m[axis, 1], m[axis, 2], m[axis, 3]


@numba.njit(inline="always", error_model="numpy")
def _clamped(at, top):  # type: ignore[no-untyped-def]
    """0 where it is not a number."""
    at = at if at > np.float32(0) else np.float32(0)
    return at if at < top else top


@numba.njit(inline="always", error_model="numpy")
def _within(z, y, x, sizes):  # type: ignore[no-untyped-def]
    half = np.float32(0.5)
    d, h, w = np.float32(sizes[0]) - half, np.float32(sizes[1]) - half, np.float32(sizes[2]) - half
    return (z >= -half) & (y >= -half) & (x >= -half) & (z < d) & (y < h) & (x < w)


@numba.njit(error_model="numpy", cache=True)
def _cells(points, sizes, border, places, kept):  # type: ignore[no-untyped-def]
    """Of points (3, W): the first voxel of the cell each lies in, whether it counts, and, in place of the points, how
    far across the cell it lies, 0 to 1. How many count."""
    d, h, w = np.int32(sizes[0]), np.int32(sizes[1]), np.int32(sizes[2])
    tops = np.float32(d - 1), np.float32(h - 1), np.float32(w - 1)
    lasts = np.int32(max(d - 2, 0)), np.int32(max(h - 2, 0)), np.int32(max(w - 2, 0))
    zs, ys, xs = points[0], points[1], points[2]
    count = 0
    for i in range(points.shape[1]):
        z, y, x = zs[i], ys[i], xs[i]
        keep = border | _within(z, y, x, sizes)
        kept[i] = keep
        count += keep
        a, b, c = _clamped(z, tops[0]), _clamped(y, tops[1]), _clamped(x, tops[2])
        zi, yi, xi = min(np.int32(a), lasts[0]), min(np.int32(b), lasts[1]), min(np.int32(c), lasts[2])
        number = (z == z) & (y == y) & (x == x)
        zs[i], ys[i] = a - np.float32(zi), b - np.float32(yi)
        xs[i] = c - np.float32(xi) if number else np.float32(np.nan)
        places[i] = (zi * h + yi) * w + xi
    return count


@numba.njit(inline="always", error_model="numpy")
def _strides(sizes):  # type: ignore[no-untyped-def]
    """To a cell's next voxel along each axis; 0 where the axis has one voxel. Unsigned: none counts from the end."""
    d, h, w = sizes
    return np.uint64(h * w if d > 1 else 0), np.uint64(w if h > 1 else 0), np.uint64(1 if w > 1 else 0)


@numba.njit(error_model="numpy", cache=True, fastmath={"contract", "nsz"})
def _fetch(v, sizes, places, fractions, line):  # type: ignore[no-untyped-def]
    """Linear values of a flat image in a row's cells."""
    back, down, right = _strides(sizes)
    zs, ys, xs = fractions[0], fractions[1], fractions[2]
    if sizes[0] > 1:
        for i in range(len(line)):
            p = np.uint64(places[i])
            q, r = p + down, p + back
            s = q + back
            fz, fy, fx = zs[i], ys[i], xs[i]
            a0, a1 = v[p] + fx * (v[p + right] - v[p]), v[q] + fx * (v[q + right] - v[q])
            b0, b1 = v[r] + fx * (v[r + right] - v[r]), v[s] + fx * (v[s + right] - v[s])
            a0, b0 = a0 + fy * (a1 - a0), b0 + fy * (b1 - b0)
            line[i] = a0 + fz * (b0 - a0)
    else:
        for i in range(len(line)):
            p = np.uint64(places[i])
            q = p + down
            fy, fx = ys[i], xs[i]
            a0, a1 = v[p] + fx * (v[p + right] - v[p]), v[q] + fx * (v[q + right] - v[q])
            line[i] = a0 + fy * (a1 - a0)


@numba.njit(error_model="numpy", cache=True)
def _blank(line, kept):  # type: ignore[no-untyped-def]
    for i in range(len(line)):
        line[i] = line[i] if kept[i] else np.float32(0)


@numba.njit(inline="always", error_model="numpy")
def _place(row, depth, height):  # type: ignore[no-untyped-def]
    """Lane, slice and line of a row of the batch."""
    return row // (depth * height), row // height % depth, row % height


@numba.njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def _warp(image, matrix, field, moved, bent, border, add, out, chunks):  # type: ignore[no-untyped-def]
    lanes, channels, depth, height, width = out.shape
    sizes = image.shape[2:]
    flat = image.reshape(lanes, channels, sizes[0] * sizes[1] * sizes[2])
    rows = lanes * depth * height
    for chunk in numba.prange(chunks):
        points, places, kept = np.empty((3, width), np.float32), np.empty(width, np.uint32), np.empty(width, np.bool_)
        for row in range(chunk * rows // chunks, (chunk + 1) * rows // chunks):
            b, k, j = _place(row, depth, height)
            _points(matrix[b], field, moved, bent, b, k, j, points)
            count = _cells(points, sizes, border, places, kept)
            for c in range(channels):
                line = out[b, c, k, j]
                if count:
                    _fetch(flat[b, c], sizes, places, points, line)
                if count < width:
                    _blank(line, kept)
                if add:
                    line += field[b, c, k, j]


@numba.njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def _look(fixed, moving, matrix, field, moved, bent, warped, seen, moments, chunks):  # type: ignore[no-untyped-def]
    lanes, channels, depth, height, width = warped.shape
    sizes = moving.shape[2:]
    flat = moving.reshape(lanes, channels, sizes[0] * sizes[1] * sizes[2])
    rows = lanes * depth * height
    sums = np.empty((rows, channels, MOMENTS))
    zero, one = np.float32(0), np.float32(1)
    for chunk in numba.prange(chunks):
        points, places, kept = np.empty((3, width), np.float32), np.empty(width, np.uint32), np.empty(width, np.bool_)
        for row in range(chunk * rows // chunks, (chunk + 1) * rows // chunks):
            b, k, j = _place(row, depth, height)
            _points(matrix[b], field, moved, bent, b, k, j, points)
            count = _cells(points, sizes, False, places, kept)
            for c in range(channels):
                line, still = warped[b, c, k, j], fixed[b, c, k, j]
                if count:
                    _fetch(flat[b, c], sizes, places, points, line)
                if count < width:
                    _blank(line, kept)
                _sum(still, line, sums[row, c])
                if seen.shape[1] == channels:
                    view = seen[b, c, k, j]
                    for i in range(width):
                        view[i] = still[i] - line[i]
                elif seen.shape[1]:
                    first, second = seen[b, c, k, j], seen[b, channels + c, k, j]
                    for i in range(width):
                        first[i], second[i] = min(max(still[i], zero), one), min(max(line[i], zero), one)
    _total(sums, moments)


@numba.njit(error_model="numpy", cache=True)
def _total(sums, out):  # type: ignore[no-untyped-def]
    """Sums over the rows of every lane, one after the other: a lane's do not depend on the threads, nor on others."""
    lanes = len(out)
    count = len(sums) // lanes
    for b in range(lanes):
        out[b] = 0
        for row in range(b * count, (b + 1) * count):
            out[b] += sums[row]


@numba.njit(error_model="numpy", cache=True, fastmath={"contract", "reassoc"})
def _sum(a, b, out):  # type: ignore[no-untyped-def]
    """Sums over a row of a, b, a a, b b and a b."""
    one, two, ones, twos, both = np.float32(0), np.float32(0), np.float32(0), np.float32(0), np.float32(0)
    for i in range(len(a)):
        one += a[i]
        two += b[i]
        ones += a[i] * a[i]
        twos += b[i] * b[i]
        both += a[i] * b[i]
    out[0], out[1], out[2], out[3], out[4] = one, two, ones, twos, both


@numba.njit(error_model="numpy", cache=True)
def _voxels(points, sizes, places, kept):  # type: ignore[no-untyped-def]
    """The voxel nearest to each of points (3, W), halves up as in ITK, and whether it is inside. How many are."""
    half = np.float32(0.5)
    h, w = np.int32(sizes[1]), np.int32(sizes[2])
    tops = np.float32(sizes[0] - 1), np.float32(sizes[1] - 1), np.float32(sizes[2] - 1)
    zs, ys, xs = points[0], points[1], points[2]
    count = 0
    for i in range(points.shape[1]):
        z, y, x = zs[i], ys[i], xs[i]
        kept[i] = _within(z, y, x, sizes)
        count += kept[i]
        zi, yi, xi = (np.int32(_clamped(np.floor(z + half), tops[0])), np.int32(_clamped(np.floor(y + half), tops[1])),
                      np.int32(_clamped(np.floor(x + half), tops[2])))
        places[i] = (zi * h + yi) * w + xi
    return count


@numba.njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def _nearest(image, matrix, field, moved, bent, out, chunks):  # type: ignore[no-untyped-def]
    lanes, channels, depth, height, width = out.shape
    sizes = image.shape[2:]
    flat = image.reshape(lanes, channels, sizes[0] * sizes[1] * sizes[2])
    rows = lanes * depth * height
    for chunk in numba.prange(chunks):
        points, places, kept = np.empty((3, width), np.float32), np.empty(width, np.uint32), np.empty(width, np.bool_)
        for row in range(chunk * rows // chunks, (chunk + 1) * rows // chunks):
            b, k, j = _place(row, depth, height)
            _points(matrix[b], field, moved, bent, b, k, j, points)
            count = _voxels(points, sizes, places, kept)
            for c in range(channels):
                v, line = flat[b, c], out[b, c, k, j]
                if count == width:
                    for i in range(width):
                        line[i] = v[np.uint64(places[i])]
                else:
                    for i in range(width):
                        line[i] = v[np.uint64(places[i])] if kept[i] else 0


@numba.njit(error_model="numpy", cache=True)
def _free(points, sizes, free):  # type: ignore[no-untyped-def]
    """Along which axes points (3, W) are not held at the image's border: 1 or 0, (3, W)."""
    for axis in range(3):
        top = np.float32(sizes[axis] - 1)
        for i in range(points.shape[1]):
            at = points[axis, i]
            free[axis, i] = np.float32(1) if (at > np.float32(0)) & (at < top) else np.float32(0)


@numba.njit(error_model="numpy", cache=True, fastmath={"contract", "nsz"})
def _slope(v, sizes, places, fractions, kept, grad, total):  # type: ignore[no-untyped-def]
    """Adds grad times the derivatives of a row's values by its points to total (3, W)."""
    back, down, right = _strides(sizes)
    zs, ys, xs = fractions[0], fractions[1], fractions[2]
    for i in range(len(grad)):
        p = np.uint64(places[i])
        q, r = p + down, p + back
        s = q + back
        fz, fy, fx = zs[i], ys[i], xs[i]
        g = grad[i] if kept[i] else np.float32(0)
        p1, q1, r1, s1 = v[p + right] - v[p], v[q + right] - v[q], v[r + right] - v[r], v[s + right] - v[s]
        a0, a1, b0, b1 = v[p] + fx * p1, v[q] + fx * q1, v[r] + fx * r1, v[s] + fx * s1
        da, db = a1 - a0, b1 - b0
        total[0, i] += g * (b0 + fy * db - a0 - fy * da)
        total[1, i] += g * (da + fz * (db - da))
        near, far = p1 + fy * (q1 - p1), r1 + fy * (s1 - r1)
        total[2, i] += g * (near + fz * (far - near))


@numba.njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def _slopes(grad, image, matrix, field, moved, bent, border, out, chunks):  # type: ignore[no-untyped-def]
    lanes, channels, depth, height, width = grad.shape
    sizes, thin = image.shape[2:], 3 - out.shape[1]
    flat = image.reshape(lanes, channels, sizes[0] * sizes[1] * sizes[2])
    rows = lanes * depth * height
    for chunk in numba.prange(chunks):
        points, places, kept = np.empty((3, width), np.float32), np.empty(width, np.uint32), np.empty(width, np.bool_)
        free, total = np.empty((3, width), np.float32), np.empty((3, width), np.float32)
        for row in range(chunk * rows // chunks, (chunk + 1) * rows // chunks):
            b, k, j = _place(row, depth, height)
            _points(matrix[b], field, moved, bent, b, k, j, points)
            _free(points, sizes, free)
            _cells(points, sizes, border, places, kept)
            total[:] = 0
            for c in range(channels):
                _slope(flat[b, c], sizes, places, points, kept, grad[b, c, k, j], total)
            for axis in range(thin, 3):
                out[b, axis - thin, k, j] = total[axis] * free[axis]


@numba.njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def _scatter(grad, matrix, field, moved, bent, border, out):  # type: ignore[no-untyped-def]
    lanes, channels, depth, height, width = grad.shape
    sizes = out.shape[2:]
    flat = out.reshape(lanes, channels, sizes[0] * sizes[1] * sizes[2])
    back, down, right = _strides(sizes)
    one = np.float32(1)
    for unit in numba.prange(lanes * channels):
        b, c = unit // channels, unit % channels
        points, places, kept = np.empty((3, width), np.float32), np.empty(width, np.uint32), np.empty(width, np.bool_)
        v = flat[b, c]
        for row in range(depth * height):
            k, j = row // height, row % height
            _points(matrix[b], field, moved, bent, b, k, j, points)
            _cells(points, sizes, border, places, kept)
            for i in range(width):
                if kept[i]:
                    p = np.uint64(places[i])
                    q, r = p + down, p + back
                    s = q + back
                    fz, fy, fx = points[0, i], points[1, i], points[2, i]
                    far = fz * grad[b, c, k, j, i]
                    near = (one - fz) * grad[b, c, k, j, i]
                    below, beyond = fy * near, fy * far
                    near, far = (one - fy) * near, (one - fy) * far
                    v[p] += (one - fx) * near
                    v[p + right] += fx * near
                    v[q] += (one - fx) * below
                    v[q + right] += fx * below
                    if sizes[0] > 1:
                        v[r] += (one - fx) * far
                        v[r + right] += fx * far
                        v[s] += (one - fx) * beyond
                        v[s + right] += fx * beyond
