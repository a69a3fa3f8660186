"""The least value of a smooth function of few numbers, near where it begins."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

MEMORY = 8      # steps that L-BFGS remembers


def descend(loss: Callable[[Tensor], Tensor], size: int, iterations: int, evaluations: int = 1_000,
            tolerance: float = 1e-6) -> tuple[NDArray[np.float64], int]:
    """The best argument that L-BFGS meets from 0 on.

    By scipy's routine (Zhu et al. 1997): the first of torch's optimizers to be made loads torch's compiler, for
    seconds.

    Args:
        loss: of an argument (size,) float64; finite, and differentiable by torch.
        iterations, evaluations: at most.
        tolerance: smallest relative decrease of an iteration after which it goes on; of values below 1 the absolute.
    Returns: the argument (size,), and the number of evaluations.
    """
    from scipy.optimize import minimize

    best, found, count = np.inf, np.zeros(size), 0

    def evaluated(argument: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        nonlocal best, found, count
        leaf = torch.from_numpy(argument.copy()).requires_grad_()
        value = loss(leaf)
        (gradient,) = torch.autograd.grad(value, leaf)
        count += 1
        if value.item() < best:
            best, found = value.item(), argument.copy()
        return value.item(), gradient.numpy()

    with torch.inference_mode(False), torch.enable_grad():
        minimize(evaluated, np.zeros(size), jac=True, method="L-BFGS-B",
                 options={"maxiter": iterations, "maxfun": evaluations, "maxcor": MEMORY, "ftol": tolerance,
                          "gtol": tolerance})
    return found, count
