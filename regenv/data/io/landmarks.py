"""Landmarks on disk."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from regenv.data.io.headers import ImageError
from regenv.grid import Grid


def read_landmarks(path: str | Path, grid: Grid | None = None) -> np.ndarray:
    """Read points.

    CSV with or without a line of names (columns x, y[, z] are found by name), 3D Slicer's .fcsv (RAS is turned into
    LPS), or text with one point a line; elastix's two lines "point" or "index" and the count are understood.

    Args:
        path: the file.
        grid: the image's grid; needed for elastix files of voxel indices only.

    Returns:
        (N, D) float64, world mm, LPS.

    Raises:
        ImageError: the file is missing or empty, a number is not one, or the columns are not 2 or 3.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ImageError(f"{path}: landmarks cannot be read ({error}). Give a text file with x, y[, z] in mm.") \
            from error
    comments = " ".join(line for line in lines if line.lstrip().startswith("#"))
    rows = [(i, [t.strip() for t in next(csv.reader([line]))] if "," in line else line.split())
            for i, line in enumerate(lines, 1) if line.strip() and not line.lstrip().startswith("#")]
    indices = False
    if rows and [t.lower() for t in rows[0][1]] in (["point"], ["index"]):
        indices = rows[0][1][0].lower() == "index"
        rows = rows[2:]
    columns: Sequence[int] | None = range(1, 4) if path.suffix.lower() == ".fcsv" else None
    if columns is None and rows and not any(map(_is_number, rows[0][1])):
        names = [t.lower() for t in rows.pop(0)[1]]
        columns = [names.index(axis) for axis in "xyz" if axis in names]
        if len(columns) < 2:
            raise ImageError(f"{path}: columns are {', '.join(names)}; x, y[, z] are needed. Rename them.")
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
    found = np.asarray(points, dtype=np.float64)
    if indices:
        if grid is None or grid.ndim != found.shape[1]:
            raise ImageError(f"{path}: kind is 'index' with {found.shape[1]} columns; voxel indices need the image "
                             "they belong to. Pass grid=..., or save world points.")
        return grid.to_world(found[:, ::-1])
    if path.suffix.lower() == ".fcsv" and not re.search(r"CoordinateSystem\s*=\s*(LPS|1)\b", comments):
        found[:, :2] *= -1
    return found


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
