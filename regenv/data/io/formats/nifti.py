"""NIfTI-1 files, .nii and .nii.gz, and the header that they share with images in two files."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regenv.data.io import headers
from regenv.data.io.errors import ImageError
from regenv.data.io.formats.streams import array_of, first_unzipped, unzipped_voxels
from regenv.data.io.headers import Header

HEADER_BYTES = 348
ONE_FILE, TWO_FILES = b"n+1\0", b"ni1\0"       # magic
_HEADER_2_BYTES = 540
OFFSET_LIMIT = 1 << 26     # bytes before the voxels, of extensions
# Type and numbers per voxel of each datatype; those of more than one number are refused.
_TYPES = {2: ("u1", 1), 4: ("i2", 1), 8: ("i4", 1), 16: ("f4", 1), 64: ("f8", 1), 256: ("i1", 1), 512: ("u2", 1),
          768: ("u4", 1), 1024: ("i8", 1), 1280: ("u8", 1), 32: ("f4", 2), 1792: ("f8", 2), 128: ("u1", 3),
          2304: ("u1", 4)}
# dim, datatype and bitpix, pixdim, vox_offset with scl_slope and scl_inter, xyzt_units, qform and sform codes,
# quaternion and offset, sform: offset and struct code.
_FIELDS = ((40, "8h"), (70, "2h"), (76, "8f"), (108, "3f"), (123, "B"), (252, "2h"), (256, "6f"), (280, "12f"))
_MAGIC = 344
_MILLIMETRES = {0: 1.0, 1: 1e3, 2: 1.0, 3: 1e-3}
_SCANNER = 1                # the code of a place that the scanner says
_APART = 0.1                # voxels by which two statements of one place may differ
_LPS = np.array((-1.0, -1.0, 1.0))      # signs that lead from NIfTI's RAS


def header(path: Path, max_bytes: int, time: int | None) -> Header:
    """The header of a NIfTI-1 file, of one volume if it has several. Raises ImageError where it is not one of a scalar
    image, or is damaged."""
    image = parsed(path, first_unzipped(path, HEADER_BYTES), max_bytes, time)
    if image.magic != ONE_FILE:
        raise ImageError(f"{path}: magic is {image.magic!r}; a NIfTI-1 file in one piece has {ONE_FILE!r}. "
                         "Fix the header, or give the file the suffix of its real format.")
    if not (HEADER_BYTES <= image.offset <= OFFSET_LIMIT and image.offset.is_integer()):
        raise ImageError(f"{path}: vox_offset is {image.offset:g}; voxels start after the {HEADER_BYTES} bytes of "
                         "the header. Fix the header.")

    def voxels() -> NDArray[Any]:
        return image.scaled(unzipped_voxels(path, path, int(image.offset), image.data_bytes, image.volume,
                                            image.volumes))

    return image.header(voxels)


def parsed(path: Path, raw: bytes, max_bytes: int, time: int | None = None) -> NIfTI:
    """The fields of a header. Raises ImageError unless it is NIfTI-1 or Analyze, of a scalar image of a valid size."""
    order = _byte_order(path, raw)
    dim, (datatype, bitpix), pixdim, (offset, *scale), (units,), codes, quaternion, sform = (
        struct.unpack_from(order + code, raw, at) for at, code in _FIELDS)
    if not 1 <= dim[0] <= 7:
        raise ImageError(f"{path}: dim[0] is {dim[0]}; a NIfTI image has 1 to 7 axes. Fix the header.")
    if datatype not in _TYPES:
        raise ImageError(f"{path}: datatype is {datatype}; integer or float voxels of up to 64 bits are needed. "
                         "Convert the image to float32.")
    code, numbers = _TYPES[datatype]
    dtype = np.dtype(order + code)
    sizes = list(dim[1:dim[0] + 1])
    channels = sizes.pop(4) if len(sizes) > 4 else 1        # the fifth axis holds channels
    while len(sizes) > 3 and sizes[-1] == 1:
        sizes.pop()
    headers.check_channels(path, "channels", numbers * channels)
    times = sizes[3] if len(sizes) == 4 and sizes[3] > 1 else 1
    volume, sizes = headers.volume_number(path, "dim", sizes, times, time), sizes[:3] if times > 1 else sizes
    headers.check_size(path, "dim", sizes, dtype.itemsize, max_bytes)
    if bitpix != 8 * dtype.itemsize:
        raise ImageError(f"{path}: bitpix is {bitpix}, but voxels of datatype {datatype} have {8 * dtype.itemsize} "
                         "bits. Fix the header.")
    return NIfTI(path, tuple(sizes), dtype, pixdim, offset, (scale[0], scale[1]), units & 7, codes, quaternion, sform,
                 raw[_MAGIC:], volume, times)


def _byte_order(path: Path, raw: bytes) -> str:
    """``<`` or ``>``, by the first field, which holds the header's length. Raises ImageError unless it is NIfTI-1."""
    first = {struct.unpack_from(order + "i", raw)[0]: order for order in "<>"} if len(raw) == HEADER_BYTES else {}
    if _HEADER_2_BYTES in first:
        raise ImageError(f"{path}: header is NIfTI-2; NIfTI-1 is needed. Convert it, for example by nibabel.")
    if HEADER_BYTES not in first:
        raise ImageError(f"{path}: header is {len(raw)} bytes that are not NIfTI; it must be a NIfTI-1 file. "
                         "Convert it, or give it the suffix of its real format.")
    return first[HEADER_BYTES]


@dataclass(frozen=True)
class NIfTI:
    """The fields of a header; ``size`` is that of one volume, ``units`` those of space."""

    path: Path
    size: tuple[int, ...]
    dtype: np.dtype[Any]
    pixdim: tuple[float, ...]
    offset: float
    scale: tuple[float, float]
    units: int
    codes: tuple[int, int]
    quaternion: tuple[float, ...]
    sform: tuple[float, ...]
    magic: bytes
    volume: int
    volumes: int

    @property
    def data_bytes(self) -> int:
        """Of one volume."""
        return math.prod(self.size) * self.dtype.itemsize

    def without_place(self) -> NIfTI:
        """Only size, type and spacing, all that Analyze has in these fields: neither scale nor place."""
        return replace(self, scale=(0.0, 0.0), codes=(0, 0), units=0)

    def header(self, voxels: Callable[[], NDArray[Any]]) -> Header:
        """As other formats have it. Raises ImageError where the place is invalid or contradicts itself."""
        path, n = self.path, len(self.size)
        if self.units not in _MILLIMETRES:
            raise ImageError(f"{path}: xyzt_units has {self.units} for space; it must be 0 to 3 (unknown, metre, "
                             "millimetre, micrometre). Fix the header.")
        if not all(map(math.isfinite, self.scale)):
            raise ImageError(f"{path}: scl_slope and scl_inter are {self.scale}; they must be finite. Fix the header.")
        unit = _MILLIMETRES[self.units]
        spacing = tuple(unit * float(s) for s in self.pixdim[1:n + 1])
        headers.check_spacing(path, "pixdim", spacing)
        field, shown_direction, direction, origin = self._place()
        headers.check_origin(path, f"offset of the {field}", (unit * origin[:n]).tolist())
        cosines = headers.check_direction(path, f"direction ({field})", shown_direction, direction[:n, :n])
        return Header(self.size, spacing, tuple((unit * origin[:n]).tolist()), cosines, voxels, "pixdim")

    def _place(self) -> tuple[str, object, NDArray[np.float64], NDArray[np.float64]]:
        """The field that says where the image lies, that as it stands in the file, direction (3, 3) and origin (3,),
        LPS. Raises ImageError where the fields contradict each other. Of two that agree it is the one that ITK takes.
        """
        qform_code, sform_code = self.codes
        qform = self._qform() if qform_code > 0 else None
        sform = self._sform() if sform_code > 0 else None
        if qform is not None and sform is not None:
            self._check_agreement(qform, sform)
        if sform is not None and (qform is None or sform_code == _SCANNER):
            return "sform", [list(self.sform[row:row + 4]) for row in (0, 4, 8)], *sform
        if qform is not None:
            return "qform", self.quaternion, *qform
        return "pixdim", self.pixdim, np.eye(3), np.zeros(3)

    def _qform(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Direction (3, 3) and origin (3,), LPS, of the quaternion."""
        b, c, d = self.quaternion[:3]
        square = b * b + c * c + d * d
        if not all(map(math.isfinite, self.quaternion)) or not square <= 1 + headers.ORTHONORMAL:
            raise ImageError(f"{self.path}: qform is {self.quaternion}; it must be finite, and a quaternion of length "
                             "1. Fix the header.")
        if self.pixdim[0] not in (-1, 0, 1):
            raise ImageError(f"{self.path}: pixdim[0] is {self.pixdim[0]}; it is the qform's sign, 1 or -1. "
                             "Fix the header.")
        b, c, d = np.array((b, c, d)) / max(1.0, math.sqrt(square))
        a = math.sqrt(max(0.0, 1 - b * b - c * c - d * d))
        rotation = np.array(((a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)),
                             (2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)),
                             (2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c)))
        if self.pixdim[0] < 0:
            rotation[:, 2] *= -1
        return _LPS[:, None] * rotation, _LPS * self.quaternion[3:]

    def _sform(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Direction (3, 3) and origin (3,), LPS, of the affine; its columns are as long as pixdim says."""
        n, rows = len(self.size), np.asarray(self.sform, dtype=np.float64).reshape(3, 4)
        if not np.isfinite(rows).all():
            raise ImageError(f"{self.path}: sform is {rows.tolist()}; it must be finite. Fix the header.")
        lengths = np.linalg.norm(rows[:, :3], axis=0)
        spacing = np.asarray(self.pixdim[1:4])
        if (lengths[:n] == 0).any():
            raise ImageError(f"{self.path}: direction (sform) is {rows[:, :3].tolist()}; it is singular. "
                             "Fix the header.")
        if not np.allclose(lengths[:n], spacing[:n], rtol=headers.ORTHONORMAL, atol=0):
            raise ImageError(f"{self.path}: pixdim is {tuple(spacing[:n].tolist())} mm, but the sform's columns are "
                             f"{tuple(lengths[:n].tolist())} mm long; they must agree. Fix the header.")
        lengths[lengths == 0] = 1.0
        return _LPS[:, None] * rows[:, :3] / lengths, _LPS * rows[:, 3]

    def _check_agreement(self, *places: tuple[NDArray[np.float64], NDArray[np.float64]]) -> None:
        """Raise ImageError unless qform and sform place all corners alike."""
        n = len(self.size)
        ends = [(0.0, (size - 1) * step) for size, step in zip(self.size, self.pixdim[1:n + 1], strict=True)]
        corners = np.stack(np.meshgrid(*ends), -1).reshape(-1, n)
        by_qform, by_sform = (corners @ direction[:n, :n].T + origin[:n] for direction, origin in places)
        apart = float(np.linalg.norm(by_qform - by_sform, axis=1).max())
        if not apart <= _APART * min(self.pixdim[1:n + 1]):
            raise ImageError(f"{self.path}: qform and sform place voxels {apart:.3g} mm apart; they must agree. Set "
                             "the code of the wrong one (qform_code, sform_code) to 0.")

    def scaled(self, content: NDArray[np.uint8]) -> NDArray[Any]:
        """The voxels: stored numbers, times scl_slope plus scl_inter where these change anything."""
        stored = array_of(content, self.dtype, self.size)
        slope, inter = self.scale[0] or 1.0, self.scale[1]
        if (slope, inter) == (1.0, 0.0):
            return stored
        values = np.empty(stored.shape, np.float32 if stored.dtype.itemsize <= 2 or stored.dtype == np.float32
                          else np.float64)
        with np.errstate(over="ignore", invalid="ignore"):      # voxels that are not finite are refused later
            for target, plane in zip(values, stored, strict=True):
                target[...] = np.multiply(plane, slope, dtype=np.float64) + inter
        return values
