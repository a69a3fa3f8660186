"""Images read: intensities, labels and masks of every pixel type, and the arguments of reading."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from regenv.data.io.errors import ImageError
from regenv.data.io.images import normalize, read_image, read_labels, read_mask
from tests.regenv.data.io.helpers import (
    BadFiles,
    Maker,
    assert_one_clear_error,
    written,
)

bad = BadFiles()


@pytest.mark.parametrize("suffix", [".mhd", ".nhdr", ".mha", ".nrrd"])
@pytest.mark.parametrize("pixel", [sitk.sitkUInt8, sitk.sitkInt8, sitk.sitkInt16, sitk.sitkUInt16, sitk.sitkInt32,
                                   sitk.sitkUInt32, sitk.sitkInt64, sitk.sitkUInt64, sitk.sitkFloat64])
def test_every_pixel_type_and_detached_data(tmp_path: Path, rng, suffix: str, pixel: int) -> None:
    image = sitk.Cast(sitk.GetImageFromArray(rng.integers(0, 100, (4, 5, 6)).astype(np.float32)), pixel)
    sitk.WriteImage(image, str(tmp_path / f"image{suffix}"))
    np.testing.assert_array_equal(read_image(tmp_path / f"image{suffix}").array, sitk.GetArrayFromImage(image))


@bad("no such file")
def missing(p): return p / "nothing.nii.gz"


@bad("format is '.txt'", "NIfTI")
def unknown_suffix(p):
    (p / "a.txt").write_text("x")
    return p / "a.txt"


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("make", "words"), bad.cases)
def test_bad_file_is_one_line_that_names_file_field_and_value(tmp_path: Path, make: Maker, words) -> None:
    assert_one_clear_error(make(tmp_path), words)


@pytest.mark.parametrize(("spacing", "words"), [((1, 2), "needs 3 numbers"), ((1, 0, 1), "positive"),
                                                (float("nan"), "finite")])
def test_bad_spacing_argument(tmp_path: Path, spacing, words: str) -> None:
    with pytest.raises(ImageError, match=rf"a\.mha: spacing=\.\.\. is .*{words}"):
        read_image(written(tmp_path / "a.mha"), spacing=spacing)


def test_size_limit_can_be_raised(tmp_path: Path) -> None:
    path = written(tmp_path / "a.nii")
    with pytest.raises(ImageError, match="max_bytes"):
        read_image(path, max_bytes=839)
    assert read_image(path, max_bytes=840).array.size == 210


def test_labels_and_masks(tmp_path: Path) -> None:
    labels = np.zeros((4, 5, 6), np.float32)
    labels[1:3] = 7
    path = written(tmp_path / "l.nii.gz", labels)
    assert read_labels(path).array.dtype == np.int32 and set(np.unique(read_labels(path).array)) == {0, 7}
    assert read_mask(path).array.dtype == np.uint8 and read_mask(path).array.sum() == 60
    assert read_labels(written(tmp_path / "one.nii.gz", np.ones((4, 5, 6), np.uint8))).array.min() == 1


@pytest.mark.parametrize(("kind", "numbers", "read_as"), [
    (np.uint32, (40_001, 312_782_604, 614_454_277), np.int32), (np.uint32, (7, 2**32 - 1), np.int64),
    (np.int64, (-5, 2**53 + 1, 2**62 + 3), np.int64), (np.uint16, (1, 65_535), np.int32),
])
def test_labels_keep_their_numbers_whatever_these_are(tmp_path: Path, kind, numbers, read_as) -> None:
    labels = np.zeros((4, 5, 6), kind)
    labels.flat[:len(numbers)] = np.array(numbers, dtype=kind)
    found = read_labels(written(tmp_path / "l.nrrd", labels)).array
    assert found.dtype == read_as and found.tolist() == labels.tolist()


def test_labels_that_a_slope_blurs_are_rounded_within_a_thousandth(tmp_path: Path) -> None:
    labels = np.arange(120, dtype=np.float32).reshape(4, 5, 6) % 9
    assert np.array_equal(read_labels(written(tmp_path / "near.nrrd", labels + np.float32(9e-4))).array, labels)
    with pytest.raises(ImageError, match=r"label is 0\.002; labels must be whole numbers"):
        read_labels(written(tmp_path / "off.nrrd", labels + np.float32(2e-3)))


@pytest.mark.parametrize(("reader", "array", "words"), [
    (read_mask, np.zeros((4, 5, 6), np.uint8), "mask is 0 everywhere"),
    (read_labels, np.zeros((4, 5, 6), np.uint8), "labels are 0 everywhere"),
    (read_labels, np.full((4, 5, 6), 0.5, np.float32), "label is 0.5; labels must be whole"),
    (read_labels, np.full((4, 5, 6), 2**64 - 1, np.uint64), f"label is {2**64 - 1}; labels must fit into 64 bits"),
    (read_labels, np.full((4, 5, 6), np.nan, np.float32), "voxel (0, 0, 0) is nan"),
    (read_mask, np.full((4, 5, 6), np.inf, np.float32), "voxel (0, 0, 0) is inf"),
])
def test_bad_labels(tmp_path: Path, reader, array: np.ndarray, words: str) -> None:
    path = written(tmp_path / "l.nrrd", array)
    with pytest.raises(ImageError, match=re.escape(f"{path}: {words}")):
        reader(path)


def test_normalize_ignores_padding_and_outliers(rng) -> None:
    ct = rng.uniform(-1000, 1000, (20, 20, 20))
    ct[:4] = -3024                                          # padding around the field of view
    ct[10, 10, 10] = 30000                                  # metal
    scaled = normalize(ct)
    assert scaled.dtype == np.float32 and scaled.min() == 0 and scaled.max() == 1
    middle = np.abs(ct) < 900
    np.testing.assert_allclose(scaled[middle], (ct[middle] + 1000) / 2000, atol=0.02)


def test_normalize_of_odd_arrays() -> None:
    np.testing.assert_array_equal(normalize(np.full((3, 3), 5)), np.zeros((3, 3)))
    np.testing.assert_array_equal(normalize(np.array([[0, 1], [1, 0]])), [[0, 1], [1, 0]])
    assert normalize(np.array([np.nan, 0, 1, 2])).tolist()[0] == 0
    assert np.isfinite(normalize(np.array([np.nan, np.inf, -np.inf]))).all()
