"""TIFF pictures in grey: one page, in strips or tiles, plain or compressed without loss.

The tags that make the picture are read and checked here, and so are the places and sizes of its blocks. Tags of
resolution are left aside: they say how to print, and most programs write 72 dots per inch whatever the scale is.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np
from numpy.typing import NDArray

from regenv.data.io import headers
from regenv.data.io.errors import ImageError
from regenv.data.io.formats.streams import INFLATION, filled, inflated, opened
from regenv.data.io.headers import Header

_WIDTH, _LENGTH, _BITS, _COMPRESSION, _PHOTOMETRIC, _FILL_ORDER, _ORIENTATION = 256, 257, 258, 259, 262, 266, 274
_SAMPLES, _ROWS, _STRIPS, _STRIP_BYTES, _PREDICTOR, _FORMAT = 277, 278, 273, 279, 317, 339
_TILE_WIDTH, _TILE_LENGTH, _TILES, _TILE_BYTES, _SUBFILE = 322, 323, 324, 325, 254
_NAMES = {_WIDTH: "ImageWidth", _LENGTH: "ImageLength", _BITS: "BitsPerSample", _COMPRESSION: "Compression",
          _PHOTOMETRIC: "PhotometricInterpretation", _FILL_ORDER: "FillOrder", _ORIENTATION: "Orientation",
          _SAMPLES: "SamplesPerPixel", _ROWS: "RowsPerStrip", _STRIPS: "StripOffsets",
          _STRIP_BYTES: "StripByteCounts", _PREDICTOR: "Predictor", _FORMAT: "SampleFormat",
          _TILE_WIDTH: "TileWidth", _TILE_LENGTH: "TileLength", _TILES: "TileOffsets",
          _TILE_BYTES: "TileByteCounts", _SUBFILE: "NewSubfileType"}
_DEFAULTS = {_BITS: 1, _COMPRESSION: 1, _FILL_ORDER: 1, _ORIENTATION: 1, _SAMPLES: 1, _PREDICTOR: 1, _FORMAT: 1,
             _SUBFILE: 0}
_INTEGERS = {1: "B", 3: "H", 4: "I"}        # types of values that the tags above may have
_CHANNELS = {0: 1, 1: 1, 2: 3, 3: 3, 5: 4, 6: 3, 8: 3}      # of PhotometricInterpretation
_DTYPES = {(1, 1): "u1", (8, 1): "u1", (16, 1): "u2", (32, 1): "u4", (8, 2): "i1", (16, 2): "i2", (32, 2): "i4",
           (32, 3): "f4", (64, 3): "f8"}    # of bits and SampleFormat
_PLAIN, _LZW, _DEFLATE, _PACKBITS = (1,), (5,), (8, 32946), (32773,)
_THUMBNAIL_OR_MASK = 1 | 4                  # NewSubfileType of pages that are not the picture itself
_PAGES, _ENTRIES, _BLOCKS = 4096, 4096, 1 << 20     # at most
Extent = tuple[int, int]                    # bytes of the file, from the first to behind the last


def header(path: Path, max_bytes: int) -> Header:
    """The header of a TIFF picture. Raises ImageError where it is not a grey one of one page, or is damaged."""
    with opened(path) as file:
        pages = list(_pages(path, file))
    full = [page for page in pages if not page.one(_SUBFILE) & _THUMBNAIL_OR_MASK]
    if len(full) != 1:
        raise ImageError(f"{path}: number of pages is {len(full)}; one picture is needed. Save one page as TIFF, or "
                         "the stack as .nii.gz, .mha or .nrrd with its spacing.")
    page = full[0]
    samples = page.one(_SAMPLES)
    headers.check_channels(path, "channels", max(samples, _CHANNELS.get(page.one(_PHOTOMETRIC), 0)))
    for tag, allowed in ((_FILL_ORDER, (1,)), (_ORIENTATION, (1,)), (_PHOTOMETRIC, (0, 1)),
                         (_COMPRESSION, _PLAIN + _LZW + _DEFLATE + _PACKBITS)):
        if page.one(tag) not in allowed:
            page.refuse(tag, f"it must be one of {allowed}. Save the picture upright, and plain or with LZW or "
                             "deflate")
    layout = _layout(page)
    headers.check_size(path, "size", (layout.width, layout.height), layout.dtype.itemsize, max_bytes)
    layout.check(path.stat().st_size, [extent for each in pages for extent in each.extents])
    return Header((layout.width, layout.height), None, (0.0, 0.0), (1.0, 0.0, 0.0, 1.0), layout.voxels)


@dataclass(frozen=True)
class _Page:
    """A page's tags; ``extents`` are the bytes of the file that they take."""

    path: Path
    order: str
    tags: dict[int, tuple[int, ...]]
    extents: tuple[Extent, ...]

    def one(self, tag: int) -> int:
        """A tag's one value. Raises ImageError where it is missing, or has several that differ."""
        values = set(self.tags.get(tag, (_DEFAULTS[tag],) if tag in _DEFAULTS else ()))
        if len(values) != 1:
            self.refuse(tag, "it must be one number")
        return values.pop()

    def refuse(self, tag: int, demand: str) -> NoReturn:
        """Raise ImageError for a tag's value."""
        values = self.tags.get(tag, ("missing",))
        told = values[0] if len(set(values)) == 1 else f"{values[:4]}"
        raise ImageError(f"{self.path}: {_NAMES[tag]} is {told}; {demand}.")


def _pages(path: Path, file: BinaryIO) -> Iterator[_Page]:
    """All pages, in order. Raises ImageError where the file is no TIFF, or its directories are damaged."""
    raw = file.read(8)
    order = {b"II": "<", b"MM": ">"}.get(raw[:2], "")
    if order and len(raw) == 8 and struct.unpack_from(order + "H", raw, 2)[0] == 43:
        raise ImageError(f"{path}: content is BigTIFF; TIFF is needed. Convert it.")
    if not order or len(raw) < 8 or struct.unpack_from(order + "H", raw, 2)[0] != 42:
        raise ImageError(f"{path}: content is not TIFF (it starts with {raw[:4]!r}); it must be a TIFF image. "
                         "Convert it, or give it the suffix of its real format.")
    at, = struct.unpack_from(order + "I", raw, 4)
    seen: set[int] = set()
    while at:
        if at in seen or len(seen) >= _PAGES:
            raise ImageError(f"{path}: its directories of tags lead in a circle, or are more than {_PAGES}. "
                             "Save the picture anew.")
        seen.add(at)
        page, at = _page(path, file, order, at, ((0, 8),) if len(seen) == 1 else ())
        yield page


def _page(path: Path, file: BinaryIO, order: str, at: int, before: tuple[Extent, ...]) -> tuple[_Page, int]:
    """A page, and the place of the next one's directory. Raises ImageError where tags are damaged or out of order."""
    count, = struct.unpack(order + "H", _read(path, file, at, 2))
    if not 1 <= count <= _ENTRIES:
        raise ImageError(f"{path}: a directory of tags has {count} entries. Save the picture anew.")
    raw = _read(path, file, at + 2, 12 * count + 4)
    extents, tags, last = [*before, (at, at + 6 + 12 * count)], {}, -1
    for number in range(count):
        tag, kind, length = struct.unpack_from(order + "HHI", raw, 12 * number)
        if tag <= last:
            raise ImageError(f"{path}: tag {tag} follows tag {last}; tags must rise. The file is damaged, copy or "
                             "download it again.")
        last = tag
        if tag not in _NAMES:
            continue
        if kind not in _INTEGERS or not 1 <= length <= _BLOCKS:
            raise ImageError(f"{path}: {_NAMES[tag]} has {length} values of type {kind}; whole numbers are needed. "
                             "Save the picture anew.")
        code = f"{order}{length}{_INTEGERS[kind]}"
        size, place = struct.calcsize(code), at + 2 + 12 * number + 8
        if size > 4:
            place, = struct.unpack_from(order + "I", raw, 12 * number + 8)
            extents.append((place, place + size))
        tags[tag] = struct.unpack(code, _read(path, file, place, size))
    return _Page(path, order, tags, tuple(extents)), struct.unpack_from(order + "I", raw, 12 * count)[0]


def _read(path: Path, file: BinaryIO, at: int, count: int) -> bytes:
    file.seek(at)
    found = file.read(count)
    if len(found) < count:
        raise ImageError(f"{path}: tags or voxels at byte {at} are {len(found)} bytes, but should be {count}; the file "
                         "is truncated or damaged. Copy or download it again.")
    return found


def _layout(page: _Page) -> _Layout:
    """How the picture is stored. Raises ImageError where the tags say what is not supported, or contradict each
    other."""
    width, height, bits = page.one(_WIDTH), page.one(_LENGTH), page.one(_BITS)
    code = _DTYPES.get((bits, page.one(_FORMAT)))
    if code is None:
        page.refuse(_BITS, f"with SampleFormat {page.one(_FORMAT)} it must be 1, 8, 16 or 32 for whole numbers, 32 or "
                           "64 for floats")
    dtype = np.dtype(page.order + str(code))
    inverted, predictor = page.one(_PHOTOMETRIC) == 0, page.one(_PREDICTOR)
    if inverted and (dtype.kind != "u"):
        page.refuse(_PHOTOMETRIC, "where 0 is white, voxels must be whole numbers without sign")
    whole = (1,) if page.one(_COMPRESSION) in _PLAIN + _PACKBITS or bits == 1 else (1, 2)
    allowed = (1, 3) if dtype.kind == "f" and whole != (1,) else whole
    if predictor not in allowed:
        page.refuse(_PREDICTOR, f"for such voxels it must be one of {allowed}")
    tiled = _TILES in page.tags
    if tiled == (_STRIPS in page.tags):
        page.refuse(_STRIPS, "either strips or tiles must be there")
    across, down = (page.one(_TILE_WIDTH), page.one(_TILE_LENGTH)) if tiled else (
        width, min(page.one(_ROWS) if _ROWS in page.tags else height, height))
    if across < 1 or down < 1:
        page.refuse(_TILE_WIDTH if tiled else _ROWS, "it must be at least 1")
    offsets, sizes = ((_TILES, _TILE_BYTES) if tiled else (_STRIPS, _STRIP_BYTES))
    if sizes not in page.tags or len(page.tags[sizes]) != len(page.tags[offsets]):
        page.refuse(sizes, f"it must have as many numbers as {_NAMES[offsets]}")
    blocks = tuple((start, start + size) for start, size in zip(page.tags[offsets], page.tags[sizes], strict=True))
    return _Layout(page, width, height, dtype, bits, (down, across), tiled, blocks, predictor, inverted)


@dataclass(frozen=True)
class _Layout:
    """How a picture is stored: in blocks of (rows, columns), row by row of blocks; the last strip may be shorter."""

    page: _Page
    width: int
    height: int
    dtype: np.dtype[Any]
    bits: int
    block: tuple[int, int]
    tiled: bool
    places: tuple[Extent, ...]
    predictor: int
    inverted: bool

    @property
    def row_bytes(self) -> int:
        """Of one row of a block."""
        return -(-self.block[1] * self.bits // 8)

    def rows(self, number: int) -> int:
        """Rows that a block has."""
        return self.block[0] if self.tiled else min(self.block[0], self.height - number * self.block[0])

    def check(self, file_bytes: int, taken: list[Extent]) -> None:
        """Raise ImageError unless the blocks are those of the picture, and lie in the file, apart from each other and
        from the tags, whose bytes are ``taken``."""
        path, (down, across) = self.page.path, self.block
        needed = -(-self.height // down) * -(-self.width // across)
        if len(self.places) != needed:
            raise ImageError(f"{path}: number of strips or tiles is {len(self.places)}, but a picture of "
                             f"{self.width} x {self.height} needs {needed}. Save the picture anew.")
        end = 0
        for start, stop in sorted((*self.places, *taken)):
            if start < end or stop <= start or stop > file_bytes:
                raise ImageError(f"{path}: bytes {start} to {stop} of {file_bytes} hold voxels or tags, but lie beyond "
                                 "the end of the file or over others; the file is truncated or damaged. Copy or "
                                 "download it again.")
            end = stop
        if self.page.one(_COMPRESSION) in _PLAIN:
            for number, (start, stop) in enumerate(self.places):
                if stop - start != self.rows(number) * self.row_bytes:
                    raise ImageError(f"{path}: strip or tile {number} is {stop - start} bytes, but "
                                     f"{self.rows(number) * self.row_bytes} are needed. Save the picture anew.")

    def voxels(self) -> NDArray[Any]:
        """All voxels, (height, width). Raises ImageError where compressed data is damaged."""
        out = np.empty((self.height, self.width), self.dtype.newbyteorder("="))
        down, across = self.block
        columns = -(-self.width // across)
        with opened(self.page.path) as file:
            for number, (start, stop) in enumerate(self.places):
                y, x = number // columns * down, number % columns * across
                rows = self._rows(_read(self.page.path, file, start, stop - start), self.rows(number))
                target = out[y:y + down, x:x + across]
                target[...] = rows[:target.shape[0], :target.shape[1]]
        if self.inverted:
            np.subtract(1 if self.bits == 1 else np.iinfo(out.dtype).max, out, out=out)
        return out

    def _rows(self, stored: bytes, rows: int) -> NDArray[Any]:
        """The voxels (rows, columns) of one block."""
        raw = self._expanded(stored, rows * self.row_bytes).reshape(rows, self.row_bytes)
        if self.bits == 1:
            return np.unpackbits(raw, axis=1)
        if self.predictor == 3:     # bytes of one weight stand together, from the highest, as differences
            planes = np.cumsum(raw, axis=1, dtype=np.uint8).reshape(rows, self.dtype.itemsize, -1)
            return np.ascontiguousarray(planes.transpose(0, 2, 1)).view(self.dtype.newbyteorder(">"))[..., 0]
        voxels = raw.view(self.dtype)
        return np.cumsum(voxels, axis=1, dtype=self.dtype.newbyteorder("=")) if self.predictor == 2 else voxels

    def _expanded(self, stored: bytes, count: int) -> NDArray[np.uint8]:
        """The ``count`` bytes of a block."""
        path, compression = self.page.path, self.page.one(_COMPRESSION)
        if compression in _DEFLATE:
            return filled(path, "decompressed strip or tile", inflated(path, BytesIO(stored)), 0, count,
                          INFLATION * len(stored))
        if compression in _PACKBITS:
            return filled(path, "decompressed strip or tile", _unpacked(path, stored), 0, count, 64 * len(stored))
        if compression in _LZW:
            from regenv.data.io.formats.lzw import expand  # compiles, and few pictures need it

            out = np.empty(count, np.uint8)
            if (found := expand(np.frombuffer(stored, np.uint8), out)) != count:
                raise ImageError(f"{path}: LZW data of a strip or tile gives {max(0, found)} bytes, but {count} are "
                                 "needed; the file is damaged. Copy or download it again.")
            return out
        return np.frombuffer(stored, np.uint8)


def _unpacked(path: Path, stored: bytes) -> Iterator[bytes]:
    """Bytes of runs and copies, as PackBits has them."""
    at = 0
    while at < len(stored):
        length = stored[at]
        piece = stored[at + 1:at + 2] * (257 - length) if length > 128 else stored[at + 1:at + 2 + length]
        if length != 128:
            if len(piece) < (257 - length if length > 128 else length + 1):
                raise ImageError(f"{path}: PackBits data of a strip or tile is cut short; the file is damaged. Copy or "
                                 "download it again.")
            yield piece
        at += 1 if length == 128 else 2 if length > 128 else 2 + length
