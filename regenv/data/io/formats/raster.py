"""PNG and JPEG pictures in grey.

Their parts are walked through and checked here, and only the parts that make the picture are handed to OpenCV. Neither
format knows millimetres: dots per inch say how to print.
"""

from __future__ import annotations

import re
import struct
import tempfile
import zlib
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regenv.data.io import headers
from regenv.data.io.errors import ImageError, shown, silent
from regenv.data.io.formats.streams import counted, first_bytes, inflated
from regenv.data.io.headers import Header

_PNG = b"\x89PNG\r\n\x1a\n"
_CHANNELS = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}      # of PNG's colour types
_GREY_DEPTHS = (1, 2, 4, 8, 16)
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_FRAMES = (0xC0, 0xC1, 0xC2)                    # baseline, extended and progressive JPEG, coded by Huffman
_OTHER_FRAMES = (0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF)
_TABLES = (0xDB, 0xC4, 0xDD)                    # JPEG: quantisation, Huffman, restart interval
_DAMAGE = re.compile(rb"(Corrupt JPEG|Premature end|Inconsistent progression|Invalid|Unsupported)[^\n]*", re.IGNORECASE)
_SAID = 1 << 16                                 # characters of what the decoder says
_SCANS = 100                                    # of a progressive JPEG; each of them costs a pass over the picture
_METADATA = 1 << 26                             # bytes of a picture's file besides its voxels


def png_header(path: Path, max_bytes: int) -> Header:
    """The header of a PNG image. Raises ImageError where it is not a grey one, or is damaged."""
    raw = first_bytes(path, 33)
    if not raw.startswith(_PNG) or raw[8:16] != b"\0\0\0\rIHDR" or len(raw) < 33:
        raise ImageError(f"{path}: content is not PNG (it starts with {raw[:8]!r}); it must be a PNG image. "
                         "Convert it, or give it the suffix of its real format.")
    width, height, depth, colour, *methods = struct.unpack_from(">II5B", raw, 16)
    headers.check_channels(path, "channels", _CHANNELS.get(colour, 0))
    if depth not in _GREY_DEPTHS or methods[:2] != [0, 0] or methods[2] > 1:
        raise ImageError(f"{path}: bit depth and methods are {depth}, {methods}; PNG has no such images. "
                         "Copy the file again.")
    headers.check_size(path, "size", (width, height), max(1, depth // 8), max_bytes)

    def voxels() -> NDArray[Any]:
        parts = dict.fromkeys((b"IHDR", b"IDAT", b"IEND"), b"")
        for name, content in _png_chunks(path, _all_bytes(path, width * height * max(1, depth // 8))):
            if name == b"tRNS":
                headers.check_channels(path, "channels", 2)
            if name in parts:
                parts[name] += content
        data = parts[b"IDAT"]
        passes = _ADAM7 if methods[2] else ((0, 0, 1, 1),)
        sizes = ((-(-(width - x) // dx), -(-(height - y) // dy)) for x, y, dx, dy in passes)
        needed = sum(h * (1 + -(-w * depth // 8)) for w, h in sizes if w > 0 and h > 0)
        counted(path, "decompressed size", inflated(path, BytesIO(data)), needed)
        picture = _PNG + b"".join(_png_chunk(name, content) for name, content in parts.items())
        return _decoded(path, picture, (height, width), np.uint16 if depth == 16 else np.uint8)

    return _picture(width, height, voxels)


def _picture(width: int, height: int, voxels: Any) -> Header:
    return Header((width, height), None, (0.0, 0.0), (1.0, 0.0, 0.0, 1.0), voxels)


def _all_bytes(path: Path, voxel_bytes: int) -> bytes:
    """A picture's file. Raises ImageError where it is far larger than a picture of its size can be."""
    size, limit = path.stat().st_size, 2 * voxel_bytes + _METADATA
    if size > limit:
        raise ImageError(f"{path}: file size is {size} bytes, much too long for its picture. Save the picture anew.")
    return first_bytes(path, size)


def _png_chunks(path: Path, raw: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Names and contents of a PNG's chunks up to the last. Raises ImageError where a checksum is wrong, or the end is
    missing."""
    at, name = len(_PNG), b""
    while name != b"IEND":
        if len(raw) < at + 12:
            raise _truncated(path, "IEND chunk", raw)
        length, name = struct.unpack_from(">I4s", raw, at)
        content = raw[at + 8:at + 8 + length]
        if len(raw) < at + 12 + length:
            raise _truncated(path, "IEND chunk", raw)
        if zlib.crc32(name + content) != struct.unpack_from(">I", raw, at + 8 + length)[0]:
            raise ImageError(f"{path}: chunk {shown(name)} has a wrong checksum; the file is damaged. "
                             "Copy or download it again.")
        yield name, content
        at += 12 + length


def _png_chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def jpeg_header(path: Path, max_bytes: int) -> Header:
    """The header of a JPEG image. Raises ImageError where it is not a grey one, or is damaged."""
    raw = first_bytes(path, min(_METADATA, path.stat().st_size))
    if not raw.startswith(b"\xff\xd8"):
        raise ImageError(f"{path}: content is not JPEG (it starts with {raw[:8]!r}); it must be a JPEG image. "
                         "Convert it, or give it the suffix of its real format.")
    frame = next((content for marker, content in _jpeg_segments(path, raw) if marker in _FRAMES), b"")
    if len(frame) < 10:
        raise _truncated(path, "frame header (SOF)", raw)
    precision, height, width, channels = struct.unpack_from(">BHHB", frame, 4)
    headers.check_channels(path, "channels", channels)
    if precision != 8:
        raise ImageError(f"{path}: precision is {precision} bits; JPEG images of 8 bits are read. Save it as PNG.")
    headers.check_size(path, "size", (width, height), 1, max_bytes)
    return _picture(width, height, lambda: _jpeg_voxels(path, width, height))


def _jpeg_voxels(path: Path, width: int, height: int) -> NDArray[Any]:
    picture, frames, scans = [b"\xff\xd8"], 0, 0
    for marker, content in _jpeg_segments(path, _all_bytes(path, width * height)):
        frames, scans = frames + (marker in _FRAMES), scans + (marker == 0xDA)
        if frames > 1 or scans > _SCANS:
            raise ImageError(f"{path}: it has {frames} frames and {scans} scans; one frame and at most {_SCANS} scans "
                             "are read. Save the picture anew.")
        if marker in (*_FRAMES, *_TABLES, 0xDA):
            picture.append(content)
    return _decoded(path, b"".join(picture) + b"\xff\xd9", (height, width), np.uint8)


def _jpeg_segments(path: Path, raw: bytes) -> Iterator[tuple[int, bytes]]:
    """Markers and bytes of a JPEG's segments, scans with the coded voxels that follow, up to the end marker. Raises
    ImageError where that is missing."""
    at, seen = 2, False
    while at + 4 <= len(raw) and raw[at] == 0xFF:
        marker = raw[at + 1]
        if marker == 0xFF:          # padding
            at += 1
            continue
        end = at + 2 + int.from_bytes(raw[at + 2:at + 4], "big")
        if marker in _OTHER_FRAMES:
            raise ImageError(f"{path}: frame is of kind {marker:#x}; baseline and progressive JPEG are read. "
                             "Save it as PNG.")
        seen |= marker in _FRAMES
        if marker == 0xDA:
            end = _end_of_scan(raw, end)
        if marker == 0xD9 or end > len(raw):
            break
        yield marker, raw[at:end]
        at = end
    if raw[at:at + 2] != b"\xff\xd9":
        raise _truncated(path, "end marker (EOI)" if seen else "frame header (SOF)", raw)


def _end_of_scan(raw: bytes, at: int) -> int:
    """Where the next marker stands that does not belong to coded voxels."""
    while (at := raw.find(b"\xff", at)) >= 0:
        if at + 1 < len(raw) and raw[at + 1] != 0 and not 0xD0 <= raw[at + 1] <= 0xD7:
            return at
        at += 2
    return len(raw) + 1


def _decoded(path: Path, picture: bytes, shape: tuple[int, int], kind: type) -> NDArray[Any]:
    """A picture's voxels."""
    import cv2  # takes a while, and only pictures need it

    with tempfile.TemporaryFile() as said:
        try:
            with silent(said.fileno()):         # the only place where the decoder tells that a JPEG is damaged
                found = cv2.imdecode(np.frombuffer(picture, np.uint8), cv2.IMREAD_UNCHANGED)
        except cv2.error as error:
            raise ImageError(f"{path}: picture cannot be decoded ({shown(error)}). Save it anew.") from None
        said.seek(0)
        if damage := _DAMAGE.search(said.read(_SAID)):
            raise ImageError(f"{path}: picture is damaged ({shown(damage[0].decode('latin-1'))}). "
                             "Copy or download it again.")
    if found is None or found.shape != shape or found.dtype != kind:
        raise ImageError(f"{path}: picture cannot be decoded as one of {shape[1]} x {shape[0]} voxels; the file is "
                         "damaged. Copy or download it again.")
    return np.asarray(found)


def _truncated(path: Path, what: str, raw: bytes) -> ImageError:
    return ImageError(f"{path}: {what} is missing after {len(raw)} bytes; the file is truncated or damaged. "
                      "Copy or download it again.")
