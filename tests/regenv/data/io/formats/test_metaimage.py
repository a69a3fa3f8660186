"""MetaImage: every bad file is one clear error, and its header keeps its spacing."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pytest

from regenv.data.io.errors import ImageError
from regenv.data.io.images import read_image
from tests.regenv.data.io.helpers import (
    VOLUME,
    BadFiles,
    Maker,
    assert_header_keeps_its_spacing,
    assert_one_clear_error,
    cut,
    replaced,
    written,
)

bad = BadFiles()


@bad("DimSize is 1 x 6 x 5", "at least two voxels")
def one_voxel_axis(p): return written(p / "a.mha", VOLUME[:, :, :1])


@bad("ElementNumberOfChannels is 3")
def vector_mha(p): return written(p / "a.mha", np.stack([VOLUME] * 3, -1), vector=True)


@bad("ElementSpacing is (0.0, 1.0, 1.0) mm", "positive")
def zero_spacing_mha(p): return replaced(written(p / "a.mha"), rb"ElementSpacing = .*", b"ElementSpacing = 0 1 1")


@bad("ElementSpacing is (1.0, -2.0, 1.0) mm")
def negative_spacing_mha(p): return replaced(written(p / "a.mha"), rb"ElementSpacing = .*", b"ElementSpacing = 1 -2 1")


@bad("ElementSpacing is one 1 1", "numbers")
def worded_spacing_mha(p): return replaced(written(p / "a.mha"), rb"ElementSpacing = .*", b"ElementSpacing = one 1 1")


@bad("TransformMatrix is 1 0 0 0 1 0 0 0 0", "singular")
def singular_mha(p):
    return replaced(written(p / "a.mha"), rb"TransformMatrix = .*", b"TransformMatrix = 1 0 0 0 1 0 0 0 0")


@bad("DimSize is 7 x -6 x 5")
def negative_mha(p): return replaced(written(p / "a.mha"), rb"DimSize = .*", b"DimSize = 7 -6 5")


@bad("DimSize is None")
def sizeless_mha(p): return replaced(written(p / "a.mha"), rb"DimSize = .*\n", b"")


@bad("ElementType is MET_COLOUR")
def typeless_mha(p): return replaced(written(p / "a.mha"), rb"MET_FLOAT", b"MET_COLOUR")


@bad("voxel data is 740 bytes", "840", "truncated")
def truncated_mha(p): return cut(written(p / "a.mha"), 100)


@bad("voxel data", "truncated")
def truncated_compressed_mha(p): return cut(written(p / "a.mha", compressed=True), 100)


@bad("ElementDataFile is a.raw", "does not exist")
def mhd_without_raw(p):
    written(p / "a.mhd")
    (p / "a.raw").unlink()
    return p / "a.mhd"


@bad("voxel data is 740 bytes", "truncated")
def mhd_with_short_raw(p):
    written(p / "a.mhd")
    cut(p / "a.raw", 100)
    return p / "a.mhd"


@bad("ElementDataFile is missing")
def not_mha(p):
    (p / "a.mha").write_bytes(b"x" * 1000)
    return p / "a.mha"


@bad("voxel (0, 0, 1) is inf", "1 of 210")
def infinite_voxel(p):
    array = VOLUME.copy()
    array[0, 0, 1] = np.inf
    return written(p / "a.mha", array)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("make", "words"), bad.cases)
def test_bad_file_is_one_line_that_names_file_field_and_value(tmp_path: Path, make: Maker, words) -> None:
    assert_one_clear_error(make(tmp_path), words)


@pytest.mark.parametrize("suffix", [".mha", ".mhd"])
def test_a_header_keeps_its_spacing_and_only_one_without_takes_the_argument(tmp_path: Path, suffix: str) -> None:
    path = written(tmp_path / f"a{suffix}")
    assert_header_keeps_its_spacing(path)
    replaced(path, rb"ElementSpacing.*\n", b"")
    assert read_image(path, spacing=(1, 2, 3)).grid.spacing == (1.0, 2.0, 3.0)
    assert read_image(path).grid.spacing == (1.0, 1.0, 1.0)


@pytest.mark.parametrize(("unit", "factor"), [("um", 1e-3), ("mm", 1.0), ("cm", 10.0), ("?", 1.0)])
def test_the_unit_of_distances_counts(tmp_path: Path, unit: str, factor: float) -> None:
    path = replaced(written(tmp_path / "a.mha"), rb"Offset = .*", b"Offset = 1 2 3\nDistanceUnits = " + unit.encode())
    grid = read_image(path).grid
    np.testing.assert_allclose(grid.spacing, [factor] * 3)
    np.testing.assert_allclose(grid.origin, [factor, 2 * factor, 3 * factor])


LINES = [
    (rb"NDims = 3", b"NDims = 99", "NDims is 99"), (rb"NDims = 3", b"NDims = -1", "NDims is -1"),
    (rb"NDims = 3\n", b"", "NDims is None"), (rb"DimSize = 7", b"DimSize = inf", "DimSize is inf 6 5"),
    (rb"DimSize = 7", b"DimSize = 7.7", "DimSize is 7.7"), (rb"DimSize = 7", b"DimSize = 7e0", "DimSize is 7e0"),
    (rb"DimSize = 7 6 5", b"DimSize = 7 6 4", "more than the 672 bytes"),
    (rb"DimSize = 7 6 5", b"DimSize = " + b"9" * 5000, "DimSize is 999"),
    (rb"Offset = .*", b"Offset = 1e300 0 0", "Offset is (1e+300, 0.0, 0.0) mm"),
    (rb"Offset = .*", b"Offset = nan 0 0", "Offset is nan 0 0; it must be 3 finite numbers"),
    (rb"Offset = .*", b"Offset = 0 0", "Offset is 0 0"), (rb"Offset = .*", b"Offset = 0 0 0x10", "Offset is 0 0 0x10"),
    (rb"Offset = .*", b"Offset = 1 2 3\nOrigin = 1 2 3", "Offset and Origin, which mean the same"),
    (rb"ElementSpacing = .*", b"ElementSpacing = 1e30 1 1", "ElementSpacing is (1e+30, 1.0, 1.0) mm"),
    (rb"ElementSpacing", b"ElementSpacinf", "ElementSpacing may be meant"),
    (rb"TransformMatrix = .*", b"TransformMatrix = 2 0 0 0 2 0 0 0 2", "scaled"),
    (rb"TransformMatrix = .*", b"TransformMatrix = 1 0 0 .2 .98 0 0 0 1", "sheared"),
    (rb"TransformMatrix = .*", b"TransformMatrix = 1 0 0 1", "9 finite numbers"),
    (rb"ObjectType = Image", b"ObjectType = Tube", "ObjectType is Tube"),
    (rb"BinaryData = True", b"BinaryData = False", "BinaryData is False"),
    (rb"BinaryData = True", b"BinaryData = maybe", "BinaryData is maybe"),
    (rb"MSB = False\n", b"MSB = FalseCompressedData = True\n", "every line must be"),
    (rb"CompressedData = False", b"CompressedData = True", "compressed data is damaged"),
    (rb"NDims = 3", b"NDims = 3\nNDims = 3", "NDims stands twice"), (rb"NDims = 3", b"NDims 3", "line 'NDims 3'"),
    (rb"NDims = 3", b"NDims = 3\nHeaderSize = 1e9", "HeaderSize is 1e9"),
    (rb"NDims = 3", b"NDims = 3\nHeaderSize = -2", "HeaderSize is -2"),
    (rb"NDims = 3", b"NDims = 3\n\xff\xfe\x1b[2J", "every line must be"),
    (rb"NDims = 3", b"NDims = 3\nDistanceUnits = parsec", "DistanceUnits is parsec"),
    (rb"= LOCAL", b"= LIST", "lists of slices are not supported"),
    (rb"= LOCAL", b"= /etc/passwd", "in the header's folder"), (rb"= LOCAL", b"= ../a.mha", "in the header's folder"),
    (rb"= LOCAL", b"= a.mha", "a file of their own"), (rb"= LOCAL", b"= %s%n", "does not exist"),
    (rb"= LOCAL", b"= s%03d.raw 1 5 1", "does not exist"), (rb"= LOCAL", b"= zero", "in the header's folder"),
    (rb"= LOCAL", b"= pipe", "regular file"), (rb"= LOCAL", b"= " + b"x" * 5000, "the name of a file|does not exist"),
    (rb"= LOCAL", b"= \0", "the name of a file|does not exist"), (rb"= LOCAL", b"= .", "regular file"),
]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("pattern", "line", "words"), LINES, ids=[f"{line[:30]!r}" for _, line, _ in LINES])
def test_a_line_that_makes_no_sense_is_refused(tmp_path: Path, pattern: bytes, line: bytes, words: str) -> None:
    path = written(tmp_path / "a.mha")
    assert re.search(pattern, path.read_bytes())
    replaced(path, pattern, line.replace(b"\\", b"\\\\"))
    (path.parent / "zero").symlink_to("/dev/zero")
    os.mkfifo(path.parent / "pipe")
    with pytest.raises(ImageError) as caught:
        read_image(path)
    assert re.search(words if "|" in words else re.escape(words), str(caught.value)), caught.value
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("suffix", [".mha", ".mhd"])
def test_every_flipped_byte_of_compressed_voxels_is_found(tmp_path: Path, suffix: str) -> None:
    path = written(tmp_path / f"a{suffix}", compressed=True)
    stored = path if suffix == ".mha" else tmp_path / "a.zraw"
    raw = stored.read_bytes()
    start = raw.index(b"LOCAL\n") + 6 if suffix == ".mha" else 0
    for at in range(start, len(raw), 5):
        stored.write_bytes(raw[:at] + bytes([raw[at] ^ 1 << at % 8]) + raw[at + 1:])
        try:
            np.testing.assert_array_equal(read_image(path).array, VOLUME)       # a bit that means nothing
        except ImageError as error:
            assert "compressed data is" in str(error) or "decompressed voxel data is" in str(error)
    for content in (raw[:-1], raw[:-100], raw + b"\0", raw + raw[start:]):
        stored.write_bytes(content)
        with pytest.raises(ImageError, match=r"a\.mh.: (voxel data|CompressedDataSize|compressed data)"):
            read_image(path)
    stored.write_bytes(re.sub(rb"CompressedDataSize.*\n", b"", raw + b"more"))
    with pytest.raises(ImageError, match=r"compressed data is followed by other bytes|CompressedDataSize"):
        read_image(path)
