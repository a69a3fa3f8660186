"""The JSON beside a transform: what it maps to what, and the two images' places.

``transform.json`` belongs to ``transform.tfm`` and ``transform.h5``. It tells people and programs; no transform is read
otherwise without it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

from regenv.atomic import atomic
from regenv.data.io.images import Image
from regenv.data.io.transform_files import FIELDS, TRANSFORMS
from regenv.stored import StoredError, read_json

FORWARD = "points of the fixed image to points of the moving image, mm, LPS"
BACKWARD = "points of the moving image to points of the fixed image, mm, LPS"


class Place(TypedDict):
    """An image's file and grid, as SimpleITK prints it: mm, ITK order (x, y[, z])."""

    path: str
    size: list[int]
    spacing: list[float]
    origin: list[float]
    direction: list[float]


def place(image: Image) -> Place:
    grid = image.grid
    return {"path": image.path, "size": list(grid.size), "spacing": list(grid.spacing), "origin": list(grid.origin),
            "direction": list(grid.direction)}


def statement(fixed: Image, moving: Image, files: Mapping[str, str]) -> dict[str, Any]:
    """What a registration's files are. Args: files: what each is, by name."""
    return {"maps": FORWARD, "files": dict(files), "fixed": place(fixed), "moving": place(moving)}


def beside(path: str | Path) -> Path:
    """The name of a transform's JSON."""
    path = Path(path)
    suffix = next((suffix for suffix in sorted((*FIELDS, *TRANSFORMS), key=len, reverse=True)
                   if path.name.lower().endswith(suffix)), path.suffix)
    return path.with_name(path.name[:len(path.name) - len(suffix)] + ".json")


def read_statement(path: str | Path) -> dict[str, Any] | None:
    """What is stated of a transform's file, beside it or in its folder's ``transform.json``; None where nothing is."""
    for file in (beside(path), Path(path).with_name("transform.json")):
        try:
            content = read_json(file)
        except (StoredError, OSError):
            continue
        if _is_statement(content) and Path(path).name in content["files"]:
            return dict(content)
    return None


def _is_statement(content: Any) -> bool:
    return isinstance(content, dict) and isinstance(content.get("maps"), str) and isinstance(content.get("files"), dict)


def check_free(path: str | Path) -> None:
    """Raise ValueError where a transform's JSON would replace a file that is no statement."""
    file = beside(path)
    if file.exists():
        try:
            mine = _is_statement(read_json(file))
        except (StoredError, OSError):
            mine = False
        if not mine:
            raise ValueError(f"{file}: it is there, and would be replaced by what is stated of {Path(path).name}. "
                             "Choose another -o.")


def write_statement(path: str | Path, content: Mapping[str, Any]) -> Path:
    """Write what is stated of a transform's file. Returns where."""
    file = beside(path)
    with atomic(file) as temporary:
        temporary.write_text(text(content))
    return file


def text(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2, allow_nan=False) + "\n"
