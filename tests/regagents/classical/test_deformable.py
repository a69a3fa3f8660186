"""Classical registration by displacement fields: known deformations are found, and constant images stay."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from regagents.classical.convexadam import ConvexAdam
from regagents.classical.deformable import BSpline, Demons, displacement_of
from regagents.classical.syn import SyN
from regenv.data.io.resampling import framed
from regenv.grid import Grid
from regenv.ops.warp import warp_dense

SHAPES = pytest.mark.parametrize("shape", [(64, 72), (24, 40, 36)])
SYN = pytest.param(SyN(), marks=pytest.mark.skipif(not SyN.available(), reason="antspyx is not installed"), id="syn")
METHODS = [pytest.param(BSpline(8.0), id="bspline"), pytest.param(Demons(smoothing=1.0), id="demons"), SYN]
FIELD_METHODS = pytest.mark.parametrize("method", METHODS)
EVERY_METHOD = pytest.mark.parametrize("method", [*METHODS, pytest.param(ConvexAdam(), id="convex-adam")])


def bump(shape: tuple[int, ...], size: float) -> torch.Tensor:
    """A smooth displacement (1, D, *shape) of ``size`` voxels in the middle, along every axis."""
    axes = torch.meshgrid(*(torch.linspace(-2, 2, n) for n in shape), indexing="ij")
    hill = torch.exp(-sum(a.square() for a in axes))  # type: ignore[arg-type]
    return size * hill.expand(1, len(shape), *shape)


def blobs(shape: tuple[int, ...]) -> torch.Tensor:
    """A smooth image (1, 1, *shape) with structure everywhere, in [0, 1]."""
    generator = torch.Generator().manual_seed(4)
    noise = torch.rand(1, 1, *(n // 5 for n in shape), generator=generator)
    return torch.nn.functional.interpolate(noise, shape, mode="bilinear" if len(shape) == 2 else "trilinear")


@SHAPES
@FIELD_METHODS
def test_a_known_deformation_is_found(shape: tuple[int, ...], method: Any) -> None:
    moving, field = blobs(shape), bump(shape, 2.0)
    fixed = warp_dense(moving, field, "border")
    grid = Grid.centered(shape, (1.5, 1.0, 2.0)[:len(shape)])
    found = torch.from_numpy(method.register(framed(fixed[0, 0], grid), framed(moving[0, 0], grid)))[None]
    inner = (..., *(slice(6, n - 6) for n in shape))
    assert (found - field)[inner].norm(dim=1).mean() < 0.3 * field[inner].norm(dim=1).mean()
    after = (warp_dense(moving, found, "border") - fixed)[inner].abs().mean()
    assert after < 0.3 * (moving - fixed)[inner].abs().mean()


@EVERY_METHOD
def test_voxels_that_are_no_numbers_are_named(method: Any) -> None:
    image = torch.rand(24, 24)
    broken = image.clone()
    broken[3, 4] = torch.nan
    grid = Grid.centered((24, 24), 1.0)
    with pytest.raises(ValueError, match=r"1 voxels of an image of size \(24, 24\) are NaN"):
        method.register(framed(image, grid), framed(broken, grid))


@EVERY_METHOD
def test_a_flat_image_stays_where_it_is(method: Any) -> None:
    grid = Grid.centered((32, 32), 1.0)
    flat = framed(torch.zeros(32, 32), grid)
    assert np.abs(method.register(flat, flat)).max() == 0


def test_a_transforms_displacement_is_in_voxels_of_its_grid() -> None:
    grid = Grid.centered((5, 6, 7), (1.0, 2.0, 4.0))
    field = displacement_of(sitk.TranslationTransform(3, (1.0, 2.0, 3.0)), grid)
    np.testing.assert_allclose(field, np.broadcast_to(np.array([0.75, 1.0, 1.0])[:, None, None, None], field.shape))
