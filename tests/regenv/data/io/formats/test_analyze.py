"""Images in two files: they come back as written, whichever file is named."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from regenv.data.io.errors import ImageError
from regenv.data.io.images import read_image
from regenv.data.io.resampling import framed
from regenv.grid import Grid
from tests.regenv.data.io.helpers import SINGLE_PRECISION_MM, write_analyze

SHAPE, SPACING = (12, 16, 14), (2.0, 2.0, 3.0)


@pytest.fixture
def values(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(-100, 1000, SHAPE).astype(np.int16)


@pytest.mark.parametrize("order", ["<", ">"])
def test_analyze_comes_back_as_written_whichever_file_is_named(order: str, tmp_path: Path, values: np.ndarray) -> None:
    write_analyze(tmp_path / "S01.scan", values, SPACING, order)
    for name in ("S01.scan.hdr", "S01.scan.img"):
        image = read_image(tmp_path / name)
        np.testing.assert_array_equal(image.array, values)
        assert image.grid.spacing == SPACING and image.path == str(tmp_path / name)
    for name in ("S01.scan.hdr", "S01.scan.img"):
        zipped = gzip.compress((tmp_path / name).read_bytes())
        (tmp_path / name).unlink()
        (tmp_path / f"{name}.gz").write_bytes(zipped)
    np.testing.assert_array_equal(read_image(tmp_path / "S01.scan.img.gz").array, values)
    (tmp_path / "S01.scan.img.gz").write_bytes(zipped[:-30])
    with pytest.raises(ImageError, match=r"S01.scan.img.gz: compressed data is (damaged|cut short)"):
        read_image(tmp_path / "S01.scan.hdr.gz")


def test_nifti_in_two_files_keeps_its_place_in_the_world(tmp_path: Path, values: np.ndarray) -> None:
    grid = Grid.centered(SHAPE, SPACING, (9.0, -4.0, 2.0), (0, 1, 0, -1, 0, 0, 0, 0, 1))
    sitk.WriteImage(framed(values, grid), str(tmp_path / "a.hdr"))
    image = read_image(tmp_path / "a.hdr")
    np.testing.assert_array_equal(image.array, values)
    for name in ("spacing", "origin", "direction"):
        np.testing.assert_allclose(getattr(image.grid, name), getattr(grid, name), atol=SINGLE_PRECISION_MM)
