"""Instance optimisation: known deformations are found, large ones by the convex search, and laws of both stages."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
import torch.nn.functional as F

from regagents.classical.convexadam import AdamInstance, ConvexAdam, CoupledConvex, cost_volume, energy, pooled_features
from regagents.evaluation.dense import searched
from regenv.core import RegistrationCore
from regenv.data.io.resampling import framed
from regenv.grid import Grid
from regenv.ops.affine import transform_points
from regenv.ops.warp import warp_dense, warp_points
from regenv.registry import build

SHAPES = pytest.mark.parametrize("shape", [(60, 67), (24, 28, 26)], ids=["2D", "3D"])
WIDE = pytest.mark.parametrize("shape", [(60, 67), (44, 48, 43)], ids=["2D", "3D"])
SOLVERS = pytest.mark.parametrize("solver", [AdamInstance(iterations=30), CoupledConvex()], ids=["adam", "convex"])
REACH = 14     # voxels that shifts may bring in
STILL = 0.1     # voxels that identical images may move
SAME = 1e-3    # voxels between a batch and its lanes one by one


def texture(shape: tuple[int, ...], lanes: int = 1, grain: int = 5) -> torch.Tensor:
    """Smooth images (lanes, 1, *shape) with structure everywhere, in [0, 1]."""
    noise = torch.rand(lanes, 1, *(n // grain for n in shape), generator=torch.Generator().manual_seed(4))
    return F.interpolate(noise, shape, mode="bilinear" if len(shape) == 2 else "trilinear")


def bump(shape: tuple[int, ...], size: float) -> torch.Tensor:
    """A smooth displacement (1, D, *shape) of ``size`` voxels in the middle, along every axis."""
    axes = torch.meshgrid(*(torch.linspace(-1.5, 1.5, n) for n in shape), indexing="ij")
    hill = torch.exp(-sum(a.square() for a in axes))  # type: ignore[arg-type]
    return size * hill.expand(1, len(shape), *shape)


def pair(shape: tuple[int, ...], size: float, shift: tuple[float, ...] = (0.0, 0.0, 0.0),
         lanes: int = 1) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Fixed images, moving images of other contrast, and the displacement, a shift and a bump, that aligns them.

    Both are parts of larger images: what a shift brings in is there.
    """
    wide = tuple(n + 2 * REACH for n in shape)
    moves = torch.tensor(shift[:len(shape)]).view(1, -1, *(1,) * len(shape))
    field = (moves + bump(shape, size)).expand(lanes, -1, *(-1 for _ in shape)).contiguous()
    canvas = moves + F.pad(bump(shape, size), [REACH] * (2 * len(shape)), mode="replicate")
    image, crop = texture(wide, lanes), (..., *(slice(REACH, REACH + n) for n in shape))
    return warp_dense(image, canvas.repeat(lanes, *(1,) * (len(wide) + 1)), "border")[crop].contiguous(), (
        0.9 - 0.6 * image[crop]), field


def inner_error(found: torch.Tensor, field: torch.Tensor, margin: int = 8) -> float:
    """Mean distance of two displacements off the border, voxels."""
    inside = (..., *(slice(margin, n - margin) for n in field.shape[2:]))
    return (found - field)[inside].norm(dim=1).mean().item()


@WIDE
def test_a_known_deformation_is_found(shape: tuple[int, ...]) -> None:
    fixed, moving, field = pair(shape, 2.5)
    start = inner_error(torch.zeros_like(field), field)
    assert start > 1.4
    assert inner_error(AdamInstance().solve(fixed, moving), field) < 0.15 * start


@pytest.mark.parametrize(("ndim", "size"), [(2, 96), (3, 32)])
def test_landmarks_of_deformed_heads_come_together(ndim: int, size: int) -> None:
    source = {"name": "deformed", "amplitude": 30.0, "control": 80.0}
    core = RegistrationCore(build(f"RegDense{ndim}D-v0", size=size, source=source))
    pairs: Any = core.reset([np.random.default_rng(seed) for seed in range(2)]).pair
    points = transform_points(torch.linalg.inv(pairs.fixed_to_world), pairs.landmarks)
    targets = transform_points(pairs.world_to_moving, pairs.targets)
    found = ConvexAdam().solve(pairs.fixed, pairs.moving)
    before, after = ((there - targets).norm(dim=-1).mean() for there in (points, warp_points(points, found)))
    assert before > 1.5 and after < 0.5 * before


@WIDE
def test_a_large_deformation_needs_the_convex_search_or_a_good_start(shape: tuple[int, ...]) -> None:
    fixed, moving, field = pair(shape, 2.5, (12.0, -9.0, 10.0))
    alone, near, both = (inner_error(found, field, margin=14) for found in (
        AdamInstance().solve(fixed, moving), AdamInstance().solve(fixed, moving, initial=0.9 * field),
        ConvexAdam().solve(fixed, moving)))
    assert alone > 5.0 and near < 0.5 and both < 0.5


@WIDE
def test_the_convex_search_finds_a_shift_by_whole_blocks(shape: tuple[int, ...]) -> None:
    fixed, moving, field = pair(shape, 0.0, (8.0, -4.0, 4.0))
    assert inner_error(CoupledConvex(consistency=0).solve(fixed, moving), field, margin=20) < 0.01


@SHAPES
def test_consistent_fields_are_each_others_inverse(shape: tuple[int, ...]) -> None:
    fixed, moving, _ = pair(shape, 6.0)
    gaps = []
    for consistency in (0, 15):
        there, back = (CoupledConvex(consistency=consistency).solve(*images)
                       for images in ((fixed, moving), (moving, fixed)))
        gaps.append((there + warp_dense(back, there, "border")).norm(dim=1).mean().item())
    assert gaps[1] < 0.4 * gaps[0]


@SHAPES
@pytest.mark.parametrize(("solver", "most"), [(AdamInstance(), STILL), (CoupledConvex(), 0.0)], ids=["adam", "convex"])
def test_identical_images_stay(shape: tuple[int, ...], solver: Any, most: float) -> None:
    image = texture(shape)
    assert solver.solve(image, image).norm(dim=1).mean() <= most


@SHAPES
@SOLVERS
def test_a_batch_is_its_lanes_one_by_one(shape: tuple[int, ...], solver: Any) -> None:
    fixed, moving, _ = pair(shape, 3.0, lanes=3)
    whole = solver.solve(fixed, moving)
    assert whole.shape == (3, len(shape), *shape) and not whole.requires_grad
    for lane in range(3):
        alone = solver.solve(fixed[lane:lane + 1], moving[lane:lane + 1])
        torch.testing.assert_close(whole[lane:lane + 1], alone, atol=SAME, rtol=0)


@SHAPES
@SOLVERS
def test_what_lies_outside_the_masks_does_not_count(shape: tuple[int, ...], solver: Any) -> None:
    fixed, moving, _ = pair(shape, 2.5)
    mask = torch.zeros_like(fixed, dtype=torch.bool)
    mask[(..., *(slice(8, n - 8) for n in shape))] = True
    far = F.max_pool2d(mask.float(), 7, 1, 3) if len(shape) == 2 else F.max_pool3d(mask.float(), 7, 1, 3)
    other = torch.where(far > 0, fixed, 0.5 * texture(shape).flip(-1))
    a, b = (solver.solve(image, moving, mask, mask) for image in (fixed, other))
    torch.testing.assert_close(a, b, atol=0.05, rtol=0)
    assert (solver.solve(other, moving) - solver.solve(fixed, moving)).abs().max() > 0.5


def test_the_energy_is_that_of_its_formula() -> None:
    generator = torch.Generator().manual_seed(1)
    fixed, moving = (torch.rand(2, 12, 5, 6, 7, generator=generator) for _ in range(2))
    still = torch.zeros(2, 3, 5, 6, 7)
    apart = (fixed - moving).square().sum(1).mean((1, 2, 3))
    torch.testing.assert_close(energy(fixed, moving, still, 1.25), apart)
    slope = still.clone()
    slope[:, 1] = 0.5 * torch.arange(7.0)
    uphill = energy(fixed, moving, slope, 3.0) - energy(fixed, moving, slope, 0.0)
    torch.testing.assert_close(uphill, torch.full((2,), 3.0 * 0.25 / 3))
    flat = energy(fixed[:, :4, 0], moving[:, :4, 0], torch.zeros(2, 2, 6, 7), 1.0)
    torch.testing.assert_close(flat, 3 * (fixed - moving)[:, :4, 0].square().sum(1).mean((1, 2)))


@SHAPES
def test_the_energy_falls(shape: tuple[int, ...]) -> None:
    fixed, moving, _ = pair(shape, 3.0)
    fields = AdamInstance().path(fixed, moving, (0, 80))
    here, there = pooled_features(fixed, None, 2), pooled_features(moving, None, 2)
    costs = [energy(here, there, F.avg_pool2d(f, 2, ceil_mode=True) / 2 if len(shape) == 2 else
                    F.avg_pool3d(f, 2, ceil_mode=True) / 2, 1.25).item() for f in fields]
    assert costs[1] < 0.5 * costs[0]


@SHAPES
def test_the_path_ends_where_the_solution_is_and_starts_at_the_start(shape: tuple[int, ...]) -> None:
    fixed, moving, _ = pair(shape, 2.0)
    shift = torch.tensor([1.0, -2.0, 0.5][:len(shape)]).view(1, -1, *(1,) * len(shape)).expand(1, -1, *shape)
    adam = AdamInstance(iterations=6)
    fields = adam.path(fixed, moving, (6, 0, 3), initial=shift)
    assert fields.shape == (3, 1, len(shape), *shape)
    torch.testing.assert_close(fields[1], shift.contiguous())
    torch.testing.assert_close(fields[0], adam.solve(fixed, moving, initial=shift))
    torch.testing.assert_close(fields[2], AdamInstance(iterations=3).solve(fixed, moving, initial=shift))


@SHAPES
def test_costs_are_those_of_shifted_features(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(2)
    fixed, moving = (torch.rand(1, 4, *(n // 4 for n in shape), generator=generator) for _ in range(2))
    costs = cost_volume(fixed, moving, 1)
    places = list(product((-1, 0, 1), repeat=len(shape)))
    assert costs.shape == (1, len(places), *fixed.shape[2:])
    middle = np.array(fixed.shape[2:]) // 2
    for number, step in enumerate(places):
        apart = [(fixed[(0, slice(None), *(middle + off))] - moving[(0, slice(None), *(middle + off + step))])
                 .square().mean() for off in np.array(places)]
        assert costs[(0, number, *middle)].item() == pytest.approx(12 * np.mean(apart), rel=1e-5)


@pytest.mark.parametrize("shape", [(48, 56), (36, 40, 44)], ids=["2D", "3D"])
def test_images_of_two_grids_are_registered_in_voxels_of_the_fixed_one(shape: tuple[int, ...]) -> None:
    ndim = len(shape)
    spacing = (2.0, 1.0, 1.5)[:ndim]
    turned = np.eye(ndim)
    turned[:2, :2] = [[0.0, -1.0], [1.0, 0.0]]
    grid = Grid.centered(shape, spacing, direction=turned.ravel())
    fixed, moving, field = pair(shape, 2.0)
    other = Grid.centered([n + 8 for n in shape], spacing, direction=turned.ravel())
    wide = sitk.Resample(framed(moving[0, 0], grid), framed(torch.zeros(other.shape), other), sitk.Transform(),
                         sitk.sitkLinear, 0.0, sitk.sitkFloat32, True)
    found = ConvexAdam().register(framed(fixed[0, 0], grid), wide)
    assert found.shape == (ndim, *shape) and found.dtype == np.float32
    assert inner_error(torch.from_numpy(found)[None], field) < 0.4


@SOLVERS
def test_a_flat_image_stays_where_it_is(solver: Any) -> None:
    grid = Grid.centered((32, 32), 1.0)
    flat, image = framed(torch.zeros(32, 32), grid), framed(texture((32, 32))[0, 0], grid)
    assert np.abs(solver.register(flat, image)).max() == 0
    assert np.abs(solver.register(image, flat)).max() == 0


def test_it_runs_over_episodes_and_in_inference_mode() -> None:
    core = RegistrationCore(build("RegSDM2D-v0"))
    state = core.reset([np.random.default_rng(seed) for seed in range(2)])
    quick = ConvexAdam(adam=AdamInstance(iterations=5))
    with torch.inference_mode():
        one_by_one = searched(quick, state, core.task.grid)
        at_once = quick.solve(state.pair.fixed.clone(), state.pair.moving.clone())
    torch.testing.assert_close(one_by_one, at_once, atol=SAME, rtol=0)


@pytest.mark.parametrize(("arguments", "message"), [
    ({"iterations": 0}, "AdamInstance: iterations is 0"), ({"lr": 0.0}, "lr is 0.0"),
    ({"lr": math.nan}, "lr is nan"), ({"weight": -1.0}, "weight is -1.0"), ({"stride": 0}, "stride is 0"),
    ({"smoothings": -1}, "smoothings is -1")])
def test_adam_names_a_bad_argument(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AdamInstance(**arguments)


@pytest.mark.parametrize(("arguments", "message"), [
    ({"stride": 0}, "CoupledConvex: stride is 0"), ({"reach": 0}, "reach is 0"), ({"consistency": -1}, "is -1"),
    ({"weights": (1.0, -2.0)}, r"weights are \(1.0, -2.0\)")])
def test_the_convex_search_names_a_bad_argument(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CoupledConvex(**arguments)


def test_shapes_that_do_not_fit_are_named() -> None:
    image = torch.zeros(2, 1, 16, 18)
    with pytest.raises(ValueError, match=r"the moving image is \(2, 1, 16, 16\)"):
        AdamInstance().solve(image, image[..., :16])
    with pytest.raises(ValueError, match=r"the moving mask is \(2, 2, 16, 18\)"):
        CoupledConvex().solve(image, image, None, image.expand(-1, 2, -1, -1))
    with pytest.raises(ValueError, match=r"initial displacement is \(2, 1, 16, 18\).*must be \(2, 2, 16, 18\)"):
        AdamInstance().solve(image, image, initial=image)
    with pytest.raises(ValueError, match=r"fixed image is \(2, 1, 16, 4\); every axis needs more than 4 voxels"):
        ConvexAdam().solve(image[..., :4], image[..., :4])
    with pytest.raises(ValueError, match=r"at is \(-1,\)"):
        AdamInstance().path(image, image, (-1,))


@pytest.mark.parametrize("shape", [(40, 36), (24, 20, 22)])
@pytest.mark.parametrize("solver", [AdamInstance(iterations=10), CoupledConvex(), ConvexAdam()],
                         ids=["adam", "convex", "convexadam"])
def test_a_constant_added_to_both_images_changes_nothing(solver: Any, shape: tuple[int, ...]) -> None:
    """The moving image ends inside the fixed one, and what lies outside it is no step of a thousand."""
    grid = Grid.centered(shape, 2.0)
    small = Grid.centered([n - 8 for n in shape], 2.0)
    fixed, moving, _ = pair(shape, 2.0)
    inner = (slice(4, -4),) * len(shape)
    images = [(np.rint(image[0, 0].numpy() * 300), grid) for image in (fixed, moving)]
    images[1] = images[1][0][inner], small
    found = [solver.register(*(framed(array + offset, place) for array, place in images))
             for offset in (0, 1000, -2000)]
    assert np.abs(found[0]).max() > 0.5
    assert np.array_equal(found[0], found[1]) and np.array_equal(found[0], found[2])
