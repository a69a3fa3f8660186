"""Warps against SimpleITK, and the laws of their algebra."""

import itertools

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from regenv.grid import Grid
from regenv.ops import sampling, warp

RANGE_TOLERANCE = 1e-4  # of the intensity range, which is 1 here
VOXEL_TOLERANCE = 1e-3  # voxels, of a field's algebra


def rotation(ndim: int, degrees: float) -> np.ndarray:
    """A rotation about no special axis."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turn = np.array([[c, -s], [s, c]])
    if ndim == 2:
        return turn
    x, z = np.eye(3), np.eye(3)
    x[1:, 1:], z[:2, :2] = turn, turn
    return x @ z


def direction(ndim: int, kind: str) -> np.ndarray:
    flip = np.diag([-1.0] + [1.0] * (ndim - 1))
    return {"identity": np.eye(ndim), "oblique": rotation(ndim, 25), "left-handed": rotation(ndim, -40) @ flip}[kind]


SPACINGS = {"isotropic": (1.5, 1.5, 1.5), "anisotropic": (0.8, 1.3, 2.9)}
SHAPES = {"same": ((13, 14, 15), (13, 14, 15)), "different": ((12, 17, 14), (19, 11, 16))}
DIRECTIONS = ("identity", "oblique", "left-handed")
COMBINATIONS = list(itertools.product((2, 3), DIRECTIONS, DIRECTIONS, SPACINGS, SHAPES))


def make_pair(ndim, fixed_direction, moving_direction, spacing, shapes):
    """Two grids that overlap only in part, and a pull-back affine map between them (world to world)."""
    spread = np.asarray(SPACINGS[spacing][:ndim])
    fixed_shape, moving_shape = (shape[-ndim:] for shape in SHAPES[shapes])
    fixed = Grid.centered(fixed_shape, spread.tolist(), [3.0, -2.0, 5.0][:ndim],
                          direction(ndim, fixed_direction).ravel())
    moving = Grid.centered(moving_shape, spread[::-1].tolist(), [1.0, 2.0, 4.0][:ndim],
                           direction(ndim, moving_direction).ravel())
    pull_back = np.eye(ndim + 1)
    pull_back[:ndim, :ndim] = rotation(ndim, 17) * 1.07
    pull_back[:ndim, ndim] = [1.23, -2.31, 1.77][:ndim]
    return fixed, moving, pull_back


def to_sitk(array: np.ndarray, grid: Grid) -> sitk.Image:
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(grid.spacing)
    image.SetOrigin(grid.origin)
    image.SetDirection(grid.direction)
    return image


def affine_to_sitk(pull_back: np.ndarray) -> sitk.AffineTransform:
    ndim = len(pull_back) - 1
    transform = sitk.AffineTransform(ndim)
    transform.SetMatrix(pull_back[:ndim, :ndim].ravel().tolist())
    transform.SetTranslation(pull_back[:ndim, ndim].tolist())
    return transform


def resample(moving: np.ndarray, moving_grid: Grid, fixed_grid: Grid, transform, interpolator=sitk.sitkLinear):
    reference = to_sitk(np.zeros(fixed_grid.shape, np.uint8), fixed_grid)
    return sitk.GetArrayFromImage(sitk.Resample(to_sitk(moving, moving_grid), reference, transform, interpolator, 0.0))


def voxel_matrix(fixed: Grid, moving: Grid, pull_back: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(moving.world_to_voxel @ pull_back @ fixed.voxel_to_world)[None]


@pytest.mark.parametrize("combination", COMBINATIONS, ids=str)
@pytest.mark.parametrize("differentiable", [False, True])  # by a kernel, and by torch
def test_affine_warp_agrees_with_simpleitk_borders_included(combination, differentiable):
    fixed, moving, pull_back = make_pair(*combination)
    image = np.random.default_rng(0).random(moving.shape, dtype=np.float32) + 0.5
    expected = resample(image, moving, fixed, affine_to_sitk(pull_back))
    matrix, tensor = voxel_matrix(fixed, moving, pull_back), torch.from_numpy(image)[None, None]
    warped = warp.warp_affine(tensor.requires_grad_(differentiable), matrix, fixed.shape).detach()
    assert 0.05 < (expected == 0).mean() < 0.95  # the grids overlap in part, so borders are in the test
    np.testing.assert_allclose(warped[0, 0].numpy(), expected, rtol=0, atol=RANGE_TOLERANCE)


@pytest.mark.parametrize("combination", COMBINATIONS[::3], ids=str)
def test_label_warp_equals_simpleitk_nearest(combination):
    fixed, moving, pull_back = make_pair(*combination)
    labels = np.random.default_rng(1).integers(1, 3000, moving.shape).astype(np.int16)
    expected = resample(labels, moving, fixed, affine_to_sitk(pull_back), sitk.sitkNearestNeighbor)
    points = sampling.affine_coordinates(voxel_matrix(fixed, moving, pull_back), fixed.shape)
    warped = sampling.sample_labels(torch.from_numpy(labels)[None, None], points)
    assert warped.dtype == torch.int16
    np.testing.assert_array_equal(warped[0, 0].numpy(), expected)


@pytest.mark.parametrize("shift", [0.5, -0.5, 1.5, 2.5])
@pytest.mark.parametrize("shape", [(9, 12), (7, 10, 13)])
def test_labels_half_way_between_voxels_round_as_simpleitk_rounds(shift, shape):
    grid = Grid.centered(shape, 1.0)
    labels = np.random.default_rng(2).integers(1, 100, shape).astype(np.int16)
    pull_back = np.eye(len(shape) + 1)
    pull_back[:-1, -1] = shift
    expected = resample(labels, grid, grid, affine_to_sitk(pull_back), sitk.sitkNearestNeighbor)
    warped = sampling.sample_labels(torch.from_numpy(labels)[None, None],
                              sampling.affine_coordinates(voxel_matrix(grid, grid, pull_back), shape))
    np.testing.assert_array_equal(warped[0, 0].numpy(), expected)


@pytest.mark.parametrize("shape", [(1, 9), (1, 8, 9), (5, 1, 6)])
def test_axis_of_one_voxel_is_sampled(shape):
    image = torch.rand(1, 1, *shape)
    same = warp.warp_affine(image, torch.eye(len(shape) + 1)[None], shape)
    torch.testing.assert_close(same, image, rtol=0, atol=1e-6)


def smooth_field(shape: tuple[int, ...], size: float, seed: int = 0, lanes: int = 2) -> torch.Tensor:
    """A smooth displacement of about ``size`` voxels that vanishes at the border: (lanes, D, *shape)."""
    ndim = len(shape)
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(lanes, ndim, *(4,) * ndim, generator=generator)
    field = torch.nn.functional.interpolate(coarse, size=shape, mode="bilinear" if ndim == 2 else "trilinear",
                                            align_corners=True)
    for axis, n in enumerate(shape):
        edge = torch.sin(torch.linspace(0, torch.pi, n)) ** 2
        field = field * edge.view(-1, *(1,) * (ndim - 1 - axis))
    return size * field


@pytest.mark.parametrize("kind", ["identity", "oblique", "left-handed"])
@pytest.mark.parametrize("shape", [(21, 24), (14, 15, 17)])
def test_dense_warp_agrees_with_simpleitk(shape, kind):
    ndim = len(shape)
    grid = Grid.centered(shape, SPACINGS["anisotropic"][:ndim], direction=direction(ndim, kind).ravel())
    rng = np.random.default_rng(3)
    image = rng.random(shape, dtype=np.float32) + 0.5
    displacement = rng.normal(0, 2.0, (ndim, *shape))
    world = np.einsum("ij,j...->...i", grid.voxel_to_world[:ndim, :ndim], displacement)
    field = sitk.DisplacementFieldTransform(to_sitk_vector(world, grid))
    expected = resample(image, grid, grid, field)
    warped = warp.warp_dense(torch.from_numpy(image)[None, None], torch.from_numpy(displacement).float()[None])
    assert (expected == 0).any()
    np.testing.assert_allclose(warped[0, 0].numpy(), expected, rtol=0, atol=RANGE_TOLERANCE)


def to_sitk_vector(array: np.ndarray, grid: Grid) -> sitk.Image:
    image = sitk.GetImageFromArray(np.ascontiguousarray(array, dtype=np.float64), isVector=True)
    image.SetSpacing(grid.spacing)
    image.SetOrigin(grid.origin)
    image.SetDirection(grid.direction)
    return image


FIELDS = pytest.mark.parametrize("shape", [(40, 36), (20, 24, 22)])


@FIELDS
def test_border_padding_repeats_the_edge(shape):
    image = torch.rand(1, 1, *shape)
    away = torch.full((1, len(shape), *shape), -500.0)
    corner = image[(..., *(0,) * len(shape))].item()
    assert torch.all(warp.warp_dense(image, away, padding="border") == corner)
    assert torch.all(warp.warp_dense(image, away) == 0)


@FIELDS
def test_compose_with_zero_changes_nothing(shape):
    u, zero = smooth_field(shape, 2.0), torch.zeros(2, len(shape), *shape)
    torch.testing.assert_close(warp.compose(u, zero), u, rtol=0, atol=VOXEL_TOLERANCE)
    torch.testing.assert_close(warp.compose(zero, u), u, rtol=0, atol=0)


@FIELDS
def test_compose_is_one_map_after_the_other(shape):
    a, b = smooth_field(shape, 1.0, seed=1), smooth_field(shape, 1.5, seed=2)
    points = sampling.identity(shape).flatten(2).transpose(1, 2).expand(2, -1, -1)
    stepwise = warp.warp_points(warp.warp_points(points, b), a)
    torch.testing.assert_close(warp.warp_points(points, warp.compose(a, b)), stepwise, rtol=0, atol=VOXEL_TOLERANCE)


@FIELDS
def test_inverse_composes_to_the_identity_from_both_sides(shape):
    u = smooth_field(shape, 1.0)
    assert u.abs().max() > 0.9
    inverse = warp.invert(u)
    assert warp.compose(u, inverse).abs().max() < VOXEL_TOLERANCE
    assert warp.compose(inverse, u).abs().mean() < 0.01  # voxels: the inverse is interpolated between voxels


@FIELDS
def test_points_move_against_the_image_they_are_sampled_from(shape):
    """A point p of the fixed image shows the moving image at warp_points(p)."""
    u = smooth_field(shape, 2.0)
    ndim = len(shape)
    ramp = sampling.identity(shape).expand(2, -1, *shape)  # channel k of the image is coordinate k
    points = torch.stack([torch.randint(3, n - 3, (2, 50)) for n in shape], dim=-1)
    warped = warp.warp_dense(ramp, u, padding="border")
    seen = torch.stack([warped[(lane, slice(None), *points[lane].T)].T for lane in range(2)])
    inside = ((warp.warp_points(points.float(), u) >= 0)
              & (warp.warp_points(points.float(), u) <= torch.tensor(shape) - 1)).all(-1)
    assert inside.float().mean() > 0.9
    assert seen.shape == (2, 50, ndim)
    torch.testing.assert_close(warp.warp_points(points.float(), u)[inside], seen[inside], rtol=0, atol=VOXEL_TOLERANCE)


def test_warps_pass_gradients_to_image_and_map():
    image = torch.rand(1, 1, 5, 6, dtype=torch.float64, requires_grad=True)
    field = (0.3 * torch.rand(1, 2, 5, 6, dtype=torch.float64) + 0.1).requires_grad_()
    assert torch.autograd.gradcheck(lambda i, u: warp.warp_dense(i, u, padding="border"), (image, field))


@FIELDS
@pytest.mark.parametrize("padding", ["zeros", "border"])
def test_the_dense_kernel_is_the_differentiable_path(shape, padding):
    image, field = torch.rand(2, 3, *shape), smooth_field(shape, 6.0)
    slow = warp.warp_dense(image, field.clone().requires_grad_(), padding).detach()
    torch.testing.assert_close(warp.warp_dense(image, field, padding), slow, rtol=0, atol=1e-4)
    matrix = torch.eye(len(shape) + 1)[None] + 0.05 * torch.randn(2, len(shape) + 1, len(shape) + 1)
    matrix[:, -1] = torch.eye(len(shape) + 1)[-1]
    moved = field.clone().requires_grad_()
    torch.testing.assert_close(warp.warp_through(image, matrix, field, shape),
                               warp.warp_through(image, matrix, moved, shape).detach(), rtol=0, atol=1e-4)
    labels = torch.randint(1, 5, (2, 1, *shape), dtype=torch.int16)
    fast, slow = (warp.warp_through(labels, matrix, each, shape, "nearest") for each in (field, moved))
    assert fast.dtype == torch.int16 and (fast == 0).any() and (fast != slow).float().mean() < 1e-3


def test_points_that_are_not_a_number_read_no_memory():
    image, field = torch.rand(1, 1, 9, 8, 7), torch.full((1, 3, 9, 8, 7), torch.nan)
    assert (warp.warp_dense(image, field) == 0).all() and warp.warp_dense(image, field, "border").isnan().all()
    labels = torch.ones(1, 1, 9, 8, 7, dtype=torch.int16)
    assert (warp.warp_through(labels, torch.eye(4)[None], field, (9, 8, 7), "nearest") == 0).all()


def test_gradients_pass_after_use_in_inference_mode():
    image, field = torch.rand(1, 1, 4, 11), torch.zeros(1, 2, 4, 11)
    with torch.inference_mode():
        warp.warp_dense(image, field)
    field.requires_grad_()
    warp.warp_dense(image, field).sum().backward()
    assert field.grad is not None and field.grad.isfinite().all()


@pytest.mark.parametrize("shape", [(15, 13), (9, 10, 11)])
def test_a_lane_equals_the_same_image_alone(shape):
    ndim = len(shape)
    images = torch.rand(7, 1, *shape)
    matrices = torch.eye(ndim + 1).repeat(7, 1, 1) + 0.05 * torch.randn(7, ndim + 1, ndim + 1)
    together = warp.warp_affine(images, matrices, shape)
    for lane in range(7):
        assert torch.equal(together[lane], warp.warp_affine(images[lane:lane + 1], matrices[lane:lane + 1], shape)[0])


@pytest.mark.parametrize("ndim", [2, 3])
def test_gradients_of_the_warp_are_exact(ndim: int) -> None:
    shape = (5, 6, 4)[:ndim]
    image = torch.rand(1, 1, *shape, dtype=torch.float64, requires_grad=True)
    field = ((torch.rand(1, ndim, *shape, dtype=torch.float64) - 0.5) * 0.8 + 0.05).requires_grad_()
    assert torch.autograd.gradcheck(lambda i, u: warp.warp_dense(i, u, "border"), (image, field), atol=1e-4)
