"""The width that the extractors give their first dense layer."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from regagents.common.extractors import CONV, NORM, POOL, flat_width


@pytest.mark.parametrize("shape", [(2, 33, 20), (1, 17, 12, 21)], ids=["2D", "3D"])
@pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 1, 1), (3, 2, 1), (8, 4, 0), (4, 3, 2)])
def test_the_width_is_that_of_torchs_own_output(shape: tuple[int, ...], kernel: int, stride: int, padding: int) -> None:
    n = len(shape) - 1
    layers = nn.Sequential(CONV[n](shape[0], 5, kernel, stride, padding), NORM[n](5), nn.ReLU(), POOL[n](2),
                           CONV[n](5, 3, 1), nn.ELU(), nn.Flatten()).eval()
    assert flat_width(layers, shape) == layers(torch.zeros(1, *shape)).shape[1]


def test_an_image_smaller_than_a_kernel_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(7, 40\); it is too small"):
        flat_width([CONV[2](1, 4, 8)], (1, 7, 40))
