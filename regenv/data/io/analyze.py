"""Images in two files, .hdr and .img: Analyze 7.5, as LPBA40 has it, and NIfTI."""

from __future__ import annotations

import gzip
import struct
import tempfile
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from regenv.data.io.errors import ImageError
from regenv.data.io.images import Image

SUFFIXES = (".hdr", ".img", ".img.gz", ".hdr.gz")
_HEADER, _OFFSET = 348, 352     # bytes of a NIfTI header; where the voxels begin if all is in one file
_SCALE, _OFFSET_FIELD, _ORIENTATION, _MAGIC = slice(112, 120), 108, slice(252, 344), slice(344, 348)


def two_files(read: Callable[[Path], Image], path: str | Path) -> Image:
    """Read an image of two files. They are joined to one NIfTI file, which ``read`` opens with all its checks.

    Analyze 7.5 says nothing reliable about origin and direction: they become 0 and the identity.

    Args:
        read: :func:`~regenv.data.io.read_image` or :func:`~regenv.data.io.read_labels`.
        path: either of the two files, plain or .gz.

    Raises:
        ImageError: one of the two is missing or damaged; or as ``read``.
    """
    path = Path(path)
    stem = path.name.removesuffix(".gz").rsplit(".", 1)[0]
    header, voxels = (_content(path, stem, suffix) for suffix in (".hdr", ".img"))
    if len(header) < _HEADER:
        raise ImageError(f"{path}: header is {len(header)} bytes; Analyze and NIfTI have {_HEADER}. Copy the .hdr "
                         "again.")
    one = bytearray(header[:_HEADER])
    if one[_MAGIC] != b"ni1\0":        # Analyze has other fields where NIfTI has scale and orientation
        one[_SCALE], one[_ORIENTATION] = bytes(8), bytes(92)
    order = "<" if struct.unpack_from("<i", one)[0] == _HEADER else ">"
    struct.pack_into(f"{order}f", one, _OFFSET_FIELD, _OFFSET)
    one[_MAGIC] = b"n+1\0"
    with tempfile.TemporaryDirectory() as folder:
        joined = Path(folder) / "joined.nii"
        joined.write_bytes(bytes(one) + bytes(_OFFSET - _HEADER) + voxels)
        try:
            return replace(read(joined), path=str(path))
        except ImageError as error:
            raise ImageError(str(error).replace(str(joined), str(path))) from None


def _content(path: Path, stem: str, suffix: str) -> bytes:
    """The bytes of the file of this suffix beside ``path``, unzipped."""
    plain, zipped = path.with_name(stem + suffix), path.with_name(f"{stem}{suffix}.gz")
    try:
        return plain.read_bytes() if plain.is_file() else gzip.decompress(zipped.read_bytes())
    except FileNotFoundError as error:
        raise ImageError(f"{path}: its {plain.name} is missing; header and voxels come in two files. Put it beside "
                         "the other.") from error
    except (OSError, EOFError, zlib.error) as error:
        raise ImageError(f"{zipped}: gzip stream is damaged ({error}); copy or download the file again.") from error
