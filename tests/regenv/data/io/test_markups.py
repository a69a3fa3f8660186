"""Points of 3D Slicer in JSON: both coordinate systems are understood, and every other or bad file is one error."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from regenv.data.io.errors import ImageError
from regenv.data.io.landmarks import read_landmarks

SCHEMA = ("https://raw.githubusercontent.com/slicer/slicer/master/Modules/Loadable/Markups/Resources/Schema/"
          "markups-schema-v1.0.3.json#")


def point(*position: float, **other: Any) -> dict[str, Any]:
    return {"id": "1", "label": "F-1", "position": list(position), "orientation": [-1.0, -0.0, -0.0], "selected": True,
            "positionStatus": "defined", **other}


def markup(**other: Any) -> dict[str, Any]:
    """A list of two points as 3D Slicer writes it."""
    return {"type": "Fiducial", "coordinateSystem": "LPS", "coordinateUnits": "mm", "locked": False,
            "controlPoints": [point(1.0, 2.5, -3.0), point(4, 5, 6)], "display": {"opacity": 1.0}, **other}


def saved(path: Path, *markups: Any, **other: Any) -> Path:
    path.write_text(json.dumps({"@schema": SCHEMA, "markups": list(markups), **other}))
    return path


@pytest.mark.parametrize(("system", "signs"), [("LPS", (1, 1, 1)), ("RAS", (-1, -1, 1))])
def test_points_are_in_lps(tmp_path: Path, system: str, signs: tuple[int, ...]) -> None:
    points = read_landmarks(saved(tmp_path / "F.mrk.json", markup(coordinateSystem=system)))
    np.testing.assert_array_equal(points, np.array([[1, 2.5, -3], [4, 5, 6]]) * signs)


def test_fields_that_older_versions_leave_out(tmp_path: Path) -> None:
    older = markup()
    del older["coordinateUnits"], older["controlPoints"][0]["positionStatus"]
    assert read_landmarks(saved(tmp_path / "F.mrk.json", older)).shape == (2, 3)


@pytest.mark.parametrize(("changed", "words"), [
    ({"type": "Curve"}, "type of markups[0] is Curve"),
    ({"coordinateSystem": "IJK"}, "coordinateSystem of markups[0] is IJK"),
    ({"coordinateSystem": None}, "coordinateSystem of markups[0] is None"),
    ({"coordinateUnits": "cm"}, "coordinateUnits of markups[0] is cm"),
    ({"controlPoints": []}, "number of landmarks is 0"),
    ({"controlPoints": 3}, "controlPoints of markups[0] is 3; it must be a list"),
    ({"controlPoints": [3]}, "controlPoints[0] is 3; it must be a JSON object"),
    ({"controlPoints": [point(1, 2, 3), point(1, 2)]}, "position of controlPoints[1] is [1, 2]"),
    ({"controlPoints": [point(1, 2, True)]}, "position of controlPoints[0]"),
    ({"controlPoints": [point(1, 2, 3, position="1 2 3")]}, "position of controlPoints[0] is 1 2 3"),
    ({"controlPoints": [point(0, 0, 0, positionStatus="undefined", label="tip")]},
     "positionStatus of controlPoints[0] is undefined; point 'tip' has no position"),
    ({"controlPoints": [point(1, 2, 3, positionStatus="missing")]}, "positionStatus of controlPoints[0] is missing"),
])
def test_what_is_no_list_of_points_is_named(tmp_path: Path, changed: dict[str, Any], words: str) -> None:
    path = saved(tmp_path / "F.mrk.json", markup(**changed))
    with pytest.raises(ImageError, match=re.escape(f"{path}: {words}")):
        read_landmarks(path)


@pytest.mark.parametrize(("text", "words"), [
    ("", "not JSON"), ("[]", "file is []"), ("{}", "@schema of file is None"),
    ('{"@schema": "x/markups-schema-v2.0.json#"}', "@schema of file is x/markups"), ("[" * 100_000, "not JSON"),
    (json.dumps({"@schema": SCHEMA}), "markups of file is None"),
    (json.dumps({"@schema": SCHEMA, "markups": [{}, {}]}), "number of markups is 2"),
    (json.dumps({"@schema": SCHEMA, "markups": [markup()]}).replace("2.5", "NaN"), "not JSON"),
    (json.dumps({"@schema": SCHEMA, "markups": [markup()]}).replace("2.5", "1e999"), "not finite"),
    (json.dumps({"@schema": SCHEMA, "markups": [markup()]}).replace("2.5", "9" * 5000), "5000 digits"),
])
def test_bad_files_are_one_line(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "F.mrk.json"
    path.write_text(text)
    with pytest.raises(ImageError, match=re.escape(words)) as caught:
        read_landmarks(path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_missing_and_endless_files(tmp_path: Path) -> None:
    (tmp_path / "zero.mrk.json").symlink_to("/dev/zero")
    for name in ("a.mrk.json", "zero.mrk.json"):
        with pytest.raises(ImageError, match=f"{name}: landmarks cannot be read"):
            read_landmarks(tmp_path / name)
