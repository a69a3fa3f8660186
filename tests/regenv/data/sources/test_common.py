"""What is true of random maps: bounded, and of the kind they are named after."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from regenv.data.sources.common import random_affine, random_rigid

# --- random maps ----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("ndim", [2, 3])
def test_affine_is_the_identity_plus_equation_6(ndim: int, rng: np.random.Generator) -> None:
    linear = random_affine([rng] * 3000, ndim, 0.25)
    c = linear[:, :ndim, :ndim] - torch.eye(ndim, dtype=torch.float64)
    assert float(c.abs().max()) <= 0.25
    assert float(c.abs().max()) > 0.24
    assert float(c.mean().abs()) < 0.01
    assert float(c.std()) == pytest.approx(0.25 / math.sqrt(3), rel=0.03)
    assert not linear[:, :ndim, ndim].any()


@pytest.mark.parametrize("ndim", [2, 3])
def test_random_rigid_is_rigid_and_bounded(ndim: int, rng: np.random.Generator) -> None:
    maps = random_rigid([rng] * 300, ndim, 20.0, 15.0)
    rotation = maps[:, :ndim, :ndim]
    eye = torch.eye(ndim, dtype=torch.float64).expand_as(rotation)
    torch.testing.assert_close(rotation @ rotation.mT, eye, rtol=0, atol=1e-12)
    assert float(torch.linalg.det(rotation).min()) > 0
    assert 15 < float(maps[:, :ndim, ndim].abs().max()) <= 20.0
    cosine = (rotation.diagonal(dim1=1, dim2=2).sum(1) - 1) / 2 if ndim == 3 else rotation[:, 0, 0]
    assert float(torch.rad2deg(torch.acos(cosine.clamp(-1, 1))).max()) <= 15.0 * (1 if ndim == 2 else 3)
