"""Headers of PNG and JPEG pictures."""

from __future__ import annotations

import struct
from pathlib import Path

from regenv.data.io.errors import ImageError
from regenv.data.io.headers import Header

_FIELDS = ("size", "channels", "spacing")
_PNG_CHANNELS = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}
_TAIL = 4096        # bytes in which the end marker is looked for


def png_header(path: Path) -> Header:
    """The header of a PNG image. Raises ImageError where it is not one."""
    raw = path.read_bytes()
    if not raw.startswith(b"\x89PNG\r\n\x1a\n") or len(raw) < 33:
        raise ImageError(f"{path}: content is not PNG (it starts with {raw[:8]!r}); it must be a PNG image. "
                         "Convert it, or give it the suffix of its real format.")
    width, height, depth, color = struct.unpack_from(">IIBB", raw, 16)
    return Header(_FIELDS, (width, height), _PNG_CHANNELS.get(color, 0), max(1, depth // 8), None,
                  lambda: _check_end(path, raw, b"IEND", "IEND chunk"))


def jpeg_header(path: Path) -> Header:
    """The header of a JPEG image. Raises ImageError where it is not one."""
    raw = path.read_bytes()
    if not raw.startswith(b"\xff\xd8"):
        raise ImageError(f"{path}: content is not JPEG (it starts with {raw[:8]!r}); it must be a JPEG image. "
                         "Convert it, or give it the suffix of its real format.")
    width, height, channels = _jpeg_frame(path, raw)
    return Header(_FIELDS, (width, height), channels, 1, None,
                  lambda: _check_end(path, raw, b"\xff\xd9", "end marker (EOI)"))


def _jpeg_frame(path: Path, raw: bytes) -> tuple[int, int, int]:
    """Width, height and channels that a JPEG's frame header declares."""
    at = 2
    while at + 9 < len(raw) and raw[at] == 0xFF:
        marker, length = raw[at + 1], struct.unpack_from(">H", raw, at + 2)[0]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width, channels = struct.unpack_from(">HHB", raw, at + 5)
            return width, height, channels
        at += 1 if marker == 0xFF else 2 + length
    raise ImageError(f"{path}: frame header (SOF) is missing after {len(raw)} bytes; the file is truncated. "
                     "Copy or download it again.")


def _check_end(path: Path, raw: bytes, marker: bytes, name: str) -> None:
    if marker not in raw[-_TAIL:]:
        raise ImageError(f"{path}: {name} is missing after {len(raw)} bytes; the file is truncated. "
                         "Copy or download it again.")
