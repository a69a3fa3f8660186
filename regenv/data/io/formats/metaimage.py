"""Headers of MetaImage files."""

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

_BYTES = {"CHAR": 1, "UCHAR": 1, "SHORT": 2, "USHORT": 2, "INT": 4, "UINT": 4, "LONG": 4, "ULONG": 4, "LONG_LONG": 8,
          "ULONG_LONG": 8, "FLOAT": 4, "DOUBLE": 8}
_DATA_FILE = re.compile(rb"^\s*ElementDataFile\s*=\s*([^\r\n]*)\r?\n?", re.MULTILINE)
_FIELD = re.compile(r"^\s*(\w+)\s*=\s*(.*?)\s*$", re.MULTILINE)


def header(path: Path) -> Header:
    """The header of a MetaImage file. Raises ImageError where it cannot be read."""
    raw = first_bytes(path)
    end = _DATA_FILE.search(raw)        # the last field
    if end is None:
        raise ImageError(f"{path}: field ElementDataFile is missing; it is not a MetaImage file. "
                         "Convert it, or give it the suffix of its real format.")
    values = dict(_FIELD.findall(raw[:end.end()].decode("latin-1")))
    size = tuple(int(n) for n in numbers(path, "DimSize", values.get("DimSize")))
    itemsize = _BYTES.get(values.get("ElementType", "").removeprefix("MET_").removesuffix("_ARRAY"))
    if itemsize is None:
        raise ImageError(f"{path}: ElementType is {values.get('ElementType')}; it must be an integer or float type. "
                         "Convert the image to float.")
    channels = int(values.get("ElementNumberOfChannels", "1") or 1)
    spacing_field = next((f for f in ("ElementSpacing", "ElementSize") if f in values), "ElementSpacing")
    spacing = tuple(numbers(path, spacing_field, values.get(spacing_field, "1 " * len(size))))
    parsed = _MetaImage(path, raw[:end.end()], end.group(1), values, size, math.prod(size) * channels * itemsize,
                        spacing_field)
    return Header(("DimSize", "ElementNumberOfChannels", spacing_field), size, channels, itemsize, spacing,
                  parsed.check_data, parsed.check_direction, parsed.repair)


@dataclass(frozen=True)
class _MetaImage:
    """A parsed header: its bytes, the data file's name as it stands there, its fields, bytes of all voxels."""

    path: Path
    raw: bytes
    raw_data_file: bytes
    values: dict[str, str]
    size: tuple[int, ...]
    data_bytes: int
    spacing_field: str

    @property
    def data_file(self) -> str:
        return self.values["ElementDataFile"]

    def check_data(self) -> None:
        if self.values.get("BinaryData", "True").lower() in ("false", "0"):
            return
        if self.data_file == "LOCAL":
            found = self.path.stat().st_size - len(self.raw)
        elif not is_one_file(self.data_file):
            return
        else:
            found = detached_bytes(self.path, "ElementDataFile", self.data_file)
        compressed = self.values.get("CompressedData", "False").lower() in ("true", "1")
        stored = int(self.values.get("CompressedDataSize", 1)) if compressed else self.data_bytes
        if found < stored:
            raise truncated(self.path, "voxel data", found, stored)

    def check_direction(self, spacing_given: bool) -> None:
        n = len(self.size)
        for field in ("TransformMatrix", "Rotation", "Orientation"):
            if field in self.values:
                matrix = np.asarray(numbers(self.path, field, self.values[field]))
                if matrix.size != n**2 or is_singular(matrix.reshape(n, n)):
                    raise ImageError(f"{self.path}: {field} is {self.values[field]}; it must be a {n} x {n} matrix "
                                     "that is not singular. Fix the header.")

    def repair(self, target: Path, spacing: Sequence[float]) -> None:
        field = self.spacing_field.encode()
        line = field + f" = {' '.join(map(repr, spacing))}".encode()
        mended = re.sub(rb"^\s*" + field + rb"\s*=[^\r\n]*", line, self.raw, flags=re.MULTILINE)
        if self.data_file != "LOCAL":
            mended = mended.replace(self.raw_data_file, str(self.path.parent.resolve() / self.data_file).encode())
        target.write_bytes(mended + self.path.read_bytes()[len(self.raw):])
