"""PNG and JPEG: grey pictures are read, and every bad file is one clear error."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from regenv.data.io.images import read_image
from tests.regenv.data.io.helpers import (
    GREY,
    BadFiles,
    Maker,
    assert_one_clear_error,
    cut,
    written,
)

bad = BadFiles()


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_grey_pictures(tmp_path: Path, rng, suffix: str) -> None:
    picture = sitk.GetImageFromArray(rng.integers(0, 255, (20, 30)).astype(np.uint8))
    sitk.WriteImage(picture, str(tmp_path / f"p{suffix}"))
    back = read_image(tmp_path / f"p{suffix}", spacing=(0.5, 2))
    assert back.grid.spacing == (0.5, 2.0) and back.grid.shape == (20, 30)
    if suffix == ".png":
        np.testing.assert_array_equal(back.array, sitk.GetArrayFromImage(picture))


@bad("channels is 3")
def rgb_png(p): return written(p / "a.png", np.zeros((8, 9, 3), np.uint8), vector=True)


@bad("channels is 4")
def rgba_png(p): return written(p / "a.png", np.zeros((8, 9, 4), np.uint8), vector=True)


@bad("channels is 3")
def rgb_jpeg(p): return written(p / "a.jpg", np.zeros((8, 9, 3), np.uint8), vector=True)


@bad("IEND", "truncated")
def truncated_png(p): return cut(written(p / "a.png", GREY), 2000)


@bad("EOI", "truncated")
def truncated_jpeg(p): return cut(written(p / "a.jpg", GREY), 2000)


@bad("SOF", "truncated")
def headless_jpeg(p):
    (p / "a.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    return p / "a.jpg"


@bad("not PNG")
def jpeg_named_png(p): return written(p / "a.jpg", GREY).rename(p / "a.png")


@bad("not JPEG")
def png_named_jpeg(p): return written(p / "a.png", GREY).rename(p / "a.jpg")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("make", "words"), bad.cases)
def test_bad_file_is_one_line_that_names_file_field_and_value(tmp_path: Path, make: Maker, words) -> None:
    assert_one_clear_error(make(tmp_path), words)
