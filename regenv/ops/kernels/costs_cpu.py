"""Costs of displacements on the CPU: the features that are compared never lie in memory as a warped image."""

from __future__ import annotations

import numba
import numpy as np
import torch
from torch import Tensor

from regenv.ops.kernels.affine_cpu import SERIAL_BELOW


def costs_cpu(fixed: Tensor, moving: Tensor, displacement: Tensor, offsets: Tensor) -> Tensor:
    """As ``regenv.ops.features.costs``, float32, no gradients; two dimensions are a volume of one slice.

    The channels of a voxel lie side by side in the kernel, so one of its instructions serves many.
    """
    ndim = displacement.shape[1]
    here, there = (_last(features) for features in (fixed, moving))
    shift = offsets.detach().to(torch.float32)
    field, shift = (torch.nn.functional.pad(part.detach(), margin) for part, margin in (
        (displacement.movedim(1, -1), (3 - ndim, 0)), (shift, (3 - ndim, 0))))
    field = (field if ndim == 3 else field.unsqueeze(1)).contiguous()
    out = torch.empty((len(fixed), len(offsets), *here.shape[1:4]), dtype=torch.float32)
    threads = numba.get_num_threads()
    if out.numel() * fixed.shape[1] < SERIAL_BELOW:
        numba.set_num_threads(1)
    _costs(here.numpy(), there.numpy(), field.numpy(), shift.contiguous().numpy(), out.numpy())
    numba.set_num_threads(threads)
    return out if ndim == 3 else out.squeeze(2)


def _last(features: Tensor) -> Tensor:
    """(B, D, H, W, C) of (B, C, *shape)."""
    moved = features.detach().movedim(1, -1)
    return (moved if features.ndim == 5 else moved.unsqueeze(1)).contiguous()


@numba.njit(parallel=True, cache=True, nogil=True, error_model="numpy", fastmath={"contract", "reassoc"})
def _costs(fixed, moving, field, offsets, out):  # type: ignore[no-untyped-def]
    lanes, depth, height, width, channels = fixed.shape
    zero, one = np.float32(0), np.float32(1)
    d, h, w = np.float32(depth - 1), np.float32(height - 1), np.float32(width - 1)
    for row in numba.prange(lanes * depth * height):
        b, k, j = row // (depth * height), row // height % depth, row % height
        value = np.empty(channels, np.float32)
        for i in range(width):
            here, u = fixed[b, k, j, i], field[b, k, j, i]
            for n in range(len(offsets)):
                z = min(max(np.float32(k) + u[0] + offsets[n, 0], zero), d)
                y = min(max(np.float32(j) + u[1] + offsets[n, 1], zero), h)
                x = min(max(np.float32(i) + u[2] + offsets[n, 2], zero), w)
                zi, yi, xi = int(z) if z > 0 else 0, int(y) if y > 0 else 0, int(x) if x > 0 else 0
                fz, fy, fx = z - np.float32(zi), y - np.float32(yi), x - np.float32(xi)
                zj, yj, xj = min(zi + 1, depth - 1), min(yi + 1, height - 1), min(xi + 1, width - 1)
                v = moving[b]
                a, c, e, g = v[zi, yi, xi], v[zi, yi, xj], v[zi, yj, xi], v[zi, yj, xj]
                wa, wc, we, wg = (one - fy) * (one - fx), (one - fy) * fx, fy * (one - fx), fy * fx
                if depth == 1:
                    for m in range(channels):
                        value[m] = here[m] - (wa * a[m] + wc * c[m] + we * e[m] + wg * g[m])
                else:
                    p, q, r, s = v[zj, yi, xi], v[zj, yi, xj], v[zj, yj, xi], v[zj, yj, xj]
                    for m in range(channels):
                        value[m] = here[m] - ((one - fz) * (wa * a[m] + wc * c[m] + we * e[m] + wg * g[m])
                                              + fz * (wa * p[m] + wc * q[m] + we * r[m] + wg * s[m]))
                total = zero
                for m in range(channels):
                    total += value[m] * value[m]
                out[b, n, k, j, i] = total / np.float32(channels)
