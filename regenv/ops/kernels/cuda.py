"""Warps on CUDA by triton: a program takes a block of voxels of one lane. No sampling grid is ever in memory.

Coordinates are float32 whatever the images are. Kernels run without fused multiplications (``enable_fp_fusion``), so
that what is inside an image is decided as by ``regenv.ops.sampling``. Gradients are those of the reference: torch's own
scatter is as fast.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from regenv.ops.kernels.layout import MOMENTS, bits, homogeneous
from regenv.ops.kernels.lncc_cuda import lncc_force
from regenv.ops.kernels.reference import central_force, smoothed, vjp

__all__ = ["central_force", "fused_warp", "lncc_force", "smoothed", "vjp", "warp", "warp_labels"]

BLOCK = 512
_SIZES = ("channels", "blocks", "height", "width", "d", "h", "w")  # a size of 1 would be a constant of another type
_VIEWS = {"warped": 0, "difference": 1, "pair": 2}


def warp(image: Tensor, matrix: Tensor | None, displacement: Tensor | None, shape: tuple[int, ...], border: bool,
         add: bool = False) -> Tensor:
    """Linear values (B, C, *shape), dtype of ``image``; ``add``: plus the displacement, of as many channels."""
    out = image.new_empty((*image.shape[:2], *shape))
    _launch(_warp, out, image, matrix, displacement, shape, (image.detach().contiguous(), out),
            BORDER=border, ADD=add)
    return out


def warp_labels(labels: Tensor, matrix: Tensor | None, displacement: Tensor | None, shape: tuple[int, ...]) -> Tensor:
    """Nearest voxels' values (B, C, *shape) of any type, which are copied bit by bit."""
    words = bits(labels)
    out = words.new_empty((*labels.shape[:2], *shape))
    _launch(_nearest, out, labels, matrix, displacement, shape, (words, out))
    return out.view(labels.dtype)


def fused_warp(fixed: Tensor, moving: Tensor, matrix: Tensor | None, displacement: Tensor | None,
               view: str) -> tuple[Tensor, Tensor]:
    """A view of the warped image, and the moments of both images, in one pass over the voxels."""
    lanes, channels, shape = *moving.shape[:2], tuple(fixed.shape[2:])
    image = fixed.new_empty((lanes, (2 if view == "pair" else 1) * channels, *shape), dtype=torch.float32)
    sums = fixed.new_empty((lanes, channels, MOMENTS, triton.cdiv(fixed[0, 0].numel(), BLOCK)), dtype=torch.float32)
    _launch(_fused_warp, fixed, moving, matrix, displacement, shape,
            (fixed.detach().contiguous(), moving.detach().contiguous(), image, sums), VIEW=_VIEWS[view])
    return image, sums.sum(-1, dtype=torch.float64)


def _launch(kernel, out: Tensor, image: Tensor, matrix: Tensor | None,  # type: ignore[no-untyped-def]
            displacement: Tensor | None, shape: tuple[int, ...], tensors: tuple[Tensor, ...], **flags: int) -> None:
    lanes, channels = out.shape[:2]
    flat = len(shape) == 2
    (_, height, width), (d, h, w) = ((1, *each) if flat else each for each in (tuple(shape), tuple(image.shape[2:])))
    voxels = out[0, 0].numel()
    blocks = triton.cdiv(voxels, BLOCK)
    rows = tensors[0] if matrix is None else homogeneous(matrix, lanes)  # any pointer does where none is read
    field = tensors[0] if displacement is None else displacement.detach().contiguous()
    kernel[(blocks * lanes,)](*tensors, rows, field, channels, voxels, blocks, height, width, d, h, w,
                              MOVED=matrix is not None, BENT=displacement is not None, FLAT=flat, BLOCK=BLOCK,
                              enable_fp_fusion=False, **flags)


@triton.jit
def _points(rows, field, lane, place, live, voxels, height, width,  # type: ignore[no-untyped-def]
            MOVED: tl.constexpr, BENT: tl.constexpr, FLAT: tl.constexpr):
    """Source points of a block of voxels."""
    z = (place // (height * width)).to(tl.float32)
    y = ((place // width) % height).to(tl.float32)
    x = (place % width).to(tl.float32)
    if BENT:
        if FLAT:
            at = field + lane * 2 * voxels + place
        else:
            at = field + lane * 3 * voxels + place
            z += tl.load(at, mask=live, other=0.0).to(tl.float32)
            at += voxels
        y += tl.load(at, mask=live, other=0.0).to(tl.float32)
        x += tl.load(at + voxels, mask=live, other=0.0).to(tl.float32)
    if MOVED:
        m = rows + lane * 16
        a = tl.load(m + 3) + tl.load(m) * z + tl.load(m + 1) * y + tl.load(m + 2) * x
        b = tl.load(m + 7) + tl.load(m + 4) * z + tl.load(m + 5) * y + tl.load(m + 6) * x
        c = tl.load(m + 11) + tl.load(m + 8) * z + tl.load(m + 9) * y + tl.load(m + 10) * x
        z, y, x = a, b, c
    return z, y, x


@triton.jit
def _inside(z, y, x, d, h, w):  # type: ignore[no-untyped-def]
    return ((z >= -0.5) & (y >= -0.5) & (x >= -0.5) & (z < d.to(tl.float32) - 0.5) & (y < h.to(tl.float32) - 0.5)
            & (x < w.to(tl.float32) - 0.5))


@triton.jit
def _clamped(at, size):  # type: ignore[no-untyped-def]
    """A coordinate within 0 to size - 1; 0 for NaN."""
    top = (size - 1).to(tl.float32)
    at = tl.where(at > 0, at, 0.0)
    return tl.where(at < top, at, top)


@triton.jit
def _cell(at, size):  # type: ignore[no-untyped-def]
    """First voxel of the cell along an axis, the fraction across it, and the step to the next voxel, 1 or 0."""
    clamped = _clamped(at, size)
    first = tl.minimum(clamped.to(tl.int32), tl.maximum(size - 2, 0))
    return first, clamped - first.to(tl.float32), tl.minimum(size - 1, 1)


@triton.jit
def _linear(v, z, y, x, live, d, h, w, FLAT: tl.constexpr):  # type: ignore[no-untyped-def]
    """Linear values of one channel."""
    zi, fz, back = _cell(z, d)
    yi, fy, down = _cell(y, h)
    xi, fx, right = _cell(x, w)
    p = v + (zi * h + yi) * w + xi
    q = p + down * w
    value = (1 - fy) * _between(p, right, fx, live) + fy * _between(q, right, fx, live)
    if not FLAT:
        r = p + back * h * w
        other = (1 - fy) * _between(r, right, fx, live) + fy * _between(r + down * w, right, fx, live)
        value = (1 - fz) * value + fz * other
    return tl.where((z == z) & (y == y) & (x == x), value, float("nan"))


@triton.jit
def _between(at, right, fraction, live):  # type: ignore[no-untyped-def]
    """Linear mix of two neighbouring voxels: exactly the first at fraction 0 and the second at 1."""
    first = tl.load(at, mask=live, other=0.0).to(tl.float32)
    return (1 - fraction) * first + fraction * tl.load(at + right, mask=live, other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=_SIZES)
def _warp(image, out, rows, field, channels, voxels, blocks, height, width, d, h, w,  # type: ignore[no-untyped-def]
          MOVED: tl.constexpr, BENT: tl.constexpr, FLAT: tl.constexpr, BLOCK: tl.constexpr, BORDER: tl.constexpr,
          ADD: tl.constexpr):
    lane = (tl.program_id(0) // blocks).to(tl.int64)
    place = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    live = place < voxels
    z, y, x = _points(rows, field, lane, place, live, voxels, height, width, MOVED, BENT, FLAT)
    for channel in range(channels):
        plane = lane * channels + channel
        value = _linear(image + plane * d * h * w, z, y, x, live, d, h, w, FLAT)
        if not BORDER:
            value = tl.where(_inside(z, y, x, d, h, w), value, 0.0)
        if ADD:
            value += tl.load(field + plane * voxels + place, mask=live, other=0.0).to(tl.float32)
        tl.store(out + plane * voxels + place, value, mask=live)


@triton.jit(do_not_specialize=_SIZES)
def _nearest(labels, out, rows, field, channels, voxels, blocks, height, width, d, h, w,  # type: ignore[no-untyped-def]
             MOVED: tl.constexpr, BENT: tl.constexpr, FLAT: tl.constexpr, BLOCK: tl.constexpr):
    lane = (tl.program_id(0) // blocks).to(tl.int64)
    place = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    live = place < voxels
    z, y, x = _points(rows, field, lane, place, live, voxels, height, width, MOVED, BENT, FLAT)
    valid = live & _inside(z, y, x, d, h, w)
    zi = _clamped(tl.floor(z + 0.5), d).to(tl.int32)
    yi = _clamped(tl.floor(y + 0.5), h).to(tl.int32)
    xi = _clamped(tl.floor(x + 0.5), w).to(tl.int32)
    for channel in range(channels):
        plane = lane * channels + channel
        value = tl.load(labels + plane * d * h * w + (zi * h + yi) * w + xi, mask=valid, other=0)
        tl.store(out + plane * voxels + place, value, mask=live)


@triton.jit(do_not_specialize=_SIZES)
def _fused_warp(fixed, moving, view, sums, rows, field, channels, voxels, blocks,  # type: ignore[no-untyped-def]
                height, width, d, h, w, MOVED: tl.constexpr, BENT: tl.constexpr, FLAT: tl.constexpr,
                BLOCK: tl.constexpr, VIEW: tl.constexpr):
    lane = (tl.program_id(0) // blocks).to(tl.int64)
    block = tl.program_id(0) % blocks
    place = block * BLOCK + tl.arange(0, BLOCK)
    live = place < voxels
    z, y, x = _points(rows, field, lane, place, live, voxels, height, width, MOVED, BENT, FLAT)
    inside = live & _inside(z, y, x, d, h, w)
    for channel in range(channels):
        plane = lane * channels + channel
        value = _linear(moving + plane * d * h * w, z, y, x, live, d, h, w, FLAT)
        value = tl.where(inside, value, 0.0)
        still = tl.load(fixed + plane * voxels + place, mask=live, other=0.0).to(tl.float32)
        if VIEW == 0:
            tl.store(view + plane * voxels + place, value, mask=live)
        if VIEW == 1:
            tl.store(view + plane * voxels + place, still - value, mask=live)
        if VIEW == 2:
            first = view + (2 * lane * channels + channel) * voxels + place
            tl.store(first, tl.minimum(tl.maximum(still, 0.0), 1.0), mask=live)
            tl.store(first + channels * voxels, tl.minimum(tl.maximum(value, 0.0), 1.0), mask=live)
        at = sums + plane * 5 * blocks + block
        tl.store(at, tl.sum(still, 0))
        tl.store(at + blocks, tl.sum(value, 0))
        tl.store(at + 2 * blocks, tl.sum(still * still, 0))
        tl.store(at + 3 * blocks, tl.sum(value * value, 0))
        tl.store(at + 4 * blocks, tl.sum(still * value, 0))
