"""DICOM series, read through SimpleITK's GDCM, with the checks that GDCM leaves out.

GDCM fills a truncated slice with zeros, takes 1 mm for a missing PixelSpacing, and stacks whatever slices it finds.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from regenv.data.io import headers
from regenv.data.io.errors import ImageError

_SLICE_TOLERANCE = 0.02         # of the slice spacing, by which slices may be off
_MAGIC_AT = 128                 # bytes before "DICM"
_PIXEL_DATA = re.compile(rb"\xe0\x7f\x10\x00(?:O[BW]\x00\x00)?(....)", re.DOTALL)
_UNDEFINED_LENGTH = 0xFFFFFFFF
_END_OF_SEQUENCE = b"\xfe\xff\xdd\xe0"
_UNCHECKED_SYNTAXES = (b"1.2.840.10008.1.2.2\x00", b"1.2.840.10008.1.2.1.99")      # big endian, deflated


def read_series(path: Path, spacing_given: bool, max_bytes: int) -> sitk.Image:
    """A DICOM series: a folder, or one file that holds a whole (multi-frame) volume.

    Raises:
        ImageError: no series or several; one slice; slices missing, doubled, tilted, truncated or without spacing.
        RuntimeError: SimpleITK cannot read a file.
    """
    names = [str(path)] if path.is_file() else _series_files(path)
    reader = sitk.ImageFileReader()
    positions = []
    for name in names:
        reader.SetFileName(name)
        reader.ReadImageInformation()
        _check_slice(name, reader, spacing_given)
        if position := _tag(reader, "0020|0032"):
            positions.append([float(v) for v in position.split("\\")])
        bits = _tag(reader, "0028|0100").strip()
        _check_pixel_data(Path(name), math.prod(reader.GetSize()) * (int(bits) // 8 if bits.isdigit() else 1))
    size = reader.GetSize()
    depth = size[2] if len(size) > 2 and len(names) == 1 else len(names)
    if depth == 1:
        raise ImageError(f"{path}: number of slices is 1; a DICOM volume needs at least two. Give the folder of the "
                         "whole series, or save the slice as a 2D image (such as PNG) and use a 2D id.")
    headers.check_size(path, "size", (*size[:2], depth), 4, max_bytes)
    if len(names) == 1:
        return sitk.ReadImage(names[0])
    normal = np.cross(*np.asarray(reader.GetDirection()).reshape(3, 3).T[:2])
    if len(positions) == len(names):
        _check_stack(path, np.asarray(positions), normal)
    series = sitk.ImageSeriesReader()
    series.SetFileNames(names)
    return series.Execute()


def _series_files(folder: Path) -> list[str]:
    """The files of a folder's one series, in the order of its slices."""
    ids = sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))
    if not ids:
        raise ImageError(f"{folder}: DICOM series found: none. Give a folder that holds one series, or an image file.")
    if len(ids) > 1:
        raise ImageError(f"{folder}: DICOM series found: {len(ids)} ({', '.join(ids[:3])}{', ...' * (len(ids) > 3)}); "
                         "one is needed. Put each series into a folder of its own.")
    names = list(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), ids[0]))
    for path in sorted(set(folder.iterdir()) - set(map(Path, names))):      # GDCM skips what it cannot read
        if path.is_file() and path.name != "DICOMDIR":
            with path.open("rb") as file:
                if file.read(_MAGIC_AT + 4)[_MAGIC_AT:] == b"DICM":
                    raise ImageError(f"{path}: DICOM content cannot be read as a slice of the series; the file is "
                                     "truncated or no image. Copy it again, or remove it from the folder.")
    return names


def _check_slice(name: str, reader: sitk.ImageFileReader, spacing_given: bool) -> None:
    """Raise ImageError unless the file that ``reader`` has opened holds one number per pixel and states its spacing."""
    size = reader.GetSize()
    if reader.GetNumberOfComponents() != 1:
        raise ImageError(f"{name}: SamplesPerPixel is {reader.GetNumberOfComponents()}; one intensity per voxel is "
                         "needed. Use a grey-value series.")
    if spacing_given or (len(size) >= 3 and size[2] != 1):
        return
    stated = _tag(reader, "0028|0030")
    try:
        spacing = [float(v) for v in stated.split("\\")]
    except ValueError:
        spacing = []
    if len(spacing) != 2 or not headers.is_valid_spacing(spacing):
        raise ImageError(f"{name}: PixelSpacing is '{stated.strip()}'; two positive numbers (mm) are needed. "
                         "Fix the tag, or pass spacing=...")


def _check_stack(folder: Path, positions: NDArray[np.float64], normal: NDArray[np.float64]) -> None:
    """Raise ImageError unless the slices at positions (n, 3), mm, are evenly stacked along ``normal`` (3,)."""
    steps = np.diff(positions, axis=0)
    gaps = steps @ normal
    typical = float(np.median(gaps))
    sideways = np.abs(steps - gaps[:, None] * normal).max()
    uneven = np.abs(gaps - typical) > _SLICE_TOLERANCE * abs(typical)
    if uneven.any() or typical == 0:
        at = int(uneven.argmax())
        raise ImageError(f"{folder}: ImagePositionPatient has a gap of {gaps[at]:g} mm between slices {at + 1} and "
                         f"{at + 2}, elsewhere {typical:g} mm; slices are missing, doubled or unevenly spaced. "
                         "Complete the series, or resample it to even slices.")
    if sideways > _SLICE_TOLERANCE * abs(typical):
        raise ImageError(f"{folder}: ImagePositionPatient moves {sideways:g} mm sideways from slice to slice; tilted "
                         "gantries are not supported. Resample the series to upright slices.")


def _tag(reader: sitk.ImageFileReader, key: str) -> str:
    """A tag's text, empty where the file lacks it."""
    return reader.GetMetaData(key) if reader.HasMetaDataKey(key) else ""


def _check_pixel_data(path: Path, needed: int) -> None:
    """Raise ImageError unless the file holds its whole PixelData (7FE0,0010): ``needed`` bytes, or all fragments."""
    raw = path.read_bytes()
    if any(syntax in raw[:1024] for syntax in _UNCHECKED_SYNTAXES):
        return
    for match in _PIXEL_DATA.finditer(raw):     # icons hold a smaller PixelData of their own
        length = int.from_bytes(match.group(1), "little")
        if length == _UNDEFINED_LENGTH:
            if raw.rfind(_END_OF_SEQUENCE) > match.end():
                return
        elif length >= needed and len(raw) >= match.end() + length:
            return
    raise ImageError(f"{path}: PixelData is cut short (file size {len(raw)} bytes, {needed} of voxels); the file is "
                     "truncated. Copy or export it again.")
