"""B-spline fields against SimpleITK's transform, and the laws of the basis."""

import itertools
import math

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from scipy.spatial import cKDTree

from regenv.grid import Grid
from regenv.ops import bspline

VOXEL_TOLERANCE = 1e-5  # voxels
LATTICE_TOLERANCE = 1e-4  # mm: ITK's initializer computes in single precision
BOX_MARGIN = 0.625  # voxels from the first voxel's centre to the face of ITK's box
SPACING = (0.8, 1.3, 2.9)
SHAPES = {2: (31, 26), 3: (11, 17, 14)}
CONTROL = {2: (7, 5), 3: (4, 7, 6)}
KINDS = ("identity", "oblique", "left-handed")
BY_DIRECTION = pytest.mark.parametrize(("ndim", "kind"), list(itertools.product((2, 3), KINDS)))
BY_NDIM = pytest.mark.parametrize("ndim", [2, 3])


def make_grid(ndim: int, kind: str) -> Grid:
    """Anisotropic, away from the origin, turned about no special axis."""
    c, s = math.cos(0.4), math.sin(0.4)
    turn = np.array([[c, -s], [s, c]])
    if ndim == 3:
        x, z = np.eye(3), np.eye(3)
        x[1:, 1:], z[:2, :2] = turn, turn
        turn = x @ z
    direction = {"identity": np.eye(ndim), "oblique": turn,
                 "left-handed": turn @ np.diag([-1.0] + [1.0] * (ndim - 1))}[kind]
    return Grid.centered(SHAPES[ndim], SPACING[:ndim], [12.0, -7.0, 30.0][:ndim], direction.ravel().tolist())


def random_coefficients(ndim: int, lanes: int = 1, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Some 5 voxels in size."""
    generator = torch.Generator().manual_seed(0)
    return 5 * torch.randn(lanes, ndim, *CONTROL[ndim], generator=generator, dtype=dtype)


def to_sitk(coefficients: torch.Tensor, grid: Grid) -> sitk.BSplineTransform:
    """A lattice (D, *control_shape), voxels of the grid, as SimpleITK's transform: the world point of voxel x goes to
    that of x + u(x). Outside its box, an eighth of a voxel around the image, ITK's transform moves nothing.
    """
    n = grid.ndim
    shifts_mm = np.tensordot(grid.voxel_to_world[:n, :n], coefficients.to(torch.float64).numpy(), axes=1)
    transform = sitk.BSplineTransform(n, bspline.ORDER)
    transform.SetTransformDomainOrigin(grid.to_world(np.full(n, -BOX_MARGIN)).tolist())
    transform.SetTransformDomainPhysicalDimensions([(voxels - 1 + 2 * BOX_MARGIN) * mm for voxels, mm in
                                                    zip(grid.size, grid.spacing, strict=True)])
    transform.SetTransformDomainDirection(grid.direction)
    transform.SetTransformDomainMeshSize([c - bspline.ORDER for c in coefficients.shape[:0:-1]])
    transform.SetParameters(shifts_mm.ravel().tolist())
    return transform


def sitk_field(transform: sitk.Transform, grid: Grid) -> np.ndarray:
    """Displacements in voxels of the grid, (D, *shape), as SimpleITK evaluates them."""
    field = sitk.TransformToDisplacementField(transform, sitk.sitkVectorFloat64, grid.size, grid.origin, grid.spacing,
                                              grid.direction)
    return np.einsum("ij,...j->i...", grid.world_to_voxel[:grid.ndim, :grid.ndim], sitk.GetArrayFromImage(field))


@BY_DIRECTION
def test_field_equals_simpleitk(ndim, kind):
    grid, coefficients = make_grid(ndim, kind), random_coefficients(ndim)
    expected = sitk_field(to_sitk(coefficients[0], grid), grid)
    assert np.abs(expected).max() > 3
    np.testing.assert_allclose(bspline.displacement(coefficients, grid.shape)[0].numpy(), expected, rtol=0,
                               atol=VOXEL_TOLERANCE)


@BY_DIRECTION
def test_simpleitk_maps_the_world_point_of_x_to_that_of_x_plus_u(ndim, kind):
    grid, coefficients = make_grid(ndim, kind), random_coefficients(ndim, dtype=torch.float64)
    transform = to_sitk(coefficients[0], grid)
    field = bspline.displacement(coefficients, grid.shape)[0].numpy()
    corners = list(itertools.product(*((0, n - 1) for n in grid.shape)))
    for voxel in corners + np.random.default_rng(1).integers(0, grid.shape, (30, ndim)).tolist():
        moved = grid.to_world(np.asarray(voxel) + field[(slice(None), *voxel)])
        seen = transform.TransformPoint(grid.to_world(np.asarray(voxel)).tolist())
        np.testing.assert_allclose(seen, moved, rtol=0, atol=1e-9)


def initializer(grid: Grid, control: tuple[int, ...]) -> sitk.BSplineTransform:
    image = sitk.Image(grid.size, sitk.sitkUInt8)
    image.SetSpacing(grid.spacing)
    image.SetOrigin(grid.origin)
    image.SetDirection(grid.direction)
    return sitk.BSplineTransformInitializer(image, [c - 3 for c in control[::-1]], 3)


def control_points(transform: sitk.BSplineTransform) -> np.ndarray:
    lattice = Grid.from_sitk(transform.GetCoefficientImages()[0])
    return lattice.to_world(np.stack(np.meshgrid(*map(np.arange, lattice.shape), indexing="ij"), -1)).reshape(
        -1, lattice.ndim)


@BY_DIRECTION
def test_lattice_is_that_of_the_initializer(ndim, kind):
    """The points are the same. A mirrored image's ITK numbers in another order, so there only as a set."""
    grid = make_grid(ndim, kind)
    theirs = initializer(grid, CONTROL[ndim])
    ours = to_sitk(random_coefficients(ndim)[0], grid)
    distance, _ = cKDTree(control_points(theirs)).query(control_points(ours))
    assert distance.max() < LATTICE_TOLERANCE
    if kind != "left-handed":
        np.testing.assert_allclose(ours.GetFixedParameters(), theirs.GetFixedParameters(), rtol=0,
                                   atol=LATTICE_TOLERANCE)
        theirs.SetParameters(ours.GetParameters())
        np.testing.assert_allclose(sitk_field(theirs, grid), sitk_field(ours, grid), rtol=0, atol=VOXEL_TOLERANCE)


@pytest.mark.parametrize(("shape", "spacing", "expected"), [
    ((100, 100), 16, (9, 9)),
    ((20, 75, 75), (8, 16, 16), (6, 8, 8)),
    ((64, 64), 1000, (4, 4)),
])
def test_control_shape_for_a_spacing(shape, spacing, expected):
    assert bspline.control_shape(shape, spacing) == expected


@BY_NDIM
def test_constant_and_linear_fields_are_reproduced(ndim):
    """The weights of a voxel sum to 1, and their centre of gravity is the voxel."""
    shape, control = SHAPES[ndim], CONTROL[ndim]
    ticks = [((torch.arange(c, dtype=torch.float64) - 1) * (n + 0.25) / (c - 3) - 0.625)
             for n, c in zip(shape, control, strict=True)]
    coefficients = torch.stack(torch.meshgrid(*ticks, indexing="ij"))[None]
    voxels = torch.stack(torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in shape), indexing="ij"))[None]
    torch.testing.assert_close(bspline.displacement(coefficients, shape), voxels, rtol=0, atol=1e-12)
    ones = bspline.displacement(torch.ones_like(coefficients), shape)
    torch.testing.assert_close(ones, torch.ones_like(voxels), rtol=0, atol=1e-12)


@BY_NDIM
def test_adjoint_is_the_transpose(ndim):
    coefficients = random_coefficients(ndim, lanes=2, dtype=torch.float64)
    field = torch.randn(2, ndim, *SHAPES[ndim], dtype=torch.float64)
    left = (bspline.displacement(coefficients, SHAPES[ndim]) * field).sum()
    torch.testing.assert_close(left, (coefficients * bspline.adjoint(field, CONTROL[ndim])).sum())


@BY_NDIM
@pytest.mark.parametrize("shape", [(64, 50, 12), (9, 8, 7)])
def test_a_lane_equals_the_same_lattice_alone(ndim, shape):
    coefficients = random_coefficients(ndim, lanes=7)
    together = bspline.displacement(coefficients, shape[:ndim])
    for lane in range(7):
        assert torch.equal(together[lane], bspline.displacement(coefficients[lane:lane + 1], shape[:ndim])[0])


def test_gradients_pass_also_after_use_in_inference_mode():
    shape, control = (8, 11), (4, 6)  # of no other test, so that what is cached is made in inference mode
    coefficients = torch.randn(1, 2, *control, dtype=torch.float64)
    with torch.inference_mode():
        bspline.adjoint(bspline.displacement(coefficients, shape), control)
    coefficients.requires_grad_()
    assert torch.autograd.gradcheck(lambda c: bspline.displacement(c, shape), coefficients)
    assert torch.autograd.gradcheck(lambda c: bspline.adjoint(bspline.displacement(c, shape), control), coefficients)


@pytest.mark.parametrize(("call", "message"), [
    (lambda: bspline.displacement(torch.zeros(1, 2, 3, 8), (20, 20)), "3 control points"),
    (lambda: bspline.displacement(torch.zeros(1, 3, 8, 8), (20, 20)), r"\(1, 3, 8, 8\)"),
    (lambda: bspline.adjoint(torch.zeros(1, 2, 20, 20), (8, 8, 8)), r"\(1, 2, 20, 20\)"),
    (lambda: bspline.control_shape((20, 20), 0.0), "spacing is 0.0"),
])
def test_errors_name_the_value(call, message):
    with pytest.raises(ValueError, match=message):
        call()
