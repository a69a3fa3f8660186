"""BMP pictures in grey: of 1 or 8 bits with a grey palette, or of 24 bits whose three colours agree, uncompressed."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regenv.data.io import headers
from regenv.data.io.errors import ImageError, truncated
from regenv.data.io.formats.streams import first_bytes, opened
from regenv.data.io.headers import Header

_HEADERS = (40, 52, 56, 108, 124)       # bytes, of Windows' versions
_FILE_HEADER, _PALETTE_MOST = 14, 1024
_COLOURS = {4: 3, 16: 3, 24: 3, 32: 4}
_PADDING = 3                            # bytes that may follow the voxels


def header(path: Path, max_bytes: int) -> Header:
    """The header of a BMP picture. Raises ImageError where it is not a grey one, or is damaged.

    Dots per metre are left aside: they say how to print.
    """
    raw = first_bytes(path, _FILE_HEADER + _HEADERS[-1] + _PALETTE_MOST)
    if len(raw) < _FILE_HEADER + _HEADERS[0] or not raw.startswith(b"BM"):
        raise ImageError(f"{path}: content is not BMP (it starts with {raw[:4]!r}); it must be a BMP image. "
                         "Convert it, or give it the suffix of its real format.")
    (size, offset), fields = struct.unpack_from("<I4xI", raw, 2), struct.unpack_from("<IiiHHIIiiII", raw, _FILE_HEADER)
    length, width, height, planes, bits, compression, *_, colours, _ = fields
    found = path.stat().st_size
    if length not in _HEADERS or planes != 1 or compression != 0:
        raise ImageError(f"{path}: header's length, planes and compression are {length}, {planes} and {compression}; "
                         "an uncompressed BMP of Windows is needed. Save it as PNG.")
    if bits not in (1, 8, 24):
        headers.check_channels(path, "channels", _COLOURS.get(bits, 0))
    headers.check_size(path, "size", (width, abs(height)), 1 if bits < 24 else 4, max_bytes)
    entries = 0 if bits == 24 else colours or 1 << bits
    picture = _Picture(path, width, height, bits, offset, _grey(path, raw[_FILE_HEADER + length:], entries, bits))
    if size != found:
        raise ImageError(f"{path}: size of the file is {found} bytes, but its header says {size}; the file is "
                         "truncated or damaged. Copy or download it again.")
    least = _FILE_HEADER + length + 4 * entries
    rest = found - offset - picture.row_bytes * abs(height)
    if offset < least or rest < 0 or (rest > _PADDING and length != _HEADERS[-1]):
        raise ImageError(f"{path}: voxels lie at byte {offset}, {picture.row_bytes * abs(height)} of them, in a file "
                         f"of {found} with a header of {least}; the file is truncated or damaged. Copy or download it "
                         "again.")
    return Header((width, abs(height)), None, (0.0, 0.0), (1.0, 0.0, 0.0, 1.0), picture.voxels)


def _grey(path: Path, raw: bytes, entries: int, bits: int) -> NDArray[np.uint8]:
    """The grey value of each number in a palette. Raises ImageError for one of colours, or with other numbers."""
    if entries > 1 << bits or len(raw) < 4 * entries:
        raise ImageError(f"{path}: palette has {entries} colours; pictures of {bits} bits have at most {1 << bits}. "
                         "Save the picture anew.")
    palette = np.frombuffer(raw[:4 * entries], np.uint8).reshape(-1, 4)[:, :3]
    if (palette != palette[:, :1]).any():
        headers.check_channels(path, "channels", 3)
    return palette[:, 0]


@dataclass(frozen=True)
class _Picture:
    """How a picture is stored: rows from the bottom up, or down where ``height`` is negative, of multiples of 4
    bytes."""

    path: Path
    width: int
    height: int
    bits: int
    offset: int
    grey: NDArray[np.uint8]

    @property
    def row_bytes(self) -> int:
        return -(-self.width * self.bits // 32) * 4

    def voxels(self) -> NDArray[Any]:
        """All voxels, (height, width) uint8. Raises ImageError where they are coloured."""
        count = self.row_bytes * abs(self.height)
        with opened(self.path) as file:
            file.seek(self.offset)
            raw = file.read(count)
        if len(raw) < count:
            raise truncated(self.path, "voxel data", len(raw), count)
        rows = np.frombuffer(raw, np.uint8).reshape(abs(self.height), self.row_bytes)
        upright = rows if self.height < 0 else rows[::-1]
        if self.bits == 24:
            colours = upright[:, :3 * self.width].reshape(len(rows), self.width, 3)
            if any((colours[..., other] != colours[..., 0]).any() for other in (1, 2)):
                headers.check_channels(self.path, "channels", 3)
            return colours[..., 0].copy()
        numbers = (np.unpackbits(upright, axis=1) if self.bits == 1 else upright)[:, :self.width]
        if int(numbers.max()) >= len(self.grey):
            raise ImageError(f"{self.path}: a voxel has colour {numbers.max()} of a palette of {len(self.grey)}; the "
                             "file is damaged. Copy or download it again.")
        return self.grey[numbers]
