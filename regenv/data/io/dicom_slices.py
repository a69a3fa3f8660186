"""What a DICOM file says about its slices, each number checked before it is used; parsed by pydicom."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.config import IGNORE
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_file_meta_info
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    MediaStorageDirectoryStorage,
)

from regenv.data.io import headers
from regenv.data.io.errors import ImageError, shown

HEADER_BYTES = 64 << 20         # within which the pixels must begin
_MAGIC_AT = 128                 # bytes before "DICM"
_FIRST_GROUP = b"\x08\x00"      # that old files without "DICM" begin with
_PIXEL_TAGS = (b"\xe0\x7f\x10\x00", b"\x7f\xe0\x00\x10")      # (7FE0,0010) in either byte order
# Each field and the functional group that holds it in a multi-frame file.
_GROUPS = {"PixelSpacing": "PixelMeasuresSequence", "ImageOrientationPatient": "PlaneOrientationSequence",
           "ImagePositionPatient": "PlanePositionSequence", "RescaleSlope": "PixelValueTransformationSequence",
           "RescaleIntercept": "PixelValueTransformationSequence"}
_TAGS = ["SOPClassUID", "SeriesInstanceUID", "SamplesPerPixel", "PhotometricInterpretation", "NumberOfFrames", "Rows",
         "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", *_GROUPS,
         "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"]


@dataclass(frozen=True)
class Pixels:
    """How a file stores its frames: ``inverted`` is MONOCHROME1, where the least number is white."""

    path: Path
    syntax: UID
    frames: int
    rows: int
    columns: int
    bits_allocated: int
    bits_stored: int
    signed: bool
    inverted: bool


@dataclass(frozen=True)
class Slice:
    """One slice: a whole file, or frame ``frame`` (from 0) of one.

    Attributes:
        spacing: mm between rows, mm between columns.
        along_rows, along_columns: (3,) orthonormal, to the next column and to the next row.
        position: (3,) mm, of the first voxel's centre.
        slope, intercept: value = slope * stored + intercept; ``rescaled``: whether the file states them.
    """

    pixels: Pixels
    frame: int
    spacing: tuple[float, ...]
    along_rows: NDArray[np.float64]
    along_columns: NDArray[np.float64]
    position: NDArray[np.float64]
    slope: float
    intercept: float
    rescaled: tuple[bool, bool]

    def __str__(self) -> str:
        name = self.pixels.path.name
        return name if self.pixels.frames == 1 else f"{name} frame {self.frame + 1}"


def is_dicom(path: Path) -> bool:
    """Whether a file begins as DICOM does."""
    with path.open("rb") as file:
        head = file.read(_MAGIC_AT + 4)
    return head[_MAGIC_AT:] == b"DICM" or head[:2] == _FIRST_GROUP


def is_directory(path: Path) -> bool:
    """Whether a DICOM file is the directory of a medium, usually named DICOMDIR."""
    return path.name == "DICOMDIR" or _stated(path, "MediaStorageSOPClassUID") == MediaStorageDirectoryStorage


def read_header(path: Path) -> Dataset:
    """The elements that matter here, up to the pixels. Raises ImageError: the file is damaged, or has no pixels."""
    with path.open("rb") as file:
        buffer = io.BytesIO(file.read(HEADER_BYTES))
    if _stated(path, "TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
        raise unsupported(path, DeflatedExplicitVRLittleEndian)
    dataset = parsed(path, buffer, _TAGS, stop_before_pixels=True)
    if buffer.read(4) not in _PIXEL_TAGS:
        raise ImageError(f"{path}: PixelData is missing; the file is truncated, damaged or no image. Copy it again, or "
                         "remove it from the folder.")
    return dataset


def parsed(path: Path, source: io.BytesIO | Path, tags: Sequence[str], stop_before_pixels: bool) -> Dataset:
    """The named elements of a file. Raises ImageError: pydicom cannot parse it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return pydicom.dcmread(source, stop_before_pixels=stop_before_pixels, force=True, specific_tags=list(tags))
    except Exception as error:      # of any type: its parser works on whatever the bytes hold
        raise damaged(path, error) from error


def damaged(path: Path, error: Exception) -> ImageError:
    """The error of a file on which a parser fails."""
    reason = shown(error).rstrip(". ") or type(error).__name__
    if isinstance(error, MemoryError):
        reason = "an element claims more bytes than memory has"
    return ImageError(f"{path}: DICOM content cannot be read ({reason}); the file is truncated or damaged. Copy or "
                      "export it again.")


def unsupported(path: Path, syntax: UID) -> ImageError:
    """The error of a compression that is not read here."""
    return ImageError(f"{path}: TransferSyntaxUID is {shown(syntax)} ({shown(syntax.name)}), which is not "
                      "supported. Decompress the series, for example with `gdcmconv --raw` or `dcmdjpeg`.")


def _stated(path: Path, keyword: str) -> Any:
    """An element of the group that follows "DICM" and says how the rest is written; None where there is none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _value(path, read_file_meta_info(path), keyword)
    except InvalidDicomError:       # an old file without "DICM"
        return None
    except ImageError:
        raise
    except Exception as error:
        raise damaged(path, error) from error


# ------------------------------------------------------------------------------------------------- checked elements

def series_uid(path: Path, dataset: Dataset) -> str:
    """SeriesInstanceUID, empty where the file lacks it."""
    return shown(_value(path, dataset, "SeriesInstanceUID") or "").strip()


def slices_of(path: Path, dataset: Dataset, given: tuple[float, ...] | None, max_bytes: int) -> list[Slice]:
    """The slices of one file, in its own order.

    Args: given: mm between rows and columns, where PixelSpacing is missing; max_bytes: largest image as float32.
    Raises ImageError: an element is missing, has another number of values, or is out of range; the file is too big.
    """
    pixels = _pixels(path, dataset)
    size = (pixels.columns, pixels.rows, pixels.frames)
    headers.check_size(path, "size", size if pixels.frames > 1 else size[:2], 4, max_bytes)
    stored = math.prod(size) * pixels.bits_allocated // 8
    if (found := path.stat().st_size) > stored + HEADER_BYTES:
        raise ImageError(f"{path}: file size is {found} bytes, but its voxels take {stored}; the file is damaged. Copy "
                         "or export it again.")
    return [_slice(path, dataset, pixels, frame, given) for frame in range(pixels.frames)]


def _pixels(path: Path, dataset: Dataset) -> Pixels:
    samples = _whole(path, dataset, "SamplesPerPixel", (1, 2**16 - 1), 1)
    if samples != 1:
        raise ImageError(f"{path}: SamplesPerPixel is {samples}; one intensity per voxel is needed. Use a grey-value "
                         "series.")
    photometric = str(_value(path, dataset, "PhotometricInterpretation") or "MONOCHROME2").strip()
    if photometric not in ("MONOCHROME1", "MONOCHROME2"):
        raise ImageError(f"{path}: PhotometricInterpretation is {_shown(photometric)}; MONOCHROME1 or MONOCHROME2 "
                         "is needed. Use a grey-value series.")
    allocated = _whole(path, dataset, "BitsAllocated", (8, 32))
    if allocated not in (8, 16, 32):
        raise ImageError(f"{path}: BitsAllocated is {allocated}; 8, 16 or 32 is needed. Export the series again.")
    stored = _whole(path, dataset, "BitsStored", (1, allocated), allocated)
    _whole(path, dataset, "HighBit", (stored - 1, stored - 1), stored - 1)
    return Pixels(path, _syntax(path, dataset), _whole(path, dataset, "NumberOfFrames", (1, 2**31 - 1), 1),
                  _whole(path, dataset, "Rows", (1, 2**16 - 1)), _whole(path, dataset, "Columns", (1, 2**16 - 1)),
                  allocated, stored, bool(_whole(path, dataset, "PixelRepresentation", (0, 1), 0)),
                  photometric == "MONOCHROME1")


def _syntax(path: Path, dataset: Dataset) -> UID:
    stated = _value(path, dataset.file_meta, "TransferSyntaxUID")
    if stated:
        return UID(str(stated), validation_mode=IGNORE)
    implicit, little = dataset.original_encoding
    return ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian if little else ExplicitVRBigEndian


def _slice(path: Path, dataset: Dataset, pixels: Pixels, frame: int, given: tuple[float, ...] | None) -> Slice:
    found = {keyword: _in_frame(path, dataset, keyword, frame, pixels.frames) for keyword in _GROUPS}
    of = f" of frame {frame + 1}" if pixels.frames > 1 else ""
    spacing = _spacing(path, of, found["PixelSpacing"], given)
    cosines = np.array(_finite(path, "ImageOrientationPatient" + of, found["ImageOrientationPatient"], 6)).reshape(2, 3)
    if np.abs(cosines @ cosines.T - np.eye(2)).max() > headers.ORTHONORMAL:
        raise ImageError(f"{path}: ImageOrientationPatient{of} is {tuple(cosines.ravel().tolist())}; two unit vectors "
                         "at a right angle are needed. Fix the tag, or export the series again.")
    rows = cosines[0] / np.linalg.norm(cosines[0])
    columns = cosines[1] - (cosines[1] @ rows) * rows
    position = np.array(_finite(path, "ImagePositionPatient" + of, found["ImagePositionPatient"], 3))
    slope, intercept = (default if found[keyword] is None else _finite(path, keyword + of, found[keyword], 1)[0]
                        for keyword, default in (("RescaleSlope", 1.0), ("RescaleIntercept", 0.0)))
    if slope == 0:
        raise ImageError(f"{path}: RescaleSlope{of} is 0; another number is needed. Fix the tag, or export the series "
                         "again.")
    return Slice(pixels, frame, spacing, rows, columns / np.linalg.norm(columns), position, slope, intercept,
                 (found["RescaleSlope"] is not None, found["RescaleIntercept"] is not None))


def _spacing(path: Path, of: str, value: Any, given: tuple[float, ...] | None) -> tuple[float, ...]:
    if value is None and given is not None:
        return given
    needed = f"PixelSpacing{of} is {_shown(value)}; two positive numbers (mm) are needed. Fix the tag"
    if value is None:
        raise ImageError(f"{path}: {needed}, or pass spacing=...")
    spacing = _numbers(value)
    if len(spacing) != 2 or not headers.is_valid_spacing(spacing):
        raise ImageError(f"{path}: {needed}.")
    return spacing


def _in_frame(path: Path, dataset: Dataset, keyword: str, frame: int, frames: int) -> Any:
    """The value of a field for one frame, from the first that has it: its own group, the shared one, the file."""
    own = _value(path, dataset, "PerFrameFunctionalGroupsSequence") or []
    shared = _value(path, dataset, "SharedFunctionalGroupsSequence") or []
    if own and len(own) != frames:
        raise ImageError(f"{path}: NumberOfFrames is {frames}, but PerFrameFunctionalGroupsSequence has {len(own)} "
                         "items; the file is damaged. Copy or export it again.")
    for groups in (own[frame:frame + 1], shared[:1]):
        for group in (_value(path, groups[0], _GROUPS[keyword]) if groups else None) or []:
            if (value := _value(path, group, keyword)) is not None:
                return value
    alone = keyword == "ImagePositionPatient" and frames > 1        # one position cannot be that of several frames
    return None if alone else _value(path, dataset, keyword)


def _value(path: Path, dataset: Dataset, keyword: str) -> Any:
    """An element's value; None where it is missing or empty."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value = dataset.get(keyword)
        return None if value is None or value == "" else value
    except Exception as error:      # pydicom converts on access
        raise ImageError(f"{path}: {keyword} cannot be read ({shown(error)}). Fix the tag, or copy or export "
                         "the file again.") from error


def _finite(path: Path, field: str, value: Any, count: int) -> tuple[float, ...]:
    numbers = _numbers(value)
    if len(numbers) != count or not all(map(math.isfinite, numbers)):
        needed = "a finite number is" if count == 1 else f"{count} finite numbers are"
        raise ImageError(f"{path}: {field} is {_shown(value)}; {needed} needed. Fix the tag, or export the series "
                         "again.")
    return numbers


def _numbers(value: Any) -> tuple[float, ...]:
    """The numbers of an element; none where one of its values is no number."""
    several = isinstance(value, Sequence) and not isinstance(value, str | bytes)
    try:
        return tuple(map(float, value if several else [value]))
    except (TypeError, ValueError, OverflowError):
        return ()


def _whole(path: Path, dataset: Dataset, keyword: str, limits: tuple[int, int], default: int | None = None) -> int:
    value = _value(path, dataset, keyword)
    if value is None and default is not None:
        return default
    number = _finite(path, keyword, value, 1)[0]
    if not number.is_integer() or not limits[0] <= number <= limits[1]:
        low, high = limits
        needed = f"{low} is" if low == high else f"a whole number from {low} to {high} is"
        raise ImageError(f"{path}: {keyword} is {number:g}; {needed} needed. Copy or export the file again.")
    return int(number)


def _shown(value: Any) -> str:
    """A value for a message, empty where it is missing."""
    return repr("" if value is None else shown(value))

