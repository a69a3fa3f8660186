"""PNG and JPEG: grey pictures are read, and every bad file is one clear error."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image as pillow

from regenv.data.io.errors import ImageError
from regenv.data.io.formats import inspect
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


def picture(path: Path) -> Path:
    pillow.fromarray(GREY).save(path)
    return path


@pytest.mark.parametrize("options", [
    {"mode": "1", "name": "a.png"}, {"mode": "L", "name": "a.png"}, {"mode": "I;16", "name": "a.png"},
    {"mode": "L", "name": "a.png", "dpi": (72, 300)}, {"mode": "L", "name": "a.jpg", "quality": 10},
    {"mode": "L", "name": "a.jpg", "progressive": True, "comment": b"hello"},
    {"mode": "L", "name": "a.jpeg", "restart_marker_blocks": 3, "quality": 100}])
def test_pictures_are_those_that_simpleitk_reads(tmp_path: Path, options: dict) -> None:
    path, mode = tmp_path / options.pop("name"), options.pop("mode")
    array = GREY.astype(np.uint16) * 257 if mode == "I;16" else GREY
    (pillow.fromarray(array).convert("1") if mode == "1" else pillow.fromarray(array)).save(path, **options)
    np.testing.assert_array_equal(inspect(path).voxels(), sitk.GetArrayFromImage(sitk.ReadImage(str(path))))


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_dots_per_inch_are_no_millimetres(tmp_path: Path, suffix: str) -> None:
    for dpi in (72, 300):
        pillow.fromarray(GREY).save(tmp_path / f"a{suffix}", dpi=(dpi, dpi))
        assert read_image(tmp_path / f"a{suffix}").grid.spacing == (1.0, 1.0)
        assert read_image(tmp_path / f"a{suffix}", spacing=0.7).grid.spacing == (0.7, 0.7)
        assert inspect(tmp_path / f"a{suffix}").spacing is None


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, depth: int, interlaced: int, data: bytes, extra: bytes = b"") -> bytes:
    head = struct.pack(">II5B", width, height, depth, 0, 0, 0, interlaced)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + extra + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.mark.parametrize("interlaced", [0, 1])
@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_grey_png_of_every_depth_interlaced_or_not(tmp_path: Path, rng, depth: int, interlaced: int) -> None:
    width, height = 13, 11
    passes = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
    rows = b""
    for x, y, dx, dy in passes if interlaced else ((0, 0, 1, 1),):
        w, h = len(range(x, width, dx)), len(range(y, height, dy))
        rows += b"".join(b"\0" + rng.bytes((w * depth + 7) // 8) for _ in range(h))
    path = tmp_path / "a.png"
    path.write_bytes(png(width, height, depth, interlaced, zlib.compress(rows)))
    np.testing.assert_array_equal(inspect(path).voxels(), sitk.GetArrayFromImage(sitk.ReadImage(str(path))))
    for data, words in ((zlib.compress(rows + b"\0"), "more than"), (zlib.compress(rows[:-1]), "truncated"),
                        (zlib.compress(rows)[:-1], "cut short"), (zlib.compress(rows) + b"x", "followed by")):
        path.write_bytes(png(width, height, depth, interlaced, data))
        with pytest.raises(ImageError, match=words):
            read_image(path)


def test_a_picture_that_claims_more_than_it_holds_costs_nothing(tmp_path: Path) -> None:
    data = zlib.compress(bytes(1000))
    for size, words in (((20_000, 20_000), "truncated"), ((2**31 - 1, 2**31 - 1), "the limit is")):
        (tmp_path / "a.png").write_bytes(png(*size, 8, 0, data))
        with pytest.raises(ImageError, match=words):
            read_image(tmp_path / "a.png")


def test_every_flipped_byte_of_a_png_is_found(tmp_path: Path) -> None:
    path = picture(tmp_path / "a.png")
    raw = path.read_bytes()
    for at in range(0, len(raw), 11):
        path.write_bytes(raw[:at] + bytes([raw[at] ^ 1 << at % 8]) + raw[at + 1:])
        with pytest.raises(ImageError):
            read_image(path)


def test_transparency_is_a_second_channel(tmp_path: Path) -> None:
    rows = zlib.compress(b"".join(b"\0" + bytes(range(9)) for _ in range(8)))
    (tmp_path / "a.png").write_bytes(png(9, 8, 8, 0, rows, chunk(b"tRNS", b"\0\5")))
    with pytest.raises(ImageError, match="channels is 2"):
        read_image(tmp_path / "a.png")


def test_a_jpeg_whose_middle_is_damaged_or_missing_is_refused(tmp_path: Path, capfd) -> None:
    path = tmp_path / "a.jpg"
    pillow.fromarray(GREY).save(path, quality=95)
    raw = path.read_bytes()
    scan = raw.index(b"\xff\xda")
    for content in (raw[:(scan + len(raw)) // 2] + raw[-2:], raw[:scan + 60] + raw[scan + 160:]):
        path.write_bytes(content)
        with pytest.raises(ImageError, match="picture is damaged"):
            read_image(path)
    assert capfd.readouterr().err == ""


def test_a_jpeg_of_many_scans_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    pillow.fromarray(GREY).save(path, progressive=True)
    raw = path.read_bytes()
    scan = raw.rindex(b"\xff\xda")
    path.write_bytes(raw[:scan] + raw[scan:-2] * 200 + raw[-2:])
    with pytest.raises(ImageError, match="at most 100 scans"):
        read_image(path)
