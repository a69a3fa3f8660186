"""Arguments as the kernels take them: 2D images are volumes of one slice, labels are integers of the same bits."""

from __future__ import annotations

import torch
from torch import Tensor

MOMENTS = 5
LOCALLY_FLAT = 1e-8  # product of a window's two variances, in units of the images' own: below it, no contrast
_WORDS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def homogeneous(matrix: Tensor, lanes: int) -> Tensor:
    """Affine maps (1 or B, D+1, D+1) as (lanes, 4, 4) float32."""
    rows = matrix.detach().to(torch.float32)
    if rows.shape[-1] == 3:
        rows = torch.nn.functional.pad(rows, (1, 0, 1, 0))
    return rows.expand(lanes, 4, 4).contiguous()


def bits(labels: Tensor) -> Tensor:
    """The same memory as integers: a kernel that only copies values needs no other type."""
    return labels.detach().contiguous().view(_WORDS[labels.element_size()])
