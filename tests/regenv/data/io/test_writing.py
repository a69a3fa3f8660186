"""Images written: they come back with their numbers and place, and what cannot be written is one clear error."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from regenv.data.io.errors import ImageError
from regenv.data.io.images import read_image, read_mask
from regenv.data.io.writing import write_image
from regenv.grid import Grid
from tests.regenv.data.io.helpers import (
    GREY,
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


LIMITED = """
import resource, sys
import numpy as np
from regagents.registration.deformation import Deformation
from regenv.data.io import write_image, write_transform
from regenv.grid import Grid
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
grid, rng = Grid.centered((20, 30, 40), 1.0), np.random.default_rng(0)
pose = np.eye(4) + np.pad(rng.normal(size=(3, 4)), ((0, 1), (0, 0)))
deformed = Deformation(rng.normal(size=(3, *grid.shape)), grid).through(pose)
for name in sys.argv[3:]:
    try:
        if name.endswith((".h5", ".tfm")):
            write_transform(f"{sys.argv[1]}/{name}", pose if name.endswith(".tfm") else deformed)
        else:
            write_image(f"{sys.argv[1]}/{name}", rng.normal(size=grid.shape), grid)
    except (ValueError, OSError) as error:
        print(error)
"""


@pytest.mark.parametrize("limit", [100, 300, 9_000, 40_000])
def test_what_the_disk_does_not_take_whole_is_one_line_and_leaves_nothing(tmp_path: Path, limit: int) -> None:
    """A limit on the size of files stands in for a full disk: the writers of NIfTI say nothing of either."""
    names = ["a.nii", "a.nii.gz", "a.mha", "a.nrrd", "a.h5", *(["a.tfm"] if limit == 100 else [])]
    for name in names:
        (tmp_path / name).write_text("old")
    done = subprocess.run([sys.executable, "-c", LIMITED, str(tmp_path), str(limit), *names], capture_output=True,
                          text=True, check=True)
    told = done.stdout.splitlines()
    assert done.stderr == "" and len(told) == len(names)
    for name, line in zip(names, told, strict=True):
        assert line.startswith(f"{tmp_path / name}: it cannot be written (") and "free space" in line
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == dict.fromkeys(names, "old")


def test_a_direction_that_the_format_does_not_hold_is_refused(tmp_path: Path) -> None:
    sheared = Grid.centered((4, 5, 6), 1.0, direction=[1, 0, 0, 0.2, 0.98, 0, 0, 0, 1])
    with pytest.raises(ImageError, match=r"a\.nii: direction is .*Write \.mha or \.nrrd"):
        write_image(tmp_path / "a.nii", np.ones((4, 5, 6), np.float32), sheared)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["image.nii.gz", "image.png"])
def test_a_name_that_is_not_utf8_is_one_error(tmp_path: Path, name: str) -> None:
    folder = tmp_path / os.fsdecode(b"\xff\xfe")
    folder.mkdir()
    with pytest.raises(ImageError, match="not UTF-8"):
        write_image(folder / name, GREY, Grid.centered(GREY.shape, 1.0))
    write_image(tmp_path / name, GREY, Grid.centered(GREY.shape, 1.0))
    (tmp_path / name).rename(folder / name)
    np.testing.assert_array_equal(read_image(folder / name).array, GREY)
    assert [path.name for path in folder.iterdir()] == [name]


def test_a_turned_plane_comes_back_from_nifti_where_it_was(tmp_path: Path) -> None:
    c, s = np.cos(0.35), np.sin(0.35)
    grid = Grid(GREY.shape, (2.0, 1.5), (10.0, -20.0), (c, -s, s, c))
    write_image(tmp_path / "a.nii.gz", GREY, grid)
    assert_same_place(read_image(tmp_path / "a.nii.gz").grid, grid, SINGLE_PRECISION_MM)
    assert_same_place(Grid.from_sitk(sitk.ReadImage(str(tmp_path / "a.nii.gz"))), grid, SINGLE_PRECISION_MM)
