"""Displacement fields: vectors in millimetres on a grid, as ITK has them; and NIfTI files of such."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from regenv.data.io.errors import ImageError, truncated
from regenv.data.io.formats import nifti
from regenv.data.io.formats.streams import first_unzipped, unzipped_voxels
from regenv.data.io.headers import FARTHEST_MM, MAX_BYTES
from regenv.data.io.resampling import framed
from regenv.grid import Grid

VECTOR, DISPLACEMENT = 1007, 1006       # NIfTI's intents: ITK takes the former as LPS, and turns the latter from RAS
_DIM, _INTENT = 40, 68                  # where they stand in a header
_MOST_SLICES = 0x7fff                   # that a header can tell


@dataclass(frozen=True, eq=False)
class Field:
    """The map ``x -> x + vectors(x)`` of world points, linear between voxels; the identity beyond its grid, as in ITK.

    Attributes:
        vectors: (*grid.shape, D) floats, mm, components in ITK order (x, y[, z]), LPS.
        grid: where they lie.
    """

    vectors: NDArray[Any]
    grid: Grid

    @property
    def in_voxels(self) -> NDArray[np.float64]:
        """The displacement in voxels of its grid, (*grid.shape, D), components in array-axis order."""
        return np.asarray(self.vectors @ self.grid.world_to_voxel[:-1, :-1].T, dtype=np.float64)

    def transform(self) -> sitk.DisplacementFieldTransform:
        """As SimpleITK's transform."""
        return sitk.DisplacementFieldTransform(framed(np.ascontiguousarray(self.vectors, np.float64), self.grid))

    @classmethod
    def of(cls, transform: sitk.Transform) -> Field:
        """The field of SimpleITK's transform. Raises RuntimeError: it is no displacement field."""
        image = sitk.DisplacementFieldTransform(transform).GetDisplacementField()
        return cls(sitk.GetArrayFromImage(image), Grid.from_sitk(image))


def checked(path: Path, field: Field) -> Field:
    """A field. Raises ImageError: its vectors are not as many as its grid has dimensions, or are not finite numbers of
    millimetres."""
    n, shape = field.grid.ndim, field.vectors.shape
    if shape != (*field.grid.shape, n):
        raise ImageError(f"{path}: vectors have shape {shape}; a displacement field has {n} numbers in each of "
                         f"{field.grid.shape} voxels. Check where it comes from.")
    if not (np.abs(field.vectors) <= FARTHEST_MM).all():
        raise ImageError(f"{path}: a displacement is infinite, not a number, or more than {FARTHEST_MM:g} mm; all must "
                         "be millimetres. Check where it comes from.")
    return field


def read_nifti_field(path: Path) -> Field:
    """The displacement field in a .nii or .nii.gz file. Raises ImageError: it is none, or damaged.

    ITK reads what it finds of a truncated one, and may read a neighbour of another suffix; this does neither. To the
    parser of scalar images a field is a longer one, whose parts are the components.
    """
    raw = bytearray(first_unzipped(path, nifti.HEADER_BYTES))
    if len(raw) < nifti.HEADER_BYTES:
        raise truncated(path, "header", len(raw), nifti.HEADER_BYTES)
    order = "<" if struct.unpack_from("<i", raw)[0] == nifti.HEADER_BYTES else ">"
    dim, (intent,) = struct.unpack_from(order + "8h", raw, _DIM), struct.unpack_from(order + "h", raw, _INTENT)
    n = dim[5]
    if dim[0] != 5 or dim[4] != 1 or n not in (2, 3) or (n == 2 and dim[3] != 1):
        raise ImageError(f"{path}: dim is {dim[:6]}; a displacement field has (5, x, y, z, 1, 3), in 2D "
                         "(5, x, y, 1, 1, 2). Write it by ITK, SimpleITK or ANTs.")
    if intent not in (VECTOR, DISPLACEMENT):
        raise ImageError(f"{path}: intent is {intent}; a displacement field in mm has {VECTOR} (or {DISPLACEMENT}). "
                         "Write it by ITK, SimpleITK or ANTs.")
    if min(dim[1:n + 1]) < 1 or dim[n] * n > _MOST_SLICES:
        raise ImageError(f"{path}: dim is {dim[:6]}; every axis needs a voxel, and the last one at most "
                         f"{_MOST_SLICES // n}. Fix the header, or resample the field.")
    struct.pack_into(order + "8h", raw, _DIM, n, *dim[1:n], dim[n] * n, *[1] * (7 - n))
    image = nifti.parsed(path, bytes(raw), n * MAX_BYTES)
    if image.magic != nifti.ONE_FILE or not (nifti.HEADER_BYTES <= image.offset <= nifti.OFFSET_LIMIT
                                             and image.offset.is_integer()):
        raise ImageError(f"{path}: magic is {image.magic!r} and vox_offset {image.offset:g}; it must be a NIfTI-1 file "
                         "in one piece. Fix the header.")
    header = image.header(lambda: image.scaled(unzipped_voxels(path, path, int(image.offset), image.data_bytes)))
    grid = Grid(tuple(dim[n:0:-1]), header.spacing or (1.0,) * n, header.origin, header.direction)
    vectors = np.moveaxis(header.voxels().reshape(n, *grid.shape), 0, -1)
    if intent == DISPLACEMENT:
        vectors = vectors * np.array([-1, -1, 1][:n], vectors.dtype)
    return checked(path, Field(vectors, grid))
