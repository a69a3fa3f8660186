"""The descent against functions whose least values are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from regagents.common.descent import descend


def rosenbrock(x: Tensor) -> Tensor:
    return (100 * (x[1:] - x[:-1].square()).square() + (1 - x[:-1]).square()).sum()


@pytest.mark.parametrize("size", [2, 6, 12])
def test_a_curved_valleys_bottom_is_found(size: int) -> None:
    found, count = descend(rosenbrock, size, iterations=300, tolerance=1e-12)
    np.testing.assert_allclose(found, np.ones(size), atol=1e-3)
    assert 10 < count < 300


def test_a_quadratic_ends_where_its_gradient_is_zero_also_without_gradients() -> None:
    matrix = torch.from_numpy(np.diag([1.0, 4.0, 30.0]) + 0.5)
    target = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
    with torch.no_grad():
        found, _ = descend(lambda x: x @ matrix @ x / 2 - target @ x, 3, iterations=60, tolerance=1e-12)
    np.testing.assert_allclose(matrix.numpy() @ found, target.numpy(), atol=1e-5)


def test_it_never_ends_worse_than_it_began_and_within_its_evaluations() -> None:
    seen: list[float] = []

    def loss(x: Tensor) -> Tensor:      # a plateau beside the way, as where two images meet no more
        value = rosenbrock(x) if float(x.detach().abs().max()) < 0.5 else x.sum() * 0 + 50.0
        seen.append(value.item())
        return value

    found, count = descend(loss, 4, iterations=100, evaluations=12)
    assert count == len(seen) < 12 + 20     # a line search that has begun is brought to its end
    assert rosenbrock(torch.from_numpy(found)).item() == min(seen) < seen[0]
