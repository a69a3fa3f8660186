"""NRRD files, .nrrd and .nhdr."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from regenv.data.io import headers
from regenv.data.io.errors import ImageError, shown
from regenv.data.io.formats.streams import (
    HEADER_LIMIT,
    INFLATION,
    array_of,
    filled,
    first_bytes,
    inflated,
    opened,
    plain,
    text_voxels,
)
from regenv.data.io.formats.text import Fields, beside, numbers
from regenv.data.io.headers import Header

_TYPES = {"i1": "signed char, int8, int8_t", "u1": "uchar, unsigned char, uint8, uint8_t",
          "i2": "short, short int, signed short, signed short int, int16, int16_t",
          "u2": "ushort, unsigned short, unsigned short int, uint16, uint16_t",
          "i4": "int, signed int, int32, int32_t", "u4": "uint, unsigned int, uint32, uint32_t",
          "i8": "longlong, long long, long long int, signed long long, signed long long int, int64, int64_t",
          "u8": "ulonglong, unsigned long long, unsigned long long int, uint64, uint64_t",
          "f4": "float", "f8": "double"}
_CODES = {name: code for code, names in _TYPES.items() for name in names.split(", ")}
_ENCODINGS = {"raw": "raw", "gzip": "gzip", "gz": "gzip", "ascii": "text", "text": "text", "txt": "text", "hex": "hex"}
# Signs of the axes that lead from a space to LPS. ITK takes the spaces without anatomy as they are.
_SPACES = {"left-posterior-superior": (1, 1, 1), "lps": (1, 1, 1), "right-anterior-superior": (-1, -1, 1),
           "ras": (-1, -1, 1), "left-anterior-superior": (1, -1, 1), "las": (1, -1, 1), "scanner-xyz": (1, 1, 1),
           "3d-right-handed": (1, 1, 1), "3d-left-handed": (1, 1, 1)}
_SPACES_IN_TIME = {name + ("-time" if "-" in name else "t"): signs for name, signs in _SPACES.items()}
_TIMES = ("time", "list")       # kinds of an axis of volumes
_SPATIAL = ("domain", "space", "???", "none", "")
_KINDS = (*_SPATIAL, "time", "list", "point", "vector", "covariant-vector", "normal", "stub", "scalar", "complex",
          "2-vector", "3-color", "rgb-color", "hsv-color", "xyz-color", "4-color", "rgba-color", "3-vector",
          "3-gradient", "3-normal", "4-vector", "quaternion", "2d-symmetric-matrix", "2d-masked-symmetric-matrix",
          "2d-matrix", "2d-masked-matrix", "3d-symmetric-matrix", "3d-masked-symmetric-matrix", "3d-matrix",
          "3d-masked-matrix")
_MILLIMETRES = {"": 1.0, "mm": 1.0, "millimeter": 1.0, "millimeters": 1.0, "um": 1e-3, "µm": 1e-3, "micron": 1e-3,
                "microns": 1e-3, "micrometer": 1e-3, "micrometers": 1e-3, "nm": 1e-6, "cm": 10.0, "m": 1e3}
_SYNONYMS = {"centerings": "centers", "datafile": "data file", "lineskip": "line skip", "byteskip": "byte skip",
             "sampleunits": "sample units", "axismins": "axis mins", "axismaxs": "axis maxs", "blocksize": "block size",
             "oldmin": "old min", "oldmax": "old max"}
_IGNORED = ("content", "number", "sample units", "min", "max", "old min", "old max", "thicknesses", "labels",
            "measurement frame", "centers")
_KNOWN = (*_IGNORED, "type", "dimension", "sizes", "encoding", "endian", "space", "space dimension",
          "space directions", "space origin", "space units", "spacings", "axis mins", "units", "kinds", "data file",
          "line skip", "byte skip")
_MAGIC = re.compile(rb"NRRD000[1-5]\r?\n")


def header(path: Path, max_bytes: int, time: int | None) -> Header:
    """The header of a NRRD file, of one volume if it has several. Raises ImageError where it is not one of a scalar
    image, or is damaged."""
    fields, end = _fields(path)
    dtype = _dtype(fields)
    sizes = fields.integers("sizes")
    if fields.integers("dimension", 1) != [len(sizes)]:
        fields.refuse("dimension", f"sizes has {len(sizes)} numbers")
    vectors = re.findall(r"\([^()]*\)|none", fields.get("space directions", ""))
    spatial = _spatial(fields, vectors, len(sizes))
    axis = _time_axis(fields, spatial)
    times = 1 if axis is None else sizes[axis]
    volume = headers.volume_number(path, "sizes", sizes, times, time)
    timed = axis is not None and bool(vectors) and vectors[axis] != "none"
    spatial = [inside and each != axis for each, inside in enumerate(spatial)]
    size = tuple(n for n, inside in zip(sizes, spatial, strict=True) if inside)
    headers.check_channels(path, "values per voxel (kinds)", math.prod(
        n for each, (n, inside) in enumerate(zip(sizes, spatial, strict=True)) if not inside and each != axis))
    headers.check_size(path, "sizes", size, dtype.itemsize, max_bytes)
    field, spacing, origin, direction = _place(fields, vectors, spatial, timed)
    voxels = _Voxels(fields, end, size, dtype, volume, times, times > 1 and axis == 0)
    voxels.check_fields(max_bytes)
    return Header(size, spacing, origin, direction, voxels.read, field)


def _fields(path: Path) -> tuple[Fields, int]:
    """The fields, their names in lower case, and the bytes up to the empty line after them."""
    raw = first_bytes(path)
    end = re.search(rb"\r?\n\r?\n", raw)
    if not _MAGIC.match(raw) or (end is None and (path.suffix.lower() == ".nrrd" or len(raw) == HEADER_LIMIT)):
        raise ImageError(f"{path}: header is not NRRD (it starts with {raw[:8]!r}); it must be a NRRD file. "
                         "Convert it, or give it the suffix of its real format.")
    used = len(raw) if end is None else end.end()
    fields = Fields(path)
    for line in re.split(r"\r?\n", raw[:used].decode("latin-1"))[1:]:
        name, colon, value = line.partition(":")
        if not line.strip() or line.startswith("#") or value.startswith("="):       # a comment, or a key's value
            continue
        name = _SYNONYMS.get(name.strip().lower(), name.strip().lower())
        if not colon or name not in _KNOWN:
            raise ImageError(f"{path}: header has the line '{shown(line)}', which is no field that is supported. "
                             "Fix the header.")
        fields.add(name, value.strip())
    return fields, used


def _dtype(fields: Fields) -> np.dtype[Any]:
    code = _CODES.get(fields.get("type", "").lower())
    if code is None:
        raise ImageError(f"{fields.path}: type is '{shown(fields.get('type'))}'; it must be an integer or float type. "
                         "Convert the image to float.")
    needed = code[1] != "1" and _ENCODINGS.get(fields.get("encoding", "").lower()) != "text"
    order = fields.choice("endian", ("little", "big"), "" if needed else "little")
    return np.dtype((">" if order == "big" else "<") + code)


def _words(fields: Fields, name: str, axes: int) -> list[str]:
    """A word for each axis, empty ones where the field is missing; quotation marks are removed."""
    if name not in fields:
        return [""] * axes
    words = [word.strip('"').lower() for word in re.findall(r'"[^"]*"|[^\s"]+', fields[name])]
    if len(words) != axes:
        fields.refuse(name, f"it must have {axes} words")
    return words


def _spatial(fields: Fields, vectors: list[str], axes: int) -> list[bool]:
    """Of each axis whether it lies in space; the others hold the numbers of a voxel."""
    kinds = _words(fields, "kinds", axes)
    if any(kind not in _KINDS for kind in kinds):
        fields.refuse("kinds", "it must have words that NRRD defines")
    if "space directions" in fields and (len(vectors) != axes or re.sub(r"\([^()]*\)|none|\s", "",
                                                                        fields["space directions"])):
        fields.refuse("space directions", f"it must have {axes} vectors")
    return [kind in _SPATIAL and vector != "none" for kind, vector in zip(kinds, vectors or kinds, strict=True)]


def _time_axis(fields: Fields, spatial: list[bool]) -> int | None:
    """The axis of volumes: one that the kinds call time or list, or the last of four in space; None without one.
    Raises ImageError for one between others."""
    kinds = _words(fields, "kinds", len(spatial))
    found = [axis for axis, kind in enumerate(kinds) if kind in _TIMES] or ([3] if spatial == [True] * 4 else [])
    if len(found) > 1 or (found and found[0] not in (0, len(spatial) - 1)):
        fields.refuse("kinds", "volumes must follow one axis, the first or the last one")
    return found[0] if found else None


def _place(fields: Fields, vectors: list[str], spatial: list[bool], timed: bool,
           ) -> tuple[str, tuple[float, ...] | None, tuple[float, ...], tuple[float, ...]]:
    """The spacing's field, spacing, origin and direction: in a space, or without one.

    Args: timed: whether the space has a last axis more, which is time.
    """
    spaces = [name for name in ("space", "space dimension") if name in fields]
    if len(spaces) == 2:
        fields.refuse("space dimension", "space says it already")
    if not spaces:
        return _spaceless(fields, spatial)
    n = sum(spatial)
    signs = np.ones(n)
    if spaces == ["space"]:
        known = _SPACES_IN_TIME if timed else _SPACES
        signs = np.asarray(known[fields.choice("space", known, "")], dtype=np.float64)
    axes = n + timed
    if len(signs) != n or (spaces == ["space dimension"] and fields.integers("space dimension", 1) != [axes]):
        fields.refuse(spaces[0], f"the image has {axes} axes in space")
    for name in ("spacings", "axis mins", "units"):
        if name in fields:
            fields.refuse(name, "in a space, NRRD has space directions, space origin and space units instead")
    given = [vector for vector, inside in zip(vectors, spatial, strict=True) if inside] if vectors else []
    if len(given) != n:
        fields.refuse("space directions", f"it must have {n} vectors in space")
    unit = _unit(fields, "space units", _words(fields, "space units", axes)[:n])
    matrix = np.array([_vector(fields, "space directions", vector, axes) for vector in given])
    if matrix[:, n:].any():
        fields.refuse("space directions", "the axis of time must stand alone")
    columns = signs[:, None] * matrix[:, :n].T
    lengths = np.hypot.reduce(columns, axis=0)     # which does not overflow
    spacing = tuple((unit * lengths).tolist())
    headers.check_spacing(fields.path, "space directions (lengths)", spacing)
    direction = headers.check_direction(fields.path, "space directions", shown(fields["space directions"]),
                                        columns / lengths)
    origin = np.zeros(n)
    if "space origin" in fields:
        origin = unit * signs * _vector(fields, "space origin", fields["space origin"], axes)[:n]
        headers.check_origin(fields.path, "space origin", origin.tolist())
    return "space directions", spacing, tuple(origin.tolist()), direction


def _spaceless(fields: Fields, spatial: list[bool],
               ) -> tuple[str, tuple[float, ...] | None, tuple[float, ...], tuple[float, ...]]:
    """The place of an image in no named space: spacings along the axes, and the least coordinates of voxels, which are
    cells unless ``centers`` says node."""
    for name in ("space directions", "space origin", "space units"):
        if name in fields:
            fields.refuse(name, "without the field space it has no meaning")
    n = sum(spatial)
    spacing, origin = None, np.zeros(n)
    inside = np.flatnonzero(spatial)
    unit = _unit(fields, "units", [_words(fields, "units", len(spatial))[axis] for axis in inside])
    if "spacings" in fields:
        spacing = tuple(unit * s for s in _per_axis(fields, "spacings", len(spatial), inside))
        headers.check_spacing(fields.path, "spacings", spacing)
    if "axis mins" in fields:
        centers = _words(fields, "centers", len(spatial))
        if spacing is None:
            fields.refuse("axis mins", "it needs spacings")
        half = [0.0 if centers[axis] == "node" else s / 2 for axis, s in zip(inside, spacing or (), strict=True)]
        origin = unit * np.asarray(_per_axis(fields, "axis mins", len(spatial), inside)) + half
        headers.check_origin(fields.path, "axis mins", origin.tolist())
    return "spacings", spacing, tuple(origin.tolist()), tuple(np.eye(n).ravel().tolist())


def _unit(fields: Fields, name: str, words: list[str]) -> float:
    """Millimetres in the one unit of all axes."""
    if len(set(words)) > 1 or words[0] not in _MILLIMETRES:
        fields.refuse(name, "it must be one unit of length for all axes, such as mm or um")
    return _MILLIMETRES[words[0]]


def _vector(fields: Fields, name: str, text: str, n: int) -> NDArray[np.float64]:
    if not re.fullmatch(r"\([^()]*\)", text):
        fields.refuse(name, f"it must be {n} numbers in parentheses")
    return np.asarray(numbers(fields.path, name, text[1:-1].replace(",", " "), n))


def _per_axis(fields: Fields, name: str, axes: int, inside: NDArray[Any]) -> list[float]:
    """The numbers of a field on the axes in space; the other axes have none, written NaN."""
    words = fields[name].split()
    if len(words) != axes:
        fields.refuse(name, f"it must have {axes} numbers")
    return numbers(fields.path, name, " ".join(words[axis] for axis in inside), len(inside))


@dataclass(frozen=True)
class _Voxels:
    """Where the voxels are: the header's fields and length, their size and type, which volume of how many, and whether
    the volumes are interleaved."""

    fields: Fields
    header_bytes: int
    size: tuple[int, ...]
    dtype: np.dtype[Any]
    volume: int
    volumes: int
    interleaved: bool

    @property
    def encoding(self) -> str:
        return _ENCODINGS[self.fields.choice("encoding", _ENCODINGS, "")]

    def _skip(self, name: str) -> int:
        return self.fields.integers(name, 1)[0] if name in self.fields else 0

    @property
    def is_whole(self) -> bool:
        """Whether all volumes are read to take one."""
        return self.interleaved or self.encoding == "text"

    def check_fields(self, max_bytes: int) -> None:
        """Raise ImageError where the fields say something that is not supported."""
        needed = math.prod(self.size) * self.dtype.itemsize * self.volumes
        if self.is_whole and self.volumes > 1 and needed > max_bytes:
            self.fields.refuse("sizes", f"all volumes are {needed / 2**30:.3g} GiB, and must be read to take one; the "
                                        f"limit is {max_bytes / 2**30:.3g} GiB")
        encoding, fields = self.encoding, self.fields
        if not 0 <= self._skip("line skip") <= HEADER_LIMIT:
            fields.refuse("line skip", "it must be a number of lines")
        if not -(encoding == "raw" or self._is_detached) <= self._skip("byte skip") <= HEADER_LIMIT:
            fields.refuse("byte skip", "it must be a number of bytes, or -1 for raw voxels at the end of the file")
        if self._is_detached and (fields["data file"].split() or ["LIST"])[0].upper() == "LIST":
            fields.refuse("data file", "lists of slices are not supported; give one file")

    @property
    def _is_detached(self) -> bool:
        return "data file" in self.fields

    def read(self) -> NDArray[Any]:
        """All voxels of the volume. Raises ImageError unless all volumes are there, undamaged, and nothing else."""
        if not self.is_whole:
            return array_of(self._bytes(self.volume, 1), self.dtype, self.size)
        size = (self.volumes, *self.size) if self.interleaved else (*self.size, self.volumes)
        every = self._text(size) if self.encoding == "text" else array_of(self._bytes(0, self.volumes), self.dtype,
                                                                          size)
        return np.ascontiguousarray(every[..., self.volume] if self.interleaved else every[self.volume])

    @contextmanager
    def _opened(self) -> Iterator[tuple[BinaryIO, int]]:
        """The file of the voxels, behind the header and the lines that are skipped, and its size."""
        path = self.fields.path
        data = beside(path, "data file", self.fields["data file"]) if self._is_detached else path
        with opened(data) as file:
            file.seek(0 if self._is_detached else self.header_bytes)
            for _ in range(self._skip("line skip")):
                file.readline(HEADER_LIMIT)
            yield file, data.stat().st_size

    def _bytes(self, first: int, volumes: int) -> NDArray[np.uint8]:
        """The bytes of some volumes in a row."""
        path, one = self.fields.path, math.prod(self.size) * self.dtype.itemsize
        before, count, after = first * one, volumes * one, (self.volumes - first - volumes) * one
        with self._opened() as (file, stored):
            skip = self._skip("byte skip")
            if self.encoding == "gzip":
                return filled(path, "decompressed voxel data", inflated(path, file), max(0, skip) + before, count,
                              INFLATION * stored, after)
            start = file.tell() + skip if skip >= 0 else max(0, stored - self.volumes * one)
            file.seek(start)
            pieces = plain(file) if self.encoding == "raw" else _from_hex(path, file)
            return filled(path, "voxel data", pieces, before, count, stored - start, after)

    def _text(self, size: tuple[int, ...]) -> NDArray[Any]:
        """All voxels, written as text."""
        with self._opened() as (file, _):
            file.seek(file.tell() + self._skip("byte skip"))
            return text_voxels(self.fields.path, file, math.prod(size), self.dtype).reshape(size[::-1])


def _from_hex(path: Path, file: BinaryIO) -> Iterator[bytes]:
    """Bytes that are written as pairs of hexadecimal digits."""
    rest = b""
    for piece in plain(file):
        digits = rest + b"".join(piece.split())
        even = len(digits) // 2 * 2
        rest = digits[even:]
        try:
            yield bytes.fromhex(digits[:even].decode("latin-1"))
        except ValueError:
            raise ImageError(f"{path}: voxel data has other characters than hexadecimal digits. Write the image "
                             "anew.") from None
