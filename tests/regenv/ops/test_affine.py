"""What is true of affine maps in homogeneous coordinates."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from torch import Tensor

from regenv.ops.affine import about, homogeneous, invert_affine, matmul, transform_points

BY_NDIM = pytest.mark.parametrize("ndim", [2, 3])


def random_maps(rng: np.random.Generator, lanes: int, ndim: int, shift: float = 0.0) -> Tensor:
    """The identity plus uniform numbers within +-0.25, and a translation, as (lanes, D+1, D+1) float64."""
    linear = np.eye(ndim) + rng.uniform(-0.25, 0.25, (lanes, ndim, ndim))
    return homogeneous(torch.from_numpy(linear), torch.from_numpy(rng.uniform(-shift, shift, (lanes, ndim))))


@BY_NDIM
def test_about_keeps_the_centre(ndim: int, rng: np.random.Generator) -> None:
    matrix = random_maps(rng, 4, ndim)
    center = torch.from_numpy(rng.uniform(-50, 50, (4, ndim)))
    moved = about(center, matrix)
    torch.testing.assert_close(transform_points(moved, center[:, None])[:, 0], center, rtol=0, atol=1e-12)
    assert torch.equal(moved[:, :ndim, :ndim], matrix[:, :ndim, :ndim])
    torch.testing.assert_close(about(-center, moved), matrix, rtol=0, atol=1e-12)


@BY_NDIM
def test_inverse_agrees_with_torch_and_does_not_depend_on_the_lanes(ndim: int, rng: np.random.Generator) -> None:
    matrix = random_maps(rng, 65, ndim, shift=30.0)
    found = invert_affine(matrix)
    torch.testing.assert_close(found, torch.linalg.inv(matrix), rtol=0, atol=1e-10)
    for lane in (0, 31, 64):
        assert torch.equal(found[lane], invert_affine(matrix[lane:lane + 1])[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_matmul_agrees_with_torch_and_does_not_depend_on_the_lanes(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(65, 4, 3, dtype=dtype, generator=generator)
    b = torch.randn(65, 3, 5, dtype=dtype, generator=generator)
    torch.testing.assert_close(matmul(a, b), a @ b)
    for lane in (0, 31, 64):
        assert torch.equal(matmul(a, b)[lane], matmul(a[lane:lane + 1], b[lane:lane + 1])[0])


@BY_NDIM
def test_transformed_points_agree_with_simpleitk(ndim: int, rng: np.random.Generator) -> None:
    matrix = random_maps(rng, 1, ndim, shift=3.0)
    transform = sitk.AffineTransform(ndim)
    transform.SetMatrix(matrix[0, :ndim, :ndim].flatten().tolist())
    transform.SetTranslation(matrix[0, :ndim, ndim].tolist())
    points = rng.normal(0, 40, (6, ndim))
    expected = [transform.TransformPoint(point) for point in points.tolist()]
    moved = transform_points(matrix, torch.from_numpy(points)[None])
    np.testing.assert_allclose(moved[0].numpy(), expected, rtol=0, atol=1e-9)
