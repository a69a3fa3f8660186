"""Headers of NRRD files."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from regenv.data.io.errors import ImageError, truncated
from regenv.data.io.formats.common import detached_bytes, first_bytes, is_one_file, is_singular, numbers
from regenv.data.io.headers import Header

_BYTES = {"signed char": 1, "char": 1, "uchar": 1, "unsigned char": 1, "short": 2, "ushort": 2, "int": 4, "uint": 4,
          "long long": 8, "longlong": 8, "ulonglong": 8, "float": 4, "double": 8}
_SPATIAL = ("domain", "space", "???", "none", "")
_FIELD = re.compile(r"^([^#:\r\n][^:\r\n]*):[ \t]*(.*?)\s*$", re.MULTILINE)


def header(path: Path) -> Header:
    """The header of a NRRD file. Raises ImageError where it cannot be read."""
    raw = _header_bytes(path)
    values = {key.strip().lower(): value for key, value in _FIELD.findall(raw.decode("latin-1"))}
    itemsize = _itemsize(path, values.get("type", ""))
    sizes = [int(n) for n in numbers(path, "sizes", values.get("sizes"))]
    vectors = re.findall(r"\([^)]*\)|none", values.get("space directions", ""))
    spatial = _spatial(values, vectors, len(sizes))
    size = tuple(n for n, inside in zip(sizes, spatial, strict=True) if inside)
    channels = math.prod(n for n, inside in zip(sizes, spatial, strict=True) if not inside)
    directions = [numbers(path, "space directions", v.strip("()").replace(",", " ")) for v in vectors if v != "none"]
    spacing_field, spacing = _spacing(path, values, directions, spatial)
    parsed = _NRRD(path, raw, values, size, math.prod(sizes) * itemsize, directions, spatial)
    return Header(("sizes", "values per voxel (kinds)", spacing_field), size, channels, itemsize, spacing,
                  parsed.check_data, parsed.check_direction, None if directions else parsed.repair)


def _header_bytes(path: Path) -> bytes:
    """A file up to the empty line after its header; all of it where the data is in another file."""
    raw = first_bytes(path)
    end = re.search(rb"\r?\n\r?\n", raw)
    if not raw.startswith(b"NRRD000") or (end is None and path.suffix.lower() == ".nrrd"):
        raise ImageError(f"{path}: header is not NRRD (it starts with {raw[:8]!r}); it must be a NRRD file. "
                         "Convert it, or give it the suffix of its real format.")
    return raw if end is None else raw[:end.end()]


def _itemsize(path: Path, kind: str) -> int:
    """Bytes of one number of a type."""
    itemsize = _BYTES.get(re.sub(r"^(signed|unsigned) (?!char)| int$", "", kind))
    if itemsize is None and (match := re.fullmatch(r"u?int(8|16|32|64)(_t)?", kind)):
        itemsize = int(match.group(1)) // 8
    if itemsize is None:
        raise ImageError(f"{path}: type is '{kind}'; it must be an integer or float type. Convert the image to float.")
    return itemsize


def _spatial(values: dict[str, str], vectors: list[str], axes: int) -> list[bool]:
    """Of each axis whether it lies in space; the others hold the numbers of a voxel."""
    kinds = (values.get("kinds", "").split() + [""] * axes)[:axes]
    return [kind.lower() in _SPATIAL and (not vectors or vector != "none")
            for kind, vector in zip(kinds, (vectors + [""] * axes)[:axes], strict=True)]


def _spacing(path: Path, values: dict[str, str], directions: list[list[float]], spatial: list[bool],
             ) -> tuple[str, tuple[float, ...] | None]:
    """The field that gives the spacing, for messages, and the spacing, mm; None where no field does."""
    if directions:
        return "space directions (lengths)", tuple(float(np.linalg.norm(v)) for v in directions)
    if "spacings" not in values:
        return "spacings", None
    stated = numbers(path, "spacings", values["spacings"])
    return "spacings", tuple(s for s, inside in zip(stated, spatial, strict=False) if inside)


@dataclass(frozen=True)
class _NRRD:
    """A parsed header: its bytes and fields, voxels and bytes of all voxels, vectors and kinds of the axes."""

    path: Path
    raw: bytes
    values: dict[str, str]
    size: tuple[int, ...]
    data_bytes: int
    directions: list[list[float]]
    spatial: list[bool]

    @property
    def data_file(self) -> str | None:
        return self.values.get("data file", self.values.get("datafile"))

    def check_data(self) -> None:
        if self.values.get("encoding", "raw") != "raw":
            return
        if self.data_file is None:
            found = self.path.stat().st_size - len(self.raw)
        elif not is_one_file(self.data_file):
            return
        else:
            found = detached_bytes(self.path, "data file", self.data_file)
        if found < self.data_bytes:
            raise truncated(self.path, "voxel data", found, self.data_bytes)

    def check_direction(self, spacing_given: bool) -> None:
        n = len(self.size)
        if self.directions and (len({len(v) for v in self.directions} | {n}) > 1
                                or is_singular(np.array(self.directions).T)):
            raise ImageError(f"{self.path}: space directions is {self.values['space directions']}; it must be a "
                             f"{n} x {n} matrix that is not singular. Fix the header.")

    def repair(self, target: Path, spacing: Sequence[float]) -> None:
        each = iter(spacing)
        line = "spacings: " + " ".join(repr(next(each)) if inside else "nan" for inside in self.spatial)
        mended = re.sub(rb"^spacings:[^\r\n]*", line.encode(), self.raw, flags=re.MULTILINE)
        if self.data_file:
            data_file = str(self.path.parent.resolve() / self.data_file)
            mended = mended.replace(self.data_file.encode(), data_file.encode())
        target.write_bytes(mended + self.path.read_bytes()[len(self.raw):])
