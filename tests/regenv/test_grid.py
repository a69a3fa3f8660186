"""Grid: world and voxel points against SimpleITK, resizing, errors."""

import numpy as np
import pytest
import SimpleITK as sitk

from regenv.grid import Grid

OBLIQUE_3D = (0.8, 0.6, 0.0, -0.6, 0.8, 0.0, 0.0, 0.0, -1.0)  # left-handed
OBLIQUE_2D = (0.6, -0.8, 0.8, 0.6)
GRIDS = [
    Grid((5, 6, 7), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)),
    Grid((5, 6, 7), (0.7, 1.9, 3.1), (-120.5, 33.0, 1000.0), OBLIQUE_3D),
    Grid((9, 4), (2.0, 0.5), (10.0, -3.0), (1.0, 0.0, 0.0, 1.0)),
    Grid((9, 4), (2.0, 0.5), (10.0, -3.0), OBLIQUE_2D),
    Grid((1, 4, 6), (0.7, 0.7, 5.0), (1.0, 2.0, 3.0), OBLIQUE_3D),
]
MM_TOLERANCE = 1e-9

each_grid = pytest.mark.parametrize("grid", GRIDS, ids=range(len(GRIDS)))


def to_sitk(grid: Grid) -> sitk.Image:
    image = sitk.Image(grid.size, sitk.sitkUInt8)
    image.SetSpacing(grid.spacing)
    image.SetOrigin(grid.origin)
    image.SetDirection(grid.direction)
    return image


@each_grid
def test_voxel_to_world_agrees_with_simpleitk(grid):
    image = to_sitk(grid)
    points_vox = np.random.default_rng(0).normal(0, 8, (20, grid.ndim))
    expected = [image.TransformContinuousIndexToPhysicalPoint(p[::-1].tolist()) for p in points_vox]
    np.testing.assert_allclose(grid.to_world(points_vox), expected, rtol=0, atol=MM_TOLERANCE)
    back = [image.TransformPhysicalPointToContinuousIndex(p)[::-1] for p in expected]
    np.testing.assert_allclose(grid.to_voxel(np.array(expected)), back, rtol=0, atol=MM_TOLERANCE)


@each_grid
def test_world_and_voxel_points_round_trip_in_any_shape(grid):
    points = np.random.default_rng(1).normal(0, 50, (2, 3, grid.ndim))
    np.testing.assert_allclose(grid.to_world(grid.to_voxel(points)), points, rtol=0, atol=MM_TOLERANCE)
    np.testing.assert_allclose(grid.world_to_voxel @ grid.voxel_to_world, np.eye(grid.ndim + 1), rtol=0, atol=1e-12)
    np.testing.assert_allclose(grid.to_world(points[0, 0]), grid.to_world(points)[0, 0], rtol=0, atol=MM_TOLERANCE)


@each_grid
def test_a_grid_survives_simpleitk(grid):
    assert Grid.from_sitk(to_sitk(grid)) == grid


@each_grid
def test_center_is_the_middle_of_opposite_corners(grid):
    corners = grid.to_world(np.stack([np.zeros(grid.ndim), np.asarray(grid.shape) - 1.0]))
    np.testing.assert_allclose(grid.center, corners.mean(0), rtol=0, atol=MM_TOLERANCE)


@pytest.mark.parametrize(("shape", "spacing"),
                         [((64, 64, 64), 2.0), ((5, 8, 3), (1.0, 2.0, 0.5)), ((7, 9), np.float32(3))])
def test_centered_grid_lies_about_its_center(shape, spacing):
    center = [4.0, -5.0, 6.0][: len(shape)]
    direction = OBLIQUE_3D if len(shape) == 3 else OBLIQUE_2D
    grid = Grid.centered(shape, spacing, center, direction)
    np.testing.assert_allclose(grid.center, center, rtol=0, atol=MM_TOLERANCE)
    assert grid.shape == shape
    assert grid.direction == direction
    np.testing.assert_allclose(Grid.centered(shape, spacing).center, 0, rtol=0, atol=MM_TOLERANCE)


@each_grid
@pytest.mark.parametrize("factor", [2, 0.5, 3])
def test_resized_keeps_the_extent_the_center_and_the_edges(grid, factor):
    shape = tuple(max(1, round(n * factor)) for n in grid.shape)
    resized = grid.resized(shape=shape)
    assert resized.shape == shape
    assert resized.direction == grid.direction
    np.testing.assert_allclose(resized.extent, grid.extent, rtol=1e-12)
    for edge in (0, 1):  # the outer corner of the first and the last voxel
        before = grid.to_world(np.asarray(grid.shape) * float(edge) - 0.5)
        np.testing.assert_allclose(resized.to_world(np.asarray(shape) * float(edge) - 0.5), before, rtol=0, atol=1e-9)


@each_grid
def test_resized_to_a_spacing_comes_near_it(grid):
    resized = grid.resized(spacing=0.3)
    np.testing.assert_allclose(resized.spacing, 0.3, rtol=0.2)
    np.testing.assert_allclose(resized.extent, grid.extent, rtol=1e-12)
    assert grid.resized(spacing=1e6).shape == (1,) * grid.ndim


def test_extent_and_size_are_in_itk_order():
    grid = GRIDS[1]
    assert grid.size == (7, 6, 5)
    np.testing.assert_allclose(grid.extent, (7 * 0.7, 6 * 1.9, 5 * 3.1), rtol=1e-12)


GOOD = {"shape": (4, 5, 6), "spacing": (1.0, 2.0, 3.0), "origin": (0.0, 0.0, 0.0), "direction": OBLIQUE_3D}


@pytest.mark.parametrize(("field", "value", "words"), [
    ("shape", (4,), "shape is .* 2 or 3 axes"),
    ("shape", (4, 5, 6, 7), "shape is .* 2 or 3 axes"),
    ("shape", (4, 0, 6), "shape is .* at least one voxel"),
    ("spacing", (1.0, 2.0), "spacing is .* needs 3 numbers"),
    ("spacing", (0.0, 1.0, 1.0), "spacing is .* positive and finite"),
    ("spacing", (-1.0, 1.0, 1.0), "spacing is .* positive and finite"),
    ("spacing", (float("nan"), 1.0, 1.0), "spacing is .* positive and finite"),
    ("spacing", (float("inf"), 1.0, 1.0), "spacing is .* positive and finite"),
    ("origin", (0.0, 0.0), "origin is .* needs 3 numbers"),
    ("origin", (0.0, float("nan"), 0.0), "origin is .* finite"),
    ("direction", (1.0, 0.0, 0.0, 1.0), "direction is .* needs 9 numbers"),
    ("direction", (1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0), "direction is .* singular"),
    ("direction", (float("nan"),) * 9, "direction is .* singular"),
])
def test_a_bad_field_is_named_with_its_value(field, value, words):
    with pytest.raises(ValueError, match=words):
        Grid(**(GOOD | {field: value}))


def test_resized_wants_exactly_one_argument():
    for arguments in ({}, {"shape": (2, 2, 2), "spacing": 1.0}):
        with pytest.raises(ValueError, match="exactly one"):
            GRIDS[0].resized(**arguments)
