"""What a file's header declares, checked before any voxel is read.

SimpleITK zero-fills truncated NIfTI files, guesses where a spacing is zero or negative and allocates whatever a header
claims, all without a word. So the headers are parsed here, in :mod:`~regenv.data.io.formats`, and compared with the
bytes that are really there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from regenv.data.io.errors import ImageError

MAX_BYTES = 2 << 30


@dataclass(frozen=True)
class Header:
    """What a file's header declares.

    Attributes:
        fields: the format's own names of size, channels and spacing, for messages.
        size: voxels per axis, ITK order, without trailing axes of one voxel beyond the third.
        channels: numbers per voxel.
        itemsize: bytes per number.
        spacing: mm, ITK order; None where the format has none.
        check_data: raises ImageError unless the file holds all voxels; called last.
        check_direction: raises ImageError if the direction is singular or, unless a pixel spacing is given, contradicts
            the spacing.
        repair: writes a copy of the file with another spacing to a path; None where a wrong spacing cannot be mended.
    """

    fields: tuple[str, str, str]
    size: tuple[int, ...]
    channels: int
    itemsize: int
    spacing: tuple[float, ...] | None
    check_data: Callable[[], None]
    check_direction: Callable[[bool], None] = lambda spacing_given: None
    repair: Callable[[Path, Sequence[float]], None] | None = None


def check(path: Path, header: Header, *, spacing_given: bool, max_bytes: int = MAX_BYTES) -> None:
    """Raise ImageError unless the header declares a scalar 2D or 3D image of at most ``max_bytes``, and the file holds
    all of it."""
    size_field, channel_field, spacing_field = header.fields
    size = " x ".join(map(str, header.size))
    if any(n < 1 for n in header.size):
        raise ImageError(f"{path}: {size_field} is {size}; every axis needs at least one voxel. Fix the header.")
    if header.channels != 1:
        raise ImageError(f"{path}: {channel_field} is {header.channels}; one intensity per voxel is needed. "
                         "Save one channel, or a grey-value image.")
    check_size(path, size_field, header.size, header.itemsize, max_bytes)
    if header.spacing is not None and not spacing_given:
        check_spacing(path, spacing_field, header.spacing, mendable=header.repair is not None)
    header.check_direction(spacing_given)
    header.check_data()


def check_size(path: Path, field: str, size: Sequence[int], itemsize: int, max_bytes: int) -> None:
    """Raise ImageError unless ``size`` is that of a 2D or 3D image that fits into ``max_bytes`` as float32."""
    shown = " x ".join(map(str, size))
    if len(size) not in (2, 3):
        raise ImageError(f"{path}: {field} is {shown}, {len(size)}D; a 2D or 3D image is needed. Save one time point.")
    if len(size) == 3 and size[2] == 1:
        raise ImageError(f"{path}: {field} is {shown}, a single slice; a 3D image needs at least two. "
                         "Save the slice as a 2D image (such as PNG or a 2D .mha) and use a 2D id.")
    if min(size) == 1:
        raise ImageError(f"{path}: {field} is {shown}; every axis needs at least two voxels. Use a larger image.")
    needed = math.prod(size) * max(4, itemsize)
    if needed > max_bytes:
        raise ImageError(f"{path}: {field} is {shown}, {needed / 2**30:.1f} GiB; the limit is {max_bytes / 2**30:.3g} "
                         "GiB. Crop or downsample the image, or pass max_bytes=... if the header is right.")


def is_valid_spacing(spacing: Sequence[float]) -> bool:
    """Whether every spacing is positive and finite."""
    return all(math.isfinite(s) and s > 0 for s in spacing)


def check_spacing(path: Path, field: str, spacing: Sequence[float], *, mendable: bool = True) -> None:
    """Raise ImageError unless every spacing is positive and finite."""
    if not is_valid_spacing(spacing):
        raise bad_spacing(path, field, spacing, mendable=mendable)


def bad_spacing(path: Path, field: str, spacing: Sequence[float], *, mendable: bool) -> ImageError:
    """The error of a spacing that is not positive and finite, in a header that ``spacing=...`` can mend or not."""
    way_out = "Fix the header, or pass spacing=..." if mendable else "Fix the header."
    return ImageError(f"{path}: {field} is {tuple(spacing)} mm; every spacing must be positive and finite. {way_out}")
