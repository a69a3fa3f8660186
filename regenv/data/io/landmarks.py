"""Landmarks on disk."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from regenv.data.io.errors import ImageError, shown
from regenv.data.io.formats.streams import first_bytes
from regenv.data.io.markups import SUFFIX, read_markups
from regenv.grid import Grid

if TYPE_CHECKING:
    from regenv.data.io.images import Image

PointsLike: TypeAlias = "str | Path | NDArray[np.float64]"
FARTHEST_MM = 1e9                   # of a coordinate; its square still is a number
_MOST_BYTES = 1 << 24               # of a file
_Row = tuple[int, list[str]]        # a line's number, from 1, and its cells
_SLICER_COLUMNS = range(1, 4)       # of an .fcsv file, where x, y and z stand
_SLICER_LPS = re.compile(r"CoordinateSystem\s*=\s*(LPS|1)\b")


def read_landmarks(path: str | Path, grid: Grid | None = None) -> NDArray[np.float64]:
    """Read points.

    CSV with or without a line of names (columns x, y[, z] are found by name), 3D Slicer's .mrk.json and .fcsv (RAS is
    turned into LPS), or text with one point a line; elastix's two lines "point" or "index" and the count are
    understood.

    Args:
        path: the file.
        grid: the image's grid; needed for elastix files of voxel indices only.

    Returns:
        (N, D) float64, world mm, LPS.

    Raises:
        ImageError: the file is missing or empty, a number is not one, or the columns are not 2 or 3; a point of
            3D Slicer has no position.
    """
    path = Path(path)
    if path.name.lower().endswith(SUFFIX):
        return read_markups(path)
    lines = _lines(path)
    kind, rows = _without_elastix_head(_rows(lines))
    slicer = path.suffix.lower() == ".fcsv"
    columns, rows = (_SLICER_COLUMNS, rows) if slicer else _without_names(path, rows)
    points = _points(path, rows, columns)
    if kind == "index":
        return _indices_to_world(path, points, grid)
    if slicer and not _SLICER_LPS.search(_comments(lines)):
        points[:, :2] *= -1
    return points


def corresponding(given: Sequence[PointsLike], images: Sequence[Image]) -> list[NDArray[np.float64]]:
    """Landmarks of the fixed and of the moving image, row n of one where row n of the other is: (N, D), world mm.

    Args: given: two files, or arrays (N, D).
    Raises ImageError: as :func:`read_landmarks`; columns that do not fit the image, other numbers of points in the two,
        none at all, or coordinates that are not finite.
    """
    found, names = [], []
    for points, image in zip(given, images, strict=True):
        if isinstance(points, (str, Path)):
            names.append(str(points))
            array = read_landmarks(points, image.grid)
        else:
            names.append(f"landmarks of {image.path}")
            array = np.asarray(points, dtype=np.float64)
        if array.ndim != 2 or array.shape[1] != image.ndim or len(array) == 0:
            raise ImageError(f"{names[-1]}: landmarks have shape {array.shape}; a {image.ndim}D image needs "
                             f"(N, {image.ndim}), at least one point.")
        if not (np.abs(array) <= FARTHEST_MM).all():
            worst = array[~(np.abs(array) <= FARTHEST_MM)][0]
            raise ImageError(f"{names[-1]}: a coordinate is {worst:g} mm; all must be finite, and at most "
                             f"{FARTHEST_MM:g}. Check where they come from.")
        found.append(array)
    if len(found[0]) != len(found[1]):
        raise ImageError(f"{names[1]}: number of landmarks is {len(found[1])}, but {names[0]} has {len(found[0])}; "
                         "line n of one must correspond to line n of the other.")
    return found


def _lines(path: Path) -> list[str]:
    try:
        text = first_bytes(path, _MOST_BYTES + 1)
        if len(text) > _MOST_BYTES:
            raise ValueError(f"more than {_MOST_BYTES} bytes")
        return text.decode("utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise ImageError(f"{path}: landmarks cannot be read ({shown(error)}). Give a text file with x, y[, z] in mm.") \
            from None


def _rows(lines: list[str]) -> list[_Row]:
    """The lines that are neither empty nor comments, split at commas, or else at blanks."""
    return [(number, _cells(line)) for number, line in enumerate(lines, 1)
            if line.strip() and not line.lstrip().startswith("#")]


def _cells(line: str) -> list[str]:
    try:
        return [cell.strip() for cell in next(csv.reader([line]))] if "," in line else line.split()
    except csv.Error:       # a cell that is too long; no number is
        return [line]


def _comments(lines: list[str]) -> str:
    return " ".join(line for line in lines if line.lstrip().startswith("#"))


def _without_elastix_head(rows: list[_Row]) -> tuple[str | None, list[_Row]]:
    """The kind of points that an elastix file names in its first line ("point" or "index"), and the rows after the
    second one, their number; None and all rows for other files."""
    first = [cell.lower() for cell in rows[0][1]] if rows else []
    return (first[0], rows[2:]) if first in (["point"], ["index"]) else (None, rows)


def _without_names(path: Path, rows: list[_Row]) -> tuple[Sequence[int] | None, list[_Row]]:
    """The columns x, y[, z] that the first row names, and the rows after it; None and all rows where it has numbers."""
    if not rows or any(map(_is_number, rows[0][1])):
        return None, rows
    names = [cell.lower() for cell in rows[0][1]]
    columns = [names.index(axis) for axis in "xyz" if axis in names]
    if len(columns) < 2:
        raise ImageError(f"{path}: columns are {', '.join(names)}; x, y[, z] are needed. Rename them.")
    return columns, rows[1:]


def _points(path: Path, rows: list[_Row], columns: Sequence[int] | None) -> NDArray[np.float64]:
    """Some columns of the rows, None for all, as points (N, D)."""
    if not rows:
        raise ImageError(f"{path}: number of landmarks is 0; at least one is needed. Check the export.")
    points: list[list[float]] = []
    for number, cells in rows:
        picked = cells if columns is None else [cells[c] if c < len(cells) else "" for c in columns]
        width = len(points[0]) if points else len(picked)
        if len(picked) not in (2, 3) or len(picked) != width:
            raise ImageError(f"{path}: line {number} has {len(picked)} columns; x, y[, z] in mm are needed, as many on "
                             "every line. Fix the line.")
        for cell in picked:
            if not _is_number(cell) or not math.isfinite(float(cell)):
                raise ImageError(f"{path}: line {number} has '{cell}'; every coordinate must be a finite number. "
                                 "Fix the line.")
        points.append([float(cell) for cell in picked])
    return np.asarray(points, dtype=np.float64)


def _indices_to_world(path: Path, indices: NDArray[np.float64], grid: Grid | None) -> NDArray[np.float64]:
    """Voxel indices (N, D), ITK order, as world points, mm."""
    if grid is None or grid.ndim != indices.shape[1]:
        raise ImageError(f"{path}: kind is 'index' with {indices.shape[1]} columns; voxel indices need the image "
                         "they belong to. Pass grid=..., or save world points.")
    return grid.to_world(indices[:, ::-1])


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
