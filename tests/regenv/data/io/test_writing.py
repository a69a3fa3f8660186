"""Images written: they come back with their numbers and place, and what cannot be written is one clear error."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from regenv.data.io.errors import ImageError
from regenv.data.io.images import read_image, read_mask
from regenv.data.io.writing import write_image
from regenv.grid import Grid
from tests.regenv.data.io.helpers import (
    SINGLE_PRECISION_MM,
    VOLUME,
    assert_same_place,
    grid_of,
)


@pytest.mark.parametrize("left_handed", [False, True])
@pytest.mark.parametrize("shape", [(6, 7), (5, 6, 7)])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".mha", ".nrrd"])
def test_written_image_comes_back(tmp_path: Path, rng, suffix: str, shape, left_handed: bool) -> None:
    array = rng.normal(size=shape).astype(np.float32)
    grid = grid_of(shape, rng, left_handed=left_handed)
    path = tmp_path / f"image{suffix}"
    write_image(path, array, grid)
    back = read_image(path)
    np.testing.assert_array_equal(back.array, array)
    assert back.array.dtype == np.float32 and back.path == str(path)
    assert_same_place(back.grid, grid, SINGLE_PRECISION_MM)
    assert_same_place(Grid.from_sitk(sitk.ReadImage(str(path))), back.grid, 0)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]          # nothing temporary left


@pytest.mark.parametrize(("name", "array", "words"), [
    ("a.mhd", VOLUME, "format is '.mhd'"), ("a.png", VOLUME, "PNG takes 2D"),
    ("a.nii", VOLUME[1:], "they must agree"), ("a.nii", VOLUME.astype(complex), "real numbers"),
])
def test_unwritable_images(tmp_path: Path, name: str, array: np.ndarray, words: str) -> None:
    with pytest.raises(ImageError, match=words):
        write_image(tmp_path / name, array, Grid.centered(VOLUME.shape, 1.0))
    assert list(tmp_path.iterdir()) == []


def test_an_image_needs_a_folder_that_exists(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"a\.nii: folder .* does not exist"):
        write_image(tmp_path / "no" / "a.nii", VOLUME, Grid.centered(VOLUME.shape, 1.0))
    assert list(tmp_path.iterdir()) == []


def test_mask_and_vectors_are_written(tmp_path: Path) -> None:
    grid = Grid.centered(VOLUME.shape, 1.0)
    write_image(tmp_path / "m.nrrd", VOLUME > 0, grid)
    np.testing.assert_array_equal(read_mask(tmp_path / "m.nrrd").array, VOLUME > 0)
    write_image(tmp_path / "v.mha", np.stack([VOLUME] * 3, -1), grid)
    assert sitk.ReadImage(str(tmp_path / "v.mha")).GetNumberOfComponentsPerPixel() == 3
