"""How kernels see their arguments: two dimensions are a volume of one slice, labels are words of bits."""

from __future__ import annotations

import torch
from torch import Tensor

MOMENTS = 5
_WORDS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def homogeneous(matrix: Tensor, lanes: int) -> Tensor:
    """Affine maps (1 or B, D+1, D+1) as (lanes, 4, 4) float32."""
    rows = matrix.detach().to(torch.float32)
    if rows.shape[-1] == 3:
        rows = torch.nn.functional.pad(rows, (1, 0, 1, 0))
    return rows.expand(lanes, 4, 4).contiguous()


def bits(labels: Tensor) -> Tensor:
    """The same memory as integers: what only copies values need not know their type."""
    return labels.detach().contiguous().view(_WORDS[labels.element_size()])
