"""Points of 3D Slicer in JSON, .mrk.json (Markups schema 1.0)."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from regenv.data.io.errors import ImageError, shown
from regenv.stored import StoredError, read_json

SUFFIX = ".mrk.json"
_SCHEMA = re.compile(r".*/markups-schema-v1\.\d+(\.\d+)*\.json#?")
_TO_LPS = {"LPS": (1.0, 1.0, 1.0), "RAS": (-1.0, -1.0, 1.0)}
_MOST_BYTES = 1 << 24


def read_markups(path: Path) -> NDArray[np.float64]:
    """The control points of the one list of points (Fiducial) in a file: (N, 3), world mm, LPS, in the file's order.

    Raises ImageError: the file cannot be read or is no such file; units are not mm; a point has no position, such as
        one that was never placed: leaving it out would move all later ones against those of the other image.
    """
    try:
        found = read_json(path, _MOST_BYTES)
    except (StoredError, OSError, RecursionError) as error:
        told = str(error).removeprefix(f"{path}: ")
        raise ImageError(f"{path}: landmarks cannot be read ({shown(told)}). Save them anew in 3D Slicer.") from None
    document = _Part(path, "file", found)
    if not _SCHEMA.fullmatch(str(document.get("@schema"))):
        document.refuse("@schema", "it must be that of markups, version 1")
    lists = document.parts("markups")
    if len(lists) != 1:
        raise ImageError(f"{path}: number of markups is {len(lists)}; one list of points is needed. Save it in a file "
                         "of its own.")
    markup = lists[0]
    if markup.get("type") != "Fiducial":
        markup.refuse("type", "a list of points (Fiducial) is needed")
    signs = _TO_LPS.get(str(markup.get("coordinateSystem")))
    if signs is None:
        markup.refuse("coordinateSystem", "it must be LPS or RAS")
    if markup.get("coordinateUnits", "mm") not in ("mm", ["mm", "UCUM", "millimeter"]):
        markup.refuse("coordinateUnits", "it must be mm")
    points = markup.parts("controlPoints")
    if not points:
        raise ImageError(f"{path}: number of landmarks is 0; at least one is needed. Check the export.")
    return np.array([_position(point) for point in points]) * signs


def _position(point: _Part) -> list[float]:
    """The three numbers of a point. Raises ImageError where it has none."""
    if point.get("positionStatus", "defined") != "defined":
        point.refuse("positionStatus", f"point {shown(point.get('label', ''))!r} has no position; place it, or remove "
                                       "it here and from the other image's points")
    position = point.get("position")
    if not isinstance(position, list) or len(position) != 3 or not all(
            type(each) in (int, float) and math.isfinite(float(each)) for each in position):
        point.refuse("position", "it must be three finite numbers")
    return [float(each) for each in position]


class _Part:
    """An object of the file; ``name`` says where it stands."""

    def __init__(self, path: Path, name: str, value: Any) -> None:
        if not isinstance(value, dict):
            raise ImageError(f"{path}: {name} is {shown(value)}; it must be a JSON object. Save the points anew in 3D "
                             "Slicer.")
        self.path, self.name, self.get = path, name, value.get

    def parts(self, key: str) -> list[_Part]:
        """The objects in a list."""
        found = self.get(key)
        if not isinstance(found, list):
            self.refuse(key, "it must be a list")
        return [_Part(self.path, f"{key}[{number}]", each) for number, each in enumerate(found)]

    def refuse(self, key: str, demand: str) -> NoReturn:
        """Raise ImageError for a value."""
        raise ImageError(f"{self.path}: {key} of {self.name} is {shown(self.get(key))}; {demand}.")
