"""What a file's header declares, checked before any voxel is read.

SimpleITK zero-fills truncated NIfTI files, guesses where a spacing is zero or negative, allocates whatever a header
claims and, for some headers, ends the process. So it is never handed a file of ours: the headers are parsed in
:mod:`~regenv.data.io.formats`, checked here, and the voxels are read and counted in
:mod:`~regenv.data.io.formats.streams`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regenv.data.io.errors import ImageError

MAX_BYTES = 2 << 30             # of an image as float32
LEAST_MM, MOST_MM = 1e-7, 1e5   # between voxels: from far below an electron microscope's to a hundred metres
FARTHEST_MM = 1e6               # of an origin: a kilometre
ORTHONORMAL = 1e-3              # by which a direction's columns, rounded in text, may miss length 1 and right angles


@dataclass(frozen=True)
class Header:
    """What a header declares of a scalar image in 2D or 3D, checked.

    Attributes:
        size: voxels per axis, ITK order.
        spacing: mm, ITK order; None where the header has none.
        origin: mm, ITK order.
        direction: cosines, row-major, orthonormal.
        voxels: reads all voxels, of any real type, array order. Raises ImageError unless the file holds exactly what
            the header declares, undamaged.
        spacing_field: the format's own name of the spacing, for messages.
    """

    size: tuple[int, ...]
    spacing: tuple[float, ...] | None
    origin: tuple[float, ...]
    direction: tuple[float, ...]
    voxels: Callable[[], NDArray[Any]]
    spacing_field: str = "spacing"


def check_channels(path: Path, field: str, channels: int) -> None:
    """Raise ImageError unless a voxel has one number."""
    if channels != 1:
        raise ImageError(f"{path}: {field} is {channels}; one intensity per voxel is needed. "
                         "Save one channel, or a grey-value image.")


def check_size(path: Path, field: str, size: Sequence[int], itemsize: int, max_bytes: int) -> None:
    """Raise ImageError unless ``size`` is that of a 2D or 3D image that fits into ``max_bytes`` as float32."""
    shown = " x ".join(map(str, size))
    if any(n < 1 for n in size):
        raise ImageError(f"{path}: {field} is {shown}; every axis needs at least one voxel. Fix the header.")
    if len(size) not in (2, 3):
        raise ImageError(f"{path}: {field} is {shown}, {len(size)}D; a 2D or 3D image is needed. Save one volume.")
    if len(size) == 3 and size[2] == 1:
        raise ImageError(f"{path}: {field} is {shown}, a single slice; a 3D image needs at least two. "
                         "Save the slice as a 2D image (such as PNG or a 2D .mha) and use a 2D id to register it with "
                         "another slice; into a volume, register a slab of several slices.")
    if min(size) == 1:
        raise ImageError(f"{path}: {field} is {shown}; every axis needs at least two voxels. Use a larger image.")
    needed = math.prod(size) * max(4, itemsize)
    if needed > max_bytes:
        raise ImageError(f"{path}: {field} is {shown}, {needed / 2**30:.3g} GiB; the limit is {max_bytes / 2**30:.3g} "
                         "GiB. Crop or downsample the image, or pass max_bytes=... if the header is right.")


def volume_number(path: Path, field: str, size: Sequence[int], times: int, time: int | None) -> int:
    """Which of an image's ``times`` volumes is to be read, from 0.

    Args: size: of the whole image, for messages; time: the caller's choice, None where there is none.
    Raises ImageError: there are several and none is chosen, or the chosen one is not there.
    """
    if time is None and times == 1:
        return 0
    shown = f"{path}: {field} is {' x '.join(map(str, size))}, {times} time{'s' * (times != 1)}"
    if time is None:
        raise ImageError(f"{shown}; one volume is needed. Choose it by time=N (--time N), from 0 to {times - 1}.")
    if isinstance(time, bool) or not isinstance(time, (int, np.integer)) or not 0 <= time < times:
        raise ImageError(f"{shown}; time=N (--time N) is {time!r}, it must be a whole number from 0 to {times - 1}.")
    return int(time)


def is_valid_spacing(spacing: Sequence[float]) -> bool:
    """Whether every spacing is positive, finite and of a size that voxels can have."""
    return all(math.isfinite(s) and LEAST_MM <= s <= MOST_MM for s in spacing)


def check_spacing(path: Path, field: str, spacing: Sequence[float]) -> None:
    """Raise ImageError unless every spacing is positive, finite and of a size that voxels can have."""
    if not is_valid_spacing(spacing):
        raise ImageError(f"{path}: {field} is {tuple(spacing)} mm; every spacing must be positive and finite, from "
                         f"{LEAST_MM:g} to {MOST_MM:g}. Fix it.")


def check_origin(path: Path, field: str, origin: Sequence[float]) -> None:
    """Raise ImageError unless the origin is finite and less than a kilometre away."""
    if not all(math.isfinite(o) and abs(o) <= FARTHEST_MM for o in origin):
        raise ImageError(f"{path}: {field} is {tuple(origin)} mm; it must be finite, and at most {FARTHEST_MM:g} away. "
                         "Fix the header.")


def check_direction(path: Path, field: str, shown: object, direction: NDArray[np.float64]) -> tuple[float, ...]:
    """A direction (D, D), row-major. Raises ImageError, which shows it as it stands in the file, unless its columns
    are orthonormal."""
    n = len(direction)
    with np.errstate(all="ignore"):
        off = np.abs(direction.T @ direction - np.eye(n)).max()
    if not off <= ORTHONORMAL:
        raise ImageError(f"{path}: {field} is {shown}; axes that are singular, scaled or sheared are not supported, "
                         "the direction must be orthonormal. Resample the image, or fix the header.")
    return tuple(direction.ravel().tolist())
