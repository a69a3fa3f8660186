"""Local correlation and its gradient on CUDA by triton: sums over the window along one axis after another, fused with
what is made of them: products of the images before the first sum, coefficients of the gradient after the last one."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from regenv.ops.kernels.layout import LOCALLY_FLAT

BLOCK = 512
STATISTICS, COEFFICIENTS = 6, 3


def lncc_force(fixed: Tensor, warped: Tensor, mask: Tensor | None, standard: Tensor,
               window: int, want_force: bool) -> tuple[Tensor, Tensor]:
    """As ``regenv.ops.kernels.reference.lncc_force``, float32."""
    lanes, channels, *shape = fixed.shape
    voxels, planes = fixed[0, 0].numel(), lanes * channels
    images = [image.detach().contiguous() for image in (fixed, warped)]
    weight = images[0].new_ones(1) if mask is None else mask.detach().to(torch.float32).contiguous()
    given = standard.detach().to(torch.float32).contiguous()
    blocks = triton.cdiv(voxels, BLOCK)
    grid, masked, sizes = (blocks * planes,), mask is not None, (voxels, blocks, channels)
    parts = fixed.new_empty((planes, STATISTICS, voxels), dtype=torch.float32)
    _products[grid](*images, weight, given, parts, *sizes, MASKED=masked, BLOCK=BLOCK)
    parts = _summed(parts, shape, window)
    found = fixed.new_empty((planes, COEFFICIENTS, voxels), dtype=torch.float32)
    values = fixed.new_empty((planes, blocks), dtype=torch.float32)
    _coefficients[grid](parts, weight, found, values, *sizes, LOCALLY_FLAT, MASKED=masked, BLOCK=BLOCK)
    sums = values.sum(-1, dtype=torch.float64).view(lanes, channels)
    if not want_force:
        return sums, values.new_empty(0)
    found = _summed(found, shape, window)
    force = fixed.new_empty(fixed.shape, dtype=torch.float32)
    _force[grid](*images, weight, given, found, force, *sizes, MASKED=masked, BLOCK=BLOCK)
    return sums, force


def _summed(parts: Tensor, shape: list[int], window: int) -> Tensor:
    """Sums (planes, K, voxels) over the part of the window inside the image."""
    voxels, stride = parts.shape[-1], 1
    blocks = triton.cdiv(voxels, BLOCK)
    for n in reversed(shape):
        out = torch.empty_like(parts)
        _along[(blocks * parts.shape[0] * parts.shape[1],)](parts, out, voxels, blocks, stride, n, RADIUS=window // 2,
                                                           BLOCK=BLOCK)
        parts, stride = out, stride * n
    return parts


@triton.jit
def _place(blocks, voxels, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Plane of a program, its voxels, and which of them there are."""
    plane = (tl.program_id(0) // blocks).to(tl.int64)
    place = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    return plane, place, place < voxels


@triton.jit(do_not_specialize=("voxels", "blocks", "stride", "n"))
def _along(parts, out, voxels, blocks, stride, n, RADIUS: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    plane, place, live = _place(blocks, voxels, BLOCK)
    at = (place // stride) % n
    total = tl.zeros((BLOCK,), tl.float32)
    for shift in range(-RADIUS, RADIUS + 1):
        there = live & (at + shift >= 0) & (at + shift < n)
        total += tl.load(parts + plane * voxels + place + shift * stride, mask=there, other=0.0)
    tl.store(out + plane * voxels + place, total, mask=live)


@triton.jit
def _standardised(image, standard, plane, place, live, voxels):  # type: ignore[no-untyped-def]
    value = tl.load(image + plane * voxels + place, mask=live, other=0.0).to(tl.float32)
    return (value - tl.load(standard)) * tl.load(standard + 1)


@triton.jit(do_not_specialize=("voxels", "blocks", "channels"))
def _products(fixed, warped, mask, standard, out, voxels, blocks, channels,  # type: ignore[no-untyped-def]
              MASKED: tl.constexpr, BLOCK: tl.constexpr):
    plane, place, live = _place(blocks, voxels, BLOCK)
    a = _standardised(fixed, standard + plane * 4, plane, place, live, voxels)
    b = _standardised(warped, standard + plane * 4 + 2, plane, place, live, voxels)
    weight = tl.where(live, 1.0, 0.0)
    if MASKED:
        weight = tl.load(mask + plane // channels * voxels + place, mask=live, other=0.0)
    to = out + plane * 6 * voxels + place
    tl.store(to, weight * a, mask=live)
    tl.store(to + voxels, weight * b, mask=live)
    tl.store(to + 2 * voxels, weight * a * a, mask=live)
    tl.store(to + 3 * voxels, weight * b * b, mask=live)
    tl.store(to + 4 * voxels, weight * a * b, mask=live)
    tl.store(to + 5 * voxels, weight, mask=live)


@triton.jit(do_not_specialize=("voxels", "blocks", "channels"))
def _coefficients(parts, mask, out, values, voxels, blocks, channels, flat,  # type: ignore[no-untyped-def]
                  MASKED: tl.constexpr, BLOCK: tl.constexpr):
    plane, place, live = _place(blocks, voxels, BLOCK)
    at = parts + plane * 6 * voxels + place
    count = tl.load(at + 5 * voxels, mask=live, other=0.0)
    share = tl.where(count > 0, 1 / tl.where(count > 0, count, 1.0), 0.0)
    mean_a = tl.load(at, mask=live, other=0.0) * share
    mean_b = tl.load(at + voxels, mask=live, other=0.0) * share
    var_a = tl.maximum(tl.load(at + 2 * voxels, mask=live, other=0.0) * share - mean_a * mean_a, 0.0)
    var_b = tl.maximum(tl.load(at + 3 * voxels, mask=live, other=0.0) * share - mean_b * mean_b, 0.0)
    cov = tl.load(at + 4 * voxels, mask=live, other=0.0) * share - mean_a * mean_b
    weight = tl.where(live, 1.0, 0.0)
    if MASKED:
        weight = tl.load(mask + plane // channels * voxels + place, mask=live, other=0.0)
    d = 1 / (var_a * var_b + flat)
    p = 2 * cov * d * weight * share
    q = tl.where(var_b > 0, p * cov * d * var_a, 0.0)
    to = out + plane * 3 * voxels + place
    tl.store(to, p, mask=live)
    tl.store(to + voxels, q, mask=live)
    tl.store(to + 2 * voxels, p * mean_a - q * mean_b, mask=live)
    tl.store(values + tl.program_id(0), tl.sum(tl.where(live, weight * cov * cov * d, 0.0), 0))


@triton.jit(do_not_specialize=("voxels", "blocks", "channels"))
def _force(fixed, warped, mask, standard, parts, force, voxels, blocks, channels,  # type: ignore[no-untyped-def]
           MASKED: tl.constexpr, BLOCK: tl.constexpr):
    plane, place, live = _place(blocks, voxels, BLOCK)
    a = _standardised(fixed, standard + plane * 4, plane, place, live, voxels)
    b = _standardised(warped, standard + plane * 4 + 2, plane, place, live, voxels)
    at = parts + plane * 3 * voxels + place
    slope = (tl.load(at, mask=live, other=0.0) * a - tl.load(at + voxels, mask=live, other=0.0) * b
             - tl.load(at + 2 * voxels, mask=live, other=0.0))
    slope *= tl.load(standard + plane * 4 + 3)
    if MASKED:
        slope *= tl.load(mask + plane // channels * voxels + place, mask=live, other=0.0)
    tl.store(force + plane * voxels + place, slope, mask=live)
