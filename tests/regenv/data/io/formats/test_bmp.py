"""BMP: grey pictures of every width are what other libraries wrote, and every bad file is one clear error."""

from __future__ import annotations

import struct
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image as pillow

from regenv.data.io.formats import inspect
from regenv.data.io.images import read_image
from tests.regenv.data.io.helpers import GREY, BadFiles, Maker, assert_one_clear_error, cut, written

bad = BadFiles()


@pytest.mark.parametrize("width", [64, 63, 62, 33])
def test_grey_pictures(tmp_path: Path, width: int) -> None:
    path, grey = tmp_path / "a.bmp", GREY[:, :width]
    written(path, grey)
    np.testing.assert_array_equal(inspect(path).voxels(), grey)
    assert cv2.imwrite(str(path), grey)
    np.testing.assert_array_equal(inspect(path).voxels(), grey)
    pillow.fromarray(np.repeat(grey[..., None], 3, 2)).save(path)       # 24 bits
    np.testing.assert_array_equal(inspect(path).voxels(), grey)
    pillow.fromarray(grey > 99).save(path)                              # 1 bit
    np.testing.assert_array_equal(inspect(path).voxels(), 255 * (grey > 99))


def test_rows_from_the_top_down(tmp_path: Path) -> None:
    path = written(tmp_path / "a.bmp", GREY)
    path.write_bytes(changed(path, "<i", 22, -64))
    np.testing.assert_array_equal(inspect(path).voxels(), GREY[::-1])


def test_dots_per_metre_are_no_spacing(tmp_path: Path) -> None:
    pillow.fromarray(GREY).save(tmp_path / "a.bmp", dpi=(300, 300))
    assert read_image(tmp_path / "a.bmp").grid.spacing == (1.0, 1.0)
    assert read_image(tmp_path / "a.bmp", spacing=0.5).grid.spacing == (0.5, 0.5)


def changed(path: Path, code: str, at: int, value: int) -> bytes:
    raw = bytearray(path.read_bytes())
    struct.pack_into(code, raw, at, value)
    return bytes(raw)


def with_field(folder: Path, code: str, at: int, value: int) -> Path:
    path = written(folder / "a.bmp", GREY)
    path.write_bytes(changed(path, code, at, value))
    return path


@bad("not BMP")
def png_with_the_suffix(p): return written(p / "a.png", GREY).rename(p / "a.bmp")


@bad("channels is 3")
def colours(p):
    coloured = np.repeat(GREY[..., None], 3, 2)
    coloured[0, 0, 1] ^= 1
    return written(p / "a.bmp", coloured, vector=True)


@bad("channels is 4")
def transparent(p):
    pillow.fromarray(np.repeat(GREY[..., None], 4, 2)).save(p / "a.bmp")
    return p / "a.bmp"


@bad("channels is 3")
def palette_of_colours(p):
    pillow.fromarray(np.random.default_rng(0).integers(0, 255, (9, 9, 3)).astype(np.uint8)).convert("P").save(
        p / "a.bmp")
    return p / "a.bmp"


@bad("size of the file is", "truncated")
def truncated(p): return cut(written(p / "a.bmp", GREY), 100)


@bad("compression are 40, 1 and 1")
def run_lengths(p): return with_field(p, "<I", 30, 1)


@bad("size is 0 x 64")
def no_columns(p): return with_field(p, "<i", 18, 0)


@bad("GiB", "the limit is")
def too_large(p): return with_field(p, "<i", 18, 1 << 30)


@bad("voxels lie at byte")
def wider_than_the_file(p): return with_field(p, "<i", 18, 80)


@bad("voxels lie at byte 54")
def voxels_in_the_palette(p): return with_field(p, "<I", 10, 54)


@bad("palette has 300 colours")
def too_many_colours(p): return with_field(p, "<I", 46, 300)


@bad("a voxel has colour", "palette of 2")
def colours_that_are_not_there(p):
    path = written(p / "a.bmp", GREY)
    raw = bytearray(path.read_bytes())
    del raw[54 + 8:1078]
    for at, value in ((2, len(raw)), (10, 62), (46, 2)):
        struct.pack_into("<I", raw, at, value)
    path.write_bytes(raw)
    return path


@pytest.mark.parametrize(("make", "words"), bad.cases)
def test_bad_file_is_one_line_that_names_file_field_and_value(tmp_path: Path, make: Maker,
                                                             words: tuple[str, ...]) -> None:
    assert_one_clear_error(make(tmp_path), words)
