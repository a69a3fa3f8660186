"""Costs of displacements on the CPU, without a warped image of the features in memory."""

from __future__ import annotations

import numba
import numpy as np
import torch
from torch import Tensor

from regenv.ops.kernels.threads import run


def costs_cpu(fixed: Tensor, moving: Tensor, displacement: Tensor, offsets: Tensor) -> Tensor:
    """As ``regenv.ops.features.costs``, float32, no gradients; two dimensions are a volume of one slice.

    The channels of a voxel lie side by side in the kernel, so one of its instructions serves many; features that are
    stored so (``torch.channels_last``) are not copied.
    """
    ndim, lanes, channels = displacement.shape[1], len(fixed), fixed.shape[1]
    shape = (*(1,) * (3 - ndim), *fixed.shape[2:])
    here, there = (features.detach().movedim(1, -1).reshape(-1, channels) for features in (fixed, moving))
    field, shift = (torch.nn.functional.pad(part.detach().to(torch.float32), (3 - ndim, 0)) for part in (
        displacement.movedim(1, -1).reshape(-1, ndim), offsets))
    out = torch.empty((lanes, len(offsets), *shape), dtype=torch.float32)
    run(_costs, here.numpy(), there.numpy(), field.numpy(), shift.numpy(), out.numpy(), voxels=out.numel() * channels)
    return out.view(lanes, len(offsets), *fixed.shape[2:])


@numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract", "reassoc"})
def _costs(fixed, moving, field, offsets, out, chunk, chunks):  # type: ignore[no-untyped-def]
    lanes, _, depth, height, width = out.shape
    channels = fixed.shape[1]
    zero, one = np.float32(0), np.float32(1)
    d, h, w = np.float32(depth - 1), np.float32(height - 1), np.float32(width - 1)
    rows = lanes * depth * height
    for row in range(chunk * rows // chunks, (chunk + 1) * rows // chunks):
        b, k, j = row // (depth * height), row // height % depth, row % height
        for i in range(width):
            here, u = fixed[row * width + i], field[row * width + i]
            for n in range(len(offsets)):
                z = min(max(np.float32(k) + u[0] + offsets[n, 0], zero), d)
                y = min(max(np.float32(j) + u[1] + offsets[n, 1], zero), h)
                x = min(max(np.float32(i) + u[2] + offsets[n, 2], zero), w)
                zi, yi, xi = int(z) if z > 0 else 0, int(y) if y > 0 else 0, int(x) if x > 0 else 0
                fz, fy, fx = z - np.float32(zi), y - np.float32(yi), x - np.float32(xi)
                near = np.uint64(((b * depth + zi) * height + yi) * width + xi)  # unsigned: none counts from the end
                far = near + np.uint64(height * width if zi < depth - 1 else 0)
                right, down = np.uint64(1 if xi < width - 1 else 0), np.uint64(width if yi < height - 1 else 0)
                wa, wc, we, wg = (one - fy) * (one - fx), (one - fy) * fx, fy * (one - fx), fy * fx
                a, c = moving[near], moving[near + right]
                e, g = moving[near + down], moving[near + down + right]
                p, q = moving[far], moving[far + right]
                r, s = moving[far + down], moving[far + down + right]
                va, vc, ve, vg = (one - fz) * wa, (one - fz) * wc, (one - fz) * we, (one - fz) * wg
                wa, wc, we, wg = fz * wa, fz * wc, fz * we, fz * wg
                total = zero
                for m in range(channels):
                    apart = here[m] - (va * a[m] + vc * c[m] + ve * e[m] + vg * g[m]
                                       + wa * p[m] + wc * q[m] + we * r[m] + wg * s[m])
                    total += apart * apart
                out[b, n, k, j, i] = total / np.float32(channels)
