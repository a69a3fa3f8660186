"""Arguments as the kernels take them: 2D images are volumes of one slice, labels are integers of the same bits."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

MOMENTS = 5
QUANTIZED = "_uint8"            # the end of the name of a view in bytes
MIDDLE = np.float32(128 / 255)  # of a difference in bytes, where images agree
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


def quantized(image: Tensor, view: str) -> Tensor:
    """The float32 image of a view as bytes: 0 to 1 as 0 to 255; a difference of -1 to 1 about 128."""
    unit = image * 0.5 + float(MIDDLE) if view == "difference" else image
    return (unit * 255).round_().clamp_(0, 255).to(torch.uint8)
