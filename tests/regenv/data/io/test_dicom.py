"""DICOM series: whole ones are read, all others are one clear error."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from regenv.data.io.errors import ImageError
from regenv.data.io.images import read_image
from tests.regenv.data.io.helpers import (
    BadFiles,
    Maker,
    assert_one_clear_error,
    write_series,
)

bad = BadFiles()


def test_dicom_series(tmp_path: Path, rng) -> None:
    array = write_series(tmp_path / "ct", [-30 + 2.5 * i for i in range(6)], rng)
    image = read_image(tmp_path / "ct")
    np.testing.assert_array_equal(image.array, array)
    np.testing.assert_allclose(image.grid.spacing, (0.6, 0.8, 2.5))
    np.testing.assert_allclose(image.grid.origin, (10, -5, -30))
    assert read_image(tmp_path / "ct", spacing=1).grid == image.grid     # which the file itself states


@bad("DICOM series found: none")
def folder_without_dicom(p):
    (p / "empty").mkdir()
    return p / "empty"


@bad("number of slices is 1", "2D id")
def one_dicom_slice(p):
    write_series(p / "ct", [0.0], np.random.default_rng(0))
    return p / "ct"


@bad("number of slices is 1")
def one_dicom_file(p):
    write_series(p / "ct", [0.0, 1.0], np.random.default_rng(0))
    return p / "ct" / "slice000.dcm"


@bad("gap of 5 mm between slices 3 and 4", "elsewhere 2.5 mm")
def missing_dicom_slice(p):
    write_series(p / "ct", [0, 2.5, 5, 10, 12.5], np.random.default_rng(0))
    return p / "ct"


@bad("ImagePositionPatient moves", "tilted gantries")
def tilted_gantry(p):
    write_series(p / "ct", [0, 1, 2, 3], np.random.default_rng(0), position=r"{x}\{z}\{z}")
    return p / "ct"


@bad("DICOM series found: 2")
def two_dicom_series(p):
    write_series(p / "ct", [0, 1, 2], np.random.default_rng(0))
    write_series(p / "other", [0, 1, 2], np.random.default_rng(0))
    for i, file in enumerate((p / "other").iterdir()):
        raw = file.read_bytes().replace(b"1.2.826.0.1.3680043.2.1125.1", b"1.2.826.0.1.3680043.2.1125.9")
        (p / "ct" / f"other{i}.dcm").write_bytes(raw)
    return p / "ct"


@bad("cannot")
def not_dicom(p):
    (p / "a.dcm").write_bytes(b"x" * 1000)
    return p / "a.dcm"


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("make", "words"), bad.cases)
def test_bad_file_is_one_line_that_names_file_field_and_value(tmp_path: Path, make: Maker, words) -> None:
    assert_one_clear_error(make(tmp_path), words)


@pytest.mark.parametrize("keep", [0.3, 0.7, 0.97])
def test_truncated_dicom_slice_is_an_error(tmp_path: Path, rng, keep: float) -> None:
    write_series(tmp_path / "ct", [0, 1, 2, 3], rng)
    victim = tmp_path / "ct" / "slice007.dcm"
    raw = victim.read_bytes()
    victim.write_bytes(raw[:int(keep * len(raw))])
    with pytest.raises(ImageError, match=r"slice007\.dcm: .*truncated"):
        read_image(tmp_path / "ct")
