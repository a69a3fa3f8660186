"""NRRD: every bad file is one clear error, and a bad spacing can be mended."""

from __future__ import annotations

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
    assert_one_clear_error,
    cut,
    replaced,
    written,
)

bad = BadFiles()


@bad("sizes is 7 x 1", "at least two voxels")
def one_voxel_axis_2d(p): return written(p / "a.nrrd", VOLUME[0, :1])


@bad("values per voxel (kinds) is 2")
def vector_nrrd(p): return written(p / "a.nrrd", np.stack([VOLUME] * 2, -1), vector=True)


@bad("space directions", "(0.0, 1.0, 1.0) mm")
def zero_spacing_nrrd(p): return replaced(written(p / "a.nrrd"), rb"\(1,0,0\) \(0,1,0\)", b"(0,0,0) (0,1,0)")


@bad("space directions is (1,0,0) (1,0,0) (0,0,1)", "singular")
def singular_nrrd(p): return replaced(written(p / "a.nrrd"), rb"\(1,0,0\) \(0,1,0\)", b"(1,0,0) (1,0,0)")


@bad("voxel data is 740 bytes", "840", "truncated")
def truncated_nrrd(p): return cut(written(p / "a.nrrd"), 100)


@bad("cannot read it", "expected 840 bytes")
def truncated_compressed_nrrd(p): return cut(written(p / "a.nrrd", compressed=True), 100)


@bad("data file is a.raw", "does not exist")
def nhdr_without_raw(p):
    written(p / "a.nhdr")
    (p / "a.raw").unlink()
    return p / "a.nhdr"


@bad("header is not NRRD")
def not_nrrd(p):
    (p / "a.nrrd").write_bytes(b"x" * 1000)
    return p / "a.nrrd"


@bad("type is 'block'")
def block_nrrd(p): return replaced(written(p / "a.nrrd"), rb"type: float", b"type: block")


@bad("intensity is 3 everywhere", "constant")
def constant(p): return written(p / "a.nrrd", np.full_like(VOLUME, 3))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("make", "words"), bad.cases)
def test_bad_file_is_one_line_that_names_file_field_and_value(tmp_path: Path, make: Maker, words) -> None:
    assert_one_clear_error(make(tmp_path), words)


def test_spacing_argument_mends_a_header_with_detached_data(tmp_path: Path) -> None:
    path = written(tmp_path / "b.nhdr")
    path.write_bytes(re.sub(rb"space[^\n]*\n", b"", path.read_bytes()).replace(b"endian", b"spacings: 0 1 1\nendian"))
    np.testing.assert_array_equal(read_image(path, spacing=2).array, VOLUME)
    with pytest.raises(ImageError, match=r"b\.nhdr: spacings is \(0\.0, 1\.0, 1\.0\) mm"):
        read_image(path)
