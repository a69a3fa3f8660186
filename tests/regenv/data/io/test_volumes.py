"""Files of several volumes: the one that is asked for is what SimpleITK reads, and none is taken unasked."""

from __future__ import annotations

import gzip
import re
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from regenv.data.io.errors import ImageError
from regenv.data.io.images import read_image, read_labels, read_mask
from tests.regenv.data.io.helpers import GREY, SINGLE_PRECISION_MM, assert_same_place, cut, write_series, written

SERIES = np.random.default_rng(9).integers(-50, 900, (3, 4, 5, 6)).astype(np.int16)
KINDS = [("a.nii", False), ("a.nii.gz", True), ("a.hdr", False), ("a.mha", False), ("a.mha", True), ("a.mhd", False),
         ("a.nrrd", False), ("a.nrrd", True), ("a.nhdr", False)]
SEQUENCE = ("NRRD0005\ntype: int16\ndimension: 4\nspace: right-anterior-superior\nsizes: 3 6 5 4\nspace directions: "
            "none (1.5,0,0) (0,2,0) (0,0,2.5)\nkinds: list domain domain domain\nendian: little\nencoding: {}\n"
            "space origin: (1,2,3)\n\n")


def frame(number: int) -> sitk.Image:
    """One of the volumes, turned and off the origin."""
    image = sitk.GetImageFromArray(SERIES[number])
    image.SetSpacing((1.5, 2, 2.5))
    image.SetOrigin((10, -20, 30))
    image.SetDirection((0.6, -0.8, 0, 0.8, 0.6, 0, 0, 0, 1))
    return image


def series(path: Path, compressed: bool = False) -> Path:
    sitk.WriteImage(sitk.JoinSeries([frame(number) for number in range(3)], 0.0, 3.0), str(path), compressed)
    return path


@pytest.mark.parametrize(("name", "compressed"), KINDS)
def test_the_volume_that_is_asked_for_is_read(tmp_path: Path, name: str, compressed: bool) -> None:
    path = series(tmp_path / name, compressed)
    sitk.WriteImage(frame(0), str(tmp_path / "one.mha"))
    place = read_image(tmp_path / "one.mha").grid
    for time in range(3):
        image = read_image(path, time=time)
        np.testing.assert_array_equal(image.array, SERIES[time])
        assert_same_place(image.grid, place, SINGLE_PRECISION_MM)
    np.testing.assert_array_equal(read_labels(path, time=1).array, SERIES[1])
    np.testing.assert_array_equal(read_mask(path, time=2).array, SERIES[2] != 0)


@pytest.mark.parametrize(("name", "compressed"), KINDS)
def test_no_volume_is_taken_unasked(tmp_path: Path, name: str, compressed: bool) -> None:
    path = series(tmp_path / name, compressed)
    with pytest.raises(ImageError, match=r"6 x 5 x 4 x 3, 3 times; one volume is needed.*--time N.*from 0 to 2\.$"):
        read_image(path)
    for time in (3, -1, True, 1.5, "1"):
        with pytest.raises(ImageError, match=re.escape(f"is {time!r}, it must be a whole number from 0 to 2.")):
            read_image(path, time=time)  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "compressed"), KINDS)
def test_the_other_volumes_must_be_there(tmp_path: Path, name: str, compressed: bool) -> None:
    series(tmp_path / name, compressed)
    data = next((path for path in tmp_path.iterdir() if path.suffix in (".img", ".raw", ".zraw")), tmp_path / name)
    cut(data, 1)
    with pytest.raises(ImageError, match=r"truncated|cut short"):
        read_image(tmp_path / name, time=0)


@pytest.mark.parametrize("encoding", ["raw", "gzip", "ascii"])
def test_volumes_whose_voxels_stand_side_by_side(tmp_path: Path, encoding: str) -> None:
    mixed = np.moveaxis(SERIES, 0, -1)
    content = {"raw": mixed.tobytes(), "gzip": gzip.compress(mixed.tobytes()),
               "ascii": " ".join(map(str, mixed.ravel())).encode()}[encoding]
    path = tmp_path / "a.nrrd"
    path.write_bytes(SEQUENCE.format(encoding).encode() + content)
    for time in range(3):
        image = read_image(path, time=time)
        np.testing.assert_array_equal(image.array, SERIES[time])
        assert image.grid.origin == (-1.0, -2.0, 3.0) and image.grid.spacing == (1.5, 2.0, 2.5)
    with pytest.raises(ImageError, match="GiB"):
        read_image(path, time=0, max_bytes=4 * SERIES[0].size)


@pytest.mark.parametrize(("name", "line", "other"), [
    ("a.mha", rb"TransformMatrix = .*", b"TransformMatrix = 1 0 0 0.1 0 1 0 0 0 0 1 0 0 0 0 1"),
    ("a.nrrd", rb"space directions: .*", b"space directions: (1.5,0,0,0.1) (0,2,0,0) (0,0,2.5,0) (0,0,0,3)")])
def test_time_that_leans_into_space_is_refused(tmp_path: Path, name: str, line: bytes, other: bytes) -> None:
    path = series(tmp_path / name)
    path.write_bytes(re.sub(line, other, path.read_bytes(), count=1))
    with pytest.raises(ImageError, match="the axis of time must stand alone"):
        read_image(path, time=0)


def test_files_of_one_volume_have_no_other(tmp_path: Path) -> None:
    write_series(tmp_path / "dicom", [0.0, 1.0, 2.0, 3.0], np.random.default_rng(0))
    for path in (written(tmp_path / "a.nii", SERIES[0]), written(tmp_path / "a.png", GREY),
                 written(tmp_path / "a.tif", GREY), tmp_path / "dicom"):
        np.testing.assert_array_equal(read_image(path, time=0).array, read_image(path).array)
        with pytest.raises(ImageError, match=r"1 time; .* is 1, it must be a whole number from 0 to 0"):
            read_image(path, time=1)
