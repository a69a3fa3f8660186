"""Sizes of classes and of their overlaps on the CPU, in one pass over the voxels."""

from __future__ import annotations

from collections.abc import Sequence

import numba
import numpy as np
import torch
from torch import Tensor

from regenv.ops.kernels.threads import run


def overlap_counts_cpu(labels_a: Tensor, labels_b: Tensor, classes: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Voxels (B, classes) int64 of a, of b and of both; labels (B, ...) integer, of one shape."""
    low = min(classes)
    column = np.full(max(classes) - low + 1, -1)
    column[np.asarray(classes) - low] = np.arange(len(classes))
    out = np.zeros((3, len(labels_a), len(classes)), dtype=np.int64)
    a, b = (labels.detach().flatten(1).contiguous().numpy() for labels in (labels_a, labels_b))
    run(_count, a, b, low, column, out, voxels=a.size)
    return tuple(torch.from_numpy(out))  # type: ignore[return-value]


@numba.njit(cache=True, nogil=True)
def _count(a, b, low, column, out, chunk, chunks):  # type: ignore[no-untyped-def]
    for lane in range(chunk * len(a) // chunks, (chunk + 1) * len(a) // chunks):
        for voxel in range(a.shape[1]):
            here, there = np.int64(a[lane, voxel]) - low, np.int64(b[lane, voxel]) - low
            first = column[here] if 0 <= here < column.size else -1
            second = column[there] if 0 <= there < column.size else -1
            if first >= 0:
                out[0, lane, first] += 1
                if first == second:
                    out[2, lane, first] += 1
            if second >= 0:
                out[1, lane, second] += 1
