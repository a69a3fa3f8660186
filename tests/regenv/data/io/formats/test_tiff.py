"""TIFF: grey pictures of every kind are what other libraries read, and every other or bad file is one clear error."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image as pillow

from regenv.data.io.formats import inspect
from regenv.data.io.headers import Header
from regenv.data.io.images import read_image, read_labels, read_mask
from tests.regenv.data.io.helpers import GREY, BadFiles, Maker, assert_one_clear_error, cut, written
from tests.regenv.data.io.tags import entry, first_strip, with_tag

bad = BadFiles()
SMOOTH = np.add.outer(np.arange(70), 2 * np.arange(90))
NOISE = np.random.default_rng(5).integers(0, 65536, (70, 90))
COMPRESSIONS = (None, "tiff_lzw", "tiff_adobe_deflate", "packbits")


def exactly(path: Path, array: np.ndarray) -> None:
    found = inspect(path).voxels()
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.float32])
@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_pictures_that_pillow_writes(tmp_path: Path, compression: str | None, dtype: Any) -> None:
    for values in (SMOOTH, NOISE):
        array = (values % 256 if dtype == np.uint8 else values / 7 if dtype == np.float32 else values).astype(dtype)
        pillow.fromarray(array).save(tmp_path / "a.tif", compression=compression)
        exactly(tmp_path / "a.tif", array)


@pytest.mark.parametrize(("dtype", "predictor"), [(np.uint8, 2), (np.uint16, 2), (np.int32, 2), (np.float32, 3)])
@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate"])
def test_differences_of_neighbours_are_added_up(tmp_path: Path, compression: str, dtype: Any, predictor: int) -> None:
    array = (NOISE / 7).astype(dtype) if dtype == np.float32 else (NOISE % 256 if dtype == np.uint8 else NOISE).astype(
        dtype)
    pillow.fromarray(array).save(tmp_path / "a.tif", compression=compression, tiffinfo={317: predictor})
    exactly(tmp_path / "a.tif", array)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.float32])
@pytest.mark.parametrize("compressed", [False, True])
def test_pictures_that_simpleitk_writes(tmp_path: Path, dtype: Any, compressed: bool) -> None:
    exactly(written(tmp_path / "a.tiff", (SMOOTH - 100).astype(dtype), compressed=compressed),
            (SMOOTH - 100).astype(dtype))


def test_lzw_of_more_strings_than_its_table_holds(tmp_path: Path) -> None:
    for array in (NOISE.repeat(9, 0).astype(np.uint16), np.zeros((500, 500), np.uint8)):
        assert cv2.imwrite(str(tmp_path / "a.tif"), array)
        exactly(tmp_path / "a.tif", array)


@pytest.mark.parametrize("options", [{"byteorder": ">"}, {"tile": (16, 32)}, {"rowsperstrip": 7},
                                     {"compression": "zlib", "tile": (32, 16), "predictor": True, "byteorder": ">"}])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16])
def test_strips_tiles_and_byte_orders(tmp_path: Path, dtype: Any, options: dict[str, Any]) -> None:
    tifffile = pytest.importorskip("tifffile")
    tifffile.imwrite(tmp_path / "a.tif", SMOOTH.astype(dtype), photometric="minisblack", **options)
    exactly(tmp_path / "a.tif", SMOOTH.astype(dtype))


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_pictures_of_one_bit_are_masks_and_labels(tmp_path: Path, compression: str | None) -> None:
    mask = SMOOTH % 3 == 0
    pillow.fromarray(mask).save(tmp_path / "a.tif", compression=compression)
    np.testing.assert_array_equal(read_mask(tmp_path / "a.tif").array, mask)
    np.testing.assert_array_equal(read_labels(tmp_path / "a.tif").array, mask)


def test_where_zero_is_white_voxels_are_turned(tmp_path: Path) -> None:
    path = written(tmp_path / "a.tif", GREY)
    exactly(tagged(path, 262, 0), 255 - GREY)


def test_resolution_is_no_spacing(tmp_path: Path) -> None:
    pillow.fromarray(GREY).save(tmp_path / "a.tif", dpi=(300, 300))
    assert read_image(tmp_path / "a.tif").grid.spacing == (1.0, 1.0)
    image = read_image(tmp_path / "a.tif", spacing=(0.5, 0.25))
    assert image.grid.spacing == (0.5, 0.25) and not image.notes


def test_thumbnails_are_no_pages(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        writer.write(GREY, photometric="minisblack")
        writer.write(GREY[::4, ::4], photometric="minisblack", subfiletype=1)
    exactly(tmp_path / "a.tif", GREY)


def tagged(path: Path, tag: int, value: int) -> Path:
    """The file with another value of a tag."""
    path.write_bytes(with_tag(path.read_bytes(), tag, value))
    return path


@bad("not TIFF", "b'\\x89PNG")
def png_with_the_suffix(p): return written(p / "a.png", GREY).rename(p / "a.tif")


@bad("channels is 3")
def rgb(p): return written(p / "a.tif", np.zeros((8, 9, 3), np.uint8), vector=True)


@bad("channels is 3")
def palette(p):
    pillow.fromarray(GREY).convert("P").save(p / "a.tif")
    return p / "a.tif"


@bad("number of pages is 5", ".nii.gz, .mha or .nrrd")
def stack(p): return written(p / "a.tif", np.zeros((5, 6, 7), np.uint8))


@bad("truncated", "beyond the end")
def truncated(p):
    pillow.fromarray(GREY).save(p / "a.tif")
    return cut(p / "a.tif", 1)


@bad("truncated", "over others")
def strip_over_the_tags(p):
    pillow.fromarray(GREY).save(p / "a.tif")
    return tagged(p / "a.tif", 273, 9)


@bad("strip or tile 0 is", "are needed")
def wrong_width(p): return tagged(written(p / "a.tif", GREY), 256, 63)


@bad("number of strips or tiles")
def fewer_rows_than_strips(p):
    pillow.fromarray(GREY).save(p / "a.tif", tiffinfo={278: 10}, compression="packbits")
    return tagged(p / "a.tif", 257, 20)


@bad("PhotometricInterpretation", "must be one of (0, 1)")
def transparency_mask(p): return tagged(written(p / "a.tif", GREY), 262, 4)


@bad("Orientation is 6", "upright")
def turned(p):
    pillow.fromarray(GREY).save(p / "a.tif", tiffinfo={274: 6})
    return p / "a.tif"


@bad("Compression is 7")
def jpeg_inside(p):
    pillow.fromarray(GREY).save(p / "a.tif", compression="jpeg")
    return p / "a.tif"


@bad("BitsPerSample is 16", "SampleFormat 3")
def half_floats(p): return tagged(written(p / "a.tif", GREY.astype(np.uint16)), 339, 3)


@bad("tags must rise")
def tags_out_of_order(p):
    path = written(p / "a.tif", GREY)
    raw = bytearray(path.read_bytes())
    struct.pack_into("<H", raw, entry(raw, 257) or 0, 999)
    path.write_bytes(raw)
    return path


@bad("in a circle")
def circle(p):
    path = written(p / "a.tif", GREY)
    raw = bytearray(path.read_bytes())
    at, = struct.unpack_from("<I", raw, 4)
    struct.pack_into("<I", raw, at + 2 + 12 * struct.unpack_from("<H", raw, at)[0], at)
    path.write_bytes(raw)
    return path


@bad("BigTIFF")
def big(p):
    (p / "a.tif").write_bytes(struct.pack("<2sHHHQ", b"II", 43, 8, 0, 16) + bytes(100))
    return p / "a.tif"


@bad("GiB", "the limit is")
def too_large(p):
    path = written(p / "a.tif", np.zeros((300, 300), np.uint8), compressed=True)
    return tagged(tagged(path, 256, 60000), 257, 60000)


@bad("compressed data is damaged")
def damaged_deflate(p):
    pillow.fromarray(GREY).save(p / "a.tif", compression="tiff_adobe_deflate")
    return spoiled(p / "a.tif")


@bad("damaged")
def damaged_lzw(p):
    pillow.fromarray(np.zeros((64, 64), np.uint8)).save(p / "a.tif", compression="tiff_lzw")
    return spoiled(p / "a.tif")


def spoiled(path: Path) -> Path:
    """The file with one byte of its first strip turned over, in the middle."""
    raw = bytearray(path.read_bytes())
    start, size = first_strip(raw)
    raw[start + size // 2] ^= 0xFF
    path.write_bytes(raw)
    return path


@pytest.mark.parametrize(("make", "words"), bad.cases)
def test_bad_file_is_one_line_that_names_file_field_and_value(tmp_path: Path, make: Maker,
                                                             words: tuple[str, ...]) -> None:
    assert_one_clear_error(make(tmp_path), words)


def test_simpleitk_reads_the_same(tmp_path: Path) -> None:
    path = written(tmp_path / "a.tif", NOISE.astype(np.uint16), compressed=True)
    header: Header = inspect(path)
    np.testing.assert_array_equal(header.voxels(), sitk.GetArrayFromImage(sitk.ReadImage(str(path))))
