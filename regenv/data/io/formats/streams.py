"""The bytes of files: opened only where they are regular files, inflated and counted within what a header declares."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from regenv.data.io.errors import ImageError, shown, too_long, truncated

HEADER_LIMIT = 1 << 20      # bytes of a header
INFLATION = 1032            # bytes that deflate packs into one, at most
GZIP = b"\x1f\x8b"          # a gzip stream begins so
_CHUNK = 1 << 18            # bytes held at a time
_AUTOMATIC = zlib.MAX_WBITS | 32    # zlib looks whether a stream is zlib's or gzip's, and checks its Adler-32 or CRC-32
_TOKEN = 64                 # characters of a number in text


def opened(path: Path) -> BinaryIO:
    """A file, opened. Raises ImageError where the path is a folder, pipe or device, which may never end."""
    if not path.is_file():
        raise ImageError(f"{path}: it is no regular file. Check the path.")
    return path.open("rb")


def first_bytes(path: Path, count: int = HEADER_LIMIT) -> bytes:
    """As much of a file as a header may take."""
    with opened(path) as file:
        return file.read(count)


def plain(file: BinaryIO, count: int | None = None) -> Iterator[bytes]:
    """The rest of a file, or ``count`` bytes of it, piece by piece."""
    left = count
    while piece := file.read(_CHUNK if left is None else min(_CHUNK, left)):
        left = None if left is None else left - len(piece)
        yield piece


def inflated(path: Path, file: BinaryIO, *, rest_ignored: bool = False) -> Iterator[bytes]:
    """The content of the zlib or gzip streams that follow each other in the rest of a file, piece by piece.

    Args: rest_ignored: whether bytes that begin no stream may follow the last one, as gzip has it.
    Raises ImageError: a stream is damaged (its checksum tells) or cut short, or something follows the last one.
    """
    data, first = file.read(_CHUNK), True
    while first or data:
        if not first and not (data := data if len(data) > 1 else data + file.read(_CHUNK)).startswith(GZIP):
            if rest_ignored:
                return
            raise ImageError(f"{path}: compressed data is followed by other bytes; the file is damaged. "
                             "Copy it again, or write the image anew.")
        first, stream = False, zlib.decompressobj(_AUTOMATIC)
        while not stream.eof:
            if not data:
                raise ImageError(f"{path}: compressed data is cut short after {file.tell()} bytes of the file; it is "
                                 "truncated. Copy or download it again.")
            try:
                piece = stream.decompress(data, _CHUNK)
            except zlib.error as error:
                raise ImageError(f"{path}: compressed data is damaged ({error}); copy or download the file "
                                 "again.") from None
            data = (stream.unused_data if stream.eof else stream.unconsumed_tail) or file.read(_CHUNK)
            yield piece


@contextmanager
def unzipped(path: Path) -> Iterator[Iterator[bytes]]:
    """A file's content, piece by piece, inflated where it is gzip. Raises ImageError where the name denies that."""
    with opened(path) as file:
        zipped = file.read(len(GZIP)) == GZIP
        file.seek(0)
        if zipped and not path.name.lower().endswith(".gz"):
            raise ImageError(f"{path}: content is gzip, but the name ends in '{path.suffix}'; rename it to "
                             f"{path.name}.gz.")
        yield inflated(path, file, rest_ignored=True) if zipped else plain(file)


def first_unzipped(path: Path, count: int) -> bytes:
    """The first bytes of a file's content, ``count`` at most."""
    found = b""
    with unzipped(path) as pieces:
        while len(found) < count and (piece := next(pieces, b"")):
            found += piece
    return found[:count]


def filled(path: Path, field: str, pieces: Iterator[bytes], start: int, count: int, most: int,
           after: int = 0) -> NDArray[np.uint8]:
    """``count`` bytes after the first ``start`` ones, and before the last ``after`` ones.

    Args: most: bytes that the pieces can hold at most; nothing is read where these are too few.
    Raises ImageError: the pieces hold fewer or more than all of these.
    """
    total = start + count + after
    if most < total:
        raise truncated(path, field, max(0, most), total)
    content = np.empty(count, np.uint8)
    found = 0
    for piece in pieces:
        if found + len(piece) > total:
            raise too_long(path, field, total)
        part = np.frombuffer(piece, np.uint8)[max(0, start - found):max(0, start + count - found)]
        at = max(0, found - start)
        content[at:at + len(part)] = part
        found += len(piece)
    if found < total:
        raise truncated(path, field, found, total)
    return content


def counted(path: Path, field: str, pieces: Iterator[bytes], count: int) -> None:
    """Raise ImageError unless the pieces hold ``count`` bytes."""
    found = 0
    for piece in pieces:
        found += len(piece)
        if found > count:
            raise too_long(path, field, count)
    if found < count:
        raise truncated(path, field, found, count)


def unzipped_voxels(path: Path, data: Path, start: int, count: int, volume: int = 0,
                    volumes: int = 1) -> NDArray[np.uint8]:
    """One of several volumes of ``count`` bytes, all that a data file's content holds from ``start`` on; ``path`` is
    the header's, for messages."""
    if first_bytes(data, len(GZIP)) != GZIP:
        return raw_voxels(path, data, start, count, volume, volumes)
    with unzipped(data) as pieces:
        return filled(path, "decompressed size", pieces, start + volume * count, count, INFLATION * data.stat().st_size,
                      (volumes - 1 - volume) * count)


def raw_voxels(path: Path, data: Path, start: int, count: int, volume: int = 0,
               volumes: int = 1) -> NDArray[np.uint8]:
    """One of several volumes of ``count`` bytes, all that a data file holds from ``start`` on; ``path`` is the
    header's, for messages."""
    with opened(data) as file:
        found, total = data.stat().st_size - start, volumes * count
        if found > total:
            raise too_long(path, "voxel data", total)
        if found < total:
            raise truncated(path, "voxel data", max(0, found), total)
        file.seek(start + volume * count)
        return filled(path, "voxel data", plain(file, count), 0, count, count)


def text_voxels(path: Path, file: BinaryIO, count: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    """``count`` numbers of a type, written as text. Raises ImageError where there are fewer, more, or other words."""
    parse: Callable[[bytes], Any] = float if dtype.kind == "f" else int
    if (size := os.fstat(file.fileno()).st_size) < count:       # a number takes a character, at least
        raise truncated(path, "file size", size, count)
    numbers, found = np.empty(count, dtype.newbyteorder("=")), 0
    try:
        for words in _words(plain(file)):
            if found + len(words) > count:
                raise ValueError(f"more than {count} numbers")
            numbers[found:found + len(words)] = [parse(word) for word in words]
            found += len(words)
    except (ValueError, OverflowError) as error:
        raise ImageError(f"{path}: voxel data is no text of {count} {dtype.name} numbers ({shown(error)}). "
                         "Fix the header, or write the image anew.") from None
    if found < count:
        raise ImageError(f"{path}: voxel data is {found} numbers, but the header declares {count}; the file is "
                         "truncated. Copy or download it again.")
    return numbers


def _words(pieces: Iterator[bytes]) -> Iterator[list[bytes]]:
    """Words between blanks and commas. Raises ValueError for one that is too long for a number."""
    rest = b""
    for piece in pieces:
        words = (rest + piece).replace(b",", b" ").split()
        rest = words.pop() if words and piece[-1:] not in b", \t\r\n" else b""
        if len(rest) > _TOKEN or any(len(word) > _TOKEN for word in words):
            raise ValueError(f"a word of more than {_TOKEN} characters")
        yield words
    yield [rest] if rest else []


def array_of(content: NDArray[np.uint8], dtype: np.dtype[Any], size: tuple[int, ...]) -> NDArray[Any]:
    """Bytes as an array in the machine's byte order, of a size in ITK order; they are turned in place."""
    array = content.view(dtype).reshape(size[::-1])
    return array if dtype.isnative else array.byteswap(inplace=True).view(dtype.newbyteorder("="))
