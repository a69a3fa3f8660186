"""Arrays and matrices as SimpleITK's and back, antialiasing, and images on other grids."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk

from regenv.data.io.errors import ImageError, OffImageError
from regenv.data.io.images import Image
from regenv.data.io.resampling import (
    BLUR,
    SHORTEST_AXIS,
    antialiased,
    foreground_center,
    framed,
    matrix_to_sitk,
    on_image,
    reduced,
    resampled,
    resampled_labels,
    sampled,
    sitk_to_matrix,
)
from regenv.grid import Grid
from tests.regenv.data.io.helpers import TRANSFORM_MM, VOLUME, grid_of

MOTIONS = [
    sitk.Euler2DTransform((3, 4), 0.5, (1, 2)), sitk.Euler3DTransform((10, -20, 30), 0.1, -0.2, 0.3, (5, 6, 7)),
    sitk.Similarity3DTransform(1.3, (0, 0, 1), 0.4, (1, 2, 3), (4, 5, 6)), sitk.TranslationTransform(3, (1, 2, 3)),
    sitk.CompositeTransform([sitk.TranslationTransform(2, (1, 2)), sitk.Euler2DTransform((3, 4), 0.5, (1, 2))]),
]


def affine(ndim: int, rng: np.random.Generator) -> np.ndarray:
    matrix = np.eye(ndim + 1)
    matrix[:ndim] += 0.1 * rng.normal(size=(ndim, ndim + 1))
    return matrix


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32, np.float64])
@pytest.mark.parametrize("shape", [(5, 6), (4, 5, 6)])
def test_framed_image_has_the_arrays_numbers_and_the_grids_place(rng, shape, dtype) -> None:
    grid = grid_of(shape, rng)
    for array in (rng.uniform(0, 99, shape).astype(dtype), rng.uniform(0, 99, (*shape, 3)).astype(dtype)):
        image = framed(array, grid)
        back = sitk.GetArrayFromImage(image)
        np.testing.assert_array_equal(back, array)
        assert back.dtype == dtype and Grid.from_sitk(image) == grid
        assert image.GetNumberOfComponentsPerPixel() == (3 if array.ndim > grid.ndim else 1)
    assert framed(array, grid, np.float32).GetPixelID() == sitk.sitkVectorFloat32


@pytest.mark.parametrize("shape", [(5, 6), (6, 5, 4), (4, 5, 6, 3, 1)])
def test_framed_refuses_an_array_of_another_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"framed: the array's shape is .*; its grid has \(4, 5, 6\) voxels"):
        framed(np.zeros(shape), Grid.centered((4, 5, 6), 1.0))


@pytest.mark.parametrize("ndim", [2, 3])
def test_a_matrix_maps_points_as_its_transform(rng, ndim: int) -> None:
    matrix = affine(ndim, rng)
    transform = matrix_to_sitk(matrix)
    for point in rng.normal(size=(5, ndim)) * 100:
        expected = matrix[:ndim, :ndim] @ point + matrix[:ndim, ndim]
        np.testing.assert_allclose(transform.TransformPoint(point.tolist()), expected, atol=TRANSFORM_MM)
    np.testing.assert_allclose(sitk_to_matrix(transform), matrix, atol=TRANSFORM_MM)


@pytest.mark.parametrize("transform", MOTIONS, ids=lambda t: t.GetName())
def test_the_matrix_of_a_linear_transform_maps_points_as_it_does(rng, transform: sitk.Transform) -> None:
    matrix, n = sitk_to_matrix(transform), transform.GetDimension()
    for point in rng.normal(size=(5, n)) * 100:
        np.testing.assert_allclose(matrix[:n, :n] @ point + matrix[:n, n], transform.TransformPoint(point.tolist()),
                                   atol=TRANSFORM_MM)


def test_a_transform_that_is_not_linear_has_no_matrix() -> None:
    field = sitk.DisplacementFieldTransform(sitk.Image(4, 4, 4, sitk.sitkVectorFloat64))
    with pytest.raises(ValueError, match="only a linear one has a matrix"):
        sitk_to_matrix(field)


def test_antialiasing_smooths_each_axis_by_the_spacing_it_lacks(rng) -> None:
    grid = Grid.centered((24, 24, 24), (1.0, 2.0, 4.0))
    image = framed(rng.random(grid.shape), grid, np.float32)
    found = sitk.GetArrayFromImage(antialiased(image, [3.0] * 3))
    sigmas = [BLUR * np.sqrt(9.0 - 1.0), BLUR * np.sqrt(9.0 - 4.0), 1e-3]
    np.testing.assert_array_equal(found, sitk.GetArrayFromImage(sitk.SmoothingRecursiveGaussian(image, sigmas)))


@pytest.mark.parametrize(("shape", "spacing"), [((8, 8, 8), 1.0), ((8, 8, SHORTEST_AXIS - 1), 9.0)])
def test_fine_targets_and_thin_images_are_not_smoothed(rng, shape: tuple[int, ...], spacing: float) -> None:
    image = framed(rng.random(shape), Grid.centered(shape, 1.0), np.float32)
    assert antialiased(image, [spacing] * 3) is image


@pytest.mark.parametrize("shape", [(9, 8), (7, 9, 8)])
def test_an_image_on_its_own_grid_is_itself_and_its_least_value_outside(rng, shape: tuple[int, ...]) -> None:
    grid = grid_of(shape, rng)
    image = Image(rng.uniform(-1000, 2, shape).astype(np.float32), grid, "x")
    still = np.eye(grid.ndim + 1)
    np.testing.assert_allclose(resampled(image, grid, still).array, image.array, atol=1e-3)
    away = still.copy()
    away[:-1, -1] = 1e4
    assert (resampled(image, grid, away).array == image.array.min()).all()
    assert (resampled(image, grid, away, fill=7.0).array == 7).all()
    assert not sampled(framed(image.array, grid), grid, matrix_to_sitk(away)).any()


@pytest.mark.parametrize("numbers", [(1, 2), (40_001, 312_782_604), (2**31 - 1, -(2**31)), (2**53 + 1, 2**62 + 3)])
@pytest.mark.parametrize("shape", [(9, 8), (7, 9, 8)])
def test_labels_keep_type_and_numbers_on_other_grids(rng, shape: tuple[int, ...], numbers: tuple[int, ...]) -> None:
    grid = grid_of(shape, rng)
    kind = np.int64 if max(numbers) >= 2**31 else np.int32
    labels = Image(rng.choice(np.array([0, *numbers], kind), shape), grid, "x")
    found = resampled_labels(labels, grid, np.eye(grid.ndim + 1))
    assert found.array.dtype == kind and np.array_equal(found.array, labels.array)
    away = np.eye(grid.ndim + 1)
    away[0, -1] = 1e4
    assert not resampled_labels(labels, grid, away).array.any()


def test_labels_must_lie_on_their_image(rng) -> None:
    grid = Grid.centered((8, 9, 7), 2.0)
    image, mask = Image(rng.random(grid.shape), grid, "i.nii"), np.ones(grid.shape, np.uint8)
    assert on_image(Image(mask, grid, "m.nii"), image).array.all()
    with pytest.raises(OffImageError, match=r"m\.nii: it is 0 in every voxel of i\.nii .*\[500\.0, 0\.0, 0\.0\]"):
        on_image(Image(mask, Grid.centered(grid.shape, 2.0, (500.0, 0.0, 0.0)), "m.nii"), image)
    with pytest.raises(ImageError, match=r"m\.nii: it is 2D, but i\.nii is 3D"):
        on_image(Image(mask[0], Grid.centered(grid.shape[1:], 2.0), "m.nii"), image)


def test_a_pull_back_and_its_transform_resample_alike(rng) -> None:
    image = Image(VOLUME, grid_of(VOLUME.shape, rng), "x")
    like, matrix = Grid.centered((8, 7, 6), 1.5, image.grid.center.tolist()), affine(3, rng)
    by_matrix, by_transform = (resampled(image, like, through) for through in (matrix, matrix_to_sitk(matrix)))
    np.testing.assert_array_equal(by_matrix.array, by_transform.array)
    assert by_matrix.array.any() and by_matrix.grid == like and by_matrix.path == "x"


def test_reduced_images_are_float32_in_0_to_1(rng) -> None:
    image = Image((rng.random((20, 20, 20)) * 900).astype(np.float32), Grid.centered((20, 20, 20), 1.0), "x")
    found = reduced(image, Grid.centered((6, 6, 6), 3.0))
    assert found.dtype == np.float32 and found.shape == (6, 6, 6)
    assert 0 <= found.min() < found.max() <= 1


def test_the_foregrounds_center_is_where_the_bright_part_lies() -> None:
    grid = Grid.centered((12, 12, 12), 2.0, (5.0, 6.0, 7.0))
    array = np.zeros(grid.shape, np.float32)
    array[2:5, 3:6, 6:9] = 1
    np.testing.assert_allclose(foreground_center(Image(array, grid, "x")), grid.to_world(np.array([3.0, 4.0, 7.0])))
