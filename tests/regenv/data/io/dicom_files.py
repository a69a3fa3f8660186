"""A writer of DICOM series of every kind that the reader takes, and of those that it must not take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, CTImageStorage, EnhancedMRImageStorage, ExplicitVRBigEndian, ExplicitVRLittleEndian

SERIES = "1.2.826.0.1.3680043.8.498.1"
UPRIGHT = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0))


def volume(dtype: Any = np.int16, shape: tuple[int, ...] = (5, 16, 12), bits: int | None = None) -> NDArray[Any]:
    """Numbers over the whole range of ``bits`` (default those of the type)."""
    kind = np.dtype(dtype)
    bits = kind.itemsize * 8 if bits is None else bits
    low = -2**(bits - 1) if kind.kind == "i" else 0
    return np.random.default_rng(7).integers(low, low + 2**bits, shape).astype(kind)


def slice_dataset(stored: NDArray[Any], index: int, position: Sequence[float], *,
                  cosines: Sequence[Sequence[float]] = UPRIGHT, spacing: Sequence[float] = (0.8, 0.6),
                  syntax: UID = ExplicitVRLittleEndian, bits_stored: int | None = None, **elements: Any) -> Dataset:
    """One slice; ``elements`` replace its elements, or remove them where the value is None."""
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = syntax
    made.SOPClassUID, made.SOPInstanceUID = CTImageStorage, UID(f"{SERIES}.{index + 1}")
    made.Modality, made.StudyInstanceUID, made.SeriesInstanceUID = "CT", UID("1.2.3"), UID(SERIES)
    made.InstanceNumber = index + 1
    made.ImagePositionPatient = [f"{value:.8g}" for value in position]
    made.ImageOrientationPatient = [f"{value:.10g}" for axis in cosines for value in axis]
    made.PixelSpacing = list(spacing)
    made.SamplesPerPixel, made.PhotometricInterpretation = 1, "MONOCHROME2"
    made.Rows, made.Columns = stored.shape[-2:]
    made.BitsAllocated = stored.dtype.itemsize * 8
    made.BitsStored = made.BitsAllocated if bits_stored is None else bits_stored
    made.HighBit = made.BitsStored - 1
    made.PixelRepresentation = int(stored.dtype.kind == "i")
    order = ">" if syntax == ExplicitVRBigEndian else "<"
    made.PixelData = stored.astype(stored.dtype.newbyteorder(order)).tobytes()
    made["PixelData"].VR = "OB" if made.BitsAllocated == 8 else "OW"
    for keyword, value in elements.items():
        if value is None:
            delattr(made, keyword)
        else:
            setattr(made, keyword, value)
    return made


def save(made: Dataset, path: Path) -> Path:
    made.save_as(path, enforce_file_format=True)
    return path


def write(folder: Path, stored: NDArray[Any], *, gap: float = 2.5, origin: Sequence[float] = (10.0, -5.0, -30.0),
          cosines: Sequence[Sequence[float]] = UPRIGHT, positions: Sequence[Sequence[float]] | None = None,
          each: Mapping[int, Mapping[str, Any]] | None = None, **common: Any) -> Path:
    """A series whose files' names are in no order; ``each``: arguments of single slices."""
    folder.mkdir(parents=True)
    normal = np.cross(*cosines)
    for index, plane in enumerate(stored):
        position = np.asarray(origin) + gap * index * normal if positions is None else positions[index]
        own: dict[str, Any] = {"position": position, "cosines": cosines, **common, **((each or {}).get(index, {}))}
        save(slice_dataset(own.pop("stored", plane), index, **own), folder / name(index))
    return folder


def name(index: int) -> str:
    return f"slice{(index * 7) % 97:03}.dcm"


def multi_frame(stored: NDArray[Any], positions: Sequence[Sequence[float]], slopes: Sequence[float] | None = None,
                **elements: Any) -> Dataset:
    """An enhanced file: spacing and orientation in the shared group, positions and slopes in each frame's own."""
    made = slice_dataset(stored, 0, (0, 0, 0), ImagePositionPatient=None, SOPClassUID=EnhancedMRImageStorage,
                         NumberOfFrames=len(stored))
    shared, measures, orientation = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, orientation.ImageOrientationPatient = made.PixelSpacing, made.ImageOrientationPatient
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [orientation]
    made.SharedFunctionalGroupsSequence = [shared]
    made.PerFrameFunctionalGroupsSequence = []
    for index, position in enumerate(positions):
        frame, place, values = Dataset(), Dataset(), Dataset()
        place.ImagePositionPatient = list(position)
        frame.PlanePositionSequence = [place]
        if slopes is not None:
            values.RescaleSlope, values.RescaleIntercept = slopes[index], -index
            frame.PixelValueTransformationSequence = [values]
        made.PerFrameFunctionalGroupsSequence.append(frame)
    del made.PixelSpacing, made.ImageOrientationPatient
    for keyword, value in elements.items():
        if value is None:
            delattr(made, keyword)
        else:
            setattr(made, keyword, value)
    return made
