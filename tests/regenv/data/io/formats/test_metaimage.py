"""MetaImage: every bad file is one clear error, and a bad spacing can be mended."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from regenv.data.io.images import read_image
from tests.regenv.data.io.helpers import (
    VOLUME,
    BadFiles,
    Maker,
    assert_one_clear_error,
    assert_spacing_mends,
    cut,
    replaced,
    written,
)

bad = BadFiles()


@bad("DimSize is 1 x 6 x 5", "at least two voxels")
def one_voxel_axis(p): return written(p / "a.mha", VOLUME[:, :, :1])


@bad("ElementNumberOfChannels is 3")
def vector_mha(p): return written(p / "a.mha", np.stack([VOLUME] * 3, -1), vector=True)


@bad("ElementSpacing is (0.0, 1.0, 1.0) mm", "pass spacing=")
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


@pytest.mark.parametrize("make", [zero_spacing_mha, negative_spacing_mha])
def test_spacing_argument_mends_a_bad_header(tmp_path: Path, make: Maker) -> None:
    assert_spacing_mends(make(tmp_path))


def test_spacing_argument_mends_a_header_with_detached_data(tmp_path: Path) -> None:
    path = replaced(written(tmp_path / "a.mhd"), rb"ElementSpacing = .*", b"ElementSpacing = 0 1 1")
    np.testing.assert_array_equal(read_image(path, spacing=2).array, VOLUME)
