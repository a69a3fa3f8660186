"""Headers of NIfTI-1 files."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np

from regenv.data.io.errors import ImageError, not_finite, truncated
from regenv.data.io.formats.common import is_singular
from regenv.data.io.headers import Header

# Numbers per voxel and bytes per number of each datatype.
_TYPES = {2: (1, 1), 4: (1, 2), 8: (1, 4), 16: (1, 4), 32: (2, 4), 64: (1, 8), 128: (3, 1), 256: (1, 1), 512: (1, 2),
          768: (1, 4), 1024: (1, 8), 1280: (1, 8), 1792: (2, 8), 2304: (4, 1)}
_FLOATS = {16: "f4", 64: "f8"}
# Offset and struct code of dim, datatype, pixdim, vox_offset, qform and sform codes, quaternion and offset, sform.
_PIXDIM = 76, "8f"
_FIELDS = ((40, "8h"), (70, "h"), _PIXDIM, (108, "f"), (252, "2h"), (256, "6f"), (280, "12f"))
_HEADER_BYTES, _HEADER_2_BYTES = 348, 540
_GZIP_SLACK = 1 << 20       # bytes that may follow the voxels
_CHUNK = 1 << 20            # bytes read at a time
_SPACING_TOLERANCE = 0.01


def header(path: Path) -> Header:
    """The header of a NIfTI-1 file. Raises ImageError where it cannot be read."""
    parsed = _parsed(path)
    return Header(("dim", "channels", "pixdim"), parsed.size, parsed.channels, parsed.itemsize, parsed.spacing,
                  parsed.check_data, parsed.check_direction, parsed.repair)


def _parsed(path: Path) -> _NIfTI:
    zipped = _is_zipped(path)
    try:
        with _opened(path, zipped) as file:
            raw = file.read(_HEADER_BYTES)
    except (OSError, EOFError, zlib.error) as error:
        raise _damaged(path, error) from error
    order = _byte_order(path, raw)
    dim, (datatype,), pixdim, (offset,), codes, quaternion, sform = (
        struct.unpack_from(order + code, raw, at) for at, code in _FIELDS)
    if not 1 <= dim[0] <= 7:
        raise ImageError(f"{path}: dim[0] is {dim[0]}; a NIfTI image has 1 to 7 axes. Fix the header.")
    if datatype not in _TYPES:
        raise ImageError(f"{path}: datatype is {datatype}; integer or float voxels of up to 64 bits are needed. "
                         "Convert the image to float32.")
    return _NIfTI(path, zipped, order, dim[1:dim[0] + 1], datatype, pixdim, offset, codes, quaternion, sform)


def _is_zipped(path: Path) -> bool:
    """Whether the content is gzip. Raises ImageError where it is and the name denies it."""
    with path.open("rb") as plain:
        zipped = plain.read(2) == b"\x1f\x8b"
    if zipped and not path.name.lower().endswith(".gz"):
        raise ImageError(f"{path}: content is gzip, but the name ends in '.nii'; rename it to {path.name}.gz.")
    return zipped


def _opened(path: Path, zipped: bool) -> gzip.GzipFile | BufferedReader:
    return gzip.open(path, "rb") if zipped else path.open("rb")


def _damaged(path: Path, error: BaseException) -> ImageError:
    return ImageError(f"{path}: gzip stream is damaged ({error}); copy or download the file again.")


def _byte_order(path: Path, raw: bytes) -> str:
    """``<`` or ``>``, by the first field, which holds the header's length. Raises ImageError unless it is NIfTI-1."""
    first = {struct.unpack_from(order + "i", raw)[0]: order for order in "<>"} if len(raw) == _HEADER_BYTES else {}
    if _HEADER_2_BYTES in first:
        raise ImageError(f"{path}: header is NIfTI-2; SimpleITK reads NIfTI-1. Convert it, for example by nibabel.")
    if _HEADER_BYTES not in first:
        raise ImageError(f"{path}: header is {len(raw)} bytes that are not NIfTI; it must be a NIfTI-1 file. "
                         "Convert it, or give it the suffix of its real format.")
    return first[_HEADER_BYTES]


@dataclass(frozen=True)
class _NIfTI:
    """The fields of a header; ``dim`` without the number of axes, ``order`` as :mod:`struct` writes it."""

    path: Path
    zipped: bool
    order: str
    dim: tuple[int, ...]
    datatype: int
    pixdim: tuple[float, ...]
    offset: float
    codes: tuple[int, int]
    quaternion: tuple[float, ...]
    sform: tuple[float, ...]

    @property
    def size(self) -> tuple[int, ...]:
        """Voxels per axis, without the fifth axis, which holds channels, and trailing axes of one voxel."""
        sizes = [*self.dim[:4], *self.dim[5:]]
        while len(sizes) > 3 and sizes[-1] == 1:
            sizes.pop()
        return tuple(sizes)

    @property
    def channels(self) -> int:
        return _TYPES[self.datatype][0] * math.prod(self.dim[4:5])

    @property
    def itemsize(self) -> int:
        return _TYPES[self.datatype][1]

    @property
    def data_bytes(self) -> int:
        return math.prod(self.dim) * math.prod(_TYPES[self.datatype])

    @property
    def spacing(self) -> tuple[float, ...]:
        return tuple(float(s) for s in self.pixdim[1:len(self.size) + 1])

    def check_data(self) -> None:
        path = self.path
        if not (math.isfinite(self.offset) and self.offset >= _HEADER_BYTES):
            raise ImageError(f"{path}: vox_offset is {self.offset:g}; voxels start after the {_HEADER_BYTES} bytes of "
                             "the header. Fix the header.")
        start = int(self.offset)
        needed = start + self.data_bytes
        if not self.zipped and path.stat().st_size < needed:     # at once, before reading all of it
            raise truncated(path, "file size", path.stat().st_size, needed)
        scan = _Scan(start, needed, np.dtype(self.order + _FLOATS.get(self.datatype, "u1")))
        try:
            with _opened(path, self.zipped) as file:
                scan.read(file)
        except EOFError as error:
            raise truncated(path, "gzip stream (cut short)", scan.found, needed) from error
        except (OSError, zlib.error) as error:
            raise _damaged(path, error) from error
        if scan.found < needed:
            raise truncated(path, "decompressed size", scan.found, needed)
        if self.zipped and scan.found > needed + _GZIP_SLACK:
            raise ImageError(f"{path}: decompressed size is more than the {needed} bytes that the header declares. "
                             "Fix the header, or write the image anew.")
        if scan.first_bad is not None:
            at = tuple(int(i) for i in np.unravel_index(scan.first_bad[0], self.size[::-1]))
            raise not_finite(path, at, scan.first_bad[1], scan.bad, math.prod(self.size))

    def check_direction(self, spacing_given: bool) -> None:
        path = self.path
        qform_code, sform_code = self.codes
        rows = np.asarray(self.sform, dtype=np.float64).reshape(3, 4)
        columns = rows[:, :3]
        if qform_code > 0 and not np.isfinite(self.quaternion).all():
            raise ImageError(f"{path}: qform is {self.quaternion}; it must be finite. Fix the header.")
        if sform_code > 0 and not np.isfinite(rows).all():
            raise ImageError(f"{path}: sform is {rows.tolist()}; it must be finite. Fix the header.")
        if sform_code <= 0 or qform_code > 0:
            return
        if len(self.size) == 3 and is_singular(columns):
            raise ImageError(f"{path}: direction (sform) is {columns.tolist()}; it is singular. Fix the header.")
        lengths = np.linalg.norm(columns, axis=0)[:len(self.size)]
        if not spacing_given and not np.allclose(lengths, self.spacing, rtol=_SPACING_TOLERANCE):
            raise ImageError(f"{path}: pixdim is {self.spacing} mm, but the sform's columns are "
                             f"{tuple(lengths.tolist())} mm long; they must agree. Fix the header, or pass spacing=...")

    def repair(self, target: Path, spacing: Sequence[float]) -> None:
        with _opened(self.path, self.zipped) as file:
            content = bytearray(file.read(int(self.offset) + self.data_bytes))
        at, code = _PIXDIM
        struct.pack_into(self.order + code, content, at, self.pixdim[0], *spacing, *self.pixdim[len(spacing) + 1:])
        target.write_bytes(gzip.compress(bytes(content), 1) if self.zipped else bytes(content))


@dataclass
class _Scan:
    """Counts the bytes of a file, and its voxels that are not finite: nifti_clib, within SimpleITK, would turn them
    into 0 without a word.

    Attributes:
        start, needed: bytes before the first voxel, and up to the last one's end.
        kind: of the voxels where they are floats; other voxels are not looked at.
        found: bytes read; bad: voxels that are not finite; first_bad: index and value of the first one.
    """

    start: int
    needed: int
    kind: np.dtype[Any]
    found: int = 0
    bad: int = 0
    first_bad: tuple[int, float] | None = None

    def read(self, file: gzip.GzipFile | BufferedReader) -> None:
        """Read to the end, or until there is far more than is needed."""
        self.found = len(file.read(self.start))
        while self.found <= self.needed + _GZIP_SLACK and (chunk := file.read(_CHUNK)):
            if self.kind.kind == "f":
                self._look(chunk)
            self.found += len(chunk)

    def _look(self, chunk: bytes) -> None:
        left, itemsize = self.needed - self.found, self.kind.itemsize
        voxels = np.frombuffer(chunk[:max(0, left) // itemsize * itemsize], dtype=self.kind,
                               count=min(len(chunk), left) // itemsize)
        wrong = np.flatnonzero(~np.isfinite(voxels))
        if len(wrong) and self.first_bad is None:
            self.first_bad = (self.found - self.start) // itemsize + int(wrong[0]), float(voxels[wrong[0]])
        self.bad += len(wrong)
