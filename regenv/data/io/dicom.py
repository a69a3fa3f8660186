"""DICOM series: slices that form one regular volume, or an error that names the slice which does not fit.

Every slice is checked by itself in :mod:`~regenv.data.io.dicom_slices` and against the others here, before any voxel is
read; its voxels are rescaled with its own slope and intercept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from regenv.data.io import headers
from regenv.data.io.dicom_pixels import brightness, stored_values
from regenv.data.io.dicom_slices import (
    Slice,
    is_dicom,
    is_directory,
    read_header,
    series_uid,
    slices_of,
)
from regenv.data.io.errors import ImageError
from regenv.data.io.headers import ORTHONORMAL, Header

MAX_FILES = 10_000              # in a folder
_GAP_TOLERANCE = 0.02           # of the usual gap between slices, by which a gap may differ
_PLACE_TOLERANCE = 0.1          # of the least spacing, by which a slice may lie beside its place
_SPACING_TOLERANCE = 1e-4       # relative
_SUFFIXES = (".dcm", ".dicom", ".ima")
_TEXT_BYTES = 1024              # of a file, by which text is told from other content


def read_series(path: Path, given: float | Sequence[float] | None, max_bytes: int) -> Header:
    """A DICOM series: a folder, or one file that holds a whole (multi-frame) volume.

    Voxels are integers where every slope and intercept is an integer, otherwise float32; larger is brighter. Slices
    ascend along the normal of their planes.

    Args:
        given: mm, one number or ITK order (x, y[, z]); x and y stand in for a PixelSpacing that is missing.
        max_bytes: largest image as float32.

    Raises ImageError: no series or several; one slice; or slices that are damaged, doubled, missing, tilted, unevenly
        spaced, without a place, or of different size, spacing or orientation.
    """
    slices: list[Slice] = []
    in_plane = None if given is None else (given,) * 2 if isinstance(given, int | float) else tuple(given)[1::-1]
    for file, dataset in _one_series(path).items():
        for each in slices_of(file, dataset, in_plane, max_bytes):
            slices.append(each)
            _check_alike(slices[0], each)
    if len(slices) == 1:
        raise ImageError(f"{path}: number of slices is 1; a DICOM volume needs at least two. Give the folder of the "
                         "whole series, or save the slice as a 2D image (such as PNG) and use a 2D id.")
    first = slices[0]
    size = (first.pixels.columns, first.pixels.rows, len(slices))
    headers.check_size(path, "size", size, 4, max_bytes)
    normal = np.cross(first.along_rows, first.along_columns)
    slices.sort(key=lambda each: float(each.position @ normal))
    gap = _check_stack(slices, normal)
    spacing, origin = (*first.spacing[::-1], gap), tuple(slices[0].position.tolist())
    headers.check_spacing(path, "spacing", spacing)
    headers.check_origin(path, "ImagePositionPatient", origin)
    direction = np.stack([first.along_rows, first.along_columns, normal], axis=1)
    return Header(size, spacing, origin, tuple(direction.ravel().tolist()), lambda: _volume(slices),
                  "PixelSpacing and slice gap")


# ------------------------------------------------------------------------------------------------------------ files

def _one_series(path: Path) -> dict[Path, Dataset]:
    """The headers of one series' files, by name."""
    if path.is_file():
        if not is_dicom(path):
            raise ImageError(f"{path}: DICOM content cannot be found; the file is damaged or of another format. Copy "
                             "it again, or give it the suffix of its format.")
        return {path: read_header(path)}
    found = {file: read_header(file) for file in _dicom_files(path)}
    if not found:
        raise ImageError(f"{path}: DICOM series found: none. Give a folder that holds one series, or an image file.")
    ids = sorted({series_uid(file, dataset) or "without SeriesInstanceUID" for file, dataset in found.items()})
    if len(ids) > 1:
        raise ImageError(f"{path}: DICOM series found: {len(ids)} ({', '.join(ids[:3])}{', ...' * (len(ids) > 3)}); "
                         "one is needed. Put each series into a folder of its own.")
    return found


def _dicom_files(folder: Path) -> list[Path]:
    """A folder's DICOM files. Others are passed over, unless they can only be damaged slices."""
    files = sorted(file for file in folder.iterdir() if file.is_file())
    if len(files) > MAX_FILES:
        raise ImageError(f"{folder}: number of files is {len(files)}; the limit is {MAX_FILES}. Give the folder of "
                         "one series.")
    found = [file for file in files if is_dicom(file)]
    suffixes = {*_SUFFIXES, *(file.suffix.lower() for file in found)}
    for file in sorted(set(files) - set(found)):
        known = file.name.startswith(".") or file.name == "DICOMDIR"
        if not known and file.suffix.lower() in suffixes and not _is_text(file):
            raise ImageError(f"{file}: DICOM content cannot be found; the file is truncated, damaged or no slice. Copy "
                             "it again, or remove it from the folder.")
    return [file for file in found if not is_directory(file)]


def _is_text(file: Path) -> bool:
    with file.open("rb") as opened:
        head = opened.read(_TEXT_BYTES)
    return bool(head) and not set(head) & {*range(9), *range(14, 27), *range(28, 32)}


# ------------------------------------------------------------------------------------------------- one regular volume

_ALIKE: dict[str, tuple[Callable[[Slice], Any], float]] = {     # what all slices share, within a tolerance
    "Rows x Columns": (lambda each: (each.pixels.rows, each.pixels.columns), 0),
    "PhotometricInterpretation": (lambda each: (1 if each.pixels.inverted else 2,), 0),
    "PixelSpacing": (lambda each: each.spacing, _SPACING_TOLERANCE),
    "ImageOrientationPatient": (lambda each: (*each.along_rows.tolist(), *each.along_columns.tolist()),
                                ORTHONORMAL),
    "presence (0 or 1) of RescaleSlope and RescaleIntercept": (lambda each: tuple(map(int, each.rescaled)), 0),
}


def _check_alike(first: Slice, other: Slice) -> None:
    """Raise ImageError unless a slice has the size, spacing and orientation of the first."""
    for field, (value, tolerance) in _ALIKE.items():
        ours, theirs = value(first), value(other)
        allowed = tolerance * (max(ours, default=1.0) if field == "PixelSpacing" else 1.0)
        if len(ours) != len(theirs) or any(abs(a - b) > allowed for a, b in zip(ours, theirs, strict=True)):
            raise ImageError(f"{other.pixels.path}: {field} is {_short(theirs)}, but {_short(ours)} in {first}; all "
                             "slices must agree. Put other images, such as scouts, into a folder of their own.")


def _short(values: Sequence[float]) -> str:
    return "(" + ", ".join(f"{value:.6g}" for value in values) + ")"


def _check_stack(slices: Sequence[Slice], normal: NDArray[np.float64]) -> float:
    """The mm between slices. Raises ImageError unless they are evenly stacked along ``normal`` (3,)."""
    positions = np.stack([each.position for each in slices])
    steps = np.diff(positions, axis=0)
    gaps = steps @ normal
    typical = float(np.median(gaps))
    uneven = np.abs(gaps - typical) > _GAP_TOLERANCE * typical
    if uneven.any() or typical <= 0:
        at = int(np.abs(gaps - typical).argmax()) if typical > 0 else int(gaps.argmin())
        raise ImageError(f"{slices[at + 1].pixels.path}: ImagePositionPatient has a gap of {gaps[at]:.6g} mm between "
                         f"slices {at + 1} and {at + 2} ({slices[at]}, {slices[at + 1]}), elsewhere {typical:.6g} mm; "
                         "slices are missing, doubled or unevenly spaced. Complete the series, or resample it to even "
                         "slices.")
    gap = float(gaps.mean())
    places = positions[0] + gap * np.arange(len(slices))[:, None] * normal
    beside = np.linalg.norm(positions - places, axis=1)
    if beside.max() > _PLACE_TOLERANCE * min(gap, *slices[0].spacing):
        at = int(beside.argmax())
        raise ImageError(f"{slices[at].pixels.path}: ImagePositionPatient moves {beside[at]:.6g} mm sideways from the "
                         f"first slice to this one ({slices[at]}); tilted gantries are not supported. Resample the "
                         "series to upright slices.")
    return gap


# ----------------------------------------------------------------------------------------------------------- voxels

def _volume(slices: Sequence[Slice]) -> NDArray[Any]:
    """The rescaled voxels of the slices in their order, (slices, rows, columns)."""
    pixels = slices[0].pixels
    volume = np.empty((len(slices), pixels.rows, pixels.columns), _type(slices))
    where: dict[Path, list[int]] = {}
    for index, each in enumerate(slices):
        where.setdefault(each.pixels.path, []).append(index)
    for indices in where.values():
        stored = stored_values(slices[indices[0]].pixels)
        for index in indices:
            each = slices[index]
            values = brightness(each.pixels, stored[each.frame])
            if volume.dtype.kind == "i":
                volume[index] = values.astype(volume.dtype) * int(each.slope) + int(each.intercept)
            else:
                with np.errstate(over="ignore"):        # infinite voxels are an error of every reader
                    volume[index] = values * each.slope + each.intercept
    return volume


def _type(slices: Sequence[Slice]) -> type[np.generic]:
    """The narrowest of int32, int64 and float32 that keeps every value; float32 where a slope is no integer."""
    if not all(each.slope.is_integer() and each.intercept.is_integer() for each in slices):
        return np.float32
    largest = max(abs(each.slope) * 2**each.pixels.bits_stored + abs(each.intercept) for each in slices)
    return np.int32 if largest < 2**31 else np.int64 if largest < 2**62 else np.float32
