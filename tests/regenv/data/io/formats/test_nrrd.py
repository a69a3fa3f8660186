"""NRRD: every bad file is one clear error, and its header keeps its spacing."""

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
    assert_header_keeps_its_spacing,
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


@bad("compressed data is cut short", "truncated")
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


@pytest.mark.parametrize("suffix", [".nrrd", ".nhdr"])
def test_a_header_keeps_its_spacing_and_only_one_without_takes_the_argument(tmp_path: Path, suffix: str) -> None:
    path = written(tmp_path / f"a{suffix}")
    assert_header_keeps_its_spacing(path)
    head, end, rest = path.read_bytes().partition(b"\n\n")
    path.write_bytes(re.sub(rb"\nspace[^\n]*", b"", head) + end + rest)
    np.testing.assert_array_equal(read_image(path, spacing=2).array, VOLUME)
    assert read_image(path, spacing=2).grid.spacing == (2.0, 2.0, 2.0)
    path.write_bytes(path.read_bytes().replace(b"endian", b"spacings: 0 1 1\nendian"))
    with pytest.raises(ImageError, match=r"spacings is \(0\.0, 1\.0, 1\.0\) mm"):
        read_image(path, spacing=2)


@pytest.mark.parametrize(("unit", "factor"), [("mm", 1.0), ("um", 1e-3), ("micrometers", 1e-3), ("cm", 10.0),
                                              ("", 1.0)])
def test_units_of_space_count_with_and_without_a_space(tmp_path: Path, unit: str, factor: float) -> None:
    quoted = f'"{unit}" "{unit}" "{unit}"\n'.encode()
    path = replaced(written(tmp_path / "a.nrrd"), rb"endian", b"space units: " + quoted + b"endian")
    replaced(path, rb"space origin: .*", b"space origin: (1,2,3)")
    grid = read_image(path).grid
    np.testing.assert_allclose((grid.spacing, grid.origin), np.array([[1, 1, 1], [1, 2, 3]]) * factor)
    head, end, rest = path.read_bytes().partition(b"\n\n")
    head = re.sub(rb"space[^\n]*\n", b"", head + b"\n") + b"spacings: 1 2 3\nunits: " + quoted.strip()
    path.write_bytes(head + end + rest)
    np.testing.assert_allclose(read_image(path).grid.spacing, np.array([1, 2, 3]) * factor)


LINES = [
    (rb"sizes: 7", b"sizes: 7.5", "sizes is 7.5 6 5"), (rb"sizes: 7", b"sizes: inf", "sizes is inf"),
    (rb"sizes: 7 6 5", b"sizes: 7 6 4", "more than the 672 bytes"), (rb"sizes: 7 6 5", b"sizes: 7 6", "dimension is 3"),
    (rb"sizes: 7 6 5", b"sizes: 7 6 -5", "sizes is 7 x 6 x -5"),
    (rb"dimension: 3", b"dimension: 99", "dimension is 99"),
    (rb"type: float", b"type: float\ntype: float", "type stands twice"), (rb"type: float\n", b"", "type is 'None'"),
    (rb"encoding: raw", b"encoding: bzip2", "encoding is bzip2"), (rb"encoding: raw", b"encoding: gzip", "damaged"),
    (rb"encoding: raw", b"encoding: ascii", "no text of 210 float32"),
    (rb"encoding: raw", b"encoding: hex", "hexadecimal"),
    (rb"endian: little", b"endian: middle", "endian is middle"), (rb"endian: little\n", b"", "endian is None"),
    (rb"kinds: domain", b"kinds: demesne", "kinds is demesne"), (rb"kinds: domain ", b"kinds: ", "3 words"),
    (rb"space: .*", b"space: right-up", "space is right-up"), (rb"space: .*\n", b"", "without the field space"),
    (rb"space: .*", b"space dimension: 2", "space dimension is 2"),
    (rb"space directions: \(1,", b"space directions: (1e300,", "(lengths) is (1e+300, 1.0, 1.0) mm"),
    (rb"space directions: \(1,0", b"space directions: (1,0.2", "sheared"),
    (rb"space directions: \(1,0,0\)", b"space directions: none", "values per voxel"),
    (rb"space directions: \(1,", b"space directions: (nan,", "3 finite numbers"),
    (rb"space origin: .*", b"space origin: (1e300,0,0)", "space origin is (1e+300"),
    (rb"space origin: .*", b"space origin: 1 2 3", "numbers in parentheses"),
    (rb"endian", b'space units: "parsec" "mm" "mm"\nendian', "one unit of length"),
    (rb"endian", b'space units: "mm" "um" "mm"\nendian', "one unit of length"),
    (rb"endian", b"spacings: 1 1 1\nendian", "space directions, space origin and space units instead"),
    (rb"endian", b"axis maxs: 1 1 1\nendian", "no field that is supported"),
    (rb"endian", b"junk\nendian", "line 'junk'"),
    (rb"endian", b"byte skip: -2\nendian", "byte skip is -2"),
    (rb"endian", b"byte skip: 1e9\nendian", "byte skip is 1e9"),
    (rb"endian", b"byte skip: 5\nendian", "voxel data is 835 bytes"),
    (rb"endian", b"line skip: 99999999999\nendian", "line skip is 99999999999"),
    (rb"endian", b"data file: LIST\nendian", "lists of slices"),
    (rb"endian", b"data file: /etc/passwd\nendian", "in the header's folder"),
    (rb"endian", b"data file: ../x\nendian", "in the header's folder"),
    (rb"endian", b"data file: a%03d.raw 1 5 1\nendian", "does not exist"),
]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("pattern", "line", "words"), LINES, ids=[f"{line[:30]!r}" for _, line, _ in LINES])
def test_a_line_that_makes_no_sense_is_refused(tmp_path: Path, pattern: bytes, line: bytes, words: str) -> None:
    path = written(tmp_path / "a.nrrd")
    assert re.search(pattern, path.read_bytes())
    replaced(path, pattern, line)
    assert_one_clear_error(path, (words,))


@pytest.mark.parametrize("suffix", [".nrrd", ".nhdr"])
def test_every_flipped_byte_of_compressed_voxels_is_found(tmp_path: Path, suffix: str) -> None:
    path = written(tmp_path / f"a{suffix}", compressed=True)
    stored = path if suffix == ".nrrd" else tmp_path / "a.raw.gz"
    raw = stored.read_bytes()
    start = raw.index(b"\n\n") + 2 if suffix == ".nrrd" else 0
    for at in range(start, len(raw), 5):
        stored.write_bytes(raw[:at] + bytes([raw[at] ^ 1 << at % 8]) + raw[at + 1:])
        try:
            np.testing.assert_array_equal(read_image(path).array, VOLUME)       # such as gzip's time stamp
        except ImageError as error:
            assert "compressed" in str(error)
    for content in (raw[:-1], raw[:-100], raw + b"\0", raw + raw[start:]):
        stored.write_bytes(content)
        with pytest.raises(ImageError, match="compressed"):
            read_image(path)
