"""MetaImage files, .mha and .mhd."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regenv.data.io import headers
from regenv.data.io.errors import ImageError, shown, truncated
from regenv.data.io.formats.streams import INFLATION, array_of, filled, first_bytes, inflated, opened, raw_voxels
from regenv.data.io.formats.text import Fields, beside, check_spelling
from regenv.data.io.headers import Header

_TYPES = {"CHAR": "i1", "UCHAR": "u1", "SHORT": "i2", "USHORT": "u2", "INT": "i4", "UINT": "u4", "LONG": "i4",
          "ULONG": "u4", "LONG_LONG": "i8", "ULONG_LONG": "u8", "FLOAT": "f4", "DOUBLE": "f8"}
_SPACINGS = ("ElementSpacing", "ElementSize")       # the former counts if both are there
_ORIGINS, _DIRECTIONS = ("Offset", "Position", "Origin"), ("TransformMatrix", "Rotation", "Orientation")
_BYTE_ORDERS = ("BinaryDataByteOrderMSB", "ElementByteOrderMSB")
_KNOWN = (*_SPACINGS, *_ORIGINS, *_DIRECTIONS, *_BYTE_ORDERS, "ObjectType", "NDims", "DimSize", "BinaryData",
          "CompressedData", "CompressedDataSize", "CompressionLevel", "DistanceUnits", "HeaderSize",
          "HeaderSizePerSlice", "ElementType", "ElementNumberOfChannels", "ElementDataFile", "ElementNBits",
          "ElementMin", "ElementMax", "CenterOfRotation", "AnatomicalOrientation")
_MILLIMETRES = {"mm": 1.0, "?": 1.0, "um": 1e-3, "cm": 10.0}
_FALSE, _TRUE = ("false", "f", "0"), ("true", "t", "1")
_DATA_FILE = re.compile(rb"^[ \t]*ElementDataFile[ \t]*=[^\r\n]*(\r?\n|\Z)", re.MULTILINE)     # the last field
_FIELD = re.compile(r"[ \t]*(\w+)[ \t]*=[ \t]*(.*?)\s*")


def header(path: Path, max_bytes: int, time: int | None) -> Header:
    """The header of a MetaImage file, of one volume if it has several. Raises ImageError where it is not one of a
    scalar image, or is damaged."""
    raw = first_bytes(path)
    end = _DATA_FILE.search(raw)
    if end is None:
        raise ImageError(f"{path}: field ElementDataFile is missing; it is not a MetaImage file. "
                         "Convert it, or give it the suffix of its real format.")
    fields = _fields(path, raw[:end.end()].decode("latin-1"))
    if fields.get("ObjectType", "Image") != "Image":
        fields.refuse("ObjectType", "it must be Image")
    size = tuple(fields.integers("DimSize"))
    if fields.integers("NDims", 1) != [len(size)]:
        fields.refuse("NDims", f"DimSize has {len(size)} numbers")
    dtype = _dtype(fields)
    if "ElementNumberOfChannels" in fields:
        headers.check_channels(path, "ElementNumberOfChannels", fields.integers("ElementNumberOfChannels", 1)[0])
    times = size[3] if len(size) == 4 else 1
    volume = headers.volume_number(path, "DimSize", size, times, time)
    headers.check_size(path, "DimSize", size[:3] if len(size) == 4 else size, dtype.itemsize, max_bytes)
    spacing_field, spacing, origin, direction = _place(fields, len(size))
    size = size[:3]
    voxels = _Voxels(fields, end.end(), size, dtype, volume, times)
    voxels.check_fields()
    return Header(size, spacing, origin, direction, voxels.read, spacing_field)


def _fields(path: Path, text: str) -> Fields:
    """Every line's field."""
    fields = Fields(path)
    for line in filter(str.strip, re.split(r"\r?\n", text)):
        match = _FIELD.fullmatch(line)
        if match is None or (match[1] in _KNOWN and "=" in match[2]):
            raise ImageError(f"{path}: header has the line '{shown(line)}'; every line must be a name, = and a value. "
                             "Fix the header.")
        check_spelling(path, match[1], _KNOWN)
        fields.add(match[1], match[2])
    return fields


def _dtype(fields: Fields) -> np.dtype[Any]:
    code = _TYPES.get(fields.get("ElementType", "").removeprefix("MET_").removesuffix("_ARRAY"))
    if code is None:
        raise ImageError(f"{fields.path}: ElementType is {shown(fields.get('ElementType'))}; it must be an integer or "
                         "float type. Convert the image to float.")
    order = fields.one_of(*_BYTE_ORDERS)
    return np.dtype((">" if order is not None and _is_true(fields, order) else "<") + code)


def _is_true(fields: Fields, name: str, default: str = "False") -> bool:
    return fields.choice(name, (*_FALSE, *_TRUE), default) in _TRUE


def _place(fields: Fields, axes: int) -> tuple[str, tuple[float, ...] | None, tuple[float, ...], tuple[float, ...]]:
    """The spacing's field, spacing, origin and direction; a fourth axis is time, and left out. ITK looks at no unit;
    the unit is honoured here."""
    path, n = fields.path, min(axes, 3)
    unit = _MILLIMETRES[fields.choice("DistanceUnits", _MILLIMETRES, "mm")]
    spacing_field = next((name for name in _SPACINGS if name in fields), _SPACINGS[0])
    spacing = None
    if spacing_field in fields:
        spacing = tuple(unit * s for s in fields.numbers(spacing_field, axes)[:n])
        headers.check_spacing(path, spacing_field, spacing)
    origin = (0.0,) * n
    if (field := fields.one_of(*_ORIGINS)) is not None:
        origin = tuple(unit * o for o in fields.numbers(field, axes)[:n])
        headers.check_origin(path, field, origin)
    direction = tuple(np.eye(n).ravel().tolist())
    if (field := fields.one_of(*_DIRECTIONS)) is not None:      # row n of the file is the direction of axis n
        matrix = np.asarray(fields.numbers(field, axes * axes)).reshape(axes, axes).T
        if matrix[:n, n:].any() or matrix[n:, :n].any():
            fields.refuse(field, "the axis of time must stand alone")
        direction = headers.check_direction(path, field, shown(fields[field]), matrix[:n, :n])
    return spacing_field, spacing, origin, direction


@dataclass(frozen=True)
class _Voxels:
    """Where the voxels are: the header's fields and length, their size and type, and which volume of how many."""

    fields: Fields
    header_bytes: int
    size: tuple[int, ...]
    dtype: np.dtype[Any]
    volume: int
    volumes: int

    @property
    def count(self) -> int:
        """Bytes of one volume."""
        return math.prod(self.size) * self.dtype.itemsize

    @property
    def compressed(self) -> bool:
        return _is_true(self.fields, "CompressedData")

    def check_fields(self) -> None:
        """Raise ImageError where the fields say something that is not supported."""
        fields = self.fields
        if not _is_true(fields, "BinaryData", "True"):
            fields.refuse("BinaryData", "voxels in text are not supported; write them in binary")
        if fields.get("HeaderSizePerSlice", "0") != "0":
            fields.refuse("HeaderSizePerSlice", "headers of slices are not supported")
        if fields["ElementDataFile"].split()[:1] in (["LIST"], []):
            fields.refuse("ElementDataFile", "lists of slices are not supported; give one file")
        if self.compressed and "CompressedDataSize" in fields:
            fields.integers("CompressedDataSize", 1)
        skipped = fields.integers("HeaderSize", 1)[0] if "HeaderSize" in fields else 0
        if skipped < -1 or (skipped > 0 and self.is_local) or (skipped != 0 and self.compressed):
            fields.refuse("HeaderSize", "it must be the number of bytes before the voxels, or -1 if these are the last")

    @property
    def is_local(self) -> bool:
        return self.fields["ElementDataFile"] in ("LOCAL", "Local", "local")

    def read(self) -> NDArray[Any]:
        """All voxels. Raises ImageError unless they are all there, undamaged, and nothing else."""
        path, fields = self.fields.path, self.fields
        data = path if self.is_local else beside(path, "ElementDataFile", fields["ElementDataFile"])
        skipped = int(fields.get("HeaderSize", "0"))
        start = self.header_bytes if self.is_local else max(0, skipped)
        if skipped == -1:
            start = max(start, data.stat().st_size - self.volumes * self.count)
        if not self.compressed:
            return array_of(raw_voxels(path, data, start, self.count, self.volume, self.volumes), self.dtype,
                            self.size)
        found = data.stat().st_size - start
        needed = int(fields.get("CompressedDataSize", found))
        if found < needed:
            raise truncated(path, "voxel data", found, needed)
        if found > needed:
            fields.refuse("CompressedDataSize", f"the file has {found} bytes of compressed data")
        with opened(data) as file:
            file.seek(start)
            content = filled(path, "decompressed voxel data", inflated(path, file), self.volume * self.count,
                             self.count, INFLATION * found, (self.volumes - 1 - self.volume) * self.count)
        return array_of(content, self.dtype, self.size)
