"""Warps on the CPU, block by block: vector instructions compute the source points of some rows of voxels into buffers
that stay in the first-level cache, then the values are fetched without a branch. No sampling grid is ever in memory.

Two dimensions are a volume of one slice. A map is an affine matrix (1 or B, 4, 4), a displacement (B, 2 or 3, *shape),
or the first after the second; float32. What is inside an image is decided without fused multiplications, so exactly as
``regenv.ops.sampling`` decides it: half a voxel past the last centre, one bit decides between the value and 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numba
import numpy as np
import torch
from llvmlite import ir
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray
from torch import Tensor

from regenv.ops.kernels.layout import MIDDLE, MOMENTS, QUANTIZED, bits
from regenv.ops.kernels.lncc_cpu import lncc_force
from regenv.ops.kernels.smoothing_cpu import central_force, smoothed
from regenv.ops.kernels.threads import run

__all__ = ["central_force", "fused_warp", "lncc_force", "smoothed", "vjp", "warp", "warp_labels"]   # as other backends

_FEW = 8      # classes up to which comparing is faster than a table
BLOCK = 1024  # voxels, of whole rows of one lane
_VIEWS = {"warped": 0, "difference": 1, "pair": 2}
_NO_IMAGE, _NO_PIXELS = np.empty((0,) * 5, np.float32), np.empty((0,) * 5, np.uint8)
_FUSED = ("contract",)
Map = tuple[NDArray[np.float32], NDArray[np.float32], bool, bool]


def warp(image: Tensor, matrix: Tensor | None, displacement: Tensor | None, shape: tuple[int, ...], border: bool,
         add: bool = False) -> Tensor:
    """Linear values (B, C, *shape); ``add``: plus the displacement, of as many channels."""
    volume, where, out = volume_of(image), _map(matrix, displacement, len(image), len(shape)), _empty(image, shape)
    run(_warp, volume, *where, border, add, _lifted(out), voxels=out.numel())
    return out.to(image.dtype)


def warp_labels(labels: Tensor, matrix: Tensor | None, displacement: Tensor | None,
                shape: tuple[int, ...]) -> Tensor:
    """Nearest voxels' values (B, C, *shape) of any type, which are copied bit by bit."""
    words = bits(labels)
    out = torch.empty((*labels.shape[:2], *shape), dtype=words.dtype)
    where = _map(matrix, displacement, len(labels), len(shape))
    run(_nearest, _lifted(words), *where, _lifted(out), voxels=out.numel())
    return out.view(labels.dtype)


def fused_warp(fixed: Tensor, moving: Tensor, matrix: Tensor | None, displacement: Tensor | None,
               view: str) -> tuple[Tensor, Tensor]:
    """A view of the warped image, and the moments of both images, in one pass over the voxels."""
    where = _map(matrix, displacement, len(moving), fixed.ndim - 2)
    image, moments = look(volume_of(fixed), volume_of(moving), where, view)
    return (image if fixed.ndim == 5 else image.squeeze(2)), moments


def look(still: NDArray[np.float32], moving: NDArray[np.float32], where: Map, view: str) -> tuple[Tensor, Tensor]:
    """:func:`fused_warp` of images (B, C, depth, H, W) through a map: the view has five axes too."""
    lanes, channels = moving.shape[:2]
    kind, whole = view.removesuffix(QUANTIZED), view.endswith(QUANTIZED)
    image = np.empty((lanes, (2 if kind == "pair" else 1) * channels, *still.shape[2:]),
                     np.uint8 if whole else np.float32)
    moments = np.empty((lanes, channels, MOMENTS))
    sums = np.empty((lanes * _blocks.py_func(still.shape)[2], channels, MOMENTS))
    run(_fused_warp, still, moving, *where, _VIEWS[kind], *((_NO_IMAGE, image) if whole else (image, _NO_PIXELS)), sums,
        voxels=still.size)
    _total(sums, moments)
    return torch.from_numpy(image), torch.from_numpy(moments)


def warped_dice(fixed: Tensor, moving: Tensor, matrix: Tensor | None, displacement: Tensor | None,
                classes: Sequence[int]) -> Tensor:
    """Mean Dice (B,) float32 of fixed labels and of the nearest moving ones, in one pass that keeps no labels."""
    low = min(classes)
    column = np.full(max(classes) - low + 1, -1, np.int32)
    column[np.asarray(classes) - low] = np.arange(len(classes), dtype=np.int32)
    few = np.asarray(classes if len(classes) <= _FEW else (), np.int64)
    here, there = (_lifted(labels.detach().contiguous()) for labels in (fixed, moving))
    counts = np.zeros((len(here), 3, len(classes)), np.int64)
    run(_overlap, here, there, *_map(matrix, displacement, len(here), fixed.ndim - 2), few, low, column, counts,
        voxels=here.size)
    out = np.empty(len(here), np.float32)
    _mean_dice(counts, out)
    return torch.from_numpy(out)


def vjp(grad: Tensor, image: Tensor, matrix: Tensor | None, displacement: Tensor | None, border: bool,
        want_image: bool, want_points: bool) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of :func:`warp`, contracted with ``grad``: of the image, and of the points (B, D, *shape)."""
    shape = grad.shape[2:]
    volume, where = volume_of(image), _map(matrix, displacement, len(image), len(shape))
    flow, ndim, of_image, of_points = volume_of(grad), len(shape), None, None
    if want_points:
        of_points = torch.empty((len(image), ndim, *shape), dtype=torch.float32)
        run(_slopes, flow, volume, *where, border, _lifted(of_points), voxels=grad.numel())
    if want_image:
        total = torch.zeros(image.shape, dtype=torch.float32)
        run(_scatter, flow, *where, border, _lifted(total), voxels=grad.numel())
        of_image = total.to(image.dtype)
    return of_image, of_points


def volume_of(image: Tensor) -> NDArray[Any]:
    """Float32 memory of images (B, C, *shape) as (B, C, D, H, W)."""
    return _lifted(image.detach().to(torch.float32).contiguous())


def _lifted(image: Tensor) -> NDArray[Any]:
    return (image.unsqueeze(2) if image.ndim == 4 else image).numpy()


def _empty(image: Tensor, shape: tuple[int, ...]) -> Tensor:
    return torch.empty((*image.shape[:2], *shape), dtype=torch.float32)


def _map(matrix: Tensor | None, displacement: Tensor | None, lanes: int, ndim: int) -> Map:
    """Matrices (B, 4, 4) and displacements (B, D, 1 or depth, H, W), and whether there are any."""
    field = np.empty((lanes, ndim, 1, 1, 1), np.float32) if displacement is None else volume_of(displacement)
    rows = np.empty((lanes, 4, 4), np.float32)
    if matrix is None:
        return rows, field, False, True
    if ndim == 2:
        rows[:] = np.eye(4, dtype=np.float32)
    rows[:, 3 - ndim:, 3 - ndim:] = matrix.detach().numpy()
    return rows, field, True, displacement is not None


@numba.njit(inline="always", error_model="numpy")
def _blocks(shape):  # type: ignore[no-untyped-def]
    """Rows of a block and of a lane, and blocks of a lane."""
    rows = shape[2] * shape[3]
    some = max(1, min(rows, BLOCK // shape[4]))
    return some, rows, (rows + some - 1) // some


@numba.njit(inline="always", error_model="numpy")
def _shares(shape, chunk, chunks):  # type: ignore[no-untyped-def]
    """Rows of a block and of a lane, blocks of a lane, and the range of blocks of this chunk."""
    some, rows, blocks = _blocks(shape)
    total = shape[0] * blocks
    return some, rows, blocks, chunk * total // chunks, (chunk + 1) * total // chunks


@numba.njit(inline="always", error_model="numpy")
def _rows(block, some, rows, blocks, width):  # type: ignore[no-untyped-def]
    """Lane of a block, range of its rows, index of its first voxel in the lane, and number of its voxels."""
    first = block % blocks * some
    last = min(first + some, rows)
    return block // blocks, first, last, first * width, (last - first) * width


@numba.njit(error_model="numpy", cache=True)
def _points(m, field, moved, bent, height, width, first, last, points):  # type: ignore[no-untyped-def]
    """Writes source points (3, N) of rows of a lane; field (2 or 3, voxels). Products are rounded before the sums."""
    zs, ys, xs = points[0], points[1], points[2]
    count = np.uint64(width)  # unsigned: no index counts from the end
    for row in range(first, last):
        k, j = np.float32(row // height), np.float32(row % height)
        to, at = np.uint64((row - first) * width), np.uint64(row * width)
        if bent:
            thin = len(field) - 2
            up, across, along = field[0], field[thin], field[thin + 1]
            if thin:
                for i in range(count):
                    zs[to + i] = k + up[at + i]
            else:
                zs[to:to + count] = k
            for i in range(count):
                ys[to + i] = j + across[at + i]
            for i in range(count):
                xs[to + i] = np.float32(np.int32(i)) + along[at + i]
        else:
            for axis in range(3):
                start, step, line = m[axis, 3] + m[axis, 0] * k + m[axis, 1] * j, m[axis, 2], points[axis]
                for i in range(count):
                    line[to + i] = start + step * np.float32(np.int32(i))  # AVX2 has no int64 to float32
    if bent and moved:
        m0, m1, m2 = _row(m, 0), _row(m, 1), _row(m, 2)
        for i in range((last - first) * width):
            z, y, x = zs[i], ys[i], xs[i]
            zs[i] = m0[3] + m0[0] * z + m0[1] * y + m0[2] * x
            ys[i] = m1[3] + m1[0] * z + m1[1] * y + m1[2] * x
            xs[i] = m2[3] + m2[0] * z + m2[1] * y + m2[2] * x


@numba.njit(inline="always", error_model="numpy")
def _row(m, axis):  # type: ignore[no-untyped-def]
    return m[axis, 0], m[axis, 1], m[axis, 2], m[axis, 3]


@numba.njit(inline="always", error_model="numpy")
def _clamped(at, top):  # type: ignore[no-untyped-def]
    """A coordinate within 0 to top; 0 for NaN."""
    at = at if at > np.float32(0) else np.float32(0)
    return at if at < top else top


@numba.njit(error_model="numpy", cache=True, fastmath={"reassoc"})
def _kept(points, n, sizes, border, kept):  # type: ignore[no-untyped-def]
    """Writes 1 for each of points (3, N) that has a value, else 0, and returns how many have one: those within the
    image's edges, or with a border all that are not NaN."""
    half, one, zero, count = np.float32(0.5), np.float32(1), np.float32(0), np.float32(0)
    d, h, w = np.float32(sizes[0]) - half, np.float32(sizes[1]) - half, np.float32(sizes[2]) - half
    zs, ys, xs = points[0], points[1], points[2]
    if border:
        for i in range(n):
            z, y, x = zs[i], ys[i], xs[i]
            kept[i] = one if (z == z) & (y == y) & (x == x) else zero
            count += kept[i]
    else:
        for i in range(n):
            z, y, x = zs[i], ys[i], xs[i]
            kept[i] = one if (z >= -half) & (y >= -half) & (x >= -half) & (z < d) & (y < h) & (x < w) else zero
            count += kept[i]
    return int(count)


@numba.njit(error_model="numpy", cache=True)
def _cells(points, n, sizes, places):  # type: ignore[no-untyped-def]
    """Writes the index of each cell's first voxel to places, and the fraction across it over the points (3, N)."""
    d, h, w = np.int32(sizes[0]), np.int32(sizes[1]), np.int32(sizes[2])
    tops = np.float32(d - 1), np.float32(h - 1), np.float32(w - 1)
    lasts = np.int32(max(d - 2, 0)), np.int32(max(h - 2, 0)), np.int32(max(w - 2, 0))
    zs, ys, xs = points[0], points[1], points[2]
    for i in range(n):
        z, y, x = _clamped(zs[i], tops[0]), _clamped(ys[i], tops[1]), _clamped(xs[i], tops[2])
        zi, yi, xi = min(np.int32(z), lasts[0]), min(np.int32(y), lasts[1]), min(np.int32(x), lasts[2])
        zs[i], ys[i], xs[i] = z - np.float32(zi), y - np.float32(yi), x - np.float32(xi)
        places[i] = (zi * h + yi) * w + xi


@numba.njit(inline="always", error_model="numpy")
def _cell(at, top, last):  # type: ignore[no-untyped-def]
    """Fraction across a cell, and the index of the cell, of a coordinate."""
    at = _clamped(at, top)
    cell = min(np.int32(at), last)
    return at - np.float32(cell), cell


@numba.njit(error_model="numpy", cache=True)
def _plane(m, field, moved, bent, width, first, last, sizes, points, places, kept):  # type: ignore[no-untyped-def]
    """All of :func:`_points`, :func:`_kept` and :func:`_cells` of rows of a slice, outside of which there is nothing.
    """
    my, mx = _row(m, 1), _row(m, 2)
    for row in range(first, last):
        at, to, j = row * width, (row - first) * width, np.float32(row)
        ys, xs = points[1, to:to + width], points[2, to:to + width]
        if bent:
            down, along = field[0, at:at + width], field[1, at:at + width]
            if moved:
                for i in range(width):
                    v, u = j + down[i], np.float32(np.int32(i)) + along[i]
                    ys[i], xs[i] = my[3] + my[1] * v + my[2] * u, mx[3] + mx[1] * v + mx[2] * u
            else:
                for i in range(width):
                    ys[i], xs[i] = j + down[i], np.float32(np.int32(i)) + along[i]
        else:
            sy, sx = my[3] + my[1] * j, mx[3] + mx[1] * j
            for i in range(width):
                u = np.float32(np.int32(i))
                ys[i], xs[i] = sy + my[2] * u, sx + mx[2] * u
    n = (last - first) * width
    points[0, :n], kept[:n] = np.float32(0), np.float32(1)     # images of one column are fetched as volumes
    places[:n] = np.uint32(0)
    return _settle(points, n, sizes, places, kept)


@numba.njit(error_model="numpy", cache=True)
def _space(m, field, moved, bent, height, width, first, last, sizes, points, places, kept):  # type: ignore[no-untyped-def]
    """The same of rows of a volume."""
    _points(m, field, moved, bent, height, width, first, last, points)
    n = (last - first) * width
    half, one, zero = np.float32(0.5), np.float32(1), np.float32(0)
    d, top, end, down = np.float32(sizes[0]) - half, np.float32(sizes[0] - 1), np.int32(max(sizes[0] - 2, 0)), sizes[1]
    zs, across = points[0, :n], np.int32(down)
    for i in range(n):
        z = zs[i]
        kept[i] = one if (z >= -half) & (z < d) else zero
        zs[i], zi = _cell(z, top, end)
        places[i] = zi * across
    return _settle(points, n, sizes, places, kept)


@numba.njit(error_model="numpy", cache=True)
def _settle(points, n, sizes, places, kept):  # type: ignore[no-untyped-def]
    """The same of rows and columns, on top of what slices have left. More memory in one loop is not made to vectors."""
    half, one, zero = np.float32(0.5), np.float32(1), np.float32(0)
    h, w = np.float32(sizes[1]) - half, np.float32(sizes[2]) - half
    top_y, top_x = np.float32(sizes[1] - 1), np.float32(sizes[2] - 1)
    last_y, last_x, across = np.int32(max(sizes[1] - 2, 0)), np.int32(max(sizes[2] - 2, 0)), np.int32(sizes[2])
    ys, xs = points[1, :n], points[2, :n]
    for i in range(n):
        y, x = ys[i], xs[i]
        kept[i] *= one if (y >= -half) & (x >= -half) & (y < h) & (x < w) else zero
        ys[i], yi = _cell(y, top_y, last_y)
        xs[i], xi = _cell(x, top_x, last_x)
        places[i] = (np.int32(places[i]) + yi) * across + xi
    return _count(kept, n)


@numba.njit(error_model="numpy", cache=True, fastmath={"reassoc"})
def _count(kept, n):  # type: ignore[no-untyped-def]
    total = np.float32(0)
    for i in range(n):
        total += kept[i]
    return int(total)


@numba.njit(inline="always", error_model="numpy")
def _strides(sizes):  # type: ignore[no-untyped-def]
    """Steps to a cell's next voxel along each axis, 0 for an axis of one. Unsigned: no index counts from the end."""
    d, h, w = sizes
    return np.uint64(h * w if d > 1 else 0), np.uint64(w if h > 1 else 0), np.uint64(1 if w > 1 else 0)


def _between(builder: Any, a: Any, b: Any, fraction: Any) -> Any:
    """Linear mix of two vectors: exactly the first at fraction 0 and the second at 1."""
    rest = builder.fsub(ir.Constant(a.type, [1.0] * a.type.count), fraction)
    return builder.fadd(builder.fmul(a, rest, flags=_FUSED), builder.fmul(b, fraction, flags=_FUSED), flags=_FUSED)


def _cell_values(deep: bool, count: int) -> Any:
    """Writes the linear values in ``count`` cells from number i on: one, or four together.

    A load takes two voxels that lie side by side in the image, and what is mixed along y and z are vectors of such
    pairs: a third as many instructions as the compiler finds for the same formula. The axis of the pairs must have two
    voxels.
    """
    pair, lines, width = (ir.VectorType(ir.FloatType(), n) for n in (2, 2 * count, count))
    number = ir.IntType(32)

    def shuffled(builder: Any, a: Any, b: Any, order: Sequence[int]) -> Any:
        return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(number, len(order)), list(order)))

    def typed(context: Any, v: Any, places: Any, zs: Any, ys: Any, xs: Any, line: Any, i: Any, down: Any,
              back: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, given: Sequence[Any]) -> Any:
            data = [cgutils.create_struct_proxy(kind)(context, builder, each).data
                    for kind, each in zip(signature.args[:6], given[:6], strict=True)]
            i, down, back = given[6:]

            def some(which: int, kind: Any) -> Any:
                return builder.bitcast(builder.gep(data[which], [i]), kind.as_pointer())

            cells = builder.load(some(1, ir.VectorType(number, count)), align=4)
            first = [builder.zext(builder.extract_element(cells, number(n)), ir.IntType(64)) for n in range(count)]

            def pairs(step: Any) -> Any:
                found = [builder.load(builder.bitcast(builder.gep(data[0], [
                    cell if step is None else builder.add(cell, step)]), pair.as_pointer()), align=4) for cell in first]
                while len(found) > 1:
                    found = [shuffled(builder, a, b, range(2 * a.type.count))
                             for a, b in zip(found[::2], found[1::2], strict=True)]
                return found[0]

            def fraction(which: int) -> Any:
                mine = builder.load(some(which, width), align=4)
                return shuffled(builder, mine, ir.Constant(width, ir.Undefined), [n // 2 for n in range(2 * count)])

            fy = fraction(3)
            mixed = _between(builder, pairs(None), pairs(down), fy)
            if deep:
                beyond = _between(builder, pairs(back), pairs(builder.add(back, down)), fy)
                mixed = _between(builder, mixed, beyond, fraction(2))
            near, far = (shuffled(builder, mixed, ir.Constant(lines, ir.Undefined), range(side, 2 * count, 2))
                         for side in (0, 1))
            value = _between(builder, near, far, builder.load(some(4, width), align=4))
            builder.store(value, some(5, width), align=4)
            return context.get_dummy_value()
        return numba.void(v, places, zs, ys, xs, line, i, down, back), generate
    return intrinsic(typed)


_SOME = 4
_in_volume, _in_slice = _cell_values(deep=True, count=1), _cell_values(deep=False, count=1)
_in_volumes, _in_slices = _cell_values(deep=True, count=_SOME), _cell_values(deep=False, count=_SOME)


@numba.njit(error_model="numpy", cache=True, fastmath={"contract", "nsz"})
def _fetch(v, sizes, places, fractions, line):  # type: ignore[no-untyped-def]
    """Writes the linear values of a flat image in cells to a line."""
    back, down, _ = _strides(sizes)
    zs, ys, xs = fractions[0], fractions[1], fractions[2]
    if sizes[2] == 1:
        for i in range(len(line)):
            p, fz, fy = np.uint64(places[i]), zs[i], ys[i]
            r, gz, gy = p + back, np.float32(1) - fz, np.float32(1) - fy
            line[i] = gz * (gy * v[p] + fy * v[p + down]) + fz * (gy * v[r] + fy * v[r + down])
        return
    whole, end = np.uint64(len(line) // _SOME), np.uint64(len(line))
    if sizes[0] == 1:
        for i in range(whole):
            _in_slices(v, places, zs, ys, xs, line, i * np.uint64(_SOME), down, back)
        for i in range(whole * np.uint64(_SOME), end):
            _in_slice(v, places, zs, ys, xs, line, i, down, back)
    else:
        for i in range(whole):
            _in_volumes(v, places, zs, ys, xs, line, i * np.uint64(_SOME), down, back)
        for i in range(whole * np.uint64(_SOME), end):
            _in_volume(v, places, zs, ys, xs, line, i, down, back)


@numba.njit(error_model="numpy", cache=True)
def _blank(line, kept, border):  # type: ignore[no-untyped-def]
    other = np.float32(np.nan) if border else np.float32(0)
    for i in range(len(line)):
        line[i] = line[i] if kept[i] > np.float32(0) else other


@numba.njit(inline="always", error_model="numpy")
def _flat(image):  # type: ignore[no-untyped-def]
    return image.reshape(image.shape[0], image.shape[1], image.shape[2] * image.shape[3] * image.shape[4])


@numba.njit(error_model="numpy", cache=True)
def _buffers(n):  # type: ignore[no-untyped-def]
    return np.empty((3, n), np.float32), np.empty(n, np.uint32), np.empty(n, np.float32)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _warp(image, matrix, field, moved, bent, border, add, out, chunk, chunks):  # type: ignore[no-untyped-def]
    channels, (height, width) = out.shape[1], out.shape[3:]
    sizes = image.shape[2:]
    flat, fields, lines = _flat(image), _flat(field), _flat(out)
    some, rows, blocks, start, stop = _shares(out.shape, chunk, chunks)
    points, places, kept = _buffers(some * width)
    for block in range(start, stop):
        b, first, last, at, n = _rows(block, some, rows, blocks, width)
        _points(matrix[b], fields[b], moved, bent, height, width, first, last, points)
        count = _kept(points, n, sizes, border, kept)
        if count:
            _cells(points, n, sizes, places)
        for c in range(channels):
            line = lines[b, c, at:at + n]
            if count:
                _fetch(flat[b, c], sizes, places, points, line)
            if count < n:
                _blank(line, kept, border)
            if add:
                _add(line, fields[b, c, at:at + n])


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _fused_warp(fixed, moving, matrix, field, moved, bent, kind, view, pixels, sums, chunk, chunks):  # type: ignore[no-untyped-def]
    channels, (height, width) = fixed.shape[1], fixed.shape[3:]
    sizes, flatland = moving.shape[2:], field.shape[1] == 2
    flat, fields, still, views, bytes_ = _flat(moving), _flat(field), _flat(fixed), _flat(view), _flat(pixels)
    some, rows, blocks, start, stop = _shares(fixed.shape, chunk, chunks)
    points, places, kept = _buffers(some * width)
    buffer = np.empty(some * width, np.float32)
    whole, paired = len(pixels) > 0, channels if kind == 2 else 0     # of a pair, the warped image's first channel
    for block in range(start, stop):
        b, first, last, at, n = _rows(block, some, rows, blocks, width)
        if flatland:
            count = _plane(matrix[b], fields[b], moved, bent, width, first, last, sizes, points, places, kept)
        else:
            count = _space(matrix[b], fields[b], moved, bent, height, width, first, last, sizes, points, places, kept)
        for c in range(channels):
            line, before = buffer[:n], still[b, c, at:at + n]
            if count:
                _fetch(flat[b, c], sizes, places, points, line)
            if count < n:
                _blank(line, kept, False)
            _sum(before, line, sums[block, c])
            if whole:
                there = bytes_[b, paired + c, at:at + n]
                if kind == 1:
                    _subtract(before, line, line)
                    _quantize(line, np.float32(0.5), MIDDLE, there)
                else:
                    _quantize(line, np.float32(1), np.float32(0), there)
                if kind == 2:
                    _quantize(before, np.float32(1), np.float32(0), bytes_[b, c, at:at + n])
            else:
                seen = views[b, paired + c, at:at + n]
                if kind == 1:
                    _subtract(before, line, seen)
                elif kind == 2:
                    _clip(line, seen)
                    _clip(before, views[b, c, at:at + n])
                else:
                    seen[:] = line


@numba.njit(error_model="numpy", cache=True)
def _quantize(a, factor, offset, out):  # type: ignore[no-untyped-def]
    """Writes ``a * factor + offset``, of 0 to 1, as bytes: to the nearest, halves to the even one."""
    most, magic = np.float32(255), np.float32(12582912)     # the float32 of 1.5 * 2^23 and more are whole numbers
    for i in range(len(out)):
        value = min(max((a[i] * factor + offset) * most, np.float32(0)), most)
        out[i] = np.uint8(np.int32(value + magic - magic))


@numba.njit(error_model="numpy", cache=True)
def _add(line, more):  # type: ignore[no-untyped-def]
    for i in range(len(line)):
        line[i] += more[i]


@numba.njit(error_model="numpy", cache=True)
def _subtract(a, b, out):  # type: ignore[no-untyped-def]
    for i in range(len(out)):
        out[i] = a[i] - b[i]


@numba.njit(error_model="numpy", cache=True)
def _clip(a, out):  # type: ignore[no-untyped-def]
    for i in range(len(out)):
        out[i] = min(max(a[i], np.float32(0)), np.float32(1))


@numba.njit(error_model="numpy", cache=True)
def _total(sums, out):  # type: ignore[no-untyped-def]
    """Sums over the blocks of every lane, in order: a lane's sums depend on neither the threads nor other lanes."""
    lanes = len(out)
    count = len(sums) // lanes
    for b in range(lanes):
        out[b] = 0
        for block in range(b * count, (b + 1) * count):
            out[b] += sums[block]


@numba.njit(error_model="numpy", cache=True, fastmath={"contract", "reassoc"})
def _sum(a, b, out):  # type: ignore[no-untyped-def]
    """Writes the sums over a block of a, b, a a, b b and a b."""
    one, two, ones, twos, both = np.float32(0), np.float32(0), np.float32(0), np.float32(0), np.float32(0)
    for i in range(len(a)):
        one += a[i]
        two += b[i]
        ones += a[i] * a[i]
        twos += b[i] * b[i]
        both += a[i] * b[i]
    out[0], out[1], out[2], out[3], out[4] = one, two, ones, twos, both


@numba.njit(error_model="numpy", cache=True)
def _voxels(points, n, sizes, places):  # type: ignore[no-untyped-def]
    """Writes the index of the voxel nearest to each of points (3, N) to places, halves up as in ITK."""
    half = np.float32(0.5)
    h, w = np.int32(sizes[1]), np.int32(sizes[2])
    tops = np.float32(sizes[0] - 1), np.float32(sizes[1] - 1), np.float32(sizes[2] - 1)
    zs, ys, xs = points[0], points[1], points[2]
    for i in range(n):
        z, y, x = np.floor(zs[i] + half), np.floor(ys[i] + half), np.floor(xs[i] + half)
        zi, yi, xi = np.int32(_clamped(z, tops[0])), np.int32(_clamped(y, tops[1])), np.int32(_clamped(x, tops[2]))
        places[i] = (zi * h + yi) * w + xi


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _nearest(image, matrix, field, moved, bent, out, chunk, chunks):  # type: ignore[no-untyped-def]
    channels, (height, width) = out.shape[1], out.shape[3:]
    sizes = image.shape[2:]
    flat, fields, lines = _flat(image), _flat(field), _flat(out)
    some, rows, blocks, start, stop = _shares(out.shape, chunk, chunks)
    points, places, kept = _buffers(some * width)
    for block in range(start, stop):
        b, first, last, at, n = _rows(block, some, rows, blocks, width)
        _points(matrix[b], fields[b], moved, bent, height, width, first, last, points)
        count = _kept(points, n, sizes, False, kept)
        _voxels(points, n, sizes, places)
        for c in range(channels):
            v, line = flat[b, c], lines[b, c, at:at + n]
            if count == n:
                for i in range(n):
                    line[i] = v[np.uint64(places[i])]
            else:
                for i in range(n):
                    line[i] = v[np.uint64(places[i])] if kept[i] > np.float32(0) else 0


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _overlap(fixed, moving, matrix, field, moved, bent, few, low, column, counts, chunk, chunks):  # type: ignore[no-untyped-def]
    """Adds voxels of fixed, of warped and of both labels to counts (B, 3, classes), whole lanes a chunk; by comparison
    with ``few`` labels, or by a table where there are none of these."""
    lanes, (height, width), sizes = len(fixed), fixed.shape[3:], moving.shape[2:]
    flat, fields, still = _flat(moving), _flat(field), _flat(fixed)
    some, rows, blocks, _, _ = _shares(fixed.shape, 0, 1)
    points, places, kept = _buffers(some * width)
    found = np.empty(some * width, moving.dtype)
    for block in range(chunk * lanes // chunks * blocks, (chunk + 1) * lanes // chunks * blocks):
        b, first, last, at, n = _rows(block, some, rows, blocks, width)
        _points(matrix[b], fields[b], moved, bent, height, width, first, last, points)
        _kept(points, n, sizes, False, kept)
        _voxels(points, n, sizes, places)
        v, before, mine = flat[b, 0], still[b, 0, at:at + n], counts[b]
        for i in range(n):
            found[i] = v[np.uint64(places[i])] if kept[i] > np.float32(0) else 0
        if len(few):
            for c in range(len(few)):
                _matches(before, found[:n], few[c], mine[:, c])
        else:
            _tally(before, found[:n], low, column, mine)


@numba.njit(error_model="numpy", cache=True)
def _matches(a, b, label, out):  # type: ignore[no-untyped-def]
    """Adds voxels of a, of b and of both that have a label."""
    one, two, both = np.int32(0), np.int32(0), np.int32(0)
    for i in range(len(a)):
        here, there = a[i] == label, b[i] == label
        one += np.int32(here)
        two += np.int32(there)
        both += np.int32(here & there)
    out[0] += one
    out[1] += two
    out[2] += both


@numba.njit(error_model="numpy", cache=True)
def _tally(a, b, low, column, out):  # type: ignore[no-untyped-def]
    """The same of all labels that have a column in a table, which begins at ``low``."""
    for i in range(len(a)):
        here, there = np.int64(a[i]) - low, np.int64(b[i]) - low
        one = column[here] if 0 <= here < len(column) else np.int32(-1)
        two = column[there] if 0 <= there < len(column) else np.int32(-1)
        if one >= 0:
            out[0, one] += 1
            out[2, one] += one == two
        if two >= 0:
            out[1, two] += 1


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _mean_dice(counts, out):  # type: ignore[no-untyped-def]
    """Writes the means over the classes that both images have, of float32 as ``regenv.ops.overlap.dice`` gives them."""
    for b in range(len(counts)):
        total, present = np.float32(0), 0
        for c in range(counts.shape[2]):
            one, two = counts[b, 0, c], counts[b, 1, c]
            if one > 0 and two > 0:
                total += np.float32(np.float32(2 * counts[b, 2, c]) / np.float32(one + two))
                present += 1
        out[b] = total / np.float32(present) if present else np.float32(np.nan)


@numba.njit(error_model="numpy", cache=True)
def _free(points, n, sizes, free):  # type: ignore[no-untyped-def]
    """Writes 1 for each coordinate of points (3, N) inside the image, 0 for one that the border clamps."""
    for axis in range(3):
        top = np.float32(sizes[axis] - 1)
        for i in range(n):
            at = points[axis, i]
            free[axis, i] = np.float32(1) if (at > np.float32(0)) & (at < top) else np.float32(0)


@numba.njit(error_model="numpy", cache=True, fastmath={"contract", "nsz"})
def _slope(v, sizes, places, fractions, kept, grad, total):  # type: ignore[no-untyped-def]
    """Adds grad times the derivatives of the values by the points to total (3, N)."""
    back, down, right = _strides(sizes)
    zs, ys, xs = fractions[0], fractions[1], fractions[2]
    for i in range(len(grad)):
        p = np.uint64(places[i])
        q, r = p + down, p + back
        s = q + back
        fz, fy, fx = zs[i], ys[i], xs[i]
        g = grad[i] if kept[i] > np.float32(0) else np.float32(0)
        p1, q1, r1, s1 = v[p + right] - v[p], v[q + right] - v[q], v[r + right] - v[r], v[s + right] - v[s]
        a0, a1, b0, b1 = v[p] + fx * p1, v[q] + fx * q1, v[r] + fx * r1, v[s] + fx * s1
        da, db = a1 - a0, b1 - b0
        total[0, i] += g * (b0 + fy * db - a0 - fy * da)
        total[1, i] += g * (da + fz * (db - da))
        near, far = p1 + fy * (q1 - p1), r1 + fy * (s1 - r1)
        total[2, i] += g * (near + fz * (far - near))


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _slopes(grad, image, matrix, field, moved, bent, border, out, chunk, chunks):  # type: ignore[no-untyped-def]
    channels, (height, width) = grad.shape[1], grad.shape[3:]
    sizes = image.shape[2:]
    flat, fields, flow, lines = _flat(image), _flat(field), _flat(grad), _flat(out)
    some, rows, blocks, start, stop = _shares(grad.shape, chunk, chunks)
    points, places, kept = _buffers(some * width)
    free, total = np.empty((3, some * width), np.float32), np.empty((3, some * width), np.float32)
    for block in range(start, stop):
        b, first, last, at, n = _rows(block, some, rows, blocks, width)
        _points(matrix[b], fields[b], moved, bent, height, width, first, last, points)
        _free(points, n, sizes, free)
        _kept(points, n, sizes, border, kept)
        _cells(points, n, sizes, places)
        total[:] = 0
        for c in range(channels):
            _slope(flat[b, c], sizes, places, points, kept, flow[b, c, at:at + n], total)
        thin = 3 - out.shape[1]
        for axis in range(thin, 3):
            line = lines[b, axis - thin, at:at + n]
            for i in range(n):
                line[i] = total[axis, i] * free[axis, i]


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _scatter(grad, matrix, field, moved, bent, border, out, chunk, chunks):  # type: ignore[no-untyped-def]
    lanes, channels, depth, height, width = grad.shape
    sizes = out.shape[2:]
    flat, fields, flow = _flat(out), _flat(field), _flat(grad)
    back, down, right = _strides(sizes)
    one = np.float32(1)
    for unit in range(chunk * lanes * channels // chunks, (chunk + 1) * lanes * channels // chunks):
        b, c = unit // channels, unit % channels
        points, places, kept = _buffers(width)
        v = flat[b, c]
        for row in range(depth * height):
            _points(matrix[b], fields[b], moved, bent, height, width, row, row + 1, points)
            _kept(points, width, sizes, border, kept)
            _cells(points, width, sizes, places)
            for i in range(width):
                if kept[i] > np.float32(0):
                    p = np.uint64(places[i])
                    q, r = p + down, p + back
                    s = q + back
                    fz, fy, fx = points[0, i], points[1, i], points[2, i]
                    g = flow[b, c, row * width + i]
                    near, far = (one - fz) * g, fz * g
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
