"""Landmarks: every layout is understood, and every bad file is one clear error."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from regenv.data.io.errors import ImageError
from regenv.data.io.landmarks import read_landmarks
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
