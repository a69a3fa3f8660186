"""Landmarks: every layout is understood, and every bad file is one clear error."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from regenv.data.io.errors import ImageError
from regenv.data.io.images import Image
from regenv.data.io.landmarks import corresponding, read_landmarks
from regenv.grid import Grid
from tests.regenv.data.io.helpers import (
    grid_of,
)


@pytest.mark.parametrize(("name", "text", "points"), [
    ("a.csv", "x,y,z\n1,2,3\n-4.5,5e1,6\n", [[1, 2, 3], [-4.5, 50, 6]]),
    ("a.csv", "name,z,y,x\ntip,3,2,1\n", [[1, 2, 3]]),
    ("a.csv", "1,2\n3,4\n", [[1, 2], [3, 4]]),
    ("a.txt", "# comment\n1 2 3\n\n4 5 6\n", [[1, 2, 3], [4, 5, 6]]),
    ("a.txt", "point\n1\n1 2 3\n", [[1, 2, 3]]),
    ("a.fcsv", "# CoordinateSystem = LPS\n# columns = id,x,y,z\n1,1,2,3,0\n", [[1, 2, 3]]),
    ("a.fcsv", "# CoordinateSystem = 0\n# columns = id,x,y,z\n1,1,2,3,0\n", [[-1, -2, 3]]),
])
def test_landmarks(tmp_path: Path, name: str, text: str, points) -> None:
    (tmp_path / name).write_text(text)
    np.testing.assert_array_equal(read_landmarks(tmp_path / name), points)


def test_elastix_indices_need_the_grid(tmp_path: Path, rng) -> None:
    (tmp_path / "a.txt").write_text("index\n1\n1 2 3\n")
    grid = grid_of((9, 9, 9), rng)
    np.testing.assert_allclose(read_landmarks(tmp_path / "a.txt", grid), grid.to_world(np.array([[3, 2, 1]])))
    with pytest.raises(ImageError, match=r"a\.txt: kind is 'index'.*Pass grid="):
        read_landmarks(tmp_path / "a.txt")


@pytest.mark.parametrize(("text", "words"), [
    ("", "number of landmarks is 0"), ("x,y,z\n", "number of landmarks is 0"), ("1,2,3\n1,two,3\n", "line 2 has 'two'"),
    ("1,2,nan\n", "line 1 has 'nan'"), ("1,2,3\n1,2\n", "line 2 has 2 columns"), ("1,2,3,4\n", "line 1 has 4 columns"),
    ("x,y,z\n1,2\n", "line 2 has ''"), ("a,b,c\n1,2,3\n", "columns are a, b, c"), ("1\n", "line 1 has 1 columns"),
])
def test_bad_landmarks(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text(text)
    with pytest.raises(ImageError, match=re.escape(f"{path}: {words}")):
        read_landmarks(path)


def test_missing_and_binary_landmarks(tmp_path: Path) -> None:
    (tmp_path / "b.csv").write_bytes(b"\xff\xfe\x00\x80")
    for name in ("a.csv", "b.csv"):
        with pytest.raises(ImageError, match=f"{name}: landmarks cannot be read"):
            read_landmarks(tmp_path / name)


@pytest.mark.parametrize(("fixed", "moving", "words"), [
    ("1,2,3\n", "1,2,3\n4,5,6\n", "b.csv: number of landmarks is 2, but {a} has 1"),
    ("1,2\n", "1,2,3\n", "a.csv: landmarks have shape (1, 2); a 3D image needs (N, 3)"),
    ("1,2,3\n", "1,2,1e300\n", "b.csv: a coordinate is 1e+300 mm"),
])
def test_landmarks_that_do_not_correspond_are_named(tmp_path: Path, fixed: str, moving: str, words: str) -> None:
    (tmp_path / "a.csv").write_text(fixed)
    (tmp_path / "b.csv").write_text(moving)
    image = Image(np.zeros((4, 5, 6)), Grid.centered((4, 5, 6), 1.0), "i.nii")
    with pytest.raises(ImageError, match=re.escape(words.format(a=tmp_path / "a.csv"))):
        corresponding((tmp_path / "a.csv", tmp_path / "b.csv"), (image, image))


@pytest.mark.parametrize("points", [np.full((2, 3), np.nan), np.full((2, 3), np.inf), np.zeros((0, 3)), np.zeros(3)])
def test_arrays_of_landmarks_are_checked_as_files_are(points: np.ndarray) -> None:
    image = Image(np.zeros((4, 5, 6)), Grid.centered((4, 5, 6), 1.0), "i.nii")
    good = np.zeros((2, 3))
    with pytest.raises(ImageError, match=r"landmarks of i\.nii"):
        corresponding((points, good), (image, image))
    np.testing.assert_array_equal(corresponding((good, good + 1), (image, image)), [good, good + 1])
