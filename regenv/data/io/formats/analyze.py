"""Images in two files, .hdr and .img: Analyze 7.5, as LPBA40 has it, and NIfTI."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from regenv.data.io.errors import ImageError
from regenv.data.io.formats import nifti
from regenv.data.io.formats.streams import first_unzipped, unzipped_voxels
from regenv.data.io.headers import Header

SUFFIXES = (".hdr", ".img", ".img.gz", ".hdr.gz")


def header(path: Path, max_bytes: int, time: int | None) -> Header:
    """The header of an image in two files, plain or .gz, of which ``path`` is either; of one volume if it has several.

    Analyze 7.5 says nothing reliable about scale, origin and direction: they become 1, 0 and the identity.

    Raises:
        ImageError: one of the two is missing; or the header is not one of a scalar image, or is damaged.
    """
    stem = path.name[:-3] if path.name.lower().endswith(".gz") else path.name
    stem = stem.rsplit(".", 1)[0]
    header_file, voxel_file = (_found(path, stem, suffix) for suffix in (".hdr", ".img"))
    image = nifti.parsed(path, first_unzipped(header_file, nifti.HEADER_BYTES), max_bytes, time)
    start = 0
    if image.magic == nifti.TWO_FILES:
        if not (0 <= image.offset <= nifti.OFFSET_LIMIT and image.offset.is_integer()):
            raise ImageError(f"{path}: vox_offset is {image.offset:g}; it must be a place in {voxel_file.name}. "
                             "Fix the header.")
        start = int(image.offset)
    else:
        image = image.without_place()

    def voxels() -> NDArray[Any]:
        return image.scaled(unzipped_voxels(path, voxel_file, start, image.data_bytes, image.volume, image.volumes))

    return image.header(voxels)


def _found(path: Path, stem: str, suffix: str) -> Path:
    """The file of this suffix beside ``path``, plain or .gz."""
    files = [path.with_name(stem + end) for end in (suffix, f"{suffix}.gz", suffix.upper())]
    for file in files:
        if file.is_file():
            return file
    raise ImageError(f"{path}: its {files[0].name} is missing; header and voxels come in two files. Put it beside "
                     "the other.")
